"""TSV, JSONL, Parquet and tables of scores with any content are read or refused."""

import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fuzzing import EXAMPLES, accepted, broken, fuzz
from hypothesis import strategies as st

from hf_mt.arguments import DataArguments
from hf_mt.corpora import load_corpus
from hf_mt.errors import InputError
from hf_mt.pair_files import file_pairs
from hf_mt.scores import read_sentence_scores, sentence_scores, write_sentence_scores


PAIRS = [("A dog runs.", "Ein Hund läuft."), ("Two men", "Zwei Männer"), ("", "\u2028"), ("x" * 30, "日本")]
JSON_WORDS = [
    "\\ud800",
    "\\u0000",
    "NaN",
    "1e999",
    "null",
    "[",
    "{",
    '{"en":',
    "9" * 5000,
    '"en"',
    '"de"',
    "true",
    "\\x",
]
WORDS = [
    b"\t",
    b"\n",
    b"\r\n",
    b"\0",
    b"\xff",
    b"\xef\xbb\xbf",
    b",",
    b'"',
    b"\\",
    b"\\q",
    *map(str.encode, JSON_WORDS),
]


def read(path: Path) -> list[dict[str, str]]:
    """The pairs, which reading one after the other gives as well."""
    data = DataArguments(source_lang="en", target_lang="de", train_file=str(path))
    pairs: list[tuple[str, str]] = []
    streamed = accepted(lambda: pairs.extend(file_pairs(path, data)))
    rows = load_corpus(data, splits=("train",))["train"]["translation"]
    assert streamed and pairs == [(row["en"], row["de"]) for row in rows]
    return rows


def taken_of(target: str, path: Path, wholes: list[bytes]) -> int:
    """How many damaged files were read; every text of them can be written."""
    taken = 0
    for content in broken(target, wholes, WORDS):
        path.write_bytes(content)
        found: list[dict[str, str]] = []
        if accepted(lambda: found.extend(read(path))):  # noqa: B023
            taken += 1
            assert all(set(pair) == {"en", "de"} for pair in found)
            json.dumps(found, ensure_ascii=False).encode()
    return taken


def test_tsv(tmp_path: Path) -> None:
    plain = "".join(f"{source}\t{target}\n" for source, target in PAIRS)
    columns = "".join(f"7\t{target}\t{source}\n" for source, target in PAIRS)
    wholes = [text.encode() for text in (plain, f"en\tde\n{plain}", f"id\tde\ten\n{columns}")]
    assert 0 < taken_of("tsv", tmp_path / "x.tsv", wholes) < EXAMPLES["tsv"]


def test_jsonl(tmp_path: Path) -> None:
    flat = "".join(json.dumps({"en": source, "de": target}) + "\n" for source, target in PAIRS)
    nested = "".join(json.dumps({"translation": {"en": a, "de": b}}, ensure_ascii=False) + "\n" for a, b in PAIRS)
    assert 0 < taken_of("jsonl", tmp_path / "x.jsonl", [flat.encode(), nested.encode()]) < EXAMPLES["jsonl"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("[" * 100_000, "nested too deeply"),
        ('{"en": ' + "9" * 5000 + "}", "not JSON"),
        ('{"en": "a", "en": "b", "de": "c"}', "'en' is given twice"),
        ('{"translation": {"de": "c", "en": "b", "de": "c"}}', "'de' is given twice"),
        ('{"en": "\\ud800", "de": "x"}', "half of a surrogate pair"),
        ('{"en": "\\u0000", "de": "x"}', "NUL"),
        ('{"en": ["a"], "de": "x"}', "'en' is a list"),
        ('{"translation": "x"}', "found a str"),
    ],
)
def test_a_line_of_jsonl_that_is_none(line: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"en": "a", "de": "b"}\n' + line)
    with pytest.raises(InputError, match=f"line 2.*{message}"):
        read(path)


def parquet(table: pa.Table) -> bytes:
    file = io.BytesIO()
    pq.write_table(table, file)
    return file.getvalue()


def test_damaged_parquet(tmp_path: Path) -> None:
    flat = pa.table({"en": [a for a, _ in PAIRS], "de": [b for _, b in PAIRS]})
    nested = pa.table({"translation": [{"en": a, "de": b} for a, b in PAIRS]})
    taken = taken_of("parquet", tmp_path / "x.parquet", [parquet(flat), parquet(nested)])
    assert taken < EXAMPLES["parquet"] and read_back(tmp_path, flat) == read_back(tmp_path, nested) == len(PAIRS)


def read_back(folder: Path, table: pa.Table) -> int:
    (folder / "whole.parquet").write_bytes(parquet(table))
    return len(read(folder / "whole.parquet"))


ODD = [
    pa.array([1, 2]),
    pa.array([["a"], []]),
    pa.array([None, "x"]),
    pa.array([b"\xff", b"a"]),
    pa.array(["a", "b"]).dictionary_encode(),
    pa.array(["a", "b"], pa.large_string()),
    pa.array([{"en": "a", "de": 1}, {"en": "b", "de": 2}]),
    pa.array([{"en": "a"}, None]),
    pa.array([{"en": "a", "de": "b"}, None]),
    pa.array([1.5, float("nan")]),
    pa.array([0, 1], pa.timestamp("s")),
    pa.array([None, None], pa.null()),
    pa.array([[("k", 1)], []], pa.map_(pa.string(), pa.int64())),
    pa.array([True, False]),
    pa.array(["x", "y"]),
]


def test_columns_of_any_type_and_name(tmp_path: Path) -> None:
    names = st.sampled_from(["en", "de", "translation", "", "translation.en", "x"])
    columns = st.lists(st.tuples(names, st.sampled_from(range(len(ODD)))), min_size=1, max_size=3)
    metadata = st.sampled_from([None, {b"huggingface": b"{"}, {b"huggingface": b'{"info": {"features": {"en": 3}}}'}])

    def check(drawn: Any) -> None:
        named, told = drawn
        table = pa.table([ODD[number] for _, number in named], [name for name, _ in named])
        (tmp_path / "x.parquet").write_bytes(parquet(table.replace_schema_metadata(told)))
        accepted(lambda: read(tmp_path / "x.parquet"))

    fuzz("columns", st.tuples(columns, metadata), check)


def test_tables_of_scores(tmp_path: Path) -> None:
    path = tmp_path / "test_scores.tsv"
    sources, targets = zip(*PAIRS, strict=True)
    whole = write_sentence_scores(path, sentence_scores(sources, targets, list(targets))).read_bytes()
    taken = 0
    for content in broken("scores", [whole], WORDS):
        path.write_bytes(content)
        taken += accepted(lambda: read_sentence_scores(path))
    assert 0 < taken < EXAMPLES["scores"]
    for place in (tmp_path, tmp_path / "absent"):
        with pytest.raises(InputError, match="can't be read as a table"):
            read_sentence_scores(place)
