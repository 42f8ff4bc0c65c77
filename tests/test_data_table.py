"""Tests of hf_mt.data_table: what it tells of the data."""

import json
from pathlib import Path

import pytest
from datasets import DatasetDict

from hf_mt.arguments import DataArguments
from hf_mt.corpora import toy_corpus
from hf_mt.data import PreparedData, pair_lengths, prepare_data
from hf_mt.data_table import save_data_table, text_digests
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


def test_digests_tell_order_side_and_split() -> None:
    pairs = corpus()
    digests = text_digests(pairs)
    turned = text_digests(DatasetDict(train=pairs["train"].select(range(49, -1, -1))))
    assert len(set(digests.values())) == 3 and digests == text_digests(corpus())
    assert turned["train"] != digests["train"]
