"""Whether one system is better than another, or the test set was lucky: sacrebleu's paired tests.

- Systems are run folders, which hold their translations with sources and references (`test_scores.tsv`, or
  `eval_scores.tsv` of runs without a test set), or files of translations, one a line, with references beside them.
- The first system is the baseline. The numbers are those of `sacrebleu --paired-bs` and `--paired-ar`.
- Trainings of one system with several seeds are compared by their mean, sentences being drawn for all of them at once:
  translations of one sentence are no independent evidence.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from sacrebleu.metrics import BLEU
from sacrebleu.significance import PairedTest, Result, estimate_ci

from hf_mt.arguments import BLEU_OF_TOKENIZER
from hf_mt.errors import InputError
from hf_mt.pair_files import read_lines
from hf_mt.scores import (
    SET_NAMES,
    References,
    Split,
    read_sentence_scores,
    reference_sets,
    scorers,
    sentences_file,
)


Method = Literal["bootstrap", "randomization"]
METHODS: dict[str, str] = {"bootstrap": "bs", "randomization": "ar"}  # sacrebleu's names
SEED = 12345  # sacrebleu's
SIGNIFICANT = 0.05  # p-values below are marked
MOST_SAMPLES = 10**6
# BLEU by the names that runs give it, as options of `compare_systems`
FLAVOURS: dict[str, dict[str, Any]] = {"bleu": {}, "bleu_lc_tok": {"lowercase": True, "tokenize": "none"}}
FLAVOURS |= {name: {"tokenize": tokenizer} for tokenizer, name in BLEU_OF_TOKENIZER.items()}


@dataclass(frozen=True)
class Comparison:
    """One metric of one system.

    Attributes:
        score: Of the whole test set.
        mean, interval: Mean over resampled test sets, and half the width of its 95 % interval.
        p_value: How likely a difference from the baseline as large as this is if there is none; None for the baseline.
        signature: sacrebleu's, of the score and the test.
    """

    system: str
    metric: str
    score: float
    mean: float
    interval: float
    p_value: float | None
    signature: str = ""


def compare_systems(
    systems: Mapping[str, Sequence[str]],
    references: References,
    *,
    method: Method = "bootstrap",
    metrics: Sequence[str] = ("bleu", "chrf"),
    lowercase: bool = False,
    tokenize: str = "13a",
    samples: int = 0,
    seed: int = SEED,
) -> list[Comparison]:
    """Paired bootstrap resampling (Koehn 2004) or approximate randomisation (Riezler and Maxwell 2005).

    Args:
        systems: Translations of one test set by name; the first is the baseline.
        references: As in `corpus_scores`.
        method: Which test.
        metrics, lowercase, tokenize: As in `corpus_scores`.
        samples: Resampled test sets, or trials; sacrebleu's 1,000 and 10,000 if 0.
        seed: Of the resampling, from 1: sacrebleu takes 0 for no seed.

    Returns:
        For each metric, each system in order.

    Raises:
        InputError: Fewer than two systems, an unknown method, samples or a seed that can't be, or as `corpus_scores`.
    """
    if len(systems) < 2:
        raise InputError(f"{len(systems)} systems were given; a comparison needs two or more")
    if not 0 <= samples <= MOST_SAMPLES or not 1 <= seed < 2**32:
        raise InputError(
            f"samples is {samples} and seed {seed}; they must be 0 to {MOST_SAMPLES:,}, and 1 to 2 ** 32 - 1"
        )
    if method not in METHODS:
        raise InputError(f"method is {method!r}, but must be {' or '.join(METHODS)}")
    for hypotheses in systems.values():
        sets = reference_sets(hypotheses, references)
    named = [(name, list(hypotheses)) for name, hypotheses in systems.items()]
    wanted = scorers(lowercase=lowercase, tokenize=tokenize, metrics=metrics)
    with _seeded(seed):
        intervals = -1 if method == "bootstrap" else 0  # of a bootstrap they would be written into its signature
        test = PairedTest(named, wanted, sets, METHODS[method], n_samples=samples, n_ar_confidence=intervals)
        signatures, results = test()
    values = [results[metric] for metric in results if metric != "System"]
    alone = len(named[0][1]) == 1
    return [
        _comparison(name, metric, result, str(signature), no_evidence=alone or result.score == each[0].score)
        for metric, signature, each in zip(wanted, signatures.values(), values, strict=True)
        for name, result in zip(systems, each, strict=True)
    ]


def _comparison(system: str, metric: str, result: Result, signature: str, *, no_evidence: bool) -> Comparison:
    p_value = result.p_value
    if no_evidence and p_value is not None:
        p_value = 1.0  # sacrebleu counts resampled differences above the real one, finds none, and says 0.001
    return Comparison(system, metric, result.score, float(result.mean), float(result.ci), p_value, signature)


def compare_means(
    systems: Mapping[str, Sequence[Sequence[str]]],
    references: Sequence[str],
    *,
    samples: int = 1000,
    seed: int = SEED,
) -> list[Comparison]:
    """Mean BLEU of several trainings of each system: paired bootstrap over the sentences (Koehn 2004).

    Each resampled test set is the same for all trainings of all systems, and its score is the mean of theirs. What
    another seed of training would change is not in the interval.

    Args:
        systems: For each system by name, the translations of each training; the first system is the baseline.
        references: One for each sentence.
        samples: Resampled test sets.
        seed: Of the resampling.

    Returns:
        Each system in order. Scores and intervals are those of `compare_systems` where each system was trained once.
        P-values are two-sided and larger: resampled differences are moved to a mean of zero (Efron and Tibshirani
        1993, section 16.4), where sacrebleu does that to their absolute values.
    """
    size = len(references)
    drawn = np.random.default_rng(seed).multinomial(size, np.full(size, 1 / size), samples)  # (samples, sentences)
    drawn = np.concatenate((np.ones((1, size), dtype=drawn.dtype), drawn))  # the first is the test set itself
    scores = {name: np.mean([_bleu(run, references, drawn) for run in runs], axis=0) for name, runs in systems.items()}
    baseline = next(iter(scores.values()))
    found = []
    for name, each in scores.items():
        mean, interval = estimate_ci(each[1:])
        p_value = None if each is baseline else _p_value(each - baseline)
        found.append(Comparison(name, "bleu", float(each[0]), float(mean), float(interval), p_value))
    return found


def _bleu(hypotheses: Sequence[str], references: Sequence[str], drawn: np.ndarray) -> np.ndarray:
    """(samples,) BLEU of test sets in which each sentence stands as often as `drawn` (samples, sentences) says."""
    metric = BLEU(effective_order=True)  # of a sentence, whose counts are what is wanted
    rows = [metric.sentence_score(text, [right]) for text, right in zip(hypotheses, references, strict=True)]
    counts = np.array([[*row.counts, *row.totals, row.sys_len, row.ref_len] for row in rows])  # (sentences, 4 + 4 + 2)
    sums = (drawn @ counts).tolist()
    return np.array([BLEU.compute_bleu(row[:4], row[4:8], *row[8:], smooth_method="exp").score for row in sums])


def _p_value(differences: np.ndarray) -> float:
    """Share of resampled differences, moved to a mean of zero, that are as large as the real one, which is first."""
    real, resampled = abs(differences[0]), differences[1:]
    if np.ptp(resampled) < 1e-9:  # a single sentence, or the same translations: resampling shows nothing
        return 1.0
    return float((np.sum(np.abs(resampled - resampled.mean()) >= real) + 1) / (len(resampled) + 1))


def holm(p_values: Mapping[str, float | None]) -> dict[str, float | None]:
    """P-values of several tests at once, corrected so that one of them is below 0.05 by luck in 5 % of cases at most.

    Holm 1979, A simple sequentially rejective multiple test procedure; None stays None.
    """
    tests = sorted((value, name) for name, value in p_values.items() if value is not None)
    corrected: dict[str, float | None] = dict.fromkeys(p_values)
    largest = 0.0
    for rank, (value, name) in enumerate(tests):
        largest = max(largest, min(1.0, value * (len(tests) - rank)))
        corrected[name] = largest
    return corrected


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """sacrebleu takes its seed from the environment."""
    before = os.environ.get("SACREBLEU_SEED")
    os.environ["SACREBLEU_SEED"] = str(seed)
    try:
        yield
    finally:
        if before is None:
            del os.environ["SACREBLEU_SEED"]
        else:
            os.environ["SACREBLEU_SEED"] = before


def common_split(paths: Sequence[str], split: Split | None = None) -> Split | None:
    """The set of which all run folders among these have translations: the test set if they have; None if none is one.

    Args:
        paths: Of runs, and perhaps of files.
        split: The set that is wanted; any if None.

    Raises:
        InputError: They have none in common, or not the one that is wanted.
    """
    folders = [Path(path) for path in paths if Path(path).is_dir()]
    if not folders:
        return None
    wanted: tuple[Split, ...] = tuple(SET_NAMES) if split is None else (split,)
    lacking = []
    for name in wanted:
        without = [folder for folder in folders if not sentences_file(folder, name).is_file()]
        if not without:
            return name
        lacking.append(f"{without[0]} has no {sentences_file(without[0], name).name}")
    raise InputError(
        f"{' and '.join(lacking)}: a run that is finished has one if it had a test set, or a development set and "
        "predict_with_generate"
    )


def read_systems(
    paths: Sequence[str], reference_files: Sequence[str] = (), *, split: Split | None = None
) -> tuple[dict[str, list[str]], list[list[str]]]:
    """Translations by name, and the references of each sentence, from run folders and files.

    Args:
        paths: Of run folders, and of files of translations.
        reference_files: Of files.
        split: The set that run folders are compared on; as `common_split` if None.

    Raises:
        InputError: Nothing says what the references are, runs were tested on different ones, or two have one name; or
            as `common_split`.
    """
    systems: dict[str, list[str]] = {}
    sets = [read_lines(Path(file)) for file in reference_files]
    if len({len(lines) for lines in sets}) > 1:
        lengths = ", ".join(f"{file}: {len(lines)}" for file, lines in zip(reference_files, sets, strict=True))
        raise InputError(f"reference files differ in their number of lines: {lengths}")
    by_sentence = [list(row) for row in zip(*sets, strict=True)]
    found = common_split(paths, split)
    for path in paths:
        if path in systems:
            raise InputError(f"{path} was given twice")
        if found is None or not Path(path).is_dir():
            systems[path] = read_lines(Path(path))
            continue
        scores = read_sentence_scores(sentences_file(Path(path), found))
        systems[path] = [score.hypothesis for score in scores]
        own = [list(score.references) for score in scores]
        if by_sentence and own != by_sentence:
            raise InputError(f"{path} was tested on other references than what came before it: no comparison")
        by_sentence = own
    if not by_sentence:
        raise InputError("there is nothing to compare with: give --references FILE, or a run folder")
    return systems, by_sentence
