"""From sentence pairs to token ids: filter, tokenise, count.

- Nothing goes unseen: each filter has a count, and the table of counts is a file of the run.
- Only training pairs are ever dropped. Validation and test keep each row in its place; what is odd there is counted.
- No sentence is cut. A training pair over the maximum lengths is dropped and counted.
- Tokenised pairs are cached by content: texts, tokenizer, prefix and library versions, wherever the texts come from.
- BPE dropout (Provilkov et al. 2020, arXiv:1910.13267) cuts each training pair in several ways, of which every epoch
  draws one.
"""

from __future__ import annotations

import copy
import hashlib
import json
import re
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import tokenizers
import torch
import transformers
from datasets import Dataset, DatasetDict, Features, List, Value, concatenate_datasets
from transformers import PreTrainedTokenizerBase

from hf_mt.arguments import DataArguments
from hf_mt.errors import InputError


METADATA = re.compile(r"\s*</?[A-Za-z][\w.-]*(\s[^<>]*)?/?>")  # a line that begins with a tag: <url>, <doc id="3">
SHORT_SENTENCE = 10  # characters; shorter ones count as this long in the length ratio, for "OK" may become "D'accord"
HISTOGRAM_WIDTH = 5  # tokens
COLUMNS = Features({"input_ids": List(Value("int32")), "labels": List(Value("int32")), "length": Value("int32")})


@dataclass(frozen=True)
class FilterCounts:
    """How many pairs of a split each filter found, in the order of the filters; a pair counts for the first one only.

    In the training split what was found was dropped: `read` is the sum of `found` plus `kept`. In others all is kept.
    """

    split: str
    read: int
    found: dict[str, int]
    kept: int

    def with_found(self, reason: str, pairs: int) -> FilterCounts:
        """These counts with one more filter, which dropped the pairs if this is the training split."""
        kept = self.kept - pairs if self.split == "train" else self.kept
        return replace(self, found={**self.found, reason: pairs}, kept=kept)


def format_table(counts: Sequence[FilterCounts]) -> str:
    """A plain-text table with a line for each split; counts of pairs that were found but kept are in parentheses."""
    reasons = list(dict.fromkeys(reason for count in counts for reason in count.found))
    lines = [["split", "read", *reasons, "kept"]]
    for count in counts:
        style = "{}" if count.split == "train" else "({})"
        found = [style.format(f"{count.found[reason]:,}") if reason in count.found else "-" for reason in reasons]
        lines.append([count.split, f"{count.read:,}", *found, f"{count.kept:,}"])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    template = "  ".join([f"{{:<{widths[0]}}}", *(f"{{:>{width}}}" for width in widths[1:])])
    return "\n".join(template.format(*line) for line in lines)


def filter_pairs(corpus: Dataset, data: DataArguments, *, split: str) -> tuple[Dataset, FilterCounts]:
    """Drop odd pairs from a training split; only count them in any other, which comes back as it is.

    In this order: "empty" (a side has nothing but space), "metadata" (`drop_metadata`; a side begins with a markup
    tag, as the lines about a talk do in TED and IWSLT files), "length ratio" (the longer side has more than
    `max_length_ratio` times the characters of the shorter one, which counts as at least ten), and, for training only,
    "duplicate" (`drop_duplicates`; the same pair came before).

    Raises:
        InputError: no training pair is left.
    """
    kept, found = find_odd(zip(*_texts(corpus, data), strict=True), data, split=split)
    if split != "train":
        return corpus, FilterCounts(split, len(corpus), found, len(corpus))
    counts = FilterCounts(split, len(corpus), found, len(kept))
    check_left(counts)
    return corpus.select(kept), counts


def find_odd(pairs: Iterable[tuple[str, str]], data: DataArguments, *, split: str) -> tuple[list[int], dict[str, int]]:
    """Places of the pairs that no filter of `filter_pairs` finds, and how many each of them found."""
    found = _filters(data, split)
    kept: list[int] = []
    seen: set[tuple[str, str]] = set()
    for index, pair in enumerate(pairs):
        reason = _oddity(*pair, data) or ("duplicate" if pair in seen else None)
        if reason is None:
            kept.append(index)
            if data.drop_duplicates and split == "train":
                seen.add(pair)
        else:
            found[reason] += 1
    return kept, found


