"""The settings of the report: planned as described, and compared by what their folders say."""

import json
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import matplotlib.image
import pytest
from scripts_on_path import load_script

from hf_mt import InputError, trials
from hf_mt.four_settings import padding_of_nothing, read_trial
from hf_mt.scores import sentence_scores, write_sentence_scores


REFERENCES = [f"w{row} w{row % 7} w{row % 5} the end of {'a long ' * (row % 6)}talk {row}" for row in range(48)]


def make_run(folder: Path, *, right: int, loss: float) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    outputs = [text if row < right else "the the" for row, text in enumerate(REFERENCES)]
    write_sentence_scores(folder / "test_scores.tsv", sentence_scores(REFERENCES, outputs, REFERENCES))
    start = loss if loss > 3 else 9.0  # a run that fails does not move at all
    log: list[dict[str, Any]] = [
        {"step": 10 * step, "epoch": step / 2, "loss": start - (start - loss) * step / 20, "accuracy": 0.5}
        for step in range(21)
    ]
    log += [{"step": 200, "epoch": 10.0, "eval_loss": loss + 1, "eval_accuracy": 0.4, "eval_bleu": 2.0}]
    results = {
        "test_bleu": 12.3,
        "test_chrf": 30.0,
        "test_perplexity": 44.0,
        "num_parameters": 7,
        "train_minutes": 3.0,
    }
    files = {
        "config.json": {"encoder_layers": 2, "encoder_attention_heads": 8, "d_model": 512, "dropout": 0.1},
        "config_resolved.yaml": {"norm_position": "post", "warmup_steps": 0},
        "trainer_state.json": {"log_history": log, "max_steps": 200},
        "all_results.json": {**results, "epoch": 10.0, "machine": "a machine"},
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))


def trained(command: list[Any], **options: Any) -> CompletedProcess:
    """Stands for `accelerate launch scripts/train.py`."""
    words = dict(word.lstrip("-").split("=", 1) for word in map(str, command) if word.startswith("--") and "=" in word)
    cured = words.get("norm_position") == "pre" or int(words.get("warmup_steps", 0)) > 0
    failed = any("set4" in str(word) for word in command) and not cured
    make_run(Path(words["output_dir"]), right=0 if failed else 30, loss=6.5 if failed else 1.0)
    return CompletedProcess(command, 0)


def test_the_script_compares_the_settings_and_the_cures(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setattr(trials.subprocess, "run", trained)
    words = [
        "--sets",
        "1",
        "4",
        "--output_dir",
        str(tmp_path / "runs"),
        "--max_train_samples",
        "300",
        "--test_file",
        "x",
    ]
    monkeypatch.setattr("sys.argv", ["reproduce_report.py", *words])
    load_script("reproduce_report").main()
    folders = {path.name for path in (tmp_path / "runs").iterdir() if path.is_dir()}
    assert folders == {"set-1", "set-4", "set-4-pre-norm", "set-4-warm-up"}
    text = (tmp_path / "runs" / "report.md").read_text()
    for part in ("12.30", "--max_train_samples 300", "say nothing at all", "set 1, set 4", "a machine"):
        assert part in text
    rows = {
        line.split(" | ")[0].strip("| "): line
        for line in text.splitlines()
        if "| 6.500 |" in line or "| 1.000 |" in line
    }
    assert set(rows) == {"set 1", "set 4", "set 4, pre-norm", "set 4, warm-up"} and "6.500" in rows["set 4"]
    verdicts = [line for line in text.splitlines() if line.startswith("- set")]
    assert [("diverged" in line) for line in verdicts] == [False, True, False, False]
    luck = [float(line.split(" | ")[-1].rstrip(" |")) for line in text.splitlines() if " | bleu | " in line]
    assert luck[0] < 0.05 and luck[2] == 1.0  # set 4 is worse, the two cures are alike
    assert matplotlib.image.imread(tmp_path / "runs" / "report.png").std() > 0


def test_padding_flatters_the_run_that_failed(tmp_path: Path) -> None:
    make_run(tmp_path / "failed", right=0, loss=6.5)
    make_run(tmp_path / "good", right=48, loss=1.0)
    failed, good = (read_trial(tmp_path / name) for name in ("failed", "good"))
    assert failed.counted.bleu_with_padding > 0.1 and good.counted.bleu_with_padding == pytest.approx(1)
    assert "Their BLEU is 0." in padding_of_nothing(failed)


def test_runs_are_planned_as_described() -> None:
    planned = load_script("reproduce_report").planned
    assert list(planned([1, 2, 3, 4], True, None)) == [
        "set 1", "set 2", "set 3", "set 4", "set 4, pre-norm", "set 4, warm-up",
    ]  # fmt: skip
    assert planned([2], False, "r.yaml") == {"set 2": ("configs/report/set2.yaml", []), "recipe": ("r.yaml", [])}


def test_without_a_test_set_nothing_is_trained(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(trials, "train_run", lambda *args, **options: pytest.fail("trained"))
    pairs = str(tmp_path / "pairs")
    words = ["--sets", "1", "--no_cures", "--train_file", pairs, "--validation_file", pairs]
    monkeypatch.setattr("sys.argv", ["reproduce_report.py", *words, "--output_dir", str(tmp_path / "runs")])
    with pytest.raises(InputError, match=r"set1\.yaml: runs are compared on a test set.*--test_file"):
        load_script("reproduce_report").main()
