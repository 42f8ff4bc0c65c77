"""Where the lines that are to be translated come from: the command line, standard input, a text, a data set.

- A text and a data set can be entered anywhere, so that several processes share the work: a survey reads all of it
  once and gives the place where each shard begins, and a digest.
- A data set is a name on the Hub, a folder, or a file of JSONL, Parquet or CSV; one column of it is translated.
"""

import hashlib
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from datasets import Dataset, DatasetDict, load_dataset
from datasets.exceptions import DatasetsError

from hf_mt.errors import InputError
from hf_mt.pair_files import text_cell
from hf_mt.text_files import read_stream


BUILDERS = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv"}
CSV = {"keep_default_na": False, "skip_blank_lines": False}  # empty cells are lines, and "NA" is text


@dataclass(frozen=True)
class Survey:
    """Lines of an input, SHA-256 of its text, and where each shard begins: a byte of a file, or a row."""

    lines: int
    sha256: str
    places: list[int]


class Sentences:
    """Lines that can be read once: given on the command line, or standard input."""

    def __init__(self, lines: Iterable[str], name: str):
        self.lines, self.name = lines, name

    def __iter__(self) -> Iterator[str]:
        return iter(self.lines)


class TextFile:
    """A UTF-8 text, a sentence a line.

    Raises:
        InputError: It can't be read.
    """

    def __init__(self, name: str):
        self.name, self.path = name, Path(name)
        if os.path.exists(name) and not os.path.isfile(name) and not os.path.isdir(name):
            raise InputError(f"{name} is a pipe or a device, not a file; pipe it into standard input, without --input")
        try:
            self.path.open("rb").close()
        except OSError as error:
            raise InputError(f"{name} can't be read: {error.strerror}") from error

    def __iter__(self) -> Iterator[str]:
        with self.path.open("rb") as file:
            yield from read_stream(file, self.name)

    def survey(self, shard_size: int) -> Survey:
        """Reads it once, for shards of so many lines."""
        digest, places, position, number = hashlib.sha256(), [], 0, 0
        with self.path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if number % shard_size == 1 or shard_size == 1:
                    places.append(position)
                digest.update(line)
                position += len(line)
        return Survey(number, digest.hexdigest(), places)

    def shard(self, place: int, first_line: int, count: int) -> Iterator[str]:
        """So many lines from a place of the survey."""
        with self.path.open("rb") as file:
            file.seek(place)
            yield from islice(read_stream(file, self.name, first_line), count)


class TextColumn:
    """A text column of a data set.

    Args:
        name: On the Hub, or of a folder or file.
        column: Which one; `translation.en` is that in a column of dictionaries.
        split: Which one; needed where there are several.
        config_name: Which configuration of a data set on the Hub; likewise.
        revision: Its branch, tag or commit there.

    Raises:
        InputError: There is no such data set, split or column, or one that is here is to have a revision.
    """

    def __init__(
        self,
        name: str,
        column: str,
        split: str | None = None,
        config_name: str | None = None,
        revision: str | None = None,
    ):
        self.name, self.column = f"{name}, {column}", column
        self.dataset = _load(name, split, config_name, revision).flatten()
        if column not in self.dataset.column_names:
            found = ", ".join(self.dataset.column_names)
            raise InputError(f"{name} has no column {column!r}; it has {found}. Choose one with --column")

    def __iter__(self) -> Iterator[str]:
        return self.shard(0, 1, len(self.dataset))

    def survey(self, shard_size: int) -> Survey:
        """Reads it once, for shards of so many rows."""
        digest = hashlib.sha256()
        for text in self:
            digest.update(text.encode() + b"\0")
        return Survey(len(self.dataset), digest.hexdigest(), list(range(0, len(self.dataset), shard_size)))

    def shard(self, place: int, first_line: int, count: int) -> Iterator[str]:
        """So many rows from one on, counted from 0."""
        rows = self.dataset.select_columns(self.column).select(range(place, min(place + count, len(self.dataset))))
        for number, row in enumerate(rows, first_line):
            yield text_cell(row, self.column, f"{self.name}, row {number}")


def _load(name: str, split: str | None, config_name: str | None, revision: str | None) -> Dataset:
    path = Path(name)
    if revision is not None and os.path.exists(name):
        raise InputError(f"{name} is here, and has no revision as a data set on the Hub has: leave it out")
    try:
        if path.is_file():
            loaded = load_dataset(_builder(path), data_files=name, **CSV if path.suffix == ".csv" else {})
        else:
            loaded = load_dataset(name, config_name, revision=revision)
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:
        raise InputError(f"data set {name!r} can't be loaded, from here or from the Hub: {error}") from error
    return _choose_split(loaded, name, split)


def _builder(path: Path) -> str:
    if path.suffix not in BUILDERS:
        raise InputError(f"{path} is none of {', '.join(BUILDERS)}; name a text with --input")
    return BUILDERS[path.suffix]


def _choose_split(loaded: DatasetDict, name: str, split: str | None) -> Dataset:
    if split is None and len(loaded) == 1:
        return next(iter(loaded.values()))
    if split not in loaded:
        found = "is not given" if split is None else f"{split!r} is not there"
        raise InputError(f"{name}: the split {found}; choose one with --split: {', '.join(loaded)}")
    return loaded[split]


Input = Sentences | TextFile | TextColumn


def open_input(
    sentences: Sequence[str] = (),
    input: str | None = None,
    dataset: str | None = None,
    column: str | None = None,
    split: str | None = None,
    dataset_config_name: str | None = None,
    dataset_revision: str | None = None,
) -> Input:
    """The input that a command line names: sentences, `input` (a text, or "-"), or `dataset` with `column`.

    Raises:
        InputError: Several inputs, half of one, or one that can't be read.
    """
    given = {"sentences": sentences, "--input": input, "--dataset": dataset}
    several = [name for name, value in given.items() if value]
    if len(several) > 1:
        raise InputError(f"{' and '.join(several)} are both given: keep one of them")
    if bool(dataset) != bool(column) or (not dataset and (split or dataset_config_name or dataset_revision)):
        raise InputError(
            "--dataset and --column go together, and --split, --dataset_config_name and --dataset_revision are "
            "theirs: give both, or none"
        )
    if dataset and column:
        return TextColumn(dataset, column, split, dataset_config_name, dataset_revision)
    if sentences:
        return Sentences(sentences, "the command line")
    if input in (None, "-"):
        if sys.stdin is None:
            raise InputError("standard input is closed; name a file with --input")
        return Sentences(read_stream(sys.stdin.buffer, "standard input"), "standard input")
    return TextFile(str(input))