def _filters(data: DataArguments, split: str) -> dict[str, int]:
    active = {
        "empty": True,
        "metadata": data.drop_metadata,
        "length ratio": True,
        "duplicate": data.drop_duplicates and split == "train",
    }
    return {reason: 0 for reason, is_active in active.items() if is_active}


def _oddity(source: str, target: str, data: DataArguments) -> str | None:
    shorter, longer = sorted((len(source.strip()), len(target.strip())))
    if not shorter:
        return "empty"
    if data.drop_metadata and (METADATA.match(source) or METADATA.match(target)):
        return "metadata"
    if longer > data.max_length_ratio * max(shorter, SHORT_SENTENCE):
        return "length ratio"
    return None


def check_left(counts: FilterCounts) -> None:
    """Raises InputError if the filters left nothing."""
    if not counts.kept:
        raise InputError(
            f"No training pair is left after filtering:\n{format_table([counts])}\nCheck that source and target "
            "aren't exchanged or misaligned, or loosen max_length_ratio, drop_metadata, drop_duplicates, "
            "max_source_length or max_target_length."
        )


def _texts(corpus: Dataset, data: DataArguments) -> tuple[list[str], list[str]]:
    pairs = corpus.with_format("arrow")[:]["translation"]
    source, target = (pc.struct_field(pairs, side).to_pylist() for side in (data.source_lang, data.target_lang))
    return source, target


def filter_corpus(corpus: DatasetDict, data: DataArguments) -> tuple[DatasetDict, list[FilterCounts]]:
    """`filter_pairs` on each split. Do it before a tokenizer is trained, and pass the counts on to `prepare_data`."""
    filtered = {split: filter_pairs(pairs, data, split=split) for split, pairs in corpus.items()}
    return DatasetDict({split: pairs for split, (pairs, _) in filtered.items()}), [c for _, c in filtered.values()]


def tokenize_pairs(
    corpus: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    data: DataArguments,
    *,
    split: str,
    counts: FilterCounts | None = None,
) -> tuple[Dataset | SegmentedPairs, FilterCounts]:
    """Token ids of each pair, and `counts` with "too long" added: over `max_source_length` or `max_target_length`.

    Columns: `input_ids` of the prefixed source, `labels` of the target (both with the end of sentence) and `length`,
    the longer of the two. A loaded tokenizer does what it does for targets (Marian's second vocabulary, mBART's
    language code). Training pairs that are too long are dropped; others stay, since they can be translated.

    With `bpe_dropout` training pairs come in `bpe_dropout_samples` segmentations each. A sentence that dropout makes
    longer than its maximum is left whole. The random numbers of `tokenizers` can't be seeded: what was drawn is kept
    in the cache, and a run that finds it there goes on, or is repeated, bit for bit.

    Raises:
        InputError: no training pair is left, or the tokenizer has no merges to drop.
    """
    tokenized = _tokenize_cached(corpus, tokenizer, data)
    lengths = pair_lengths(tokenized)  # (N, 2)
    fits = (lengths <= (data.max_source_length, data.max_target_length)).all(axis=1)
    counts = counts or FilterCounts(split, len(corpus), {}, len(corpus))
    counts = counts.with_found("too long", int((~fits).sum()))
    if split != "train":
        return tokenized, counts
    check_left(counts)
    rows = np.flatnonzero(fits)
    if not data.bpe_dropout:
        return tokenized.select(rows), counts
    corpus, tokenized = corpus.select(rows), tokenized.select(rows)
    return SegmentedPairs(_segmentations(corpus, tokenized, tokenizer, data)), counts


def _tokenize_cached(corpus: Dataset, tokenizer: PreTrainedTokenizerBase, data: DataArguments) -> Dataset:
    encode = partial(_encode_batch, tokenizer=tokenizer, data=data)
    return _map_cached(corpus, encode, _content_key(corpus, tokenizer, data), data)


def _segmentations(
    corpus: Dataset, whole: Dataset, tokenizer: PreTrainedTokenizerBase, data: DataArguments
) -> list[Dataset]:
    """The pairs of `corpus`, of which `whole` has the tokens, cut at random as often as `data` says."""
    encode = DropoutEncoder(tokenizer, data)
    limits = [data.bpe_dropout, data.max_source_length, data.max_target_length]
    named = "-".join(map(str, [_content_key(corpus, tokenizer, data), *limits]))
    key = hashlib.blake2b(named.encode(), digest_size=16).hexdigest()  # datasets takes 64 letters at most
    both = concatenate_datasets([whole, corpus.select_columns("translation")], axis=1)
    return [_map_cached(both, encode, f"{key}-{number}", data) for number in range(data.bpe_dropout_samples)]


