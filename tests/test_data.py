"""Filters drop what they say and count it; token ids are complete, and cached by what they are made of."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from datasets import Dataset, DatasetDict
from tokenizers import Tokenizer
from torch.utils.data import DataLoader
from transformers import MarianTokenizer, MBartTokenizer, PreTrainedTokenizerFast

from hf_mt import data as data_module
from hf_mt.arguments import DataArguments
from hf_mt.batching import TokenBatchSampler, TranslationCollator
from hf_mt.data import (
    FilterCounts,
    filter_corpus,
    filter_pairs,
    format_table,
    pair_lengths,
    prepare_data,
    tokenize_pairs,
)
from hf_mt.errors import InputError
from hf_mt.tokenization import train_tokenizer


DATA = DataArguments(source_lang="en", target_lang="de")
WORDS = ("the", "cabin", "runs", "near", "a", "big", "white", "house", "while", "many", "people", "watch", "it")


def pairs(*texts: tuple[str, str]) -> Dataset:
    return Dataset.from_list([{"translation": {"en": source, "de": target}} for source, target in texts])


def sentences(count: int) -> list[tuple[str, str]]:
    rng = np.random.default_rng(0)
    draws = [" ".join(rng.choice(WORDS, rng.integers(1, 15))) for _ in range(count)]
    return [(f"{text}.", f"{text.title()} !") for text in draws]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path / "cache" / "hf_mt"


@pytest.fixture(autouse=True, scope="module")
def quiet() -> Iterator[None]:
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer([text for pair in sentences(200) for text in pair], vocab_size=150)


ODD = pairs(
    ("A dog runs.", "Ein Hund läuft."),
    ("  ", "Leer."),
    ("<url>http://a.b/c</url>", "<url>http://a.b/c</url>"),
    ("A speaker.", '  <speaker href="x" id="3"> Jemand'),
    ("Yes", "Aber selbstverständlich"),
    ("No", "x" * 91),
    ("A dog runs.", "Ein Hund läuft."),
    ("A dog runs.", "Ein Hund rennt."),
    ("1 < 2 and <3", "1 < 2 und <3"),
    ("<3 it", "<3"),
    ("<doc id='1'>", " "),
)


def test_each_filter_drops_and_counts_its_own() -> None:
    kept, counts = filter_pairs(ODD, DATA, split="train")
    assert counts.found == {"empty": 2, "metadata": 2, "length ratio": 1, "duplicate": 1}
    assert [ODD["translation"].index(pair) for pair in kept["translation"]] == [0, 4, 7, 8, 9]
    assert counts.read == sum(counts.found.values()) + counts.kept == len(ODD)
    assert counts.kept == len(kept)


@pytest.mark.parametrize(
    ("change", "kept_too"),
    [
        ({"drop_metadata": False}, {2, 3}),
        ({"drop_duplicates": False}, {6}),
        ({"max_length_ratio": 9.1}, {5}),
    ],
)
def test_without_a_filter_its_pairs_stay(change: dict, kept_too: set[int]) -> None:
    kept, counts = filter_pairs(ODD, replace(DATA, **change), split="train")
    assert len(kept) == 5 + len(kept_too)
    assert [ODD[index] for index in sorted({0, 4, 7, 8, 9} | kept_too)] == list(kept)
    assert counts.kept == len(kept)


def test_development_and_test_data_are_only_counted() -> None:
    filtered, counts = filter_corpus(DatasetDict(train=ODD, test=ODD), DATA)
    assert list(filtered["test"]) == list(ODD) and len(filtered["train"]) < len(ODD)
    assert counts[1] == FilterCounts("test", 11, {"empty": 2, "metadata": 2, "length ratio": 1}, 11)


def test_table_of_counts() -> None:
    counts = [
        FilterCounts("train", 12000, {"empty": 3, "duplicate": 40}, 11957),
        FilterCounts("test", 9, {"empty": 2}, 9),
    ]
    assert format_table(counts).splitlines() == [
        "split    read  empty  duplicate    kept",
        "train  12,000      3         40  11,957",
        "test        9    (2)          -       9",
    ]


def test_nothing_left_is_an_error_with_the_table() -> None:
    with pytest.raises(InputError, match="No training pair is left(.|\n)*empty(.|\n)*train +1 +1"):
        filter_pairs(pairs(("", "x")), DATA, split="train")
    assert len(filter_pairs(pairs(("", "x")), DATA, split="test")[0]) == 1


def test_token_ids_are_those_of_the_texts(tokenizer: PreTrainedTokenizerFast) -> None:
    corpus = pairs(*sentences(20))
    tokenized, counts = tokenize_pairs(corpus, tokenizer, replace(DATA, source_prefix="to: "), split="train")
    assert tokenized.column_names == ["input_ids", "labels", "length"] and counts.found == {"too long": 0}
    for row, (source, target) in zip(tokenized, sentences(20), strict=True):
        assert row["input_ids"] == tokenizer(f"to: {source}")["input_ids"] != tokenizer(source)["input_ids"]
        assert row["labels"] == tokenizer(target)["input_ids"] and row["labels"][-1] == 2
        assert row["length"] == max(len(row["input_ids"]), len(row["labels"]))
    lengths = [(len(row["input_ids"]), len(row["labels"])) for row in tokenized]
    assert pair_lengths(tokenized).tolist() == [list(pair) for pair in lengths]
    assert pair_lengths(tokenized.select([3, 1])).tolist() == [list(lengths[3]), list(lengths[1])]


def test_too_long_pairs_leave_training_only(tokenizer: PreTrainedTokenizerFast) -> None:
    corpus = pairs(*sentences(100))
    everything = pair_lengths(tokenize_pairs(corpus, tokenizer, DATA, split="train")[0])
    data = replace(DATA, max_source_length=10, max_target_length=14)
    fits = (everything <= (10, 14)).all(axis=1)
    train, counts = tokenize_pairs(corpus, tokenizer, data, split="train")
    assert 0 < counts.found["too long"] == 100 - counts.kept == (~fits).sum()
    assert pair_lengths(train).tolist() == everything[fits].tolist()
    test, counts = tokenize_pairs(corpus, tokenizer, data, split="test")
    assert counts == FilterCounts("test", 100, {"too long": int((~fits).sum())}, 100) and len(test) == 100
    with pytest.raises(InputError, match="too long(.|\n)*max_source_length"):
        tokenize_pairs(corpus, tokenizer, replace(DATA, max_source_length=1), split="train")


def without_last_merge(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    state = json.loads(tokenizer._tokenizer.to_str())
    state["model"]["merges"].pop()
    names = {name: getattr(tokenizer, name) for name in ("pad_token", "bos_token", "eos_token", "unk_token")}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(state)), **names)


def test_cache_is_keyed_by_content(tokenizer: PreTrainedTokenizerFast, cache: Path) -> None:
    texts = sentences(30)

    def is_read_from_cache(corpus: Dataset, tokenizer: PreTrainedTokenizerFast = tokenizer, data=DATA) -> bool:
        before = len(list(cache.glob("*")))
        tokenized, _ = tokenize_pairs(corpus, tokenizer, data, split="test")
        expected = tokenizer([data.source_prefix + pair["en"] for pair in corpus["translation"]])["input_ids"]
        assert tokenized[:]["input_ids"] == expected
        return len(list(cache.glob("*"))) == before

    assert not is_read_from_cache(pairs(*texts))
    assert is_read_from_cache(pairs(*texts))
    assert is_read_from_cache(pairs(*reversed(texts)).select(range(29, -1, -1)))
    assert is_read_from_cache(pairs(*texts), data=replace(DATA, max_source_length=3))
    tokenizer(["a", "the house"], padding=True, truncation=True, max_length=3)
    assert is_read_from_cache(pairs(*texts))

    assert not is_read_from_cache(pairs(*texts[:-1], (texts[-1][0] + "!", texts[-1][1])))
    assert not is_read_from_cache(pairs(*texts[:-1], (texts[-1][0], texts[-1][1] + "!")))
    assert not is_read_from_cache(pairs(*reversed(texts)))
    assert not is_read_from_cache(pairs(*texts), data=replace(DATA, source_prefix="x "))
    assert not is_read_from_cache(pairs(*texts), without_last_merge(tokenizer))


def test_cached_ids_are_not_made_again(tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch) -> None:
    encode, calls = data_module._encode_batch, []
    monkeypatch.setattr(data_module, "_encode_batch", lambda batch, **kw: calls.append(1) or encode(batch, **kw))
    for texts, number in ((sentences(9), 1), (sentences(9), 1), (sentences(8), 2)):
        tokenize_pairs(pairs(*texts), tokenizer, DATA, split="test")
        assert len(calls) == number


def test_workers_change_nothing(tokenizer: PreTrainedTokenizerFast, cache: Path, monkeypatch) -> None:
    corpus = pairs(*sentences(40))
    alone = tokenize_pairs(corpus, tokenizer, DATA, split="train")[0]
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache / "other")
    shared = tokenize_pairs(corpus, tokenizer, replace(DATA, preprocessing_num_workers=2), split="train")[0]
    assert list(alone) == list(shared) and len(list((cache / "other" / "hf_mt").glob("*"))) == 2


def test_targets_are_tokenised_as_targets(tmp_path: Path) -> None:
    """Marian has a model for each side."""
    spm = pytest.importorskip("sentencepiece")
    for name, texts in (("source", [s for s, _ in sentences(99)]), ("target", [t for _, t in sentences(99)])):
        with (tmp_path / f"{name}.spm").open("wb") as file:
            spm.SentencePieceTrainer.train(
                sentence_iterator=iter(texts), model_writer=file, vocab_size=60, hard_vocab_limit=False, minloglevel=2
            )
    sides = [spm.SentencePieceProcessor(str(tmp_path / f"{name}.spm")) for name in ("source", "target")]
    pieces = dict.fromkeys(["</s>", "<unk>", *(side.id_to_piece(i) for side in sides for i in range(3, len(side)))])
    (tmp_path / "vocab.json").write_text(json.dumps({p: i for i, p in enumerate([*pieces, "<pad>"])}))
    marian = MarianTokenizer(*(str(tmp_path / name) for name in ("source.spm", "target.spm", "vocab.json")))
    rows = tokenize_pairs(pairs(*sentences(9)), marian, DATA, split="test")[0]
    for row, (_, target) in zip(rows, sentences(9), strict=True):
        assert marian.convert_ids_to_tokens(row["labels"]) == [*sides[1].encode(target, out_type=str), "</s>"]
        assert row["labels"] != marian(target)["input_ids"], "the source's model gives other pieces"


def test_end_of_sentence_is_there_once(tokenizer: PreTrainedTokenizerFast) -> None:
    vocabulary = [(piece, -float(i)) for i, piece in enumerate(["<s>", "<pad>", "</s>", "<unk>", "▁", "a"])]
    mbart = MBartTokenizer(vocab=vocabulary, src_lang="en_XX", tgt_lang="de_DE")
    row = tokenize_pairs(pairs(("a", "a")), mbart, DATA, split="test")[0][0]
    assert mbart.convert_ids_to_tokens(row["input_ids"])[-2:] == ["</s>", "en_XX"]
    assert mbart.convert_ids_to_tokens(row["labels"])[-2:] == ["</s>", "de_DE"]
    endless = without_last_merge(tokenizer)
    endless._tokenizer.post_processor = None
    assert endless("house")["input_ids"][-1] != 2
    row = tokenize_pairs(pairs(("house", "")), endless, DATA, split="test")[0][0]
    assert row["input_ids"] == [*endless("house")["input_ids"], 2] and row["labels"] == [2]


def test_dropout_cuts_training_text_in_several_ways(tokenizer: PreTrainedTokenizerFast) -> None:
    corpus = DatasetDict(train=pairs(*sentences(60)), validation=pairs(*sentences(20)))
    data = replace(DATA, bpe_dropout=0.3, bpe_dropout_samples=3, drop_duplicates=False)
    plain, dropped = (prepare_data(corpus, tokenizer, d) for d in (replace(data, bpe_dropout=0.0), data))
    assert len(dropped.train) == len(plain.train) == 60
    rows = [dropped.train[index] for index in range(180)]
    ways = [[row["input_ids"] for row in rows[start : start + 60]] for start in (0, 60, 120)]
    assert ways[0] != ways[1] != ways[2] != ways[0] != plain.train[:]["input_ids"]
    assert sum(len(row["labels"]) for row in rows) > 3 * sum(map(len, plain.train[:]["labels"]))
    for row, (source, _) in zip(rows, 3 * sentences(60), strict=True):
        assert tokenizer.decode(row["input_ids"], skip_special_tokens=True) == source and row["input_ids"][-1] == 2
        assert row["length"] == max(len(row["input_ids"]), len(row["labels"]))
    lengths = pair_lengths(dropped.train)
    assert lengths.reshape(-1, 2).tolist() == [[len(row["input_ids"]), len(row["labels"])] for row in rows]
    assert dropped.validation[:] == plain.validation[:]
    assert tokenizer._tokenizer.model.dropout is None
    assert dropped.tokens["train"]["source"].mean == round(float(lengths[..., 0].mean()), 2)
    assert sum(dropped.tokens["train"]["source"].histogram) == pytest.approx(60, abs=3)  # pairs, not ways to cut them
    with pytest.raises(IndexError):
        dropped.train[180]


def test_dropout_of_many_digits_has_a_name_that_datasets_takes(tokenizer: PreTrainedTokenizerFast) -> None:
    corpus = DatasetDict(train=pairs(*sentences(40)))
    data = replace(DATA, bpe_dropout=0.123456789012345678, bpe_dropout_samples=2, preprocessing_num_workers=2)
    assert len(prepare_data(corpus, tokenizer, data).train) == 40


def test_what_dropout_drew_is_kept_for_the_next_run(tokenizer: PreTrainedTokenizerFast) -> None:
    corpus = DatasetDict(train=pairs(*sentences(60)))

    def cuts(**changes: Any) -> list[list[int]]:
        data = replace(DATA, bpe_dropout=0.3, bpe_dropout_samples=2, **changes)
        train = prepare_data(corpus, tokenizer, data).train
        return [train[index]["input_ids"] for index in range(2 * len(train))]

    first = cuts()
    assert cuts() == first
    assert cuts(max_source_length=DATA.max_source_length + 1) != first  # drawn by themselves


def test_dropout_respects_maximum_lengths_and_needs_merges(tokenizer: PreTrainedTokenizerFast) -> None:
    texts = sentences(60)
    corpus = pairs(*texts)
    longest = pair_lengths(tokenize_pairs(corpus, tokenizer, DATA, split="train")[0]).max(axis=0)
    data = replace(DATA, bpe_dropout=0.5, max_source_length=int(longest[0]), max_target_length=int(longest[1]))
    unlimited = pair_lengths(tokenize_pairs(corpus, tokenizer, replace(DATA, bpe_dropout=0.5), split="train")[0])
    limited = pair_lengths(tokenize_pairs(corpus, tokenizer, data, split="train")[0])
    assert (unlimited.max(axis=(0, 1)) > longest).any()
    assert (limited.max(axis=(0, 1)) <= longest).all()
    unigram = train_tokenizer([text for pair in texts for text in pair], vocab_size=100, tokenizer_type="unigram")
    with pytest.raises(InputError, match="bpe_dropout is 0.5, but the tokenizer's model is Unigram"):
        tokenize_pairs(corpus, unigram, data, split="train")


def test_prepared_data(tokenizer: PreTrainedTokenizerFast) -> None:
    odd = [("", "Leer."), ("the Ω house", "Ω"), *sentences(10)]
    corpus = DatasetDict(train=pairs(*sentences(150), *sentences(150)), test=pairs(*odd))
    prepared = prepare_data(corpus, tokenizer, DATA)
    assert prepared.validation is None and len(prepared.test) == 12
    assert list(zip(prepared.sources["test"], prepared.references["test"], strict=True)) == odd
    assert prepared.counts[0].found["duplicate"] >= 150 and len(prepared.train) == prepared.counts[0].kept
    filtered, counts = filter_corpus(corpus, DATA)
    assert prepare_data(filtered, tokenizer, DATA, counts=counts).counts == prepared.counts
    assert prepare_data(filtered, tokenizer, DATA).counts != prepared.counts


def test_from_texts_to_batches(tokenizer: PreTrainedTokenizerFast) -> None:
    train = prepare_data(DatasetDict(train=pairs(*sentences(100))), tokenizer, DATA).train
    sampler = TokenBatchSampler(pair_lengths(train), tokens_per_batch=200, num_parts=2)
    loader = DataLoader(train, batch_sampler=sampler, collate_fn=TranslationCollator(tokenizer))
    read = [
        tuple(tokenizer.decode(ids, skip_special_tokens=True) for ids in (source, target.clamp(min=0)))
        for batch in loader
        for source, target in zip(batch["input_ids"], batch["labels"], strict=True)
    ]
    assert sorted(read) == sorted(set(sentences(100)))
