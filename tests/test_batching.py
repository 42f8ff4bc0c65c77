"""Batches keep their budget, lose and repeat nothing, and are the same for every way to lay out a step."""

from itertools import chain, pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.nn.utils.rnn import pad_sequence

from hf_mt import batching
from hf_mt.batching import TokenBatchSampler, TranslationCollator, padding_share
from hf_mt.errors import InputError


def corpus(pairs: int, seed: int = 0) -> np.ndarray:
    """(N, 2) lengths like those of real pairs: a long tail, and sides that differ by some tenths."""
    rng = np.random.default_rng(seed)
    source = rng.poisson(rng.gamma(4.0, 5.0, pairs)) + 2
    target = np.maximum(2, source * rng.normal(1.1, 0.2, pairs)).astype(int)
    return np.minimum(np.stack([source, target], axis=1), 100)


LENGTHS = st.lists(st.tuples(st.integers(1, 12), st.integers(1, 12)), min_size=1, max_size=60).map(np.array)
PARTS = st.integers(1, 5)


def steps(sampler: TokenBatchSampler) -> list[frozenset[int]]:
    batches = list(sampler)
    return [
        frozenset(sum(batches[start : start + sampler.num_parts], []))
        for start in range(0, len(batches), sampler.num_parts)
    ]


@pytest.mark.parametrize("processes", [1, 2, 3, 4])
@pytest.mark.parametrize("even_batches", [True, False])
@given(lengths=LENGTHS, accumulation=st.integers(1, 2), epoch=st.integers(0, 3))
@settings(max_examples=30, deadline=None)
def test_processes_share_every_pair_once(processes, even_batches, lengths, accumulation, epoch) -> None:
    assume(len(lengths) >= processes * accumulation)
    sampler = TokenBatchSampler(lengths, tokens_per_batch=20, num_parts=processes * accumulation)
    shards = [
        BatchSamplerShard(sampler, num_processes=processes, process_index=rank, even_batches=even_batches)
        for rank in range(processes)
    ]
    sampler.set_epoch(epoch)
    dealt = [list(shard) for shard in shards]
    assert len({len(batches) for batches in dealt}) == 1 and len(dealt[0]) == len(shards[0])
    assert sorted(sum(sum(dealt, []), [])) == list(range(len(lengths)))
    assert [batch for group in zip(*dealt, strict=True) for batch in group] == list(sampler)


def test_what_sharding_does_to_other_samplers() -> None:
    odd = [[0, 1], [2], [3, 4]]
    repeated = [list(BatchSamplerShard(odd, num_processes=2, process_index=rank)) for rank in (0, 1)]
    assert sorted(sum(sum(repeated, []), [])) != [0, 1, 2, 3, 4]
    sampler = TokenBatchSampler(corpus(300), tokens_per_batch=300, num_parts=2)
    assert not hasattr(sampler, "batch_size") and sampler.drop_last is False
    sampler.batch_size = len(next(iter(sampler)))
    dropped = [list(BatchSamplerShard(sampler, 2, rank, even_batches=False)) for rank in (0, 1)]
    assert len(sum(sum(dropped, []), [])) < 300


@given(lengths=LENGTHS, epoch=st.integers(0, 3), shuffle=st.booleans())
@settings(max_examples=150, deadline=None)
def test_same_steps_for_every_layout(lengths, epoch, shuffle) -> None:
    assume(len(lengths) >= 8)  # so that each step has two pairs for each part
    layouts = []
    for parts, budget in ((4, 24), (2, 48), (1, 96)):
        sampler = TokenBatchSampler(lengths, tokens_per_batch=budget, num_parts=parts, seed=1, shuffle=shuffle)
        sampler.set_epoch(epoch)
        layouts.append(steps(sampler))
    assert layouts[0] == layouts[1] == layouts[2]


def test_parts_batched_one_by_one_give_other_steps() -> None:
    lengths = corpus(500)
    whole = steps(TokenBatchSampler(lengths, tokens_per_batch=1200))
    small = list(TokenBatchSampler(lengths, tokens_per_batch=300))
    apart = [frozenset(sum(small[start : start + 4], [])) for start in range(0, len(small), 4)]
    together = steps(TokenBatchSampler(lengths, tokens_per_batch=300, num_parts=4))
    assert set(together) == set(whole) != set(apart)


def fairest_cut(costs: list[int], parts: int) -> int:
    """The least possible maximum over all cuts of descending lengths into neighbours, by trying them all."""
    if parts == 1:
        return len(costs) * costs[0]
    return min(max(end * costs[0], fairest_cut(costs[end:], parts - 1)) for end in range(1, len(costs) - parts + 2))