def _map_cached(pairs: Dataset, encode: Callable[..., Any], key: str, data: DataArguments) -> Dataset:
    folder = Path(datasets.config.HF_DATASETS_CACHE) / "hf_mt"
    folder.mkdir(parents=True, exist_ok=True)
    return pairs.map(
        encode,
        batched=True,
        remove_columns=pairs.column_names,
        features=COLUMNS,
        num_proc=data.preprocessing_num_workers if data.preprocessing_num_workers > 1 else None,
        cache_file_name=str(folder / f"tokenized-{key}.arrow"),
        new_fingerprint=key,
        desc="Tokenising",
    )


def _content_key(corpus: Dataset, tokenizer: PreTrainedTokenizerBase, data: DataArguments) -> str:
    digest = hashlib.blake2b(digest_size=16)
    settings = [data.source_prefix, getattr(tokenizer, "src_lang", None), getattr(tokenizer, "tgt_lang", None)]
    digest.update(json.dumps([transformers.__version__, tokenizers.__version__, *settings]).encode())
    for side in _texts(corpus, data):
        digest.update(json.dumps(side).encode())
    tokenizer("")  # undoes the padding or truncation of an earlier call, which would be saved as part of the tokenizer
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        for file in sorted(Path(folder).rglob("*")):
            if file.is_file():
                digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()


def _encode_batch(
    batch: Mapping[str, list[Any]], tokenizer: PreTrainedTokenizerBase, data: DataArguments
) -> dict[str, list[Any]]:
    sources, targets = ([pair[side] for pair in batch["translation"]] for side in (data.source_lang, data.target_lang))
    rows = encode_pairs(sources, targets, tokenizer, source_prefix=data.source_prefix)
    return {**rows, "length": [max(map(len, pair)) for pair in zip(*rows.values(), strict=True)]}


def encode_pairs(
    sources: Sequence[str], targets: Sequence[str], tokenizer: PreTrainedTokenizerBase, *, source_prefix: str = ""
) -> dict[str, list[list[int]]]:
    """`input_ids` of sources and `labels` of targets, each with its end of sentence; nothing is cut."""
    encoded = tokenizer(
        [source_prefix + source for source in sources],
        text_target=list(targets),
        verbose=False,  # no warning about the model's length: too long pairs are counted
    )
    return {key: [ended(ids, tokenizer.eos_token_id) for ids in encoded[key]] for key in ("input_ids", "labels")}


def ended(ids: list[int], eos_token_id: int) -> list[int]:
    """Tokens with the end of sentence, which not every tokenizer adds."""
    return ids if eos_token_id in ids[-2:] else [*ids, eos_token_id]  # mBART has its language code after it


class DropoutEncoder:
    """Tokenises a batch of rows with BPE dropout; rows that it makes too long keep the tokens that they have.

    Raises:
        InputError: the tokenizer isn't a BPE tokenizer of the `tokenizers` package.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, data: DataArguments) -> None:
        self.tokenizer, self.data = copy.deepcopy(tokenizer), data
        model = getattr(getattr(self.tokenizer, "backend_tokenizer", None), "model", None)
        if not isinstance(model, tokenizers.models.BPE):
            raise InputError(
                f"bpe_dropout is {data.bpe_dropout}, but the tokenizer's model is {type(model).__name__}, which has "
                "no merges to drop. Set bpe_dropout to 0, or choose tokenizer_type bpe or byte_bpe."
            )
        model.dropout = data.bpe_dropout

    def __call__(self, batch: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
        dropped = _encode_batch(batch, self.tokenizer, self.data)
        limits = {"input_ids": self.data.max_source_length, "labels": self.data.max_target_length}
        rows = {
            side: [new if len(new) <= limit else old for new, old in zip(dropped[side], batch[side], strict=True)]
            for side, limit in limits.items()
        }
        return {**rows, "length": [max(map(len, pair)) for pair in zip(*rows.values(), strict=True)]}


class SegmentedPairs(torch.utils.data.Dataset):
    """Pairs that are cut into tokens in several ways; which way an epoch reads is the sampler's to draw.

    Args:
        cuts: K data sets of the same N pairs.
    """

    def __init__(self, cuts: Sequence[Dataset]) -> None:
        self.cuts = cuts

    def __len__(self) -> int:
        return len(self.cuts[0])

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The `index % N`-th pair as the `index // N`-th data set has it."""
        cut, row = divmod(index, len(self))
        return self.cuts[cut][row]


