"""Training pairs that are read when they are needed, filtered and tokenised, block by block; no block is kept.

- A block depends on the corpus and on where the block before it ended, not on the number of processes.
- A rest too small for a block joins the block before it, whose end is therefore known late: when the next is made.
- Duplicates are found among `streaming_buffer` pairs that were read together, no further.
- A pass can begin anywhere. What lies before is read, not tokenised, and compared with what was read then.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from hf_mt.arguments import DataArguments
from hf_mt.corpora import stream_pairs
from hf_mt.data import HISTOGRAM_WIDTH, FilterCounts, TokenCounts, check_left, encode_pairs, find_odd
from hf_mt.errors import InputError


SAMPLE_PAIRS = 1_000  # of the beginning, which are looked at before training
ENCODED_PAIRS = 1_000  # at a time: what the tokenizer gives for a pair takes far more memory than its ids
TEXT = pa.schema({"input_ids": pa.list_(pa.int32()), "labels": pa.list_(pa.int32())})


@dataclass(frozen=True)
class Tally:
    """What was read: filters, lengths (2, longest + 1; pairs with so many tokens a side) and `<unk>` (2,)."""

    counts: FilterCounts
    lengths: np.ndarray
    unknown: np.ndarray

    @classmethod
    def nothing(cls, data: DataArguments) -> Tally:
        found = {**find_odd([], data, split="train")[1], "too long": 0}
        longest = max(data.max_source_length, data.max_target_length)
        return cls(FilterCounts("train", 0, found, 0), np.zeros((2, longest + 1), int), np.zeros(2, int))

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Tally:
        return cls(FilterCounts(**values["counts"]), np.array(values["lengths"]), np.array(values["unknown"]))

    def as_json(self) -> dict[str, Any]:
        return {"counts": asdict(self.counts), "lengths": self.lengths.tolist(), "unknown": self.unknown.tolist()}

    def __add__(self, other: Tally) -> Tally:
        one, two = self.counts, other.counts
        found = {reason: count + two.found[reason] for reason, count in one.found.items()}
        counts = FilterCounts("train", one.read + two.read, found, one.kept + two.kept)
        return Tally(counts, self.lengths + other.lengths, self.unknown + other.unknown)

    def tokens(self) -> dict[str, TokenCounts]:
        """As `hf_mt.data` counts them, from how often each length occurs."""
        sides = zip(("source", "target"), self.lengths, self.unknown, strict=True)
        return {side: _token_counts(pairs, unknown) for side, pairs, unknown in sides}


def _token_counts(pairs: np.ndarray, unknown: int) -> TokenCounts:
    """`pairs`: (longest + 1,) how many have so many tokens."""
    longest = int(np.flatnonzero(pairs).max(initial=0))
    tokens, pairs = np.arange(longest + 1), pairs[: longest + 1]
    return TokenCounts(
        mean=round(float(pairs @ tokens / max(pairs.sum(), 1)), 2),
        percentile_95=float(np.searchsorted(pairs.cumsum(), 0.95 * pairs.sum())),
        max=longest,
        unknown=int(unknown),
        histogram=np.bincount((tokens - 1).clip(0) // HISTOGRAM_WIDTH, pairs).astype(int).tolist(),
    )


@dataclass(frozen=True)
class Block:
    """Tokenised pairs, columns `input_ids` and `labels`; and how much of the corpus was read up to their end."""

    table: pa.Table
    tally: Tally
    end: int  # pairs read in this pass, filtered ones too
    digest: str  # of all of them

    def __add__(self, following: Block) -> Block:
        table = pa.concat_tables([self.table, following.table])
        return Block(table, self.tally + following.tally, following.end, following.digest)


class PairStream:
    """Training pairs that are read when they are needed.

    Args:
        data: `train_file` or `dataset_name`, filters, `streaming_buffer`.
        tokenizer: Copied, since blocks are made beside an evaluation that uses it.
    """

    def __init__(self, data: DataArguments, tokenizer: PreTrainedTokenizerBase) -> None:
        self.data, self.tokenizer = data, copy.deepcopy(tokenizer)

    def beginning(self) -> Dataset:
        """Some of the first pairs, tokenised."""
        return as_dataset(self._beginning())

    def tokens(self) -> dict[str, TokenCounts]:
        """Token counts of the first pairs, but for `max`, which is the most that any pair may have."""
        counts = self._beginning().tally.tokens()
        limits = {"source": self.data.max_source_length, "target": self.data.max_target_length}
        return {side: replace(counts[side], max=limit) for side, limit in limits.items()}

    def _beginning(self) -> Block:
        few = PairStream(replace(self.data, streaming_buffer=SAMPLE_PAIRS), self.tokenizer)
        block = next(few.blocks(), None)
        if block is None:
            raise InputError("The train split has no sentence pairs.")
        check_left(block.tally.counts)
        return block

    def blocks(self, start: int = 0, digest: str | None = None) -> Iterator[Block]:
        """The rest of a pass over the corpus, from pair number `start`, of which the pairs before had this digest.

        A block has half of `streaming_buffer` pairs or more after filtering, and less than twice
        that; fewer only where the rest of the corpus has.

        Raises:
            InputError: as `stream_pairs`, or the pairs before `start` are other ones.
        """
        whole = growing = None
        for chunk in self._chunks(start, digest):
            growing = growing + chunk if growing else chunk
            if 2 * growing.table.num_rows >= self.data.streaming_buffer:
                if whole:
                    yield whole
                whole, growing = growing, None
        rest = [block for block in (whole, growing) if block]
        if rest:
            yield rest[0] + rest[1] if len(rest) == 2 else rest[0]

    def _chunks(self, start: int, digest: str | None) -> Iterator[Block]:
        pairs, read = stream_pairs(self.data), hashlib.blake2b(digest_size=16)
        for pair in islice(pairs, start):
            read.update("\0".join((*pair, "")).encode())
        if digest not in (None, read.hexdigest()):
            raise other_pairs(start)
        for chunk in iter(lambda: list(islice(pairs, self.data.streaming_buffer)), []):
            for pair in chunk:
                read.update("\0".join((*pair, "")).encode())
            start += len(chunk)
            yield Block(*self._tokenise(chunk), start, read.hexdigest())

    def _tokenise(self, pairs: list[tuple[str, str]]) -> tuple[pa.Table, Tally]:
        kept, found = find_odd(pairs, self.data, split="train")
        pieces = (kept[first : first + ENCODED_PAIRS] for first in range(0, len(kept), ENCODED_PAIRS))
        table = pa.concat_tables([TEXT.empty_table(), *(self._encode([pairs[i] for i in piece]) for piece in pieces)])
        lengths = _lengths(table)  # (N, 2)
        fits = (lengths <= (self.data.max_source_length, self.data.max_target_length)).all(axis=1)
        table, lengths = table.filter(pa.array(fits)), lengths[fits]
        counts = FilterCounts("train", len(pairs), {**found, "too long": int((~fits).sum())}, len(lengths))
        longest = max(self.data.max_source_length, self.data.max_target_length)
        histograms = np.stack([np.bincount(side, minlength=longest + 1) for side in lengths.T])
        return table, Tally(counts, histograms, self._unknown(table))

    def _encode(self, pairs: list[tuple[str, str]]) -> pa.Table:
        sources, targets = zip(*pairs, strict=True)
        rows = encode_pairs(sources, targets, self.tokenizer, source_prefix=self.data.source_prefix)
        return pa.table(rows, schema=TEXT)

    def _unknown(self, table: pa.Table) -> np.ndarray:
        ids = (pc.list_flatten(table[side]).to_numpy() for side in TEXT.names)
        return np.array([(side == self.tokenizer.unk_token_id).sum() for side in ids])


def other_pairs(count: int) -> InputError:
    """What is wrong where a run goes on, and its corpus has changed."""
    return InputError(
        f"the first {count:,} training pairs are other ones than those that this run was trained on: put the old file "
        "back to go on, choose another --output_dir, or delete the folder"
    )


def _lengths(table: pa.Table) -> np.ndarray:
    return np.stack([pc.list_value_length(table[side]).to_numpy() for side in TEXT.names], axis=1)


def as_dataset(block: Block) -> Dataset:
    return Dataset(block.table.combine_chunks(), fingerprint="block")  # the real one would cost a hash of all tokens
