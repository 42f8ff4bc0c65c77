"""Corpora: what is read is what was written, and what is rendered can be translated.

Every property has a negative control: the same check on input, or on a reader, that is wrong on purpose.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import logging
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from babel import Locale, dates
from datasets import Dataset, DatasetDict
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_mt import cldr
from hf_mt.arguments import DataArguments
from hf_mt.cldr import KINDS, Kind, cldr_corpus, find_locale, open_phrase_book, usable_manners
from hf_mt.corpora import TOY_TASKS, load_corpus, stream_pairs, toy_corpus
from hf_mt.errors import InputError
from hf_mt.pair_files import read_lines


PAIRS = [
    ("One dog.", "Ein Hund."),
    ("Two\u2028dogs.", "Zwei\u2028Hunde."),
    ("", "Nichts"),
    ("a\x85b\x0bc", "ä\x1cß\ufeff"),
]
EN_DE = DataArguments(source_lang="en", target_lang="de")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def pairs_of(corpus: Dataset, source: str = "en", target: str = "de") -> list[tuple[str, str]]:
    return [(row[source], row[target]) for row in corpus["translation"]]


def train_pairs(**arguments: object) -> list[tuple[str, str]]:
    return pairs_of(load_corpus(replace(EN_DE, **arguments), splits=["train"])["train"])


# Files


def write_text_pairs(folder: Path, pairs: list[tuple[str, str]]) -> Path:
    for language, texts in zip(("en", "de"), zip(*pairs, strict=True), strict=True):
        (folder / f"train.{language}").write_bytes("".join(f"{text}\n" for text in texts).encode())
    return folder / "train"


def write_tsv(folder: Path, pairs: list[tuple[str, str]]) -> Path:
    (folder / "train.tsv").write_bytes("".join(f"{source}\t{target}\n" for source, target in pairs).encode())
    return folder / "train.tsv"


def write_tsv_with_header(folder: Path, pairs: list[tuple[str, str]]) -> Path:
    lines = ["id\tde\ten"] + [f"{number}\t{target}\t{source}" for number, (source, target) in enumerate(pairs)]
    (folder / "named.tsv").write_bytes("\r\n".join(lines).encode())
    return folder / "named.tsv"


def write_jsonl(folder: Path, pairs: list[tuple[str, str]]) -> Path:
    rows = [json.dumps({"translation": {"fr": "?", "en": source, "de": target}}) for source, target in pairs]
    (folder / "train.jsonl").write_text("\n".join(rows), encoding="utf-8")
    return folder / "train.jsonl"


def write_flat_jsonl(folder: Path, pairs: list[tuple[str, str]]) -> Path:
    rows = [json.dumps({"en": source, "de": target}, ensure_ascii=False) for source, target in pairs]
    (folder / "flat.jsonl").write_bytes(b"\xef\xbb\xbf" + "\n".join(rows).encode())
    return folder / "flat.jsonl"


def write_parquet(folder: Path, pairs: list[tuple[str, str]]) -> Path:
    rows = [{"fr": "?", "de": target, "en": source} for source, target in pairs]
    pq.write_table(pa.table({"id": list(range(len(rows))), "translation": rows}), folder / "train.parquet")
    return folder / "train.parquet"


def write_flat_parquet(folder: Path, pairs: list[tuple[str, str]]) -> Path:
    sources, targets = zip(*pairs, strict=True)
    pq.write_table(pa.table({"de": targets, "en": pa.array(sources, pa.large_string())}), folder / "flat.parquet")
    return folder / "flat.parquet"


WRITERS: list[Callable[[Path, list[tuple[str, str]]], Path]] = [
    write_text_pairs,
    write_tsv,
    write_tsv_with_header,
    write_jsonl,
    write_flat_jsonl,
    write_parquet,
    write_flat_parquet,
]


@pytest.mark.parametrize("write", WRITERS)
def test_every_format_gives_the_same_pairs(write: Callable[..., Path], tmp_path: Path) -> None:
    corpus = load_corpus(replace(EN_DE, train_file=str(write(tmp_path, PAIRS))))
    assert list(corpus) == ["train"]
    assert corpus["train"].features == datasets.Features({"translation": datasets.Translation(["en", "de"])})
    assert pairs_of(corpus["train"]) == PAIRS
    swapped = load_corpus(DataArguments(source_lang="de", target_lang="en", train_file=str(write(tmp_path, PAIRS))))
    # Control: only where the file doesn't name its languages does it depend on the order in which they are given.
    assert (pairs_of(swapped["train"]) == PAIRS) == (write is not write_tsv)


def round_trip(
    lines: list[str], path: Path, *, end: str, mark: bool, last: bool, read: Callable[..., Iterable[str]]
) -> bool:
    path.write_bytes((b"\xef\xbb\xbf" if mark else b"") + (end.join(lines) + (end if last else "")).encode())
    return list(read(path)) == lines


texts = st.text(st.characters(exclude_characters="\n\r\0", exclude_categories=["Cs"]), max_size=20)


@settings(deadline=None, max_examples=100)
@given(
    lines=st.lists(texts, min_size=1, max_size=8).filter(lambda lines: lines[-1] and lines[0][:1] != "\ufeff"),
    end=st.sampled_from(["\n", "\r\n"]),
    mark=st.booleans(),
    last=st.booleans(),
)
def test_lines_survive(
    lines: list[str], end: str, mark: bool, last: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "lines.txt"
    assert round_trip(lines, path, end=end, mark=mark, last=last, read=read_lines)


def test_other_line_readers_do_not_survive(tmp_path: Path) -> None:
    """Control: the round trip fails for the two usual ways to read lines."""
    lines = ["Two\u2028dogs.", "a\x85b", "c\x0bd", "e\x1cf"]
    arguments = {"end": "\n", "mark": True, "last": True}
    assert round_trip(lines, tmp_path / "a", **arguments, read=read_lines)
    assert not round_trip(
        lines, tmp_path / "a", **arguments, read=lambda path: path.read_text("utf-8-sig").splitlines()
    )
    arguments |= {"mark": True, "last": False}
    assert not round_trip(["dog"], tmp_path / "a", **arguments, read=lambda path: path.read_text("utf-8").split("\n"))


def test_a_carriage_return_inside_a_line_stays(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"one\rtwo\r\nthree\n")
    assert read_lines(tmp_path / "a") == ["one\rtwo", "three"]


def test_two_text_columns(tmp_path: Path) -> None:
    columns = {"text": ["dog"], "label": ["Hund"], "en": ["wrong"]}
    odd = pa.array([[("key", "value")]], pa.map_(pa.string(), pa.string()))  # which datasets has no type for
    pq.write_table(pa.table({**columns, "meta": odd}), tmp_path / "a.parquet")
    (tmp_path / "a.jsonl").write_text('{"text": "dog", "label": "Hund", "en": "wrong"}')
    (tmp_path / "a.tsv").write_text("en\tlabel\ttext\nwrong\tHund\tdog\n")
    for suffix in ("parquet", "jsonl", "tsv"):
        named = {"train_file": str(tmp_path / f"a.{suffix}"), "target_column": "label"}
        assert train_pairs(**named, source_column="text") == [("dog", "Hund")]
        assert train_pairs(**named, source_column="en") == [("wrong", "Hund")]  # control
        with pytest.raises(InputError, match=r"absent.*(text|label)"):
            train_pairs(**named, source_column="absent")


NAMED = DataArguments(source_lang="eng_Latn", target_lang="deu_Latn", source_column="en", target_column="de")


@pytest.mark.parametrize("write", [write for write in WRITERS if write is not write_tsv])
def test_what_is_not_named_by_its_language_is_named(write: Callable[..., Path], tmp_path: Path) -> None:
    """A column, a key of `translation`, or the ending of a file."""
    data = replace(NAMED, train_file=str(write(tmp_path, PAIRS)))
    assert pairs_of(load_corpus(data)["train"], "eng_Latn", "deu_Latn") == PAIRS == list(stream_pairs(data))
    with pytest.raises(InputError, match="eng_Latn"):  # control
        load_corpus(replace(data, source_column=None, target_column=None))


def test_keys_of_a_data_set_are_named_too(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    write_parquet(folder, PAIRS)
    data = replace(NAMED, dataset_name=str(folder))
    assert pairs_of(load_corpus(data)["train"], "eng_Latn", "deu_Latn") == PAIRS
    assert list(stream_pairs(replace(data, streaming=True))) == PAIRS


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_columns_go_before_keys_of_translation(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"x.{suffix}"
    write = {"jsonl": Dataset.to_json, "parquet": Dataset.to_parquet}[suffix]
    write(Dataset.from_dict({"translation": [{"en": "in", "de": "innen"}], "en": ["out"], "de": ["außen"]}), path)
    assert train_pairs(train_file=str(path), source_column="en", target_column="de") == [("out", "außen")]
    assert train_pairs(train_file=str(path)) == [("in", "innen")]
    write(Dataset.from_dict({"text": ["dog"], "translation": ["Hund"]}), path)
    assert train_pairs(train_file=str(path), source_column="text", target_column="translation") == [("dog", "Hund")]


def broken(tmp_path: Path, name: str, content: bytes) -> dict[str, str]:
    (tmp_path / "x.de").write_bytes(b"eins\nzwei\n")
    (tmp_path / "x.en").write_bytes(b"one\ntwo\n")
    (tmp_path / "folder.en").mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(content)
    path = tmp_path / name
    return {"train_file": str(path if path.suffix in (".tsv", ".jsonl", ".parquet") else path.with_suffix(""))}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.en", b"one\n", r"x\.en has 1 lines and .*x\.de has 2"),
        ("x.en", b"one\n\xe9t\xe9\n", r"x\.en, line 2, byte 1: 0xe9 is not UTF-8"),
        ("x.en", b"\xff\xfeo\x00", r"line 1, byte 1: 0xff"),
        ("x.en", b"one\nt\0o\n", r"x\.en, line 2: a NUL"),
        ("x.en", b"", r"x\.en is empty"),
        ("x.en", b"\xef\xbb\xbf", r"x\.en is empty"),
        ("x.tsv", b"one\teins\ntwo\n", r"x\.tsv, line 2: 1 columns, but line 1 has 2"),
        ("x.tsv", b"one\teins\t1\n", r"line 1: no header with the columns en and de; found 3 columns: one, eins, 1"),
        ("x.jsonl", b'{"en": "one", "de": "eins"}\n{"en": ', r"x\.jsonl, line 2, column 8: not JSON"),
        ("x.jsonl", b'["one", "eins"]', r"line 1: found a list"),
        ("x.jsonl", b'{"translation": {"en": "one", "fr": "un"}}', r"line 1: no 'de'; there is en, fr"),
        ("x.jsonl", b'{"en": "one", "de": 1}', r"line 1: 'de' is a int"),
        ("x.jsonl", b'{"en": "one", "de": null}', r"line 1: 'de' is a NoneType"),
        ("x.jsonl", rb'{"en": "one", "de": "\ud800"}', r"half of a surrogate pair"),
        ("x.parquet", b"not at all", r"x\.parquet is not a Parquet file"),
        ("x.parquet", b"", r"x\.parquet is not a Parquet file"),
    ],
)
def test_a_bad_file_is_refused_by_name_and_line(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    with pytest.raises(InputError, match=message):
        train_pairs(**broken(tmp_path, name, content))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.en", b"one\ntwo"),
        ("x.en", "été\n\n".encode()),
        ("x.tsv", b"one\teins\n"),
        ("x.tsv", b"de\tid\ten\neins\t1\tone\n"),
        ("x.jsonl", b'{"en": "one", "de": "eins"}'),
    ],
)
def test_a_good_file_is_not_refused(tmp_path: Path, name: str, content: bytes) -> None:
    """Control of the test above: the same files, mended."""
    assert train_pairs(**broken(tmp_path, name, content))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tain", r"tain\.en does not exist; in .* there is train\.(en, train\.de|de, train\.en)"),
        ("no/train", r"there is no folder .*no\."),
        ("train.en", r"train\.en is neither .*prefix, such as .*train for .*train\.en and .*train\.de"),
        ("train.csv", r"train\.csv\.en does not exist"),
        ("folder", r"folder\.en can't be read: Is a directory"),
        ("missing.parquet", r"missing\.parquet does not exist"),
        ("x.json", r"x\.json is neither .*; rename it to \.jsonl, with one object a line"),
        ("x.csv", r"x\.csv is neither .*; convert it to \.tsv"),
        ("pipe", r"pipe\.en is a pipe or a device"),
    ],
)
def test_a_missing_file_is_refused_with_what_there_is(tmp_path: Path, name: str, message: str) -> None:
    write_text_pairs(tmp_path, PAIRS)
    for other in ("x.json", "x.csv"):
        (tmp_path / other).write_text("x")
    (tmp_path / "folder.en").mkdir()
    os.mkfifo(tmp_path / "pipe.en")  # opening it would wait for who writes
    assert train_pairs(train_file=str(tmp_path / "train")) == PAIRS  # control
    with pytest.raises(InputError, match=message):
        train_pairs(train_file=str(tmp_path / name))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"translation": [{"en": "one", "fr": "un"}]}, r"no 'de'; there is en, fr"),
        ({"en": ["one"], "text": ["eins"]}, r"no 'de'; there is en, text.*source_column"),
        ({"en": ["one", "two"], "de": ["eins", None]}, r"row 1: 'de' is a NoneType"),
        ({"en": ["one"], "de": [1]}, r"row 0: 'de' is a int"),
        ({"en": pa.array([], pa.string()), "de": pa.array([], pa.string())}, r"train split has no sentence pairs"),
    ],
)
def test_a_bad_table_is_refused(tmp_path: Path, columns: dict[str, list[object]], message: str) -> None:
    pq.write_table(pa.table(columns), tmp_path / "x.parquet")
    with pytest.raises(InputError, match=message):
        train_pairs(train_file=str(tmp_path / "x.parquet"))


# Which source, which splits, how many


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, r"No sentence pairs were named; set dataset_name \(cldr, toy_copy.*train_file"),
        (
            {"dataset_name": "cldr", "train_file": "x", "source_column": "a", "target_column": "b"},
            r"cldr and train_file=x were both.*need --dataset_name None --source_column None --target_column None\.",
        ),
        ({"dataset_name": "cldr", "target_lang": "en"}, r"both 'en'"),
        ({"train_file": "x.tsv", "source_column": "a"}, r"go together"),
        ({"train_file": "x", "source_column": "a", "target_column": "b"}, r"x\.a does not exist"),
        ({"dataset_name": "cldr", "dataset_config_name": "a"}, r"cldr is built in and has no dataset_config_name"),
        ({"dataset_name": "no/such/folder"}, r"no/such/folder can't be loaded.*(?s:.*)dataset_name=cldr"),
        ({"dataset_name": "nobody/nothing"}, r"nobody/nothing can't be loaded.*(?s:.*)local files"),
    ],
)
def test_a_wrong_choice_of_source_is_refused(arguments: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_corpus(replace(EN_DE, **arguments))


def test_splits_that_are_not_there_are_absent_and_train_is_needed(tmp_path: Path) -> None:
    prefix = str(write_text_pairs(tmp_path, PAIRS))
    data = replace(EN_DE, test_file=prefix)
    assert list(load_corpus(data, splits=["validation", "test"])) == ["test"]
    with pytest.raises(InputError, match=r"There is no train split \(test\)"):
        load_corpus(data)
    with pytest.raises(InputError, match="There is no validation split in the files given"):
        load_corpus(data, splits=["validation"])
    assert list(load_corpus(replace(data, train_file=prefix))) == ["train", "test"]  # control


def test_the_first_so_many_pairs_are_kept_and_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    prefix = str(write_text_pairs(tmp_path, PAIRS))
    data = replace(EN_DE, train_file=prefix, validation_file=prefix, test_file=prefix)
    with caplog.at_level(logging.INFO, logger="hf_mt.corpora"):
        cut = load_corpus(replace(data, max_train_samples=3, max_eval_samples=2, max_predict_samples=9))
    assert [pairs_of(cut[split]) for split in cut] == [PAIRS[:3], PAIRS[:2], PAIRS]
    assert "train: 3 sentence pairs of 4" in caplog.text
    assert all(len(whole) == 4 for whole in load_corpus(data).values())  # control


@pytest.mark.parametrize("write", [write_jsonl, write_flat_parquet])
def test_a_folder_is_loaded_as_a_data_set_of_the_hub(write: Callable[..., Path], tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    for split in ("train", "test"):
        path = write(tmp_path, PAIRS if split == "train" else PAIRS[:2])
        path.rename(folder / f"{split}{path.suffix}")
    data = replace(EN_DE, dataset_name=str(folder), max_train_samples=3)
    corpus = load_corpus(data)
    assert {split: pairs_of(corpus[split]) for split in corpus} == {"train": PAIRS[:3], "test": PAIRS[:2]}
    assert corpus["train"].column_names == ["translation"]
    with pytest.raises(InputError, match=r"set, train: no 'ru'; there is"):  # control: a language that it lacks
        load_corpus(replace(data, target_lang="ru"))


def test_own_files_take_the_place_of_splits(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    own = str(write_text_pairs(tmp_path, PAIRS))
    sizes = {f"cldr_{split}_size": size for split, size in (("train", 9), ("validation", 5), ("test", 5))}
    data = replace(EN_DE, dataset_name="cldr", **sizes)
    plain, mixed = load_corpus(data), load_corpus(replace(data, validation_file=own))
    assert list(mixed) == ["train", "validation", "test"]
    assert pairs_of(mixed["validation"]) == PAIRS != pairs_of(plain["validation"])
    assert all(mixed[split][:] == plain[split][:] for split in ("train", "test"))
    assert f"validation: {own} takes the place of what cldr has for it" in caplog.text


def test_own_files_add_splits_that_a_data_set_lacks(tmp_path: Path) -> None:
    folder, own = tmp_path / "set", str(write_text_pairs(tmp_path, PAIRS))
    folder.mkdir()
    write_jsonl(folder, PAIRS[:2])
    corpus = load_corpus(replace(EN_DE, dataset_name=str(folder), test_file=own))
    assert {split: pairs_of(corpus[split]) for split in corpus} == {"train": PAIRS[:2], "test": PAIRS}
    nowhere = replace(EN_DE, dataset_name="nobody/nothing", test_file=own)
    assert list(load_corpus(nowhere, splits=["test"])) == ["test"], "it isn't needed"
    with pytest.raises(InputError, match="nobody/nothing can't be loaded"):
        load_corpus(nowhere, splits=["validation", "test"])


# Built-in corpora


SIZES = {"train": 300, "validation": 40, "test": 40}


def repeated(corpus: DatasetDict) -> int:
    """How many sources or targets occur more than once, in one split or in several."""
    rows = [row for split in corpus.values() for row in split["translation"]]
    return sum(len(rows) - len({row[language] for row in rows}) for language in rows[0])


@pytest.mark.parametrize("make", [lambda **a: cldr_corpus("en", "fr", **a), lambda **a: toy_corpus("sort", **a)])
def test_nothing_occurs_twice_and_sizes_hold(
    make: Callable[..., DatasetDict], monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = make(sizes=SIZES)
    assert {split: len(pairs) for split, pairs in corpus.items()} == SIZES
    assert repeated(corpus) == 0
    corpus["test"] = Dataset.from_list(corpus["train"].to_list()[:1], features=corpus["test"].features)
    assert repeated(corpus) == 2  # control: a leak


@pytest.mark.parametrize("make", [lambda **a: cldr_corpus("en", "de", **a), lambda **a: toy_corpus("copy", **a)])
def test_a_split_depends_on_the_seed_and_hardly_on_other_sizes(make: Callable[..., DatasetDict]) -> None:
    def rows(split: str, seed: int = 0, **sizes: int) -> list[str]:
        return [str(row) for row in make(sizes=SIZES | sizes, seed=seed)[split]["translation"]]

    assert rows("test") == rows("test")
    assert rows("test", train=10) == rows("test") == rows("test", test=60)[:40]
    assert set(rows("train")[:250]) <= set(rows("train", train=310))
    assert len(set(rows("train")) - set(rows("train", test=60))) < 30
    assert not set(rows("test")) & set(rows("train"))
    assert len(set(rows("train", seed=1)) & set(rows("train"))) < 30  # control: another seed


def digest(seed: int) -> str:
    corpora = [
        cldr_corpus("en", "fr", sizes={"train": 60, "test": 9}, seed=seed),
        toy_corpus("copy", sizes={"test": 9}),
    ]
    return hashlib.sha256(
        repr([corpus[split]["translation"][:] for corpus in corpora for split in corpus]).encode()
    ).hexdigest()


def test_built_in_corpora_do_not_depend_on_the_hash_seed() -> None:
    """The same draws in a process whose strings hash to something else."""
    code = "import sys; sys.path.insert(0, 'tests'); import test_corpora; print(test_corpora.digest(0), hash('a'))"
    hash_seed = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[1],
        env=os.environ | {"PYTHONHASHSEED": hash_seed},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    there, hashed = run.stdout.split()
    assert there == digest(0)
    assert hashed != str(hash("a")) and there != digest(1)  # controls: it was another process; the seed does matter


def test_too_many_pairs_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cldr, "DRAWS_IN_VAIN", 500)
    assert repeated(toy_corpus("copy", sizes={"train": 8, "test": 2}, max_digits=1)) == 0  # control: all there are
    with pytest.raises(InputError, match=r"10 different pairs were found for splits of .*'train': 9"):
        toy_corpus("copy", sizes={"train": 9, "test": 2}, max_digits=1)
    with pytest.raises(InputError, match="none can be negative"):
        toy_corpus("copy", sizes={"train": -1})


def test_toy_tasks_are_what_they_are_called() -> None:
    def solve(task: str, source: str) -> str:
        digits = source.split(" ")
        return " ".join({"copy": digits, "reverse": list(reversed(digits)), "sort": sorted(digits, key=int)}[task])

    made = {task: pairs_of(toy_corpus(task, sizes={"test": 50})["test"], "src", "tgt") for task in TOY_TASKS}
    right = {
        (task, made_for) for task in made for made_for in made if all(solve(task, s) == t for s, t in made[made_for])
    }
    assert right == {(task, task) for task in TOY_TASKS}  # each solves its own and, the control, no other
    assert max(len(source.split()) for source, _ in made["copy"]) == 10
    with pytest.raises(InputError, match="'shuffle' is unknown; choose one of copy, reverse, sort"):
        toy_corpus("shuffle", sizes={"test": 1})
    with pytest.raises(InputError, match="max_digits is 0"):
        toy_corpus("copy", sizes={"test": 1}, max_digits=0)


@pytest.mark.parametrize(("name", "source"), [("cldr", "en"), ("toy_reverse", "digits")])
def test_built_in_corpora_are_loaded_by_name(name: str, source: str) -> None:
    sizes = {f"cldr_{split}_size": size for split, size in SIZES.items()}
    data = DataArguments(dataset_name=name, source_lang=source, target_lang="de", max_eval_samples=5, **sizes)
    corpus = load_corpus(data)
    assert {split: len(pairs) for split, pairs in corpus.items()} == SIZES | {"validation": 5}
    alone = load_corpus(data, splits=["test"])
    assert list(alone) == ["test"] and alone["test"][:] == corpus["test"][:]
    assert load_corpus(replace(data, cldr_seed=1), splits=["test"])["test"][:] != alone["test"][:]  # control


# CLDR


LOCALES = [
    ("en", "fr"),
    ("fr", "en"),
    ("en", "de"),
    ("en", "ja"),
    ("ar", "en"),
    ("pl", "ru"),
    ("zh-Hant", "en"),
    ("fa", "en"),
]


def conflicts(draw: Callable[[random.Random], tuple[str, str]], count: int) -> int:
    """How many of so many draws give a source seen before another target."""
    rng, seen = random.Random(7), {}
    return sum(seen.setdefault(source, target) != target for source, target in (draw(rng) for _ in range(count)))


@pytest.mark.parametrize(("source", "target"), LOCALES)
def test_a_source_has_one_target(source: str, target: str) -> None:
    """In raw draws, where nothing has been rejected yet; short ones, which do come again."""
    book = open_phrase_book(find_locale(source), find_locale(target))
    assert set(book.manners) >= set(KINDS) - {"hours"} and len(book.list_styles) >= 2
    assert conflicts(lambda rng: book.draw(rng, 1), 2000) == conflicts(lambda rng: book.draw(rng, 2), 500) == 0


def test_an_ambiguous_manner_would_be_seen_and_is_left_out() -> None:
    """Control: years of two digits, and German dates that tell apart what English ones don't."""

    def short_date(rng: random.Random, manner: str) -> Callable[[Locale], str]:
        day = cldr._day(rng)
        return lambda locale: dates.format_date(day, manner, locale)

    english, german = Locale("en"), Locale("de")
    assert usable_manners(Kind(short_date, ("short",), 1), english, Locale("fr")) == []
    assert usable_manners(Kind(short_date, ("medium", "long"), 1), english, german) == ["medium"]
    assert usable_manners(Kind(short_date, ("medium", "long"), 1), english, Locale("fr")) == ["medium", "long"]

    def draw(rng: random.Random) -> tuple[str, str]:
        rendering = short_date(rng, "short")
        return rendering(english), rendering(Locale("fr"))

    assert conflicts(draw, 20_000) > 100


