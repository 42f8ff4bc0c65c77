"""Files of sentence pairs, read pair after pair: text pairs, TSV, JSONL and Parquet.

- A line of text ends at `\\n` or `\\r\\n` and nowhere else. `str.splitlines` also ends it at U+2028, U+0085 and
  others, which occur inside sentences: one of them on one side would shift all later pairs.
- Readers hold no more than a line, so that a file may be larger than memory; what is wrong is told when it is reached.
"""

from __future__ import annotations

import codecs
import json
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BufferedReader
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, Features, Translation

from hf_mt.arguments import DataArguments
from hf_mt.errors import NO_TEXT, InputError, listing, nearby
from hf_mt.text_files import read_stream


PARQUET_ROWS = 1000  # that are Python objects at a time
OTHERS = {
    ".json": "rename it to .jsonl, with one object a line",
    ".csv": "convert it to .tsv, with a tab between columns",
}


def file_pairs(path: Path, data: DataArguments) -> Iterator[tuple[str, str]]:
    """Pair after pair of a file of any kind, or of text pairs."""
    if path.suffix == ".parquet":
        return pairs_of_rows(_parquet_rows(path, data), data, str(path))
    return {".tsv": _tsv_pairs, ".jsonl": _jsonl_pairs}.get(path.suffix, _text_pairs)(path, data)


def _text_pairs(prefix: Path, data: DataArguments) -> Iterator[tuple[str, str]]:
    if os.path.isfile(prefix):  # which is False for names that no file can have
        raise InputError(f"{prefix} is neither .tsv, .jsonl nor .parquet; {_cure(prefix, data)}.")
    paths = [Path(f"{prefix}.{ending}") for ending in text_columns(data)]
    for source, target in zip_longest(*map(iter_lines, paths)):
        if source is None or target is None:
            counts = [sum(1 for _ in iter_lines(path)) for path in paths]
            raise InputError(
                f"{paths[0]} has {counts[0]} lines and {paths[1]} has {counts[1]}; line n of one must translate "
                "line n of the other, so the numbers must be equal."
            )
        yield source, target


def _cure(file: Path, data: DataArguments) -> str:
    stem, endings = file.with_suffix(""), text_columns(data)
    prefix = f"for text pairs give their prefix, such as {stem} for {stem}.{endings[0]} and {stem}.{endings[1]}"
    return OTHERS.get(file.suffix, prefix)


def _tsv_pairs(path: Path, data: DataArguments) -> Iterator[tuple[str, str]]:
    """Two columns, source and target, or any number below a header that names the two; there is no quoting."""
    rows = (line.split("\t") for line in iter_lines(path))
    names, header = text_columns(data), next(rows)
    named = set(names) <= set(header)
    first, second = (header.index(name) for name in names) if named else (0, 1)
    if not named and (data.source_column is not None or len(header) != 2):
        raise InputError(
            f"{path}, line 1: no header with the columns {names[0]} and {names[1]}; found {len(header)} columns: "
            f"{listing(header)}. Without a header there must be two, source and target, with a tab between."
        )
    for number, row in enumerate(rows if named else chain([header], rows), 2 if named else 1):
        if len(row) != len(header):
            raise InputError(f"{path}, line {number}: {len(row)} columns, but line 1 has {len(header)}.")
        yield row[first], row[second]


def _jsonl_pairs(path: Path, data: DataArguments) -> Iterator[tuple[str, str]]:
    """An object a line, with a `translation` object or with the two texts themselves."""
    for number, line in enumerate(iter_lines(path), 1):
        where = f"{path}, line {number}"
        try:
            row = json.loads(line, object_pairs_hook=_unique)
        except json.JSONDecodeError as error:
            raise InputError(f"{where}, column {error.colno}: not JSON ({error.msg}); one object a line.") from error
        except (ValueError, RecursionError) as error:
            told = "nested too deeply" if isinstance(error, RecursionError) else error
            raise InputError(f"{where}: not JSON ({told}); one object a line.") from error
        if isinstance(row, dict) and within_translation(row, data):
            row = row["translation"]
        if not isinstance(row, dict):
            raise InputError(f"{where}: found a {type(row).__name__}, where an object with two texts is needed.")
        source, target = (text_cell(row, name, where) for name in text_columns(data))
        yield source, target


