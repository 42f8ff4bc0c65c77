"""What kills, signals, full disks and second starts do to a training: programs of their own, as users start them."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from test_scripts import run, tiny, write_pairs

from hf_mt.checkpoints import checkpoints, verify_checkpoint


ROOT = Path(__file__).parents[2]
KILLS = 30
KEYS = {
    "dropout": 0.1,
    "max_steps": 200,
    "eval_steps": 4,
    "save_steps": 4,
    "save_total_limit": 2,
    "num_samples_shown": 0,
}
TIMES = {"train_seconds", "target_tokens_per_second", "eval_runtime", "eval_samples_per_second"}
TIMES |= {"eval_steps_per_second", "train_runtime", "train_samples_per_second", "train_steps_per_second"}


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(tiny(**KEYS))
    return path


def command(*words: object) -> list[str]:
    return [sys.executable, *map(str, words)]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def log_of(checkpoint: Path) -> list[dict[str, Any]]:
    """What was logged, without seconds; the summaries at the end of a program, which are of that program, left out."""
    history = json.loads((checkpoint / "trainer_state.json").read_text())["log_history"]
    return [{k: v for k, v in row.items() if k not in TIMES} for row in history if "train_runtime" not in row]


def assert_same_checkpoint(one: Path, other: Path) -> None:
    """Bit for bit: weights, moving average, optimizer, and the losses and scores of every step that led there."""
    for name in ("model.safetensors", "moving_average.safetensors"):
        first, second = load_file(one / name), load_file(other / name)
        assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)
    states = [torch.load(folder / "optimizer.pt", weights_only=True)["state"] for folder in (one, other)]
    for first, second in zip(*(state.values() for state in states), strict=True):
        assert all(torch.equal(first[key], second[key]) for key in first)
    assert log_of(one) == log_of(other)


@pytest.mark.parametrize(
    "changes",
    [{}, pytest.param({"gradient_accumulation_steps": 2, "bpe_dropout": 0.1}, marks=pytest.mark.slow)],
    ids=["plain", "accumulated, cut at random"],
)
def test_a_run_that_is_killed_thirty_times_becomes_the_undisturbed_one(
    changes: dict[str, Any], config: Path, tmp_path: Path
) -> None:
    config.write_text(tiny(**KEYS | changes))
    program = command(ROOT / "tests/system/kill_and_resume.py", config, tmp_path, "--kills", KILLS)
    done = subprocess.run(program, env=environment(), capture_output=True, text=True, timeout=800)
    assert done.returncode == 0, done.stderr[-3000:]
    starts = json.loads(done.stdout)
    codes = [start["code"] for start in starts]
    assert codes == [-signal.SIGKILL] * KILLS + [0], codes  # it was killed each time, and never failed to go on
    assert len({start["place"] for start in starts}) >= 8
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert [path.name for path in checkpoints(whole)] == [path.name for path in checkpoints(killed)]
    for one, other in zip(checkpoints(whole), checkpoints(killed), strict=True):
        assert_same_checkpoint(one, other)
    results = [json.loads((folder / "all_results.json").read_text()) for folder in (whole, killed)]
    assert results[0]["test_bleu"] == results[1]["test_bleu"] and results[0]["eval_loss"] == results[1]["eval_loss"]
    best = json.loads((killed / "trainer_state.json").read_text())["best_model_checkpoint"]
    assert Path(best).is_dir()
    early, late = checkpoints(whole)
    assert log_of(early) != log_of(late)  # control: other checkpoints are told apart


LAUNCH = ["-m", "accelerate.commands.launch", "--quiet", "--config_file"]


@contextmanager
def training(
    config: Path, folder: Path, *options: object, profile: str | None = None
) -> Iterator[subprocess.Popen[str]]:
    """A training as a program, launched by a profile or started directly, past its second checkpoint."""
    launcher = [*LAUNCH, ROOT / "configs/accelerate" / profile] if profile else []
    words = command(*launcher, ROOT / "scripts/train.py", config, "--output_dir", folder, *options)
    program = subprocess.Popen(
        words, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT
    )
    try:
        end = time.monotonic() + 120
        while len(checkpoints(folder)) < 2 and program.poll() is None and time.monotonic() < end:
            time.sleep(0.05)
        assert program.poll() is None, program.communicate()[0]
        yield program
    finally:
        if program.poll() is None:
            program.kill()
            program.communicate()


def test_sigterm_saves_and_a_second_run_is_refused_meanwhile(config: Path, tmp_path: Path, capsys: Any) -> None:
    folder = tmp_path / "run"
    with training(config, folder, "--max_steps", 100_000) as program:
        code, _, err = run("train", config, "--output_dir", folder, "--max_steps", 100_000, capsys=capsys)
        assert code == 2 and "is in use by a training that is running now" in err
        start = time.monotonic()
        program.send_signal(signal.SIGTERM)
        told = program.communicate(timeout=60)[0]
        assert program.returncode == 143 and time.monotonic() - start < 30, told
    last = checkpoints(folder)[-1]
    verify_checkpoint(last)
    step = int(last.name.removeprefix("checkpoint-"))
    assert f"Stopped at step {step}; the same command goes on from there" in told
    code, out, err = run("train", config, "--output_dir", folder, "--max_steps", step + 5, capsys=capsys)
    assert code == 0 and f"Resuming from {last}" in out, err


@pytest.mark.parametrize("profile", ["cpu.yaml", pytest.param("ddp_cpu.yaml", marks=pytest.mark.slow)])
def test_sigterm_for_the_launcher_is_one_for_the_training(
    profile: str, config: Path, tmp_path: Path, capsys: Any
) -> None:
    folder = tmp_path / "run"
    with training(config, folder, "--max_steps", 100_000, profile=profile) as program:
        program.terminate()
        told = program.communicate(timeout=60)[0]  # until all that write to it have ended
    last = checkpoints(folder)[-1]
    verify_checkpoint(last)
    step = int(last.name.removeprefix("checkpoint-"))
    assert f"Stopped at step {step}; the same command goes on from there" in told, told


def test_damage_and_a_changed_config_are_refused_with_the_remedy(config: Path, tmp_path: Path, capsys: Any) -> None:
    folder, start = tmp_path / "run", partial(run, "train", config, "--output_dir", tmp_path / "run", capsys=capsys)
    assert start("--max_steps", 8)[0] == 0
    (folder / "all_results.json").unlink()  # as if it had not come to its end
    older, last = checkpoints(folder)
    optimizer = last / "optimizer.pt"
    optimizer.write_bytes(optimizer.read_bytes()[:-100])
    code, _, err = start("--max_steps", 8)
    assert code == 2 and "optimizer.pt has" in err and f"go on from {older.name}" in err and "Traceback" not in err
    code, _, err = start("--max_steps", 8, "--learning_rate", "3e-3")
    assert code == 2 and "learning_rate: 0.01 -> 0.003" in err
    code, _, err = start("--max_steps", 8, "--max_train_samples", 150)
    assert code == 2 and "max_train_samples: None -> 150" in err
    shutil.rmtree(last)
    code, out, _ = start("--max_steps", 8)
    assert code == 0 and f"Resuming from {older}" in out


def test_other_texts_in_the_same_files_are_refused(config: Path, tmp_path: Path, capsys: Any) -> None:
    words = [write_pairs(tmp_path, name, b"1 2\n3 4 5\n6\n7 8\n" * 9, b"1 2\n3 4 5\n6\n7 8\n" * 9) for name in "td"]
    files = ("--dataset_name", "None", "--source_lang", "en", "--target_lang", "de", "--drop_duplicates", "false")
    files = (*files, "--train_file", words[0], "--validation_file", words[1], "--max_steps", 4)
    start = partial(run, "train", config, *files, "--output_dir", tmp_path / "run", capsys=capsys)
    assert start()[0] == 0
    (tmp_path / "run" / "all_results.json").unlink()
    write_pairs(tmp_path, "t", b"9 9\n3 4 5\n6\n7 8\n" * 9, b"9 9\n3 4 5\n6\n7 8\n" * 9)
    code, _, err = start()
    assert code == 2 and "the sentences of train are other ones" in err, err
