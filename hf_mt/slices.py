"""Where a system is good and where it fails: scores by length, and signs of the usual failures.

- Everything is computed from texts, so that models of other tokenizers, and files of anybody's translations, compare.
- Length is that of the source: in words, or in characters where a language writes none between spaces.
- Shares run from 0 to 1, BLEU and chrF from 0 to 100. With several references the first one counts for signs.
"""

import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sacrebleu.metrics import BLEU, CHRF

from hf_mt.scores import (
    METRICS,
    References,
    SentenceScore,
    corpus_scores,
    forget_sentences,
    reference_sets,
    scores_of_tokenized,
    sentence_scores,
)
from hf_mt.text_files import write_whole


BOUNDS = {"words": (10, 20, 30, 50), "characters": (20, 40, 60, 100)}  # the last length of each bucket but the last
UNSPACED = re.compile(r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]")  # Thai to Chinese
NUMBER = re.compile(r"\d(?:[\d.,'\u2019\u00a0\u202f]*\d)?")
EXTREMES = 20  # sentences shown of the best, and of the worst
REPEATED_WORDS = 4  # words that come twice in an output count as a loop if they are so many


@dataclass(frozen=True)
class Bucket:
    """Scores of the sentences whose source has `first` to `last` units (None: any more)."""

    first: int
    last: int | None
    sentences: int
    bleu: float
    chrf: float

    @property
    def name(self) -> str:
        """As in `11-20` or `51+`."""
        return f"{self.first}+" if self.last is None else f"{self.first}-{self.last}"


def length_buckets(
    sources: Sequence[str], hypotheses: Sequence[str], references: References
) -> tuple[list[Bucket], str]:
    """Scores by length of the source, empty buckets left out, and the unit of length: words or characters.

    Raises:
        InputError: As `sentence_scores`.
    """
    sets = reference_sets(hypotheses, references, sources=sources)
    unit = "characters" if _is_unspaced(sources) else "words"
    lengths = [len(source) if unit == "characters" else len(source.split()) for source in sources]
    firsts = [0, *(bound + 1 for bound in BOUNDS[unit])]
    buckets = []
    for first, last in zip(firsts, [*BOUNDS[unit], None], strict=True):
        rows = [row for row, length in enumerate(lengths) if first <= length and (last is None or length <= last)]
        if rows:
            texts = [hypotheses[row] for row in rows]
            some = [[texts_of_set[row] for row in rows] for texts_of_set in sets]
            scores = (metric.corpus_score(texts, some).score for metric in (BLEU(force=True), CHRF()))
            buckets.append(Bucket(max(first, 1), last, len(rows), *scores))
    return buckets, unit


def _is_unspaced(texts: Sequence[str]) -> bool:
    sample = "".join(texts[:1000])
    return len(UNSPACED.findall(sample)) > len(sample) / 4


def signs_of_failure(sources: Sequence[str], hypotheses: Sequence[str], references: References) -> dict[str, float]:
    """Shares of outputs, and of numbers, that tell of the usual failures.

    Returns:
        repeated: outputs with four words in a row that come twice, or a word three times in a row, where the reference
            has none of that.
        copied_source: outputs that are their source, where the reference is another text.
        copied_words: words of outputs that are in the source and in no reference (three letters or more).
        numbers_lost: numbers that source and reference share and the output lacks, however their thousands are set
            apart.

    Raises:
        InputError: As `sentence_scores`.
    """
    reference_sets(hypotheses, references, sources=sources)
    firsts = [row[0] if not isinstance(row, str) else row for row in references]
    repeated = copied = 0
    words, copied_words, numbers, lost = 0, 0, 0, 0
    for source, hypothesis, reference in zip(sources, hypotheses, firsts, strict=True):
        repeated += _loops(hypothesis) and not _loops(reference)
        copied += hypothesis.strip() == source.strip() != reference.strip()
        own = [word for word in hypothesis.lower().split() if len(word) > 2]
        foreign = set(source.lower().split()) - set(reference.lower().split())
        words, copied_words = words + len(own), copied_words + sum(word in foreign for word in own)
        wanted = _numbers(source) & _numbers(reference)
        numbers, lost = numbers + wanted.total(), lost + (wanted - _numbers(hypothesis)).total()
    return {
        "repeated": repeated / len(hypotheses),
        "copied_source": copied / len(hypotheses),
        "copied_words": copied_words / max(words, 1),
        "numbers_lost": lost / max(numbers, 1),
    }