def test_a_short_time_hides_no_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chinese has a word for midnight sharp: with hidden seconds 12:00 AM would have two translations."""
    shown: dict[str, set[str]] = {"short": set(), "medium": set()}
    for second in (0, 30):
        monkeypatch.setattr(cldr, "_clock", lambda rng, second=second: datetime.time(0, 0, second))
        for manner, texts in shown.items():
            texts.add(KINDS["time"].draw(random.Random(0), manner)(Locale("zh", script="Hant")))
    assert {manner: len(texts) for manner, texts in shown.items()} == {"short": 1, "medium": 2}  # control: medium


def test_a_piece_says_the_same_in_both_languages() -> None:
    """Known pairs, as CLDR writes them, from the values that both must show."""
    english, french = Locale("en"), Locale("fr")
    rendering = KINDS["moment"].draw(random.Random(3), "UTC")
    source, target = rendering(english), rendering(french)
    assert source.endswith("M Coordinated Universal Time") and target.endswith(" temps universel coordonné")
    assert source.split()[2].strip(",") == target.split()[1]  # Thursday, January 1 / jeudi 1 janvier
    source, target = (
        cldr._measured(cldr.Decimal("2163.5"), "digital-petabyte", locale) for locale in (english, french)
    )
    assert (source, target) == ("2,163.5 petabytes", "2\u202f163,5\xa0pétaoctets")
    assert cldr._measured(3, "duration-hour", Locale("ja")) == "3 時間"  # no long form there: the short one
    clock, summer = KINDS["moment"].draw(random.Random(3), "Asia/Tokyo summer"), rendering(english)
    assert clock(english) == summer.replace("Coordinated Universal Time", "Japan Daylight Time")
    assert clock(english) != summer  # control: the zone shows


def test_every_kind_is_drawn_and_long_sentences_are_long() -> None:
    book = open_phrase_book(Locale("en"), Locale("fr"))
    lengths = {}
    for most in (1, 3, 50):
        rng = random.Random(0)
        lengths[most] = sum(len(book.draw(rng, most)[0]) for _ in range(100)) / 100
    assert 8 < lengths[1] < lengths[3] / 1.5 < 40 and lengths[50] > 10 * lengths[3]
    corpus = cldr_corpus("en", "fr", sizes={"test": 60}, max_phrases=50)
    assert repeated(corpus) == 0
    words = " ".join(row["en"] for row in cldr_corpus("en", "fr", sizes={"test": 600})["test"]["translation"])
    for sign in (
        "Time",
        "AM",
        "ago",
        "%",
        "$",
        "dollars",
        "kilo",
        "France",
        "Monday",
        "January",
        " or ",
        ", and ",
        "\u2009",
    ):
        assert sign in words
    assert "Atlantis" not in words  # control


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("en", "english"), r"'english' is not among the \d+ CLDR locales; did you mean en\b"),
        (("fr_XX", "en"), r"'fr_XX' is not .*fr_"),
        (("en", "??"), r"try one such as"),
        (("en", "EN"), r"same locale"),
        (("en", ""), r"is not among"),
    ],
)
def test_a_bad_locale_is_refused(arguments: tuple[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        cldr_corpus(*arguments, sizes={"test": 1})
    assert find_locale("fr-CA") == find_locale("fr_CA") != find_locale("fr")  # control


def test_no_phrases_are_refused() -> None:
    with pytest.raises(InputError, match="max_phrases is 0"):
        cldr_corpus("en", "fr", sizes={"test": 1}, max_phrases=0)
