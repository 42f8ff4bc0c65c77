"""Tests of hf_mt.data_table: what it tells, and that a run goes on with the texts it began with."""

import json
from pathlib import Path

import pytest
from datasets import DatasetDict

from hf_mt.arguments import DataArguments
from hf_mt.corpora import toy_corpus
from hf_mt.data import PreparedData, pair_lengths, prepare_data
from hf_mt.data_table import save_data_table, text_digests
from hf_mt.errors import InputError
from hf_mt.tokenization import train_tokenizer


def corpus(seed: int = 1) -> DatasetDict:
    return toy_corpus("copy", sizes={"train": 50, "validation": 5, "test": 7}, seed=seed, max_digits=8)


def prepared(pairs: DatasetDict) -> PreparedData:
    tokenizer = train_tokenizer(["0 1 2 3 4 5 6 7 8 9"], vocab_size=24)
    return prepare_data(pairs, tokenizer, DataArguments(source_lang="src", target_lang="tgt"))


def test_the_table_tells_counts_and_tokens(tmp_path: Path) -> None:
    data = prepared(corpus())
    save_data_table(tmp_path, data, text_digests(corpus()))
    table = json.loads((tmp_path / "data_table.json").read_text())
    lengths = pair_lengths(data.train)
    assert table["train"]["kept"] == len(data.train) and table["test"]["read"] == 7
    assert table["train"]["source_tokens"]["mean"] == pytest.approx(lengths[:, 0].mean(), abs=0.01)
    assert table["train"]["target_tokens"]["max"] == lengths[:, 1].max()
    assert [file.name for file in tmp_path.iterdir()] == ["data_table.json"]


def test_a_run_goes_on_with_its_own_texts_only(tmp_path: Path) -> None:
    save_data_table(tmp_path, prepared(corpus()), text_digests(corpus()))
    other = {**text_digests(corpus()), "validation": text_digests(corpus(2))["validation"]}
    save_data_table(tmp_path, prepared(corpus()), other)  # nothing was learned yet
    save_data_table(tmp_path, prepared(corpus()), text_digests(corpus()))
    (tmp_path / "checkpoint-3").mkdir()
    save_data_table(tmp_path, prepared(corpus()), text_digests(corpus()))
    with pytest.raises(InputError, match="sentences of validation are other ones"):
        save_data_table(tmp_path, prepared(corpus()), other)


def test_a_table_of_an_older_version_has_nothing_to_say(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-3").mkdir()
    (tmp_path / "data_table.json").write_text('{"train": {"read": 5}}')
    save_data_table(tmp_path, prepared(corpus()), text_digests(corpus()))
    assert "digest" in json.loads((tmp_path / "data_table.json").read_text())["train"]


def test_digests_tell_order_side_and_split() -> None:
    pairs = corpus()
    digests = text_digests(pairs)
    turned = text_digests(DatasetDict(train=pairs["train"].select(range(49, -1, -1))))
    assert len(set(digests.values())) == 3 and digests == text_digests(corpus())
    assert turned["train"] != digests["train"]