def _loops(text: str) -> bool:
    words = text.split()
    runs = Counter(zip(*(words[start:] for start in range(REPEATED_WORDS)), strict=False))
    triple = any(one == two == three for one, two, three in zip(words, words[1:], words[2:], strict=False))
    return triple or any(count > 1 for count in runs.values())


def _numbers(text: str) -> Counter[str]:
    """Digits of each number, without what groups them."""
    return Counter(re.sub(r"\D", "", number) for number in NUMBER.findall(text))


def slice_metrics(sources: Sequence[str], hypotheses: Sequence[str], references: References) -> dict[str, float]:
    """Signs of failure and scores by length as flat numbers, `bleu_words_11-20` and so on, for logs."""
    buckets, unit = length_buckets(sources, hypotheses, references)
    by_length = {
        f"{metric}_{unit}_{bucket.name}": getattr(bucket, metric) for metric in ("bleu", "chrf") for bucket in buckets
    }
    return {**signs_of_failure(sources, hypotheses, references), **by_length}


def metrics_while_training(best: str | None) -> tuple[str, ...]:
    """Scores of the evaluations before the last one: not TER, which can take longer than translating, unless `best`,
    the metric that decides which checkpoint is kept, says so."""
    kept = (best or "").removeprefix("eval_")
    return tuple(name for name in METRICS if name != "ter" or name == kept)


def describe_outputs(
    sources: Sequence[str],
    hypotheses: Sequence[str],
    references: References,
    *,
    tokenized: bool = False,
    tokenize: str = "13a",
    metrics: Sequence[str] = METRICS,
) -> dict[str, float | str]:
    """Scores, signs of failure and scores by length: all that an evaluation reports about texts.

    Args:
        sources, hypotheses, references: As in `sentence_scores`.
        tokenized: Whether the text is tokenised, so that BLEU of its tokens is wanted too.
        tokenize: As in `corpus_scores`; another one than 13a gives its BLEU beside that of 13a.
        metrics: As in `corpus_scores`.
    """
    scores = (scores_of_tokenized if tokenized else corpus_scores)(hypotheses, references, metrics=metrics)
    if tokenize != "13a":
        own = corpus_scores(hypotheses, references, tokenize=tokenize, metrics=("bleu",))
        scores |= {name: value for name, value in own.items() if "bleu" in name}
    scores |= slice_metrics(sources, hypotheses, references)
    forget_sentences()  # a run of many evaluations would keep them all
    return scores


def write_analysis(
    path: str | os.PathLike[str], sources: Sequence[str], hypotheses: Sequence[str], references: References
) -> list[SentenceScore]:
    """Writes signs of failure, scores by length, and the best and worst sentences (by chrF) as JSON.

    Returns:
        The scores of all sentences, in order.
    """
    scores = sentence_scores(sources, hypotheses, references)
    buckets, unit = length_buckets(sources, hypotheses, references)
    ranked = sorted(range(len(scores)), key=lambda row: scores[row].chrf)
    found: dict[str, Any] = {
        "sentences": len(scores),
        "signs": signs_of_failure(sources, hypotheses, references),
        "unit": unit,
        "buckets": [asdict(bucket) for bucket in buckets],
        "worst": list(_shown(scores, ranked[:EXTREMES])),
        "best": list(_shown(scores, ranked[::-1][:EXTREMES])),
    }
    write_whole(Path(path), json.dumps(found, indent=2, ensure_ascii=False) + "\n")
    return scores


def _shown(scores: Sequence[SentenceScore], rows: Sequence[int]) -> Iterator[dict[str, Any]]:
    """Sentences of these rows, by line number in their set, counted from 1."""
    for row in rows:
        yield {"line": row + 1, **asdict(scores[row])}
