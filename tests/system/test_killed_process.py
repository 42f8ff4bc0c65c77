"""What becomes of a run when one of its processes is killed."""

import os
import runpy
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from test_scripts import tiny


ROOT = Path(__file__).parents[2]
LAUNCH = ("-m", "accelerate.commands.launch", "--quiet", "--config_file", ROOT / "configs/accelerate/ddp_cpu.yaml")
CONFIG = tiny(ema_decay=None, eval_strategy="no", load_best_model_at_end="false", max_steps=None, eval_steps=None)


def worker(launcher: psutil.Process, rank: int) -> psutil.Process:
    """The process of this rank that a launcher started."""
    return next(child for child in launcher.children() if child.environ().get("RANK") == str(rank))


def wait_for(path: Path, launcher: subprocess.Popen, seconds: int = 150) -> None:
    end = time.monotonic() + seconds
    while not path.is_file():
        assert time.monotonic() < end and launcher.poll() is None, f"{path} never came"
        time.sleep(0.05)


def train(*arguments: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trains in this process."""
    monkeypatch.setattr(sys, "argv", ["scripts/train.py", *map(str, arguments)])
    runpy.run_path(str(ROOT / "scripts" / "train.py"), run_name="__main__")


def test_the_others_stop_with_a_message_that_names_it_and_the_run_can_be_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config, folder, log = tmp_path / "tiny.yaml", tmp_path / "run", tmp_path / "log.txt"
    config.write_text(CONFIG)
    options = (config, "--output_dir", folder, "--max_steps")
    command = (sys.executable, *LAUNCH, ROOT / "scripts" / "train.py", *options, 100_000)
    with log.open("w") as out, subprocess.Popen(
        [str(word) for word in command], cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=out, stderr=out
    ) as launcher:  # fmt: skip
        try:
            wait_for(folder / "checkpoint-6" / "trainer_state.json", launcher)
            second = worker(psutil.Process(launcher.pid), rank=1)
            others = psutil.Process(launcher.pid).children(recursive=True)
            assert "SIGKILL" not in log.read_text()
            second.kill()
            code = launcher.wait(timeout=60)
        finally:
            launcher.kill()
    assert code != 0
    message = log.read_text()
    for part in ("Root Cause", "rank      : 1", "exitcode  : -9", f"Signal 9 (SIGKILL) received by PID {second.pid}"):
        assert part in message, message[-3000:]
    assert not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in others)

    last = max(int(path.name.split("-")[1]) for path in folder.glob("checkpoint-*"))
    train(*options, last + 3, "--gradient_accumulation_steps", 2, monkeypatch=monkeypatch)
    assert f"Resuming from {folder / f'checkpoint-{last}'}" in capsys.readouterr().out
    assert (folder / "all_results.json").is_file() and (folder / f"checkpoint-{last + 3}").is_dir()
