"""Where sentence pairs come from: built-in corpora, files of text pairs, TSV, JSONL or Parquet, and the Hub.

- Every source becomes the same thing: a `DatasetDict` with one column, `translation`, a dict of two texts.
- A line of text ends at `\\n` or `\\r\\n` and nowhere else. `str.splitlines` also ends it at U+2028, U+0085 and
  others, which occur inside sentences: one of them on one side would shift all later pairs.
- Nothing is repaired or skipped: what can't be read is an `InputError` that names the file, the line and the remedy.
"""

from __future__ import annotations

import codecs
import difflib
import json
import logging
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, DatasetDict, load_dataset
from datasets.exceptions import DatasetsError

from hf_mt.arguments import DataArguments, InputError
from hf_mt.cldr import cldr_corpus, disjoint_splits, pairs_to_dataset, translation_features


logger = logging.getLogger(__name__)

SPLITS = ("train", "validation", "test")
TOY_TASKS: dict[str, Callable[[list[str]], Sequence[str]]] = {
    "copy": lambda digits: digits,
    "reverse": lambda digits: digits[::-1],
    "sort": sorted,
}
BUILT_IN = ("cldr", *(f"toy_{task}" for task in TOY_TASKS))


def load_corpus(data: DataArguments, *, splits: Sequence[str] = SPLITS) -> DatasetDict:
    """The sentence pairs that `data` names.

    Args:
        data: `dataset_name` (`cldr`, `toy_copy`, `toy_reverse`, `toy_sort`, a Hub id or a local folder that
            `datasets.load_dataset` can read) or `train_file`, `validation_file`, `test_file` (a `.tsv`, `.jsonl` or
            `.parquet` file, or the prefix of text pairs, `data/train` for `data/train.en` and `data/train.de`).
        splits: those of train, validation and test that are wanted.

    Returns:
        the wanted splits that exist, each with the one column `translation: {source_lang: str, target_lang: str}` and
        cut to its first `max_train_samples`, `max_eval_samples` or `max_predict_samples` pairs.

    Raises:
        InputError: no or two sources, train wanted but missing, and whatever is wrong with a file or a data set.
    """
    _check_source(data)
    if not data.dataset_name:
        corpus = _read_files(data, splits)
    elif data.dataset_name in BUILT_IN:
        corpus = _built_in(data, splits)
    else:
        corpus = _from_datasets(data, splits)
    if "train" in splits and "train" not in corpus:
        raise InputError(f"There is no train split ({_listing(corpus)}); set train_file or another dataset_name.")
    if not corpus:
        source = data.dataset_name or "the files given (train_file, validation_file, test_file)"
        raise InputError(f"There is no {' or '.join(splits)} split in {source}.")
    return DatasetDict(corpus)


def toy_corpus(
    task: Literal["copy", "reverse", "sort"],
    *,
    sizes: Mapping[str, int],
    seed: int = 0,
    max_digits: int = 10,
    source_lang: str = "src",
    target_lang: str = "tgt",
) -> DatasetDict:
    """Lines of 1 to `max_digits` digits with spaces between, and the same copied, reversed or sorted.

    Copying and reversing need positions in the encoder, sorting doesn't: together they tell whether it uses them.
    No source and no target occurs twice, neither in a split nor in two.

    Raises:
        InputError: unknown task, `max_digits` below 1, or more pairs than there are.
    """
    if task not in TOY_TASKS:
        raise InputError(f"toy task {task!r} is unknown; choose one of {_listing(TOY_TASKS)}.")
    if max_digits < 1:
        raise InputError(f"max_digits is {max_digits}; a line has 1 digit or more.")

    def draw(rng: random.Random) -> tuple[str, str]:
        digits = rng.choices("0123456789", k=rng.randint(1, max_digits))
        return " ".join(digits), " ".join(TOY_TASKS[task](digits))

    return disjoint_splits(draw, sizes, seed, (source_lang, target_lang))