def pair_lengths(tokenized: Dataset | SegmentedPairs) -> np.ndarray:
    """(N, 2) tokens of source and target of each pair; (K, N, 2) where it has K segmentations."""
    if isinstance(tokenized, SegmentedPairs):
        return np.stack([pair_lengths(cut) for cut in tokenized.cuts])
    return np.stack([pc.list_value_length(side).to_numpy() for side in _token_columns(tokenized)], axis=1)


def _token_columns(tokenized: Dataset) -> list[pa.ChunkedArray]:
    table = tokenized.with_format("arrow", columns=["input_ids", "labels"])[:]
    return [table["input_ids"], table["labels"]]


@dataclass(frozen=True)
class TokenCounts:
    """Tokens a sentence on one side of a split, end of sentence included, and how many `<unk>` there are in all."""

    mean: float
    percentile_95: float
    max: int
    unknown: int
    histogram: list[int]  # sentences of 1 to HISTOGRAM_WIDTH tokens, of as many more, and so on


@dataclass(frozen=True)
class PreparedData:
    """Tokenised splits, and what is told about them. `sources` and `references` hold the texts of all but training.

    Where training pairs are streamed, `train` is a `PairStream`, which counts what it reads by itself.
    """

    train: Dataset | SegmentedPairs | None
    validation: Dataset | None
    test: Dataset | None
    sources: dict[str, list[str]]
    references: dict[str, list[str]]
    counts: list[FilterCounts]
    tokens: dict[str, dict[str, TokenCounts]]  # split -> "source" | "target"


def prepare_data(
    corpus: DatasetDict,
    tokenizer: PreTrainedTokenizerBase,
    data: DataArguments,
    *,
    counts: Sequence[FilterCounts] | None = None,
) -> PreparedData:
    """Filter (unless `counts` tells that `filter_corpus` did it) and tokenise each split of `corpus`.

    Raises:
        InputError: as `filter_pairs` and `tokenize_pairs`.
    """
    if counts is None:
        corpus, counts = filter_corpus(corpus, data)
    tokenized: dict[str, Any] = {}
    finished = []
    for count in counts:
        tokenized[count.split], count = tokenize_pairs(
            corpus[count.split], tokenizer, data, split=count.split, counts=count
        )
        finished.append(count)
    texts = {split: _texts(pairs, data) for split, pairs in corpus.items() if split != "train"}
    return PreparedData(
        train=tokenized.get("train"),
        validation=tokenized.get("validation"),
        test=tokenized.get("test"),
        sources={split: source for split, (source, _) in texts.items()},
        references={split: target for split, (_, target) in texts.items()},
        counts=finished,
        tokens={split: _token_counts(pairs, tokenizer) for split, pairs in tokenized.items()},
    )


def _token_counts(tokenized: Dataset | SegmentedPairs, tokenizer: PreTrainedTokenizerBase) -> dict[str, TokenCounts]:
    cuts = 1
    if isinstance(tokenized, SegmentedPairs):
        cuts = len(tokenized.cuts)
        tokenized = concatenate_datasets(list(tokenized.cuts))
    counts = {}
    lengths = pair_lengths(tokenized)
    for side, name in enumerate(("source", "target")):
        ids = pc.list_flatten(_token_columns(tokenized)[side]).to_numpy()
        counts[name] = TokenCounts(
            mean=round(float(lengths[:, side].mean()), 2),
            percentile_95=float(np.percentile(lengths[:, side], 95)),
            max=int(lengths[:, side].max()),
            histogram=[round(n / cuts) for n in np.bincount((lengths[:, side] - 1).clip(0) // HISTOGRAM_WIDTH)],
            unknown=0 if tokenizer.unk_token_id is None else round((ids == tokenizer.unk_token_id).sum() / cuts),
        )
    return counts
