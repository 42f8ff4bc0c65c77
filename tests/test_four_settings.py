"""The settings of the report: planned as described, and compared by what their folders say."""

import json
import re
from pathlib import Path
from typing import Any

import matplotlib.image
import pytest
import torch
from random_models import word_tokenizer
from scripts_on_path import load_script
from transformers import get_scheduler

from hf_mt import InputError, trials
from hf_mt.experiment import parse_experiment
from hf_mt.four_settings import compared_pairs, differences_table, nothing_table, read_finished, scores_table
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


def trained(command: list[str], output: Any) -> int:
    """Stands for `accelerate launch scripts/train.py`."""
    config, *options = command[command.index(next(word for word in command if word.endswith("train.py"))) + 1 :]
    training = parse_experiment([config, *options]).training
    rates = [one_step_rate(training, step) for step in (0, 10)]
    failed = "set4" in config and rates[0] == rates[1] and "--norm_position=pre" not in options
    make_run(Path(training.output_dir), right=0 if failed else 30, loss=6.5 if failed else 1.0)
    return 0


def one_step_rate(training: Any, step: int) -> float:
    """Learning rate after so many of 1,000 steps, as transformers sets it."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=training.learning_rate)
    warmup = training.get_warmup_steps(1000)
    scheduler = get_scheduler(training.lr_scheduler_type, optimizer, warmup, 1000)
    for _ in range(step):
        optimizer.step()
        scheduler.step()
    return scheduler.get_last_lr()[0]


def test_the_script_compares_the_settings_and_the_cures(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setattr(trials, "launch", trained)
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
    for part in ("12.30", "--max_train_samples 300", "says nothing", "set 1 / set 4", "report.png", "a machine"):
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
    assert len(luck) == 3 and max(luck) < 0.05  # set 4 is worse than set 1, and each cure better than set 4
    assert matplotlib.image.imread(tmp_path / "runs" / "report.png").std() > 0


def test_padding_flatters_the_run_that_failed(tmp_path: Path) -> None:
    make_run(tmp_path / "failed", right=0, loss=6.5)
    make_run(tmp_path / "good", right=48, loss=1.0)
    failed, good = (read_finished(tmp_path / name) for name in ("failed", "good"))
    assert failed.counted.bleu_with_padding > 0.1 and good.counted.bleu_with_padding == pytest.approx(1)
    assert failed.counted.bleu < 0.01
    shares = [float(line.split("|")[-2]) for line in nothing_table(failed).splitlines()[2:]]
    assert shares[0] == 0 and shares == sorted(shares) and shares[-1] > 0.1


def test_the_card_has_the_rows_of_the_page(tmp_path: Path) -> None:
    def rows(text: str) -> list[str]:
        return re.findall(r"(?m)^\| (\d+) \| [\d.]+ \| [\d.]+ \| 0\.\d{4} \|$", text)

    make_run(tmp_path / "run", right=0, loss=6.5)
    page = Path(__file__).parents[1] / "model_cards" / "report_en_fr.md"
    assert rows(nothing_table(read_finished(tmp_path / "run"))) == rows(page.read_text("utf-8")) != []


def test_development_accuracy_is_shown_with_its_padding_counted(tmp_path: Path) -> None:
    for name in ("new", "old"):
        make_run(tmp_path / name, right=30, loss=1.0)
    references = ["w4 w5 w6 w7 w8 w9 w10", *["w4"] * 15, "w4 w5", "w4"]  # 8 tokens and 15 of 2, then 3 and 2
    scores = sentence_scores(references, references, references)
    write_sentence_scores(tmp_path / "new" / "eval_scores.tsv", scores)
    word_tokenizer().save_pretrained(tmp_path / "new")
    runs = {name: read_finished(tmp_path / name) for name in ("new", "old")}
    header, _, *rows = (line.split(" | ") for line in scores_table(runs).splitlines())
    column = header.index("development accuracy, padding counted")
    padding = 1 - (8 + 15 * 2 + 3 + 2) / (16 * 8 + 2 * 3)
    assert [row[column - 1] for row in rows] == ["40.0", "40.0"]
    assert [row[column] for row in rows] == [f"{100 * (0.4 * (1 - padding) + padding):.1f}", ""]


def test_each_run_is_compared_with_what_it_should_beat() -> None:
    names = ["set 1", "set 2", "set 4", "set 4, pre-norm", "set 4, warm-up", "recipe"]
    assert list(compared_pairs(names)) == [
        ("set 1", "set 2"), ("set 2", "set 4"), ("set 4", "set 4, pre-norm"), ("set 4", "set 4, warm-up"),
        ("set 1", "recipe"),
    ]  # fmt: skip
    assert list(compared_pairs(["set 3"])) == []


def test_runs_tested_on_different_sentences_are_not_compared(tmp_path: Path) -> None:
    for name in ("one", "other"):
        make_run(tmp_path / name, right=30, loss=1.0)
    runs = {name: read_finished(tmp_path / name) for name in ("one", "other")}
    assert "one / other" in differences_table(runs)
    runs["other"].sentences.pop()
    with pytest.raises(InputError, match="one and other were tested on different sentences"):
        differences_table(runs)


def test_runs_are_planned_as_described() -> None:
    planned = load_script("reproduce_report").planned
    assert list(planned([1, 2, 3, 4], True, None)) == [
        "set 1", "set 2", "set 3", "set 4", "set 4, pre-norm", "set 4, warm-up",
    ]  # fmt: skip
    assert list(planned([1, 2], True, None)) == ["set 1", "set 2"]
    assert planned([2], False, "r.yaml") == {"set 2": ("configs/report/set2.yaml", []), "recipe": ("r.yaml", [])}
    assert planned([2], False, "r.yaml", ["--max_steps=9"])["recipe"] == ("r.yaml", ["--max_steps=9"])


def test_options_of_the_recipe_are_for_it_alone(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    commands: list[list[str]] = []

    def launched(command: list[str], output: Any) -> int:
        commands.append(command)
        return trained(command, output)

    monkeypatch.setattr(trials, "launch", launched)
    words = ["--sets", "1", "--output_dir", str(tmp_path / "runs"), "--test_file", "x", "--seed=3", "--max_steps=50"]
    recipe = ["--recipe", "configs/ted_en_fr.yaml", "--recipe_options", "--max_steps=30 --eval_steps 10"]
    monkeypatch.setattr("sys.argv", ["reproduce_report.py", *words, *recipe])
    load_script("reproduce_report").main()
    one, other = commands
    assert "--max_steps=50" in one and "--eval_steps=10" not in one
    assert {"configs/ted_en_fr.yaml", "--max_steps=30", "--eval_steps=10", "--seed=3"} <= set(other)
    assert "--max_steps=50" not in other


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--recipe_options=--max_steps=30"], "for the recipe of --recipe alone, and none is given"),
        (["--recipe", "configs/ted_en_fr.yaml", "--recipe_options=--max_stpes=30"], "did you mean 'max_steps'"),
        (["--recipe", "configs/ted_en_fr.yaml", "--recipe_options=--output_dir=x"], "--output_dir can't be given"),
        (["--recipe", "configs/ted_en_fr.yaml", "--recipe_options=--run_name 'x"], None),
    ],
)
def test_options_of_the_recipe_are_checked(
    tmp_path: Path, monkeypatch: Any, capsys: Any, options: list[str], message: str | None
) -> None:
    monkeypatch.setattr(trials, "launch", lambda *args, **more: pytest.fail("trained"))
    words = ["--sets", "1", "--output_dir", str(tmp_path / "runs"), "--test_file", "x", *options]
    monkeypatch.setattr("sys.argv", ["reproduce_report.py", *words])
    if message is None:
        with pytest.raises(SystemExit, match="2"):
            load_script("reproduce_report").main()
        assert "No closing quotation" in capsys.readouterr().err
    else:
        with pytest.raises(InputError, match=message):
            load_script("reproduce_report").main()


def test_without_a_test_set_nothing_is_trained(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(trials, "launch", lambda *args, **options: pytest.fail("trained"))
    pairs = str(tmp_path / "pairs")
    words = ["--sets", "1", "--no_cures", "--train_file", pairs, "--validation_file", pairs]
    monkeypatch.setattr("sys.argv", ["reproduce_report.py", *words, "--output_dir", str(tmp_path / "runs")])
    with pytest.raises(InputError, match=r"set1\.yaml: runs are compared on a test set.*--test_file"):
        load_script("reproduce_report").main()
