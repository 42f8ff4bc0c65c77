"""Where sentence pairs come from: built-in corpora, files of text pairs, TSV, JSONL or Parquet, and the Hub.

- Every source becomes the same thing: a `DatasetDict` with one column, `translation`, a dict of two texts.
- Nothing is repaired or skipped: what can't be read is an `InputError` that names the file, the line and the remedy.
- A corpus is all pairs of its source; a stream gives one after the other, and holds none.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from datasets import Dataset, DatasetDict, IterableDataset, load_dataset
from datasets.exceptions import DatasetsError

from hf_mt.arguments import DataArguments
from hf_mt.cldr import cldr_corpus, disjoint_splits
from hf_mt.errors import InputError, listing
from hf_mt.pair_files import (
    check_columns,
    file_pairs,
    pairs_of_rows,
    pairs_to_dataset,
    read_parquet,
    text_cell,
    text_columns,
    translation_features,
    within_translation,
)


logger = logging.getLogger(__name__)

SPLITS = ("train", "validation", "test")
TOY_TASKS: dict[str, Callable[[list[str]], Sequence[str]]] = {
    "copy": lambda digits: digits,
    "reverse": lambda digits: digits[::-1],
    "sort": sorted,
}
BUILT_IN = ("cldr", *(f"toy_{task}" for task in TOY_TASKS))


def load_corpus(data: DataArguments, *, splits: Sequence[str] = SPLITS, required: bool = True) -> DatasetDict:
    """The sentence pairs that `data` names.

    Args:
        data: `dataset_name` (`cldr`, `toy_copy`, `toy_reverse`, `toy_sort`, a Hub id or a local folder that
            `datasets.load_dataset` can read) or `train_file`, `validation_file`, `test_file` (a `.tsv`, `.jsonl` or
            `.parquet` file, or the prefix of text pairs, `data/train` for `data/train.en` and `data/train.de`). The
            last two may stand beside a data set; what they name takes the place of its own split, and that is logged.
        splits: those of train, validation and test that are wanted.
        required: whether one of them must exist.

    Returns:
        the wanted splits that exist, each with the one column `translation: {source_lang: str, target_lang: str}` and
        cut to its first `max_train_samples`, `max_eval_samples` or `max_predict_samples` pairs.

    Raises:
        InputError: no source or two of training pairs, train wanted but missing or to be streamed, and whatever is
            wrong with a file or a data set.
    """
    check_source(data)
    if data.streaming and "train" in splits:
        raise InputError("streaming is set, and only training reads a stream; set it to false, or use another split.")
    found = _read_files(data, splits)
    rest = [split for split in splits if split not in found]
    if data.dataset_name and rest:
        found |= (_built_in if data.dataset_name in BUILT_IN else _from_datasets)(data, rest)
    corpus = {split: found[split] for split in splits if split in found}
    if "train" in splits and "train" not in corpus:
        raise InputError(f"There is no train split ({listing(corpus)}); set train_file or another dataset_name.")
    if required and not corpus:
        source = data.dataset_name or "the files given (train_file, validation_file, test_file)"
        raise InputError(f"There is no {' or '.join(splits)} split in {source}.")
    return DatasetDict(corpus)


def stream_pairs(data: DataArguments) -> Iterator[tuple[str, str]]:
    """The training pairs that `data` names, from the first to the last or to `max_train_samples`; none is held.

    Raises:
        InputError: what `load_corpus` raises; when a line is reached, if that is what is wrong.
    """
    check_source(data)
    if data.dataset_name in BUILT_IN:
        raise InputError(f"{data.dataset_name} is made in memory and can't be streamed; set streaming to false.")
    if data.dataset_name:
        loaded = _open_data_set(data)
        if "train" not in loaded:
            raise InputError(f"There is no train split in {data.dataset_name}; it has {listing(loaded)}.")
        pairs = pairs_of_rows(loaded["train"], data, f"{data.dataset_name}, train")
    elif data.train_file:
        pairs = file_pairs(_path(data.train_file), data)
    else:
        raise InputError("There is no train split to stream; set train_file or another dataset_name.")
    return islice(pairs, data.max_train_samples)


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
        raise InputError(f"toy task {task!r} is unknown; choose one of {listing(TOY_TASKS)}.")
    if max_digits < 1:
        raise InputError(f"max_digits is {max_digits}; a line has 1 digit or more.")

    def draw(rng: random.Random) -> tuple[str, str]:
        digits = rng.choices("0123456789", k=rng.randint(1, max_digits))
        return " ".join(digits), " ".join(TOY_TASKS[task](digits))

    return disjoint_splits(draw, sizes, seed, (source_lang, target_lang))


def check_source(data: DataArguments) -> None:
    files = {f"{split}_file": getattr(data, f"{split}_file") for split in SPLITS}
    given = [f"{name}={path}" for name, path in files.items() if path]
    if data.dataset_name and data.train_file:
        of_data_set = ("dataset_name", "dataset_config_name", "dataset_revision", "source_column", "target_column")
        cure = " ".join(f"--{name} None" for name in of_data_set if getattr(data, name) is not None)
        raise InputError(
            f"dataset_name={data.dataset_name} and train_file={data.train_file} were both given; keep one of them: "
            f"your own files need {cure}. (validation_file and test_file may stand beside a data set.)"
        )
    if not data.dataset_name and not given:
        raise InputError(
            f"No sentence pairs were named; set dataset_name ({', '.join(BUILT_IN)}, a Hub id or a "
            f"folder) or {', '.join(files)} (a .tsv, .jsonl or .parquet file, or the prefix of text "
            f"pairs, such as data/train for data/train.{data.source_lang} and data/train.{data.target_lang})."
        )
    of_the_hub = [name for name in ("dataset_config_name", "dataset_revision") if getattr(data, name) is not None]
    if of_the_hub and not data.dataset_name:
        raise InputError(f"{' and '.join(of_the_hub)} belong to a dataset_name, and there is none; leave them out.")
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
        if data.dataset_name:
            logger.warning("%s: %s takes the place of what %s has for it", split, name, data.dataset_name)
        path = _path(name)
        if path.suffix == ".parquet":
            corpus[split] = _select_pair(_first(read_parquet(path, data), data, split), data, str(path))
        else:
            pairs = pairs_to_dataset(list(file_pairs(path, data)), (data.source_lang, data.target_lang))
            corpus[split] = _first(pairs, data, split)
    return corpus


def _path(name: str) -> Path:
    try:
        return Path(name).expanduser()
    except RuntimeError as error:
        raise InputError(f"{name} names the home of a user who is not known here; write the whole path.") from error


def _from_datasets(data: DataArguments, splits: Sequence[str]) -> dict[str, Dataset]:
    name, loaded = str(data.dataset_name), _open_data_set(data)
    found = [split for split in SPLITS if split in loaded]
    if not found:
        raise InputError(f"{name} has the splits {listing(loaded)}; needed are {listing(SPLITS)}.")
    return {
        split: _select_pair(_first(_held(loaded[split]), data, split), data, f"{name}, {split}")
        for split in splits
        if split in found
    }


def _open_data_set(data: DataArguments) -> Mapping[str, Dataset | IterableDataset]:
    name = str(data.dataset_name)
    try:
        return load_dataset(name, data.dataset_config_name, revision=data.dataset_revision, streaming=data.streaming)
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:
        raise InputError(
            f"The data set {name} can't be loaded: {error}\nCheck the name on https://huggingface.co/datasets, "
            "dataset_config_name and dataset_revision; a private one needs `hf auth login`, or HF_TOKEN. Without a "
            "connection, use local files (train_file), a local folder, or the built-in dataset_name=cldr."
        ) from error


def _held(dataset: Dataset | IterableDataset) -> Dataset:
    return dataset if isinstance(dataset, Dataset) else Dataset.from_list(list(dataset), features=dataset.features)


def _select_pair(dataset: Dataset, data: DataArguments, where: str) -> Dataset:
    """The two texts out of a `translation` column with any languages, or out of two text columns."""
    if within_translation(dataset.column_names, data):
        dataset = dataset.select_columns("translation").flatten()
        dataset = dataset.rename_columns({name: name.removeprefix("translation.") for name in dataset.column_names})
    names, languages = text_columns(data), (data.source_lang, data.target_lang)
    check_columns(dataset.column_names, data, where)

    def join(columns: Mapping[str, list[object]], rows: list[int]) -> dict[str, list[dict[str, str]]]:
        texts = [
            {language: text_cell({name: columns[name][at]}, name, f"{where}, row {row}") for language, name in wanted}
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
