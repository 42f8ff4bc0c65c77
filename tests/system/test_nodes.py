"""Two machines, as two launchers of one: they train what two processes of one machine do, into one folder."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from test_scripts import tiny

from hf_mt.checkpoints import checkpoints, verify_checkpoint


ROOT = Path(__file__).parents[2]
LAUNCH = (sys.executable, "-m", "accelerate.commands.launch", "--quiet", "--mixed_precision", "no", "--config_file")
TRAIN = ("scripts/train.py", "--use_cpu", "true", "--cpu_threads", "1")
pytestmark = pytest.mark.slow


def start(log: Path, *words: object) -> subprocess.Popen:
    with log.open("w") as output:
        return subprocess.Popen([str(word) for word in words], cwd=ROOT, stdout=output, stderr=output,
                                env={**os.environ, "OMP_NUM_THREADS": "1"})  # fmt: skip


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def test_two_machines_train_what_two_processes_do(tmp_path: Path) -> None:
    config = tmp_path / "tiny.yaml"
    config.write_text(tiny())
    options = (config, *TRAIN[1:], "--output_dir")
    together = start(
        tmp_path / "two.log", *LAUNCH, "configs/accelerate/ddp_cpu.yaml", TRAIN[0], *options, tmp_path / "two"
    )
    assert together.wait(timeout=300) == 0, (tmp_path / "two.log").read_text()[-3000:]
    several = (
        "--num_machines",
        2,
        "--num_processes",
        2,
        "--main_process_ip",
        "127.0.0.1",
        "--main_process_port",
        free_port(),
    )
    machines = [
        start(tmp_path / f"{rank}.log", *LAUNCH, "configs/accelerate/nodes.yaml", *several, "--machine_rank", rank,
              TRAIN[0], *options, tmp_path / "nodes")
        for rank in (0, 1)
    ]  # fmt: skip
    for rank, machine in enumerate(machines):
        assert machine.wait(timeout=300) == 0, (tmp_path / f"{rank}.log").read_text()[-3000:]
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("two", "nodes")]
    assert weights[0] == weights[1]
    kept = [[path.name for path in checkpoints(tmp_path / name)] for name in ("two", "nodes")]
    assert kept[0] == kept[1] != []
    for path in checkpoints(tmp_path / "nodes"):
        verify_checkpoint(path)
