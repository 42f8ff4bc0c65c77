"""The course of a run, and one line of judgement on it.

- Everything is computed from `trainer.state.log_history`, the rows that transformers' Trainer writes.
- Losses are nats per target token; BLEU and chrF run from 0 to 100.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import accumulate, pairwise
from statistics import median
from typing import Any, NamedTuple

import numpy as np

from hf_mt.arguments import bleu_of


END_OF_RUN = 0.2  # the share of a run whose gain tells whether it was over
MIN_BLEU_GAIN = 0.2  # smaller gains are within what another seed changes
MIN_LOSS_GAIN = 0.02  # nats: 2 % of perplexity
OVERFITTING = 0.05  # nats: 5 % of perplexity; a loss that changed by less than this did not change
UNLEARNT_LOSS = 3.0  # nats: a perplexity of 20 a subword, which no model that translates has on its training data


class Point(NamedTuple):
    """One logged value and when it was logged."""

    step: int
    epoch: float
    value: float
    minute: float | None = None  # of training alone; None where the log doesn't tell


def series(log_history: Sequence[Mapping[str, Any]], key: str) -> list[Point]:
    """All values of `key`, by step.

    The first row of a step counts: after training the best model is evaluated once more, at the last step, and that
    row does not say where training stood.
    """
    points: dict[int, Point] = {}
    minute = _clock(log_history)
    for row in log_history:
        if key in row and "step" in row:
            step = int(row["step"])
            points.setdefault(step, Point(step, float(row.get("epoch") or 0.0), float(row[key]), minute(step)))
    return [points[step] for step in sorted(points)]


def has_minutes(log_history: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the points of `series` know their minute."""
    return _clock(log_history)(0) is not None


def _clock(log_history: Sequence[Mapping[str, Any]]) -> Callable[[int], float | None]:
    """Minutes of training by step; between two rows of the log they grow evenly.

    A row has the seconds since the one before, also in a run that was interrupted. Where some rows have none, as those
    of older versions, nothing can be said, since the sum would leave them out.
    """
    rows = [row for row in log_history if "step" in row]
    seconds: dict[int, float] = {}
    for row in rows:
        if "train_seconds" in row:
            seconds.setdefault(int(row["step"]), float(row["train_seconds"]))
    if not seconds or any("loss" in row and "train_seconds" not in row for row in rows):
        return lambda step: None
    steps = sorted(seconds)
    ends = list(accumulate(seconds[step] / 60 for step in steps))
    return lambda step: float(np.interp(step, [0, *steps], [0.0, *ends]))


def bleu_key(log_history: Sequence[Mapping[str, Any]]) -> str:
    """The development BLEU that suits the target language, of those that were logged."""
    return f"eval_{bleu_of(key for row in log_history for key in row)}"


def best_point(log_history: Sequence[Mapping[str, Any]]) -> Point | None:
    """The evaluation with the highest BLEU or, where none was computed, the lowest loss; None without evaluations."""
    scores = finite(series(log_history, bleu_key(log_history)))
    if scores:
        return max(scores, key=lambda point: point.value)
    return min(finite(series(log_history, "eval_loss")), key=lambda point: point.value, default=None)


def finite(points: Iterable[Point]) -> list[Point]:
    return [point for point in points if math.isfinite(point.value)]


def verdict(log_history: Sequence[Mapping[str, Any]], *, max_steps: int | None = None) -> str:
    """Say in one line how training went and what to do next; the first words name the case.

    - `diverged`: the last loss is not finite; or the training loss gave back more than half of what it had gained; or
      it stays above 3 nats, where a model lands that ignores the source and all words before; or it still falls there,
      and the development loss hardly fell below its first value, so that what was learnt holds for no other text.
    - `still improving`: the last fifth of the run gained over 0.2 BLEU or lowered development perplexity by over 2 %.
    - `overfitting`: otherwise, development perplexity ends 5 % above its minimum while the training loss kept falling.
    - `converged`: otherwise.
    - `undecided`: a single evaluation shows no trend.

    `stopped early at step x of y` stands before the case where training ended before `max_steps`.

    Args:
        log_history: `trainer.state.log_history`.
        max_steps: The length of training that was planned.
    """
    train, dev = series(log_history, "loss"), series(log_history, "eval_loss")
    if not train:
        return "undecided: no training loss was logged; lower logging_steps"
    failure = _failure(train, dev)
    last = max(int(row["step"]) for row in log_history if "step" in row)  # the row of the run's end has no loss
    early = f"stopped early at step {last} of {max_steps}, " if max_steps and last < max_steps else ""
    return (
        early
        + (failure or _trend(finite(train), finite(dev), finite(series(log_history, bleu_key(log_history)))))
        + _best_words(log_history)
    )


