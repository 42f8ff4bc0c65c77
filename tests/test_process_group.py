"""A process of several closes their group before it ends: no thread of it outlives the interpreter."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[1]
# a model wrapped as in training, held by a circle of references as a trainer's is
PROGRAM = """
import sys
from pathlib import Path

import torch
from accelerate import Accelerator

from hf_mt.command_line import run_script


class Trainer:
    def __init__(self):
        self.itself, self.accelerator = self, Accelerator(cpu=True)
        self.model = self.accelerator.prepare(torch.nn.Linear(8, 8))


def main():
    trainer = Trainer()
    trainer.accelerator.backward(trainer.model(torch.randn(4, 8)).sum())
    trainer.accelerator.reduce(torch.ones(1))
    if sys.argv[1] == "exit":
        raise SystemExit(7)
    if sys.argv[1] == "fail":
        raise ZeroDivisionError


status = 0
try:
    main() if sys.argv[1] == "plain" else run_script(main)
except SystemExit as leaving:
    status = leaving.code
except ZeroDivisionError:
    status = "failed"
names = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
sys.stdout.write(f"{status} {names.count('pt_gloo_runloop')}\\n")
"""


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads are counted where Linux lists them")
@pytest.mark.parametrize(
    ("way", "status", "threads"),
    [("return", "0", "0"), ("exit", "7", "0"), ("fail", "failed", "2"), ("plain", "0", "2")],  # the last: the control
)
def test_no_thread_of_the_group_is_left(way: str, status: str, threads: str, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_PORT": "0"}
    launcher = [Path(sys.executable).with_name("accelerate"), "launch", "--quiet", "--config_file"]
    command = [*launcher, ROOT / "configs/accelerate/ddp_cpu.yaml", program, way]
    words = list(map(str, command))
    done = subprocess.run(words, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.stdout.split() == 2 * [status, threads], done.stderr[-3000:]