def over_budget(longer: np.ndarray, batches: list[list[int]], parts: int, budget: int) -> bool:
    """Whether a part is over its budget although its step could have been cut so that none is."""
    for start in range(0, len(batches), parts):
        group = batches[start : start + parts]
        step = sorted((int(longer[index]) for batch in group for index in batch), reverse=True)
        worst = max(len(batch) * longer[batch].max() for batch in group)
        if worst > budget and worst > fairest_cut(step, parts):
            return True
    return False


@given(lengths=LENGTHS, parts=PARTS, extra=st.integers(0, 30))
@settings(max_examples=200, deadline=None)
def test_budgets_are_kept(lengths, parts, extra) -> None:
    longer = lengths.max(axis=1)
    budget = int(longer.max()) + extra
    assume(len(lengths) >= parts)
    sampler = TokenBatchSampler(lengths, tokens_per_batch=budget, num_parts=parts)
    batches = list(sampler)
    assert all(batches) and not over_budget(longer, batches, parts, budget)
    for step in steps(sampler):
        rows = list(step)
        assert len(rows) * longer[rows].max() <= budget * parts or len(rows) < 2 * parts
    worst = max(len(batch) * longer[batch].max() for batch in batches)
    assert worst < budget + longer.max() or any(len(step) < 2 * parts for step in steps(sampler))


def test_equal_shares_alone_would_go_over_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths, parts, budget = corpus(2000), 4, 110

    def goes_over() -> bool:
        sampler = TokenBatchSampler(lengths, tokens_per_batch=budget, num_parts=parts)
        return over_budget(lengths.max(axis=1), list(sampler), parts, budget)

    assert not goes_over()
    monkeypatch.setattr(
        batching, "_cut", lambda descending, parts, _: batching._equal_shares(descending.tolist(), parts)
    )
    assert goes_over()


def test_parts_of_a_step_cost_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = corpus(1500)  # few steps, so that each has short and long pairs

    def imbalance() -> float:
        batches = list(TokenBatchSampler(lengths, tokens_per_batch=1500, num_parts=4))
        costs = np.array([len(batch) * lengths[batch].max() for batch in batches]).reshape(-1, 4)
        return float((costs.max(axis=1) / costs.mean(axis=1)).mean())

    by_cost = imbalance()
    monkeypatch.setattr(
        batching, "_cut", lambda step, parts, _: np.linspace(0, len(step), parts + 1).astype(int).tolist()
    )
    assert by_cost - 1 < 0.8 * (imbalance() - 1), "more alike than with equal numbers of pairs"


def test_epochs_differ_in_company_and_order_only() -> None:
    sampler = TokenBatchSampler(corpus(3000), tokens_per_batch=1000, num_parts=2, seed=5)
    epochs = []
    for epoch in range(3):
        sampler.set_epoch(epoch)
        epochs.append(list(sampler))
        assert list(sampler) == epochs[-1]
    assert len(epochs[0]) == len(epochs[1]) == len(epochs[2]) == len(sampler)
    first, second = ({frozenset(batch) for batch in epoch} for epoch in epochs[:2])
    assert len(first & second) < 0.2 * len(first)
    other = TokenBatchSampler(corpus(3000), tokens_per_batch=1000, num_parts=2, seed=6)
    assert list(other) != epochs[0]
    fixed = TokenBatchSampler(corpus(3000), tokens_per_batch=1000, shuffle=False)
    longest = [corpus(3000)[batch].max() for batch in fixed]
    assert longest == sorted(longest, reverse=True)
    before = list(fixed)
    fixed.set_epoch(1)
    assert list(fixed) == before


def test_padding_is_small() -> None:
    lengths = corpus(20_000)
    batches = list(TokenBatchSampler(lengths, tokens_per_batch=4096))
    shuffled = np.array_split(np.random.default_rng(0).permutation(len(lengths)), len(batches))
    by_source = np.array_split(np.argsort(lengths[:, 0]), len(batches))
    ours, random, one_side = (padding_share(lengths, b) for b in (batches, shuffled, by_source))
    assert ours < 0.08 < one_side < random
    assert padding_share(lengths[:, 0], batches) < 0.12
    untilted = list(TokenBatchSampler(lengths.max(axis=1), tokens_per_batch=4096))
    assert ours < padding_share(lengths, untilted), "of equally long pairs, those that lean the same way should meet"


def test_padding_share_counts_cells() -> None:
    assert padding_share([3, 1, 2], [[0, 1], [2]]) == pytest.approx(2 / 8)
    assert padding_share([[3, 1], [1, 5]], [[0, 1]]) == pytest.approx(6 / 16)


def test_one_length_is_batched_by_number() -> None:
    batches = list(TokenBatchSampler(np.ones((103, 2)), tokens_per_batch=10, num_parts=2))
    assert max(map(len, batches)) == 10 and sorted(sum(batches, [])) == list(range(103))


