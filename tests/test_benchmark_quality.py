"""A peer trains on our text in our subwords, and what it writes comes back as text."""

import json
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
from datasets import Dataset, DatasetDict
from scripts_on_path import SCRIPTS, load_script

from hf_mt.experiment import parse_experiment
from hf_mt.tokenization import get_tokenizer


load_script("benchmarks")
quality = load_script("benchmark_quality")
PAIRS = [("Two dogs run .", "Zwei Hunde laufen ."), ("A man, 25.", "Ein Mann, 25."), ("dogs", "Hunde & Co")] * 20


@pytest.fixture
def corpus() -> DatasetDict:
    rows = [{"translation": {"en": source, "de": target}} for source, target in PAIRS]
    return DatasetDict({split: Dataset.from_list(rows) for split in ("train", "validation", "test")})


@pytest.fixture
def experiment() -> Any:
    return parse_experiment(["--source_lang=en", "--target_lang=de", "--train_file=x", "--vocab_size=60"])


def test_text_survives_the_way_there_and_back(corpus: DatasetDict, experiment: Any, tmp_path: Path) -> None:
    tokenizer = get_tokenizer(corpus, experiment.data, experiment.model, 60)
    quality.write_text(tmp_path, corpus, tokenizer, experiment)
    words = set((tmp_path / "words").read_text("utf-8").split("\n"))
    lines = (tmp_path / "validation.target").read_text("utf-8").split("\n")[:-1]
    assert len(lines) == len(PAIRS) and all(set(line.split(" ")) <= words for line in lines)
    assert quality.read_translations(tmp_path / "validation.target", tokenizer) == [target for _, target in PAIRS]
    assert quality.read_translations(tmp_path / "validation.source", tokenizer) != [target for _, target in PAIRS]


def test_a_subword_has_no_white_space_and_comes_back() -> None:
    words = ["a\u00a0b", "\u202f?", " \u3000", "x"]
    tokenizer = SimpleNamespace(convert_ids_to_tokens=lambda ids: [words[place] for place in ids])
    shown = quality.subwords(tokenizer, range(4))
    assert "\n".join(shown).split() == shown and len(set(shown)) == 4
    back = str.maketrans({stand_in: space for space, stand_in in quality.STAND_INS.items()})
    assert [word.translate(back) for word in shown] == words


def test_candidates_are_scored_on_every_split(corpus: DatasetDict, experiment: Any, tmp_path: Path) -> None:
    tokenizer = get_tokenizer(corpus, experiment.data, experiment.model, 60)
    quality.write_text(tmp_path, corpus, tokenizer, experiment)
    for name, side in (("last", "source"), ("mean_of_5", "target")):
        for split in ("validation", "test"):
            (tmp_path / f"{split}.{name}").write_bytes((tmp_path / f"{split}.{side}").read_bytes())
    (tmp_path / "validation.source").unlink()
    (tmp_path / "validation.target").unlink()
    last, mean = quality.scores(tmp_path, corpus, tokenizer, experiment)
    assert (last["candidate"], mean["candidate"]) == ("last", "mean_of_5")
    assert mean["eval_bleu"] == mean["test_bleu"] == pytest.approx(100) and last["eval_bleu"] < 50


def test_the_report_has_the_difference_of_what_both_have(tmp_path: Path) -> None:
    ours = {"eval_bleu": 40.0, "test_bleu": 41.0, "train_minutes": 59.9}
    text = quality.report(tmp_path, ours, {"candidate": "last", "eval_bleu": 37.5, "test_bleu": 38.0}, 59.9)
    assert "| difference | +2.50 | +3.00 |" in text and "lc_tok" not in text
    config = {"d_model": 8, "encoder_layers": 1, "decoder_layers": 2, "dropout": 0.1, "decoder_attention_heads": 4}
    (tmp_path / "config.json").write_text(json.dumps({**config, "decoder_ffn_dim": 16}))
    assert quality.size_of(tmp_path, 60)["ffn_dim"] == 16


PEER = "onmt onmt.trainer onmt.bin onmt.bin.average_models onmt.bin.train onmt.bin.translate meter train_opennmt"


def test_the_peak_of_the_peer_is_the_published_one_at_its_width_and_falls_beyond(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in PEER.split():  # which is installed in an environment of its own
        monkeypatch.setitem(sys.modules, name, MagicMock())
    program = runpy.run_path(str(SCRIPTS / "benchmarks" / "quality_opennmt.py"))

    def rate(step: int, width: int) -> float:
        """As `noam` of OpenNMT-py gives it."""
        return program["RATE"] * width**-0.5 * min(step**-0.5, step * program["WARMUP"] ** -1.5)

    assert max(rate(step, 128) for step in range(1, 5000)) == rate(2000, 128) == pytest.approx(5e-3)
    assert rate(2000, 512) == pytest.approx(2.5e-3)