def read_lines(path: Path) -> list[str]:
    """The lines of a UTF-8 file without their ends (`\\n` or `\\r\\n`) and without a byte order mark.

    Raises:
        InputError: the file is missing, a folder, unreadable or empty, or a line isn't UTF-8 or contains NUL.
    """
    raw = _read_bytes(path).removeprefix(codecs.BOM_UTF8)
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line, before = raw.count(b"\n", 0, error.start) + 1, raw.rfind(b"\n", 0, error.start) + 1
        raise InputError(
            f"{path}, line {line}, byte {error.start - before + 1}: 0x{raw[error.start]:02x} is not UTF-8; convert "
            "the file, for example with `iconv -f latin1 -t utf-8`."
        ) from error
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise InputError(f"{path}, line {line}: a NUL character; only text is allowed (is the file damaged?).")
    if not text:
        raise InputError(f"{path} is empty; it needs one sentence a line.")
    return [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist; {_nearby(path)}") from error
    except OSError as error:
        raise InputError(f"{path} can't be read: {error.strerror}.") from error


def _nearby(path: Path) -> str:
    """What there is instead of a missing file."""
    if not path.parent.is_dir():
        return f"there is no folder {path.parent}."
    names = sorted(entry.name for entry in path.parent.iterdir())
    near = [name for name in names if name.startswith(path.stem)] or difflib.get_close_matches(path.name, names, n=5)
    return f"in {path.parent} there is {_listing(near or names)}."


def _listing(names: Iterable[object], most: int = 12) -> str:
    shown = [str(name) for name in names]
    rest = f" and {len(shown) - most} more" if len(shown) > most else ""
    return ", ".join(shown[:most]) + rest if shown else "nothing"


def _check_source(data: DataArguments) -> None:
    files = {f"{split}_file": getattr(data, f"{split}_file") for split in SPLITS}
    given = [f"{name}={path}" for name, path in files.items() if path]
    if data.dataset_name and given:
        raise InputError(f"dataset_name={data.dataset_name} and {', '.join(given)} were both given; keep one of them.")
    if not data.dataset_name and not given:
        raise InputError(
            f"No sentence pairs were named; set dataset_name ({', '.join(BUILT_IN)}, a Hub id or a "
            f"folder) or {', '.join(files)} (a .tsv, .jsonl or .parquet file, or the prefix of text "
            f"pairs, such as data/train for data/train.{data.source_lang} and data/train.{data.target_lang})."
        )
    if data.source_lang == data.target_lang:
        raise InputError(f"source_lang and target_lang are both {data.source_lang!r}; they must differ.")
    if (data.source_column is None) != (data.target_column is None):
        raise InputError("source_column and target_column go together; set both or neither.")


def _built_in(data: DataArguments, splits: Sequence[str]) -> dict[str, Dataset]:
    without_effect = [
        name
        for name in ("dataset_config_name", "dataset_revision", "source_column", "target_column")
        if getattr(data, name) is not None
    ]
    if without_effect:
        raise InputError(
            f"{data.dataset_name} is built in and has no {', '.join(without_effect)}; remove what it lacks."
        )
    sizes = {"train": data.cldr_train_size, "validation": data.cldr_validation_size, "test": data.cldr_test_size}
    if "train" not in splits:  # it is drawn last, so the other splits are the same without it
        sizes["train"] = 0
    languages, seed = (data.source_lang, data.target_lang), data.cldr_seed
    if data.dataset_name == "cldr":
        corpus = cldr_corpus(*languages, sizes=sizes, seed=seed, max_phrases=data.cldr_max_phrases)
    else:
        task: Any = str(data.dataset_name).removeprefix("toy_")  # Any: mypy can't see that it is one of the three
        corpus = toy_corpus(task, sizes=sizes, seed=seed, source_lang=languages[0], target_lang=languages[1])
    return {split: _first(corpus[split], data, split) for split in splits if split in corpus}


def _read_files(data: DataArguments, splits: Sequence[str]) -> dict[str, Dataset]:
    corpus = {}
    for split in splits:
        name = getattr(data, f"{split}_file")
        if not name:
            continue
        path = Path(name).expanduser()
        if path.suffix == ".parquet":
            corpus[split] = _select_pair(_first(_read_parquet(path), data, split), data, str(path))
        else:
            read = {".tsv": _read_tsv, ".jsonl": _read_jsonl}.get(path.suffix, _read_text_pairs)
            pairs = pairs_to_dataset(read(path, data), (data.source_lang, data.target_lang))
            corpus[split] = _first(pairs, data, split)
    return corpus


def _read_text_pairs(prefix: Path, data: DataArguments) -> list[tuple[str, str]]:
    if prefix.is_file():
        raise InputError(
            f"{prefix} is neither .tsv, .jsonl nor .parquet; for text pairs give their prefix, such as "
            f"{prefix.with_suffix('')} for {prefix.with_suffix(f'.{data.source_lang}')} and "
            f"{prefix.with_suffix(f'.{data.target_lang}')}."
        )
    if data.source_column is not None:
        raise InputError(f"source_column and target_column name columns, but {prefix} is text; remove them.")
    paths = [Path(f"{prefix}.{language}") for language in (data.source_lang, data.target_lang)]
    sources, targets = (read_lines(path) for path in paths)
    if len(sources) != len(targets):
        raise InputError(
            f"{paths[0]} has {len(sources)} lines and {paths[1]} has {len(targets)}; line n of one must translate "
            "line n of the other, so the numbers must be equal."
        )
    return list(zip(sources, targets, strict=True))


def _columns(data: DataArguments) -> tuple[str, str]:
    return data.source_column or data.source_lang, data.target_column or data.target_lang


def _read_tsv(path: Path, data: DataArguments) -> list[tuple[str, str]]:
    """Two columns, source and target, or any number below a header that names the two; there is no quoting."""
    rows = [line.split("\t") for line in read_lines(path)]
    names, header = _columns(data), rows[0]
    named = set(names) <= set(header)
    first, second = (header.index(name) for name in names) if named else (0, 1)
    if not named and (data.source_column is not None or len(header) != 2):
        raise InputError(
            f"{path}, line 1: no header with the columns {names[0]} and {names[1]}; found {len(header)} columns: "
            f"{_listing(header)}. Without a header there must be two, source and target, with a tab between."
        )
    for number, row in enumerate(rows, 1):
        if len(row) != len(header):
            raise InputError(f"{path}, line {number}: {len(row)} columns, but line 1 has {len(header)}.")
    return [(row[first], row[second]) for row in rows[1 if named else 0 :]]


def _read_jsonl(path: Path, data: DataArguments) -> list[tuple[str, str]]:
    """An object a line, with a `translation` object or with the two texts themselves."""
    pairs = []
    for number, line in enumerate(read_lines(path), 1):
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(f"{where}, column {error.colno}: not JSON ({error.msg}); one object a line.") from error
        if isinstance(row, dict) and data.source_column is None:
            row = row.get("translation", row)
        if not isinstance(row, dict):
            raise InputError(f"{where}: found a {type(row).__name__}, where an object with two texts is needed.")
        source, target = (_text(row, name, where) for name in _columns(data))
        pairs.append((source, target))
    return pairs


def _text(row: Mapping[str, object], name: str, where: str) -> str:
    if name not in row:
        raise InputError(f"{where}: no {name!r}; there is {_listing(row)}.")
    text = row[name]
    if not isinstance(text, str):
        raise InputError(f"{where}: {name!r} is a {type(text).__name__}, where a text is needed.")
    if "\0" in text or any("\ud800" <= character <= "\udfff" for character in text):
        raise InputError(f"{where}: {name!r} contains NUL or half of a surrogate pair, which no text does.")
    return text


def _read_parquet(path: Path) -> Dataset:
    try:
        return Dataset(pq.ParquetFile(pa.BufferReader(_read_bytes(path))).read())
    except pa.ArrowException as error:
        raise InputError(f"{path} is not a Parquet file: {error}") from error


def _from_datasets(data: DataArguments, splits: Sequence[str]) -> dict[str, Dataset]:
    name = str(data.dataset_name)
    try:
        loaded = load_dataset(name, data.dataset_config_name, revision=data.dataset_revision)
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:
        raise InputError(
            f"The data set {name} can't be loaded: {error}\nCheck the name on https://huggingface.co/datasets, "
            "dataset_config_name and dataset_revision. Without a connection, use local files (train_file), a local "
            "folder, or the built-in dataset_name=cldr."
        ) from error
    found = [split for split in SPLITS if split in loaded]
    if not found:
        raise InputError(f"{name} has the splits {_listing(loaded)}; needed are {_listing(SPLITS)}.")
    return {
        split: _select_pair(_first(loaded[split], data, split), data, f"{name}, {split}")
        for split in splits
        if split in found
    }


def _select_pair(dataset: Dataset, data: DataArguments, where: str) -> Dataset:
    """The two texts out of a `translation` column with any languages, or out of two text columns."""
    if data.source_column is None and "translation" in dataset.column_names:
        dataset = dataset.select_columns("translation").flatten()
        dataset = dataset.rename_columns({name: name.removeprefix("translation.") for name in dataset.column_names})
    names, languages = _columns(data), (data.source_lang, data.target_lang)
    for name in names:
        if name not in dataset.column_names:
            raise InputError(
                f"{where}: no {name!r}; there is {_listing(dataset.column_names)}. Correct source_lang and "
                "target_lang, or name two text columns with source_column and target_column."
            )

    def join(columns: Mapping[str, list[object]], rows: list[int]) -> dict[str, list[dict[str, str]]]:
        texts = [
            {language: _text({name: columns[name][at]}, name, f"{where}, row {row}") for language, name in wanted}
            for at, row in enumerate(rows)
        ]
        return {"translation": texts}

    wanted = list(zip(languages, names, strict=True))
    return dataset.map(
        join,
        batched=True,
        with_indices=True,
        remove_columns=dataset.column_names,
        features=translation_features(languages),
        desc=where,
    )


def _first(pairs: Dataset, data: DataArguments, split: str) -> Dataset:
    """As many pairs as the user wants of a split, from its beginning."""
    if not len(pairs):
        raise InputError(f"The {split} split has no sentence pairs.")
    limits = {"train": data.max_train_samples, "validation": data.max_eval_samples, "test": data.max_predict_samples}
    kept = pairs.select(range(min(limits[split] or len(pairs), len(pairs))))
    logger.info("%s: %d sentence pairs of %d", split, len(kept), len(pairs))
    return kept