def test_impossible_batches_are_refused() -> None:
    with pytest.raises(InputError, match="2 sentence pairs, fewer than the 3"):
        TokenBatchSampler([4, 4], tokens_per_batch=10, num_parts=3)
    with pytest.raises(InputError, match="has 11 tokens on one side, and a batch may have 10"):
        TokenBatchSampler([[4, 11], [4, 4]], tokens_per_batch=10, num_parts=2)
    with pytest.raises(InputError, match="0 sentence pairs"):
        TokenBatchSampler([], tokens_per_batch=10)


TOKENIZER = SimpleNamespace(pad_token_id=9)
ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "input_ids": st.lists(st.integers(0, 20), min_size=1, max_size=9),
            "labels": st.lists(st.integers(0, 20), min_size=1, max_size=9),
        }
    ),
    min_size=1,
    max_size=7,
)


@given(rows=ROWS)
@settings(max_examples=100, deadline=None)
def test_collator_pads_on_the_right_and_keeps_all(rows) -> None:
    batch = TranslationCollator(TOKENIZER)([{**row, "length": 3, "text": "x"} for row in rows])
    assert sorted(batch) == ["attention_mask", "input_ids", "labels"]
    for name, pad in (("input_ids", 9), ("labels", -100)):
        expected = [torch.tensor(row[name]) for row in rows]
        torch.testing.assert_close(batch[name], pad_sequence(expected, batch_first=True, padding_value=pad))
    for ids, mask, row in zip(batch["input_ids"], batch["attention_mask"], rows, strict=True):
        assert ids[mask.bool()].tolist() == row["input_ids"]
        assert all(first >= second for first, second in pairwise(mask.tolist()))
    assert batch["input_ids"].shape == batch["attention_mask"].shape and batch["attention_mask"].dtype == torch.int64


# --- several segmentations of each pair


SEGMENTED = st.tuples(st.integers(2, 3), st.integers(1, 40), st.integers(0, 2**16)).map(
    lambda drawn: np.random.default_rng(drawn[2]).integers(1, 13, (*drawn[:2], 2))
)  # (K, N, 2)


@given(lengths=SEGMENTED, parts=PARTS, epoch=st.integers(0, 3))
@settings(max_examples=150, deadline=None)
def test_an_epoch_reads_each_pair_once_in_one_of_its_segmentations(lengths, parts, epoch) -> None:
    size = lengths.shape[1]
    assume(size >= parts)
    sampler = TokenBatchSampler(lengths, tokens_per_batch=24, num_parts=parts)
    sampler.set_epoch(epoch)
    batches = list(sampler)
    assert len(batches) == len(sampler) and all(batches)
    assert sorted(index % size for index in chain(*batches)) == list(range(size))
    assert max(chain(*batches)) < lengths.shape[0] * size


def test_epochs_draw_other_segmentations_and_all_processes_the_same() -> None:
    lengths = np.stack([corpus(2000, seed) for seed in range(4)])
    one, two = (TokenBatchSampler(lengths, tokens_per_batch=800 // parts, num_parts=parts) for parts in (1, 2))
    assert steps(one) == steps(two)
    drawn = np.array(sorted(chain(*one), key=lambda index: index % 2000)) // 2000
    one.set_epoch(1)
    again = np.array(sorted(chain(*one), key=lambda index: index % 2000)) // 2000
    assert np.bincount(drawn, minlength=4).min() > 400 and 0.2 < (drawn == again).mean() < 0.3


def test_segmentations_are_batched_by_the_lengths_that_are_read() -> None:
    rng = np.random.default_rng(0)
    lengths = corpus(4000)[None] + rng.integers(0, 8, (4, 4000, 2))
    sampler = TokenBatchSampler(lengths, tokens_per_batch=2000)
    flat = lengths.reshape(-1, 2)
    for epoch in (0, 1):
        sampler.set_epoch(epoch)
        batches = list(sampler)
        assert max(len(batch) * flat[batch].max() for batch in batches) < 2000 * 1.03
        assert padding_share(lengths, batches) < 0.12
    blind = list(TokenBatchSampler(lengths[0], tokens_per_batch=2000))
    other = [[index + 4000 for index in batch] for batch in blind]
    assert padding_share(lengths, other) > 0.2


def test_processes_with_other_pairs_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    sampler, other = (TokenBatchSampler(corpus(50, seed), tokens_per_batch=200) for seed in (0, 1))
    monkeypatch.setattr(batching, "gather_object", lambda digests: 2 * digests)
    sampler.check_same_everywhere()
    digests: list[str] = []
    monkeypatch.setattr(batching, "gather_object", lambda found: digests.extend(found) or digests)
    other.check_same_everywhere()
    with pytest.raises(InputError, match="Processes have different training pairs"):
        sampler.check_same_everywhere()
