"""Loss and quality of a run over time, as a picture.

A series that is absent leaves its curve out; a loss that is not finite is marked, never dropped in silence.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from hf_mt.text_files import unfinished
from hf_mt.verdict import Point, best_point, finite, series


BLUE, ORANGE, GREY, INK, SOFT, RULE, RED = "#2563c9", "#c2660a", "#8b95a7", "#1f2733", "#5b6678", "#e4e8ef", "#c81e3a"


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
    return save_png(figure, path)


def save_png(figure: Figure, path: Path) -> Path:
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
    points = finite(curve.points)
    marker = curve.marker if len(points) <= 40 else ""
    axes.plot(
        [getattr(point, unit) for point in points],
        [point.value for point in points],
        color=curve.colour,
        linewidth=curve.width,
        marker="o" if len(points) == 1 else marker,
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
    for point in finite(curve.points):
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
    ends = [((finite(curve.points) or [Point(0, 0, low)])[-1].value, curve) for curve in curves]
    heights: list[float] = []
    for value, _ in sorted(ends, key=lambda end: end[0]):
        wanted = (value - low) / (high - low)
        heights.append(max(wanted, heights[-1] + 0.075) if heights else wanted)
    for height, (_, curve) in zip(heights, sorted(ends, key=lambda end: end[0]), strict=True):
        place = {"xycoords": "axes fraction", "xytext": (6, 0), "textcoords": "offset points", "va": "center"}
        axes.annotate(curve.name, (1, height), color=curve.colour, fontsize=10.5, fontweight="bold", **place)
