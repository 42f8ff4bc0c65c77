"""The end of a run: which sentences are kept, by which process."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from datasets import Dataset
from torch import nn

from hf_mt.results import finish
from hf_mt.scores import read_sentence_scores


TEXTS = {"source": ["ein Hund", "zwei\tHunde"], "target": ["a dog", "two\tdogs"]}
TRANSLATIONS = ["a dog", "two cats"]


def finished(folder: Path, *, translations: list[str], should_save: bool = True, has_set: bool = True) -> set[str]:
    """The files that a run without a test set leaves, beside those that the trainer saves itself."""
    trainer: Any = SimpleNamespace(
        eval_dataset=Dataset.from_dict(TEXTS) if has_set else None,
        evaluate=lambda **options: {"eval_loss": 2.0},
        lines=SimpleNamespace(translations=translations),
        signatures={},
        save_model=lambda *args, **options: None,
        save_state=lambda: None,
        state=SimpleNamespace(log_history=[], epoch=1.0, global_step=5),
        model=nn.Linear(2, 2),
        args=SimpleNamespace(world_size=1),
    )
    training = SimpleNamespace(
        output_dir=str(folder), should_save=should_save, tokenized_scores=False, bleu_tokenize="13a", seed=1
    )
    training.num_beams = training.generation_num_beams = 1
    training.length_penalty = 1.0
    finish(trainer, SimpleNamespace(training=training), None)  # type: ignore[arg-type]
    return {path.name for path in folder.iterdir()} if folder.exists() else set()


def test_the_sentences_of_the_last_evaluation_are_kept(tmp_path: Path) -> None:
    found = finished(tmp_path / "run", translations=TRANSLATIONS)
    assert {"eval_scores.tsv", "eval_analysis.json", "all_results.json"} <= found
    rows = read_sentence_scores(tmp_path / "run" / "eval_scores.tsv")
    assert [(row.source, row.hypothesis, row.references[0]) for row in rows] == list(
        zip(TEXTS["source"], TRANSLATIONS, TEXTS["target"], strict=True)
    )


@pytest.mark.parametrize(
    "case",
    [
        {"translations": []},  # predict_with_generate: false
        {"translations": TRANSLATIONS, "should_save": False},  # another process than the first
        {"translations": TRANSLATIONS, "has_set": False},
    ],
)
def test_where_there_is_nothing_to_keep_nothing_is_written(tmp_path: Path, case: dict[str, Any]) -> None:
    assert not {name for name in finished(tmp_path / "run", **case) if name.startswith("eval_")}