def _unique(items: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON. Python alone keeps the last of two equal keys and says nothing."""
    found = dict(items)
    if len(found) < len(items):
        names = [name for name, _ in items]
        raise ValueError(f"{max(names, key=names.count)!r} is given twice")
    return found


def _parquet_rows(path: Path, data: DataArguments) -> Iterator[dict[str, Any]]:
    """Rows one after the other; in memory is one row group, which Parquet compresses as one."""
    with _open(path) as file, _whole_parquet(path):
        parquet = pq.ParquetFile(file)
        for batch in parquet.iter_batches(batch_size=PARQUET_ROWS, columns=_wanted(parquet, data, path)):
            batch.validate(full=True)
            yield from batch.to_pylist()


def _wanted(parquet: pq.ParquetFile, data: DataArguments, path: Path) -> list[str]:
    """The columns of texts; others may have types of any kind."""
    names = parquet.schema_arrow.names
    if within_translation(names, data):
        return ["translation"]
    check_columns(names, data, str(path))
    return list(text_columns(data))


def pairs_of_rows(rows: Iterable[Mapping[str, Any]], data: DataArguments, where: str) -> Iterator[tuple[str, str]]:
    """The two texts of each row, out of a `translation` object or out of two text columns."""
    for number, row in enumerate(rows):
        if within_translation(row, data):
            row = row["translation"] or {}
        if not isinstance(row, Mapping):
            raise InputError(f"{where}, row {number}: translation is a {type(row).__name__}, wanted the two texts.")
        if number == 0:
            check_columns(row, data, where)
        source, target = (text_cell(row, name, f"{where}, row {number}") for name in text_columns(data))
        yield source, target


def read_parquet(path: Path, data: DataArguments) -> Dataset:
    with _open(path) as file, _whole_parquet(path):
        parquet = pq.ParquetFile(file)
        table = parquet.read(columns=_wanted(parquet, data, path))
        table.validate(full=True)
        return Dataset(table.replace_schema_metadata(None))  # what another program says of it need not be so


@contextmanager
def _whole_parquet(path: Path) -> Iterator[None]:
    """What reads it fails with a message in the block. A damaged page is an OSError, a damaged text a ValueError."""
    try:
        yield
    except InputError:
        raise
    except (pa.ArrowException, OSError, ValueError, TypeError, LookupError) as error:
        raise InputError(f"{path} is not a Parquet file that can be read: {error}") from error


def text_columns(data: DataArguments) -> tuple[str, str]:
    """Names of the two texts: columns, keys of `translation`, or endings of text pairs."""
    return data.source_column or data.source_lang, data.target_column or data.target_lang


def within_translation(columns: Collection[str], data: DataArguments) -> bool:
    """Whether the two texts are in the column `translation` of these, not columns themselves."""
    if "translation" not in columns:
        return False
    names = set(text_columns(data))
    return data.source_column is None or not (names <= set(columns) or "translation" in names)


def check_columns(found: Iterable[str], data: DataArguments, where: str) -> None:
    missing = [name for name in text_columns(data) if name not in found]
    if missing:
        raise InputError(
            f"{where}: no {missing[0]!r}; there is {listing(found)}. Correct source_lang and target_lang, or name "
            "two text columns with source_column and target_column."
        )


def text_cell(row: Mapping[str, object], name: str, where: str) -> str:
    if name not in row:
        raise InputError(f"{where}: no {name!r}; there is {listing(row)}.")
    text = row[name]
    if not isinstance(text, str):
        raise InputError(f"{where}: {name!r} is a {type(text).__name__}, where a text is needed.")
    if NO_TEXT.search(text):
        raise InputError(f"{where}: {name!r} contains NUL or half of a surrogate pair, which no text does.")
    return text


def read_lines(path: Path) -> list[str]:
    """All that `iter_lines` gives."""
    return list(iter_lines(path))


def iter_lines(path: Path) -> Iterator[str]:
    """The lines of a UTF-8 file without their ends (`\\n` or `\\r\\n`) and without a byte order mark.

    Raises:
        InputError: the file is missing, a folder, unreadable or empty, or a line isn't UTF-8 or contains NUL.
    """
    with _open(path) as file:
        if file.peek(4)[:4] in (b"", codecs.BOM_UTF8):
            raise InputError(f"{path} is empty; it needs one sentence a line.")
        yield from read_stream(file, str(path))


def _open(path: Path) -> BufferedReader:
    if os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path):
        raise InputError(f"{path} is a pipe or a device, which can be read once at most; write its lines to a file.")
    try:
        return path.open("rb")
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist; {nearby(path)}") from error
    except OSError as error:
        raise InputError(f"{path} can't be read: {error.strerror}.") from error
    except ValueError as error:  # NUL in a name
        raise InputError(f"{str(path)!r} can't be read: {error}.") from error


def translation_features(languages: Sequence[str]) -> Features:
    """The one column that every corpus has: `translation`, a dict of two texts by language, as on the Hub."""
    return Features({"translation": Translation(list(languages))})


def pairs_to_dataset(pairs: Sequence[tuple[str, str]], languages: Sequence[str]) -> Dataset:
    """A dataset in memory with the column `translation`."""
    rows = [dict(zip(languages, pair, strict=True)) for pair in pairs]
    return Dataset.from_dict({"translation": rows}, features=translation_features(languages))
