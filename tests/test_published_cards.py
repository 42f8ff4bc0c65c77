"""Cards in model_cards/ are what the program makes of the records in model_cards/records/, and README quotes them."""

import json
import re
import shutil
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
from huggingface_hub import ModelCard

from hf_mt.model_card import write_model_card


ROOT = Path(__file__).parents[1]
RECORDS = sorted((ROOT / "model_cards" / "records").iterdir())
FIRST_SEEDS = [record for record in RECORDS if "-seed" not in record.name]


def other_seeds(record: Path) -> list[Path]:
    return [other for other in RECORDS if other.name.startswith(f"{record.name}-seed")]


def card_of(record: Path, folder: Path) -> str:
    return write_model_card(record, path=folder / "card.md", seeds=other_seeds(record)).read_text(encoding="utf-8")


def results_of(record: Path) -> dict[str, Any]:
    return json.loads((record / "all_results.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("record", FIRST_SEEDS, ids=lambda record: record.name)
def test_a_card_says_what_its_record_says(record: Path, tmp_path: Path) -> None:
    published = (ROOT / "model_cards" / f"{record.name}.md").read_text(encoding="utf-8")
    assert card_of(record, tmp_path) == published
    metrics = ModelCard(published).data.metrics or []  # none without a test set
    assert len(set(metrics)) == len(metrics) and bool(metrics) == ("test_bleu" in results_of(record))
    changed = Path(shutil.copytree(record, tmp_path / record.name))
    changes = {"test_chrf": 12.345, "eval_chrf": 12.345}
    (changed / "all_results.json").write_text(json.dumps(results_of(record) | changes), encoding="utf-8")
    assert card_of(changed, tmp_path) != published


@pytest.mark.parametrize("record", FIRST_SEEDS, ids=lambda record: record.name)
def test_readme_quotes_the_scores_and_the_minutes(record: Path) -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    quoted = next(line for line in lines if f"(model_cards/{record.name}.md)" in line)
    runs = [results_of(run) for run in (record, *other_seeds(record))]
    scores = [run.get("test_bleu_lc_tok", run.get("test_bleu", run["eval_bleu"])) for run in runs]
    assert {f"{score:.2f}" for score in (*scores, mean(scores))} <= set(re.findall(r"\d+\.\d\d", quoted))
    assert f"{max(run['train_minutes'] for run in runs):.0f} minutes" in quoted


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.name)
def test_a_record_tells_no_place_of_the_machine_and_no_sentence(record: Path) -> None:
    names = {path.name for path in record.iterdir()}
    assert names == {
        "all_results.json", "config.json", "config_resolved.yaml", "data_table.json", "environment.json",
        "trainer_state.json",
    }  # fmt: skip
    places = [re.findall(r"(?<![\w:/.])/\w+/", path.read_text(encoding="utf-8")) for path in record.iterdir()]
    assert not any(places) and re.search(r"(?<![\w:/.])/\w+/", '"train_file": "/home/data/train"')