def _failure(train: Sequence[Point], dev: Sequence[Point]) -> str | None:
    cure = "lower learning_rate, lengthen warmup_steps or choose norm_position: pre"
    for name, points in (("training", train), ("development", dev)):
        if points and not math.isfinite(points[-1].value):
            first = next(point for point in points if not math.isfinite(point.value))
            return f"diverged: the {name} loss is not finite from step {first.step} on; {cure}"
    levels = _levels(train)
    start, low, end = levels[0], min(levels), levels[-1]
    noise = median(abs(one - other) for one, other in pairwise(levels)) if len(levels) > 1 else 0.0
    if end - low > max(0.5 * (start - low), 3 * noise, OVERFITTING):
        return f"diverged: the training loss rose from {low:.2f} to {end:.2f}; {cure}"
    if end > UNLEARNT_LOSS and (words := _unlearnt_words(train, dev, end)):
        return f"diverged: the training loss {words}; {cure}"
    return None


def _unlearnt_words(train: Sequence[Point], dev: Sequence[Point], end: float) -> str | None:
    """How a training loss too high for any translation shows that it will stay so; None where it may not."""
    if len(_levels(train)) > 2 and _loss_gain(train) < MIN_LOSS_GAIN:
        return f"stays at {end:.2f}, above {UNLEARNT_LOSS:.2f}, where words are guessed"
    values = [point.value for point in finite(dev)]
    if len(values) > 2 and values[0] - min(values) < OVERFITTING:
        never = f"never fell {OVERFITTING:.2f} below its first, {values[0]:.2f}"
        return f"is still {end:.2f}, and the development loss {never}"
    return None


def _trend(train: Sequence[Point], dev: Sequence[Point], bleu: Sequence[Point]) -> str:
    judged, name = (dev, "development") if dev else (train, "training")
    if len(judged) < 2:
        return f"undecided: a single {name} loss shows no trend; evaluate more often (eval_steps)"
    loss_gain, bleu_gain = _loss_gain(judged), _bleu_gain(bleu)
    words = f"in the last fifth of the run the {name} loss changed by {-loss_gain:+.3f}"
    words += f" and BLEU by {bleu_gain:+.1f}" if len(bleu) > 1 else ""
    if loss_gain > MIN_LOSS_GAIN or bleu_gain > MIN_BLEU_GAIN:
        return f"still improving: {words}; train longer (num_train_epochs or max_steps)"
    lowest = min(judged, key=lambda point: point.value)
    if judged[-1].value - lowest.value > OVERFITTING and _fell_after(train, lowest.step):
        rise = f"the development loss rose from {lowest.value:.2f} to {judged[-1].value:.2f} while training loss fell"
        return f"overfitting: {rise}; raise dropout or label_smoothing, add data or take a smaller model"
    return f"converged: {words}"


def _levels(points: Sequence[Point], parts: int = 10) -> list[float]:
    """Medians of up to `parts` consecutive stretches: the course of a noisy loss."""
    values = [point.value for point in finite(points)]
    size = max(1, math.ceil(len(values) / parts))
    return [median(values[start : start + size]) for start in range(0, len(values), size)]


def _split_end(values: Sequence[float]) -> tuple[Sequence[float], Sequence[float]]:
    """The values before and in the last fifth of a run, at least one in each."""
    cut = min(len(values) - 1, math.ceil(len(values) * (1 - END_OF_RUN)))
    return values[:cut], values[cut:]


def _loss_gain(points: Sequence[Point]) -> float:
    """Nats by which the last fifth lowered the loss; negative where it did not."""
    before, after = _split_end(_levels(points))
    return min(before) - min(after)


def _bleu_gain(points: Sequence[Point]) -> float:
    if len(points) < 2:
        return 0.0
    before, after = _split_end([point.value for point in points])
    return max(after) - max(before)


def _fell_after(train: Sequence[Point], step: int) -> bool:
    """Whether the training loss went on falling after `step`."""
    later = [point for point in train if point.step >= step]
    return len(later) > 1 and _levels(later)[-1] < _levels(later)[0]


def _best_words(log_history: Sequence[Mapping[str, Any]]) -> str:
    best = best_point(log_history)
    if best is None:
        return ""
    name = "BLEU" if finite(series(log_history, bleu_key(log_history))) else "loss"
    return f". Best development {name} {best.value:.2f} at step {best.step} (epoch {best.epoch:g})"
