"""DeepSpeed's ZeRO-2 learns what plain averaging of gradients does; slow, and only where it is installed.

DeepSpeed compiles for minutes when it is used for the first time.

    pytest -m slow tests/system/test_deepspeed.py
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from system.test_killed_process import CONFIG


ROOT = Path(__file__).parents[2]
OPTIONS = ("--max_steps", "6", "--logging_steps", "1", "--ema_decay", "0.9", "--average_checkpoints", "2",
           "--eval_strategy", "steps", "--eval_steps", "3")  # fmt: skip
NAMES = ("loss", "grad_norm", "eval_loss", "eval_bleu")

pytestmark = pytest.mark.slow


def train(profile: str, folder: Path, *options: str, processes: int = 2) -> tuple[int, str]:
    """Exit code and errors of a training in several processes."""
    config = folder.parent / "tiny.yaml"
    config.write_text("".join(line for line in CONFIG.splitlines(True) if not line.startswith("use_cpu")))
    launcher = ("-m", "accelerate.commands.launch", "--quiet", "--config_file", f"configs/accelerate/{profile}.yaml")
    numbers = (
        "--num_processes",
        str(processes),
        "--mixed_precision",
        "no",
        "--main_process_port",
        "0",
        "scripts/train.py",
    )
    command = (sys.executable, *launcher, *numbers, str(config), "--output_dir", str(folder), *OPTIONS, *options)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)
    return done.returncode, done.stderr


def history(folder: Path) -> list[list[float]]:
    """What was logged, row by row: numbers of training or of an evaluation."""
    rows = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [[row[name] for name in NAMES if name in row] for row in rows]


def test_gradients_that_are_sharded_teach_the_same(tmp_path: Path) -> None:
    pytest.importorskip("deepspeed")
    whole, shards, other = (tmp_path / name for name in ("whole", "shards", "other"))
    assert train("ddp_cpu", whole, "--use_cpu", "true")[0] == 0
    code, error = train("deepspeed", shards, "--ddp_backend", "gloo")
    assert code == 0, error[-3000:]
    assert (shards / "checkpoint-6" / "zero_to_fp32.py").is_file(), "DeepSpeed's own checkpoint"
    assert train("ddp_cpu", other, "--use_cpu", "true", "--seed", "7")[0] == 0
    flat, expected, others = (sum(history(folder), []) for folder in (shards, whole, other))
    assert flat == pytest.approx(expected, rel=1e-4) != pytest.approx(others, rel=1e-4)


def test_what_it_would_leave_out_in_silence_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("deepspeed")
    code, error = train("deepspeed", tmp_path / "run", "--use_cpu", "true")
    assert code != 0 and "Accelerate would leave out here" in error
    assert not (tmp_path / "run").exists()
    code, error = train("deepspeed", tmp_path / "run", "--ddp_backend", "gloo", "--muon", "true")
    assert code != 0 and "set muon to false" in error
