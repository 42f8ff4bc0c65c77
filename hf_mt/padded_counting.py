"""How accuracy and BLEU come out if padding is counted as text: a diagnostic, never a score.

A batch pads its sentences to the longest one. Code that compares all cells of such a batch, as many hand-written
Transformers do, counts every padding cell as a word got right. This module counts in that way on purpose, so that
figures made like that can be recognised: the more the lengths within a batch differ, the higher a model scores that
says nothing at all. What the same outputs get without padding stands beside it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from statistics import mean

from sacrebleu.metrics import BLEU

from hf_mt.errors import InputError


PAD, END = "<pad>", "</s>"


@dataclass(frozen=True)
class PaddedCounting:
    """What counting padding makes of translations.

    Attributes:
        bleu, bleu_with_padding: Mean over sentences of their BLEU without smoothing, 0 to 1; in the second one
            padding is a word.
        accuracy, accuracy_with_padding: Share of places where output and reference have the same word: of those where
            the reference has a word or its end, and of all cells of all batches.
        padding: Share of the references' cells that hold padding.
    """

    bleu: float
    bleu_with_padding: float
    accuracy: float
    accuracy_with_padding: float
    padding: float


def count_padding(
    hypotheses: Sequence[Sequence[str]], references: Sequence[Sequence[str]], *, sentences_per_batch: int = 16
) -> PaddedCounting:
    """Accuracy and BLEU over the cells of batches in the order of the test set.

    Args:
        hypotheses, references: Tokens of each sentence, without their end.
        sentences_per_batch: Sentences padded together; those of output and reference to the longest of both.

    Raises:
        InputError: There are no sentences, or not as many hypotheses as references.
    """
    if not references or len(hypotheses) != len(references):
        raise InputError(f"{len(hypotheses)} hypotheses for {len(references)} references: there must be as many")
    pairs = list(zip(hypotheses, references, strict=True))
    starts = range(0, len(pairs), sentences_per_batch)
    cells = [cell for start in starts for cell in _padded(pairs[start : start + sentences_per_batch])]
    right = [(one == other, other) for ours, theirs in cells for one, other in zip(ours, theirs, strict=True)]
    return PaddedCounting(
        bleu=_mean_bleu([([*ours, END], [*theirs, END]) for ours, theirs in pairs]),
        bleu_with_padding=_mean_bleu(cells),
        accuracy=mean(same for same, word in right if word != PAD),
        accuracy_with_padding=mean(same for same, _ in right),
        padding=mean(word == PAD for _, word in right),
    )


def padding_share(lengths: Sequence[int], *, sentences_per_batch: int = 16) -> float:
    """Share of the cells of batches that hold padding, with sentences of these lengths in their order.

    Raises:
        InputError: There are no sentences.
    """
    if not lengths:
        raise InputError("there are no sentences, and so no batches whose padding could be counted")
    starts = range(0, len(lengths), sentences_per_batch)
    batches = [lengths[start : start + sentences_per_batch] for start in starts]
    return 1 - sum(lengths) / sum(max(batch) * len(batch) for batch in batches)


def accuracy_counting_padding(accuracy: float, padding: float) -> float:
    """What becomes of an accuracy over tokens if each cell of padding, such a share of all cells, counts as right."""
    return accuracy * (1 - padding) + padding


def _mean_bleu(pairs: Sequence[tuple[Sequence[str], Sequence[str]]]) -> float:
    metric = BLEU(tokenize="none", smooth_method="none", force=True)
    return mean(metric.corpus_score([" ".join(ours)], [[" ".join(theirs)]]).score / 100 for ours, theirs in pairs)


def _padded(batch: Sequence[tuple[Sequence[str], Sequence[str]]]) -> list[tuple[list[str], list[str]]]:
    """All sentences of a batch, with their ends, at one width."""
    columns = zip_longest(*([*tokens, END] for tokens in chain.from_iterable(batch)), fillvalue=PAD)
    rows = [list(row) for row in zip(*columns, strict=True)]
    return list(zip(rows[::2], rows[1::2], strict=True))
