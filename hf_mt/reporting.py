"""What a person looks at after a run: curves, scores, sample translations and one line of judgement.

- Everything is computed from `trainer.state.log_history`, the rows that transformers' Trainer writes. A series that is
  absent leaves its curve out; a loss that is not finite is marked, never dropped in silence.
- Text is printed as text: control characters of a corpus are shown, not obeyed, and colours and terminal codes appear
  only where the output is a terminal.
- Losses are nats per target token; BLEU and chrF run from 0 to 100.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple, TextIO

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from hf_mt.text_files import unfinished


BLUE, ORANGE, GREY, INK, SOFT, RULE, RED = "#2563c9", "#c2660a", "#8b95a7", "#1f2733", "#5b6678", "#e4e8ef", "#c81e3a"

END_OF_RUN = 0.2  # the share of a run whose gain tells whether it was over
MIN_BLEU_GAIN = 0.2  # smaller gains are within what another seed changes
MIN_LOSS_GAIN = 0.02  # nats: 2 % of perplexity
OVERFITTING = 0.05  # nats: 5 % of perplexity
UNLEARNT_LOSS = 3.0  # nats: a perplexity of 20 a subword, which no model that translates has on its training data


class Point(NamedTuple):
    """One logged value and when it was logged."""

    step: int
    epoch: float
    value: float


def series(log_history: Sequence[Mapping[str, Any]], key: str) -> list[Point]:
    """All values of `key`, by step.

    The first row of a step counts: after training the best model is evaluated once more, at the last step, and that
    row does not say where training stood.
    """
    points: dict[int, Point] = {}
    for row in log_history:
        if key in row and "step" in row:
            step = int(row["step"])
            points.setdefault(step, Point(step, float(row.get("epoch") or 0.0), float(row[key])))
    return [points[step] for step in sorted(points)]


def best_point(log_history: Sequence[Mapping[str, Any]]) -> Point | None:
    """The evaluation with the highest BLEU or, where none was computed, the lowest loss; None without evaluations."""
    scores = _finite(series(log_history, "eval_bleu"))
    if scores:
        return max(scores, key=lambda point: point.value)
    return min(_finite(series(log_history, "eval_loss")), key=lambda point: point.value, default=None)


def _finite(points: Iterable[Point]) -> list[Point]:
    return [point for point in points if math.isfinite(point.value)]


# ---------------------------------------------------------------------------------------------------------- the curves


class _Curve(NamedTuple):
    name: str
    points: list[Point]
    colour: str
    width: float
    marker: str


def plot_curves(log_history: Sequence[Mapping[str, Any]], path: Path, *, best_step: int | None = None) -> Path:
    """Draw loss (left) and development BLEU and chrF (right) into a PNG of 1,680 x 640 pixels.

    Args:
        log_history: `trainer.state.log_history`.
        path: The PNG; its folder is made, and the file is replaced whole.
        best_step: Step of the checkpoint that was kept; by default that of the best evaluation.

    Returns:
        `path`.
    """
    loss = [
        _Curve("training", series(log_history, "loss"), GREY, 1.3, ""),
        _Curve("development", series(log_history, "eval_loss"), BLUE, 2.0, "o"),
    ]
    scores = [
        _Curve("chrF", series(log_history, "eval_chrf"), ORANGE, 2.0, "o"),
        _Curve("BLEU", series(log_history, "eval_bleu"), BLUE, 2.0, "o"),
    ]
    best = best_point(log_history)
    kept = best_step if best_step is not None else best.step if best else None
    epochs_known = all(point.epoch > 0 for curve in loss + scores for point in curve.points)
    unit = "epoch" if epochs_known else "step"
    last = max((getattr(point, unit) for curve in loss + scores for point in curve.points), default=1)

    figure = Figure(figsize=(10.5, 4.0), dpi=160, facecolor="white")
    FigureCanvasAgg(figure)
    figure.set_layout_engine("constrained", w_pad=0.12, h_pad=0.12, wspace=0.08)
    left, right = figure.subplots(1, 2)
    for axes in (left, right):
        axes.set_xlim(0, 1.03 * last)
    _draw_panel(left, "Loss", "nats per target token", loss, unit)
    _draw_panel(right, "Translation quality", "development set, 0 to 100", scores, unit)
    _mark_kept(left, loss[-1], kept, unit, above=True)
    _mark_kept(right, scores[-1], kept, unit, above=False)
    return _save_whole(figure, path)


def _save_whole(figure: Figure, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with unfinished(path) as temporary:
        figure.savefig(temporary, format="png")
    return path


def _draw_panel(axes: Axes, title: str, scale: str, curves: Sequence[_Curve], unit: str) -> None:
    axes.set_title(title, loc="left", fontsize=13, fontweight="bold", color=INK, pad=22)
    axes.set_title(scale, loc="right", fontsize=9.5, color=SOFT, pad=22)
    axes.spines[["top", "left", "right"]].set_visible(False)
    axes.spines["bottom"].set(color=SOFT, visible=any(curve.points for curve in curves))
    axes.tick_params(length=0, labelsize=10, labelcolor=SOFT)
    curves = [curve for curve in curves if curve.points]
    if not curves:
        axes.text(0.5, 0.5, "nothing was logged", transform=axes.transAxes, ha="center", color=SOFT, fontsize=11)
        axes.set(xticks=[], yticks=[])
        return
    axes.grid(axis="y", color=RULE, linewidth=1)
    axes.set_axisbelow(True)
    axes.margins(y=0.1)
    axes.set_xlabel(unit, fontsize=10.5, color=SOFT)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
    for curve in curves:
        _draw_curve(axes, curve, unit)
    _name_curves(axes, curves)


def _draw_curve(axes: Axes, curve: _Curve, unit: str) -> None:
    finite = _finite(curve.points)
    marker = curve.marker if len(finite) <= 40 else ""
    axes.plot(
        [getattr(point, unit) for point in finite],
        [point.value for point in finite],
        color=curve.colour,
        linewidth=curve.width,
        marker="o" if len(finite) == 1 else marker,
        markersize=4.5,
        solid_capstyle="round",
        solid_joinstyle="round",
    )
    broken = [point for point in curve.points if not math.isfinite(point.value)]
    if broken:
        axes.axvline(getattr(broken[0], unit), color=RED, linewidth=1.5)
        place = {"xycoords": ("data", "axes fraction"), "xytext": (5, 0), "textcoords": "offset points"}
        words = f"{curve.name} loss not finite"
        axes.annotate(words, (getattr(broken[0], unit), 0.94), color=RED, fontsize=9.5, **place)


def _mark_kept(axes: Axes, curve: _Curve, kept: int | None, unit: str, *, above: bool) -> None:
    """Ring the value of `curve` at the kept checkpoint and write it above or below the ring."""
    for point in _finite(curve.points):
        if point.step == kept:
            x = getattr(point, unit)
            axes.axvline(x, color=SOFT, linewidth=1, linestyle=(0, (2, 3)), zorder=1)
            axes.plot([x], [point.value], "o", markersize=11, markerfacecolor="none", markeredgewidth=2, color=INK)
            box = {"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "none", "alpha": 0.9}
            side = "right" if x > 0.9 * axes.get_xlim()[1] else "center"
            axes.text(x, 1.01, "kept", transform=axes.get_xaxis_transform(), ha=side, color=SOFT, fontsize=9)
            place = {"xytext": (0, 18 if above else -18), "textcoords": "offset points", "ha": side, "va": "center"}
            words = f"{point.value:.1f}" if point.value >= 10 else f"{point.value:.2f}"
            axes.annotate(words, (x, point.value), color=INK, fontsize=11, fontweight="bold", bbox=box, **place)


def _name_curves(axes: Axes, curves: Sequence[_Curve]) -> None:
    """Write each name at the right end of its curve, names at least a line apart."""
    low, high = axes.get_ylim()
    ends = [((_finite(curve.points) or [Point(0, 0, low)])[-1].value, curve) for curve in curves]
    heights: list[float] = []
    for value, _ in sorted(ends, key=lambda end: end[0]):
        wanted = (value - low) / (high - low)
        heights.append(max(wanted, heights[-1] + 0.075) if heights else wanted)
    for height, (_, curve) in zip(heights, sorted(ends, key=lambda end: end[0]), strict=True):
        place = {"xycoords": "axes fraction", "xytext": (6, 0), "textcoords": "offset points", "va": "center"}
        axes.annotate(curve.name, (1, height), color=curve.colour, fontsize=10.5, fontweight="bold", **place)


# --------------------------------------------------------------------------------------------------------- the verdict


def verdict(
    log_history: Sequence[Mapping[str, Any]],
    *,
    max_steps: int | None = None,
    unigram_entropy: float | None = None,
) -> str:
    """Say in one line how training went and what to do next; the first words name the case.

    - `diverged`: the last loss is not finite; or the training loss gave back more than half of what it had gained; or
      it stays above `unigram_entropy`, where a model lands that ignores the source and all words before.
    - `still falling`: the last fifth of the run gained over 0.2 BLEU or lowered development perplexity by over 2 %.
    - `overfitting`: otherwise, development perplexity ends 5 % above its minimum while the training loss kept falling.
    - `converged`: otherwise.
    - `undecided`: a single evaluation shows no trend.

    `stopped early at step x of y` stands before the case where training ended before `max_steps`.

    Args:
        log_history: `trainer.state.log_history`.
        max_steps: The length of training that was planned.
        unigram_entropy: Entropy of the distribution of target tokens, in nats; without it 3 nats are taken.
    """
    train, dev = series(log_history, "loss"), series(log_history, "eval_loss")
    if not train:
        return "undecided: no training loss was logged; lower logging_steps"
    failure = _failure(train, dev, unigram_entropy)
    last = max(train[-1].step, dev[-1].step if dev else 0)
    early = f"stopped early at step {last} of {max_steps}, " if max_steps and last < max_steps else ""
    return (
        early
        + (failure or _trend(_finite(train), _finite(dev), _finite(series(log_history, "eval_bleu"))))
        + _best_words(log_history)
    )


def _failure(train: Sequence[Point], dev: Sequence[Point], unigram_entropy: float | None) -> str | None:
    cure = "lower learning_rate, lengthen warmup_steps or choose norm_position: pre"
    for name, points in (("training", train), ("development", dev)):
        if points and not math.isfinite(points[-1].value):
            first = next(point for point in points if not math.isfinite(point.value))
            return f"diverged: the {name} loss is not finite from step {first.step} on; {cure}"
    levels = _levels(train)
    start, low, end = levels[0], min(levels), levels[-1]
    noise = median(abs(one - other) for one, other in pairwise(levels)) if len(levels) > 1 else 0.0
    if end - low > max(0.5 * (start - low), 3 * noise):
        return f"diverged: the training loss rose from {low:.2f} to {end:.2f}; {cure}"
    floor = UNLEARNT_LOSS if unigram_entropy is None else unigram_entropy
    if end > floor and len(levels) > 2 and _loss_gain(train) < MIN_LOSS_GAIN:
        return f"diverged: the training loss stays at {end:.2f}, above {floor:.2f}, where words are guessed; {cure}"
    return None


def _trend(train: Sequence[Point], dev: Sequence[Point], bleu: Sequence[Point]) -> str:
    judged, name = (dev, "development") if dev else (train, "training")
    if len(judged) < 2:
        return f"undecided: a single {name} loss shows no trend; evaluate more often (eval_steps)"
    loss_gain, bleu_gain = _loss_gain(judged), _bleu_gain(bleu)
    words = f"in the last fifth of the run the {name} loss changed by {-loss_gain:+.3f}"
    words += f" and BLEU by {bleu_gain:+.1f}" if len(bleu) > 1 else ""
    if loss_gain > MIN_LOSS_GAIN or bleu_gain > MIN_BLEU_GAIN:
        return f"still falling: {words}; train longer (num_train_epochs or max_steps)"
    lowest = min(judged, key=lambda point: point.value)
    if judged[-1].value - lowest.value > OVERFITTING and _fell_after(train, lowest.step):
        rise = f"the development loss rose from {lowest.value:.2f} to {judged[-1].value:.2f} while training loss fell"
        return f"overfitting: {rise}; raise dropout or label_smoothing, add data or take a smaller model"
    return f"converged: {words}"


def _levels(points: Sequence[Point], parts: int = 10) -> list[float]:
    """Medians of up to `parts` consecutive stretches: the course of a noisy loss."""
    values = [point.value for point in _finite(points)]
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
    name = "BLEU" if _finite(series(log_history, "eval_bleu")) else "loss"
    return f". Best development {name} {best.value:.2f} at step {best.step} (epoch {best.epoch:g})"


# ---------------------------------------------------------------------------------------------------------- the tables


def print_scores(results: Mapping[str, Any], *, file: TextIO | None = None) -> None:
    """Print the scores of the test set (`test_*`), or of the development set (`eval_*`), with their signatures.

    Args:
        results: As in `all_results.json`; a signature stands under the name of its score plus `_signature`.
        file: Where to print; standard output by default.
    """
    prefix = "test_" if any(key.startswith("test_") for key in results) else "eval_"
    table = Table(box=SIMPLE_HEAD, title=f"{prefix[:-1]} set", title_justify="left")
    table.add_column("score", no_wrap=True)
    table.add_column("value", justify="right", no_wrap=True)
    signatures = []
    for key, value in results.items():
        if key.endswith("_per_second"):
            continue
        if key.startswith(prefix) and isinstance(value, int | float):
            shown = f"{value:,}" if isinstance(value, int) else f"{value:.4g}" if abs(value) < 1 else f"{value:.2f}"
            table.add_row(key.removeprefix(prefix), shown)
        elif key.startswith(prefix) and key.endswith("_signature"):
            signatures.append(f"{key.removeprefix(prefix).removesuffix('_signature')}: {value}")
    console = Console(file=file, highlight=False)
    console.print(table)
    for signature in signatures:
        console.print(_visible(signature), overflow="fold")


def print_samples(rows: Sequence[Mapping[str, Any]], *, file: TextIO | None = None) -> None:
    """Print source, reference and output of some sentences, one below another, so that they can be compared.

    Args:
        rows: With the keys `source`, `reference` and `hypothesis`; other keys are not shown.
        file: Where to print; standard output by default.
    """
    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True, style="dim")
    table.add_column(overflow="fold")
    for row in rows:
        table.add_row("source", _visible(str(row["source"])))
        table.add_row("reference", _visible(str(row["reference"])))
        table.add_row("output", Text.assemble((_visible(str(row["hypothesis"])).plain, "bold")))
        table.add_row("", "")
    Console(file=file, highlight=False).print(table)


def _visible(text: str) -> Text:
    """Text that a terminal shows as it is: no markup, and control characters as pictures (U+2400 and on)."""
    return Text(re.sub(r"[\x00-\x1f\x7f-\x9f]", _picture, text))


def _picture(control: re.Match[str]) -> str:
    code = ord(control.group())
    return chr(0x2400 + code) if code < 0x20 else "\N{REPLACEMENT CHARACTER}"
