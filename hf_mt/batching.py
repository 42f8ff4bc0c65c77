"""Batches of sentence pairs with a budget of padded tokens, and the tensors made from them.

- A batch costs its number of pairs times its longest sentence, source or target: what the hardware pays for.
- One optimizer step is ONE global batch, formed first and then cut into `num_parts` micro-batches (processes times
  accumulation steps), so how a step is laid out over processes and accumulation doesn't change what is learned.
- Where batches begin depends only on the sorted lengths: every epoch has the same number of batches. What changes from
  epoch to epoch is which of the equally long pairs meet, the order of the batches, and, where each pair has several
  segmentations (BPE dropout), which of them is read; its lengths are known before any row is.
- Batches are lists of indices, so that Accelerate skips those of a resumed epoch without reading a row.

Notation: N pairs, K segmentations of each, B pairs of a batch, S source length, T target length.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, pairwise
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from torch.utils.data import Sampler
from transformers import PreTrainedTokenizerBase

from hf_mt.arguments import TranslationTrainingArguments
from hf_mt.errors import InputError


TILT_JITTER = 0.02  # of the length: how far equally long pairs may leave the order by which side is longer


class TokenBatchSampler(Sampler):
    """Micro-batches of indices; each `num_parts` in a row are one optimizer step.

    Global batches take at most `tokens_per_batch * num_parts` padded tokens. A micro-batch takes at most
    `tokens_per_batch` wherever a cut into `num_parts` neighbours by length can do so, else the least possible excess,
    which is below one sentence. (Only where the budget is below two sentences can a last step be too small for
    `num_parts`; it then joins the one before, over the budget.) No pair is lost or repeated, and `len()` is a multiple
    of `num_parts`, so Accelerate's `BatchSamplerShard` gives process `r` of `P` the batches `r, r + P, ...` and has
    nothing to drop or to fill up.
    There is no `batch_size` on purpose: `BatchSamplerShard` would drop every batch of another size.

    Args:
        lengths: (N,), (N, 2) or (K, N, 2), tokens of each pair; two columns are source and target, in either order.
            With K segmentations of each pair an epoch draws one for each pair, and index `k * N + i` is the k-th of
            the i-th pair; the budget of an epoch then moves, by a hundredth or so, to keep the number of batches.
        tokens_per_batch: padded tokens of a micro-batch, counted on the longer side.
        num_parts: micro-batches of an optimizer step: processes times gradient accumulation steps.
        seed: with the epoch, decides composition and order; the same on every process.
        shuffle: False gives the longest pairs first, always in the same order.

    Raises:
        InputError: a pair alone is over `tokens_per_batch`, or there are fewer pairs than `num_parts`.
    """

    drop_last = False  # read by Accelerate

    def __init__(
        self,
        lengths: Sequence[int] | np.ndarray,
        *,
        tokens_per_batch: int,
        num_parts: int = 1,
        seed: int = 0,
        shuffle: bool = True,
    ) -> None:
        sides = np.asarray(lengths, dtype=np.int64)
        sides = sides[:, None] if sides.ndim == 1 else sides
        sides = sides[None] if sides.ndim == 2 else sides  # (K, N, 1 | 2)
        self._longer, self._tilt = sides.max(axis=-1), sides[..., 0] - sides[..., -1]  # (K, N)
        self.tokens_per_batch, self.num_parts = tokens_per_batch, num_parts
        self.seed, self.shuffle, self.epoch = seed, shuffle, 0
        self._check()
        bounds = [
            _global_bounds(longer, tokens_per_batch * num_parts, num_parts) for longer in map(_down, self._longer)
        ]
        self.num_steps = max(map(len, bounds)) - 1
        self._cuts = self._cut_steps(_down(self._longer[0]), bounds[0])

    def _check(self) -> None:
        if self._longer.shape[1] < self.num_parts:
            raise InputError(
                f"There are {self._longer.shape[1]} sentence pairs, fewer than the {self.num_parts} micro-batches of "
                "one optimizer step (processes x gradient accumulation steps). Use fewer of either, or more data."
            )
        if self._longer.max() > self.tokens_per_batch:
            raise InputError(
                f"The longest sentence pair has {self._longer.max()} tokens on one side, and a batch may have "
                f"{self.tokens_per_batch}. Raise tokens_per_batch to at least {self._longer.max()}, or lower "
                "max_source_length and max_target_length."
            )

    @property
    def digest(self) -> str:
        """Of the lengths of all pairs, in their order."""
        return hashlib.blake2b(np.stack([self._longer, self._tilt]).tobytes(), digest_size=16).hexdigest()

    def check_same_everywhere(self) -> None:
        """Raises InputError if processes were given other lengths: they would lose pairs, and wait for each other."""
        if len(set(gather_object([self.digest]))) > 1:
            raise InputError(
                "Processes have different training pairs, or cut them differently. Give all of them the same files, "
                "and machines one HF_DATASETS_CACHE, where the first keeps what it tokenised for the others."
            )

    def set_epoch(self, epoch: int) -> None:
        """Choose composition and order for `epoch`, counted from 0."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.num_steps * self.num_parts

    def __iter__(self) -> Iterator[list[int]]:
        rng = np.random.default_rng((self.seed, self.epoch))
        pairs, cuts = self._epoch(rng)  # (N,)
        batches = rng.permutation(self.num_steps) if self.shuffle else np.arange(self.num_steps)
        for step, part in (divmod(batch, self.num_parts) for batch in range(len(self))):
            start, end = cuts[batches[step], part : part + 2]
            yield pairs[start:end].tolist()

    def _epoch(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Indices (N,) in the order of this epoch, and where they are cut (steps, num_parts + 1)."""
        count, size = self._longer.shape
        if count == 1:
            return self._order(rng, self._longer[0], self._tilt[0]), self._cuts
        drawn = rng.integers(count, size=size), np.arange(size)
        longer = self._longer[drawn]
        order, descending = self._order(rng, longer, self._tilt[drawn]), _down(longer)
        bounds = _bounds_of_steps(descending, self.num_steps, self.tokens_per_batch * self.num_parts, self.num_parts)
        return drawn[0][order] * size + order, self._cut_steps(descending, bounds)

    def _order(self, rng: np.random.Generator, longer: np.ndarray, tilt: np.ndarray) -> np.ndarray:
        """(N,) pairs, longest first; equally long ones by source less target, loosely if shuffled."""
        tilt = tilt.astype(np.float64)
        if self.shuffle:
            tilt += rng.uniform(0.0, 1.0, len(tilt)) * (1.0 + TILT_JITTER * longer)
        # up for even lengths and down for odd ones: where two lengths meet in a batch, the tilts are alike too
        tilt[longer % 2 == 1] *= -1
        return np.lexsort((tilt, -longer))

    def _cut_steps(self, descending: np.ndarray, bounds: Sequence[int]) -> np.ndarray:
        """(steps, num_parts + 1): where the micro-batches of each step begin and end in `descending` (N,) lengths."""
        cuts = [_cut(descending[start:end], self.num_parts, self.tokens_per_batch) for start, end in pairwise(bounds)]
        return np.array(bounds[:-1])[:, None] + np.array(cuts)


def training_sampler(lengths: np.ndarray, args: TranslationTrainingArguments) -> TokenBatchSampler:
    """The batches of training pairs of these lengths: by tokens, or by sentences as long as the arguments say so."""
    budget = args.tokens_per_batch
    if args.sentences_per_batch is not None:  # a sentence is one unit, whatever its length
        lengths, budget = lengths * 0 + 1, args.sentences_per_batch
    return TokenBatchSampler(
        lengths,
        tokens_per_batch=budget,
        num_parts=args.world_size * args.gradient_accumulation_steps,
        seed=args.data_seed if args.data_seed is not None else args.seed,
    )


def _down(lengths: np.ndarray) -> np.ndarray:
    return -np.sort(-lengths)


def _bounds_of_steps(descending: np.ndarray, steps: int, budget: int, num_parts: int) -> list[int]:
    """`_global_bounds` at the least budget, near the one given, that makes do with so many steps; exactly so many."""
    least, most = int(descending[0]), 2 * max(budget, int(descending[0]) * num_parts)
    budgets = range(least, most + 1)
    found = bisect_left(budgets, True, key=lambda b: len(_global_bounds(descending, b, num_parts)) <= steps + 1)
    bounds = _global_bounds(descending, budgets[min(found, len(budgets) - 1)], num_parts)
    while len(bounds) < steps + 1:  # what one more token would have split
        widest = max(range(len(bounds) - 1), key=lambda step: bounds[step + 1] - bounds[step])
        bounds.insert(widest + 1, (bounds[widest] + bounds[widest + 1]) // 2)
    if len(bounds) > steps + 1 or min(end - start for start, end in pairwise(bounds)) < num_parts:
        return [len(descending) * step // steps for step in range(steps + 1)]  # a few pairs: even shares
    return bounds


def _global_bounds(descending: np.ndarray, budget: int, num_parts: int) -> list[int]:
    """Where global batches begin in `descending` (N,) lengths, and N; each has `num_parts` pairs or more."""
    size, bounds = len(descending), [0]
    while bounds[-1] < size:
        bounds.append(min(size, bounds[-1] + budget // int(descending[bounds[-1]])))
    if len(bounds) > 2:  # a small rest shares with its neighbour, whatever num_parts is: an even step for any layout
        bounds[-2] = min(bounds[-2], (bounds[-3] + bounds[-1]) // 2)
    if size < num_parts * (len(bounds) - 1):
        del bounds[-2]  # too few pairs for one more step: the one way in which a step may be over its budget
    for last in range(len(bounds) - 2, 0, -1):
        bounds[last] = min(bounds[last], bounds[last + 1] - num_parts)
    return bounds


def _cut(descending: np.ndarray, num_parts: int, budget: int) -> list[int]:
    """`num_parts + 1` positions that cut a global batch: equal shares if they keep the budget, else the fairest."""
    lengths: list[int] = descending.tolist()
    cuts = _equal_shares(lengths, num_parts)
    if max((end - start) * lengths[start] for start, end in pairwise(cuts)) <= budget:
        return cuts
    ceilings = range(budget, budget * len(lengths) + 1)
    ceiling = ceilings[bisect_left(ceilings, True, key=lambda c: _fill(lengths, num_parts, c)[-1] == len(lengths))]
    return _fill(lengths, num_parts, ceiling)


def _equal_shares(lengths: list[int], num_parts: int) -> list[int]:
    cuts, rest = [0], sum(lengths)
    for left in range(num_parts, 1, -1):
        start = cuts[-1]
        rows = max(1, round(rest / left / lengths[start]))
        cuts.append(min(start + rows, len(lengths) - left + 1))
        rest -= sum(lengths[start : cuts[-1]])
    return [*cuts, len(lengths)]


def _fill(lengths: list[int], num_parts: int, ceiling: int) -> list[int]:
    """Cuts that fill each part up to `ceiling` padded tokens; the last one is short of the end if they don't hold."""
    cuts = [0]
    for left in range(num_parts - 1, -1, -1):
        cuts.append(min(cuts[-1] + ceiling // lengths[cuts[-1]], len(lengths) - left))
    return cuts


def padding_share(lengths: Sequence[int] | np.ndarray, batches: Iterable[Sequence[int]]) -> float:
    """Share of the cells of all batches that hold padding, 0 to 1. `lengths`: (N,) one side, (..., 2) both sides."""
    sides = np.asarray(lengths)
    sides = sides.reshape(-1, sides.shape[-1] if sides.ndim > 1 else 1)  # (N, 1 | 2)
    tokens = cells = 0
    for batch in batches:
        rows = sides[np.asarray(batch)]  # (B, 1 | 2)
        tokens += int(rows.sum())
        cells += int(rows.max(axis=0).sum()) * len(rows)
    return 1.0 - tokens / cells


class TranslationCollator:
    """Pads rows of token ids on the right into tensors; never cuts.

    Rows have `input_ids` and `labels`. Gives int64 `input_ids` (B, S), `attention_mask` (B, S; 1 for tokens), `labels`
    (B, T; padded with -100, which the loss ignores). Other columns are left.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.pad_token_id = int(tokenizer.pad_token_id)

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        input_ids, mask = _pad([row["input_ids"] for row in rows], self.pad_token_id)
        labels, _ = _pad([row["labels"] for row in rows], -100)
        return {"input_ids": input_ids, "attention_mask": mask, "labels": labels}


def _pad(sequences: Sequence[Sequence[int]], value: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, longest) int64 tensors: the ids, padded on the right with `value`, and 1 where there is an id."""
    lengths = np.fromiter(map(len, sequences), np.int64, len(sequences))
    mask = np.arange(lengths.max()) < lengths[:, None]  # (B, longest)
    padded = np.full(mask.shape, value, dtype=np.int64)
    padded[mask] = np.fromiter(chain.from_iterable(sequences), np.int64, int(lengths.sum()))
    return torch.from_numpy(padded), torch.from_numpy(mask.astype(np.int64))
