"""Runs of one recipe with several seeds: mean and spread in a card, and nothing that is no repetition."""

import json
import sys
from pathlib import Path
from statistics import stdev
from typing import Any

import pytest
import yaml
from scripts_on_path import load_script
from test_model_card import write_run

from hf_mt import InputError
from hf_mt.model_card import write_model_card


def change(path: Path, parse: Any, write: Any, **changes: Any) -> None:
    """A file of keys and values with other values; None takes a key out."""
    values = {**parse(path.read_text()), **changes}
    path.write_text(write({key: value for key, value in values.items() if value is not None}))


def with_settings(run: Path, **changes: Any) -> None:
    change(run / "config_resolved.yaml", yaml.safe_load, yaml.safe_dump, **changes)


def with_results(run: Path, **changes: Any) -> None:
    change(run / "all_results.json", json.loads, json.dumps, **changes)


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    """Three seeds of one recipe, in folders, and with data, of different places."""
    folders = [write_run(tmp_path / f"seed{seed}") for seed in (3, 4, 5)]
    for folder, seed, bleu in zip(folders, (3, 4, 5), (30.0, 31.0, 33.5), strict=True):
        with_settings(folder, seed=seed, output_dir=str(folder), run_name=folder.name, train_file=f"/{seed}/train")
        with_results(folder, seed=seed, test_bleu=bleu)
    return folders


def row_of(card: str, name: str) -> list[str]:
    lines = card.partition("### Seeds")[2].splitlines()
    return next([cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith(f"| {name} |"))


def test_a_card_has_each_seed_with_mean_and_spread(runs: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["model_card.py", str(runs[0]), "--seeds", *map(str, runs[1:])])
    load_script("model_card").main()
    card = (runs[0] / "README.md").read_text()
    assert row_of(card, "Metric")[1:] == ["seed 3", "seed 4", "seed 5", "mean", "standard deviation"]
    expected = ["30.00", "31.00", "33.50", "31.50", f"{stdev((30.0, 31.0, 33.5)):.2f}"]
    assert row_of(card, "BLEU")[1:] == expected and "with 3 seeds, on the test set" in card
    assert row_of(card, "chrF")[1:] == ["48.00"] * 4 + ["0"]
    assert card.index("## Results") < card.index("### Seeds") < card.index("## Samples")
    assert "### Seeds" not in write_model_card(runs[0]).read_text()


def test_a_run_without_a_test_set_has_its_development_scores(runs: list[Path]) -> None:
    for run, bleu in zip(runs, (20.0, 21.0, 22.0), strict=True):
        kept = {key: None for key in json.loads((run / "all_results.json").read_text()) if key.startswith("test_")}
        with_results(run, **kept, eval_bleu=bleu)
    card = write_model_card(runs[0], seeds=runs[1:]).read_text()
    assert row_of(card, "BLEU")[4] == "21.00" and "on the development set" in card


@pytest.mark.parametrize(
    ("settings", "results", "message"),
    [
        ({"learning_rate": 0.001}, {}, r"differ in more than the seed \(learning_rate 0.002 and 0.001\)"),
        ({"max_steps": 70}, {}, "max_steps -1 and 70"),
        ({"num_processes": 2}, {}, "num_processes None and 2"),
        ({"train_file": "/home/somebody/other"}, {}, "train_file train and other"),
        ({"seed": 3}, {}, "the runs have the seeds 3, 3: give each seed once"),
        ({}, {"test_bleu": None}, "has no test_bleu, which .*seed3 has"),
        ({}, {"test_bleu_signature": "version:1"}, "differ in the signatures of test_bleu:"),
    ],
)
def test_what_is_no_repetition_is_refused(
    runs: list[Path], settings: dict[str, Any], results: dict[str, Any], message: str
) -> None:
    with_settings(runs[1], **settings)
    with_results(runs[1], **results)
    with pytest.raises(InputError, match=message):
        write_model_card(runs[0], seeds=runs[1:2])
    assert not (runs[0] / "README.md").exists()
    assert "### Seeds" in write_model_card(runs[0], seeds=runs[2:]).read_text()  # the control


def test_runs_without_scores_are_refused(runs: list[Path]) -> None:
    for run in runs:
        (run / "all_results.json").write_text("{}")
    with pytest.raises(InputError, match="seed3 has no scores; finish that run first"):
        write_model_card(runs[0], seeds=runs[1:])
