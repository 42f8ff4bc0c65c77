"""Counting padding flatters: the less a model says, the more; and the numbers are those of plain loops."""

import random

import pytest
import sacrebleu

from hf_mt import InputError
from hf_mt.padded_counting import END, PAD, accuracy_counting_padding, count_padding, padding_share


def sentences(count: int, seed: int) -> list[list[str]]:
    """Lengths spread as those of talks are: many short sentences, a few long ones."""
    rng = random.Random(seed)
    return [[f"w{rng.randrange(2000)}" for _ in range(1 + int(rng.gammavariate(2.0, 10.0)))] for _ in range(count)]


REFERENCES = sentences(320, seed=0)


def by_hand(hypotheses: list[list[str]], references: list[list[str]], size: int) -> tuple[float, float, float]:
    bleu, right, padding, cells = [], 0, 0, 0
    for start in range(0, len(references), size):
        rows = [[*row, END] for row in hypotheses[start : start + size] + references[start : start + size]]
        width = max(map(len, rows))
        rows = [row + [PAD] * (width - len(row)) for row in rows]
        for ours, theirs in zip(rows[: len(rows) // 2], rows[len(rows) // 2 :], strict=True):
            score = sacrebleu.sentence_bleu(" ".join(ours), [" ".join(theirs)], tokenize="none", smooth_method="none",
                                            use_effective_order=False)  # fmt: skip
            bleu.append(score.score / 100)
            right += sum(one == other for one, other in zip(ours, theirs, strict=True))
            padding += theirs.count(PAD)
            cells += width
    return sum(bleu) / len(bleu), right / cells, padding / cells


@pytest.mark.parametrize("size", [1, 7, 16])
def test_counts_are_those_of_plain_loops(size: int) -> None:
    hypotheses = [row[: len(row) // 2] + ["x"] for row in REFERENCES]
    found = count_padding(hypotheses, REFERENCES, sentences_per_batch=size)
    expected = by_hand(hypotheses, REFERENCES, size)
    assert (found.bleu_with_padding, found.accuracy_with_padding, found.padding) == pytest.approx(expected)


def test_without_padding_it_is_what_one_sentence_a_batch_gives_where_lengths_agree() -> None:
    hypotheses = [[word if place % 3 else "x" for place, word in enumerate(row)] for row in REFERENCES]
    found, alone = (count_padding(hypotheses, REFERENCES, sentences_per_batch=size) for size in (16, 1))
    assert (found.bleu, found.accuracy) == pytest.approx((alone.bleu_with_padding, alone.accuracy_with_padding))
    assert found.bleu_with_padding > found.bleu + 0.1 and found.accuracy_with_padding > found.accuracy + 0.1


def test_a_model_that_says_nothing_looks_as_if_it_had_learnt_something() -> None:
    nothing: list[list[str]] = [[] for _ in REFERENCES]
    found = count_padding(nothing, REFERENCES)
    assert found.bleu_with_padding > 0.25 and found.accuracy_with_padding > 0.4
    assert found.bleu < 0.01 and found.accuracy < 0.05
    alone = count_padding(nothing, REFERENCES, sentences_per_batch=1)  # the control: hardly any padding in common
    assert alone.bleu_with_padding < 0.05 and alone.padding == 0
    honest = sacrebleu.corpus_bleu([" ".join(row) for row in nothing], [[" ".join(row) for row in REFERENCES]])
    assert honest.score == 0


def test_a_perfect_model_is_perfect_either_way() -> None:
    found = count_padding(REFERENCES, REFERENCES)
    assert (found.bleu_with_padding, found.accuracy_with_padding) == (pytest.approx(1), 1)


def test_bad_input_is_refused() -> None:
    for hypotheses, references in (([], []), ([["a"]], [["a"], ["b"]])):
        with pytest.raises(InputError, match="there must be as many"):
            count_padding(hypotheses, references)


def test_the_padding_of_batches_is_that_of_their_cells() -> None:
    lengths = [len(row) for row in REFERENCES]
    for size in (1, 7, 16):
        batches = [lengths[start : start + size] for start in range(0, len(lengths), size)]
        cells = [[word < length for word in range(max(batch))] for batch in batches for length in batch]
        empty = sum(row.count(False) for row in cells) / sum(map(len, cells))
        assert padding_share(lengths, sentences_per_batch=size) == pytest.approx(empty)
    assert padding_share(lengths, sentences_per_batch=1) == 0
    assert padding_share(sorted(lengths)) < padding_share(lengths)
    with pytest.raises(InputError, match="no sentences"):
        padding_share([])


def test_an_accuracy_that_counts_padding_is_that_of_all_cells() -> None:
    hypotheses = [[word if place % 3 else "x" for place, word in enumerate(row)] for row in REFERENCES]
    counted = count_padding(hypotheses, REFERENCES)  # as long as the references, so that they pad alike
    padding = padding_share([len(row) + 1 for row in REFERENCES])
    assert padding == pytest.approx(counted.padding)
    assert accuracy_counting_padding(counted.accuracy, padding) == pytest.approx(counted.accuracy_with_padding)
    assert accuracy_counting_padding(0.4, 0.0) == 0.4
