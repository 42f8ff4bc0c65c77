"""The pictures of a report: courses of training, scores by length, lengths of the data, attention.

Each function gives a figure; `save_png` makes a file for a paper of it and `inline_svg` a part of a page that follows
the page's colours, light or dark.
"""

import io
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from hf_mt.attention import CrossAttention
from hf_mt.slices import Bucket
from hf_mt.text_files import unfinished
from hf_mt.verdict import bleu_key, series


INK, SOFT, RULE, RED = "#1f2733", "#5b6678", "#e4e8ef", "#c81e3a"
TITLE: dict[str, Any] = {"loc": "left", "fontsize": 10.5, "fontweight": "bold", "color": INK}
COLOURS: tuple[str, ...] = ("#2f74d0", "#d0701a", "#159a78", "#b84aa0", "#8577f0", "#a08a10", "#d5455c", "#7b8798")
COLOURS += ("#123f7a", "#7d3f08", "#0b5d45", "#701f60", "#4a3db0", "#5f5406", "#8c1f30", "#3f4753")  # the same, darker
THEME = {INK: "var(--ink)", SOFT: "var(--soft)", RULE: "var(--rule)"}
THEME |= {colour: f"var(--run-{number}, {colour})" for number, colour in enumerate(COLOURS[8:], start=9)}
PANELS = (
    ("Loss, nats per target token", (("loss", ":"), ("eval_loss", "-")), 1.0),
    ("Token accuracy, %", (("accuracy", ":"), ("eval_accuracy", "-")), 100.0),
    ("Development BLEU", (("eval_bleu", "-"),), 1.0),
    ("Learning rate", (("learning_rate", "-"),), 1.0),
)  # title, series with their line styles, factor
Unit = Literal["step", "epoch", "minute"]
BY_LENGTH = {"bleu": "BLEU", "chrf": "chrF"}  # scores of a `Bucket`, and their names
PAGE_WIDTH = 10.5  # inches
CROWDED = 20  # more numbers than these stand upright over the bars of a page's width


def course_figure(runs: Mapping[str, Sequence[Mapping[str, Any]]], unit: Unit, *, kept: int | None = None) -> Figure:
    """Loss, accuracy, BLEU and learning rate of each run; training is dotted.

    Args:
        runs: `trainer.state.log_history` by name. What was not logged leaves its curve out, and a red line stands
            where a loss was not finite.
        unit: Of the horizontal axis. A run whose log tells no minutes has no curve over them.
        kept: Step of the checkpoint that was kept, to be marked, of a single run.
    """
    figure, axes_of = panels(2, 2, (10.5, 6.6))
    for axes, (title, lines, factor) in zip(axes_of, PANELS, strict=True):
        style(axes, title)
        axes.set_xlabel("minute of training" if unit == "minute" else unit, fontsize=9.5, color=SOFT)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
        measured = False
        for number, log_history in enumerate(runs.values()):
            for key, dashes in lines:
                found = series(log_history, bleu_key(log_history) if key == "eval_bleu" else key)
                points = [(x, point.value * factor) for point in found if (x := getattr(point, unit)) is not None]
                measured |= bool(points)
                _draw_line(axes, points, dashes, _colour(number))
            _draw_moment(axes, _moment(log_history, kept, unit), "kept")
        if not measured:
            _leave_empty(axes)
    _legend(figure, list(runs))
    return figure


def _leave_empty(axes: Axes) -> None:
    """Words instead of a scale that means nothing."""
    axes.set(xticks=[], yticks=[], xlabel="")
    axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", color=SOFT, fontsize=9.5)


def _draw_line(axes: Axes, points: Sequence[tuple[float, float]], dashes: str, colour: str) -> None:
    known = [(x, y) for x, y in points if math.isfinite(y)]
    solid = dashes == "-"
    marker = "o" if len(known) == 1 or len(known) <= 30 and solid else ""
    axes.plot(*zip(*known, strict=True) if known else ([], []), dashes, color=colour, linewidth=1.8 if solid else 1.3,
              marker=marker, markersize=3.5)  # fmt: skip
    broken = [x for x, y in points if not math.isfinite(y)]
    if broken:
        axes.axvline(broken[0], color=RED, linewidth=1.5)
        place = {"xycoords": ("data", "axes fraction"), "xytext": (4, 0), "textcoords": "offset points"}
        axes.annotate("not finite", (broken[0], 0.94), color=RED, fontsize=8.5, **place)


def _moment(log_history: Sequence[Mapping[str, Any]], step: int | None, unit: Unit) -> float | None:
    """Where an evaluation stands on the horizontal axis."""
    return next((getattr(point, unit) for point in series(log_history, "eval_loss") if point.step == step), None)


def _draw_moment(axes: Axes, x: float | None, name: str) -> None:
    if x is not None:
        axes.axvline(x, color=SOFT, linewidth=1, linestyle=(0, (2, 3)), zorder=1)
        axes.text(x, 1.01, name, transform=axes.get_xaxis_transform(), ha="right", color=SOFT, fontsize=8.5)
        axes.set_title(axes.get_title("left"), **TITLE, pad=16)  # above the name


def length_figure(runs: Mapping[str, Mapping[str, Any]], of: str, metric: str = "bleu") -> Figure:
    """A score by length of the source, side by side for each run (what `write_analysis` wrote, by name).

    Args:
        runs: By name.
        of: The name of the set that they translated.
        metric: A key of `BY_LENGTH`.
    """
    figure, (axes,) = panels(1, 1, (PAGE_WIDTH, 3.4))
    buckets = [[Bucket(**values) for values in found["buckets"]] for found in runs.values()]
    counts = {bucket.name: bucket.sentences for of_run in buckets for bucket in of_run}
    names, width = list(counts), 0.8 / len(runs)
    rotation = 90 if len(runs) * len(names) > CROWDED else 0
    for number, of_run in enumerate(buckets):
        for bucket in of_run:
            x, score = names.index(bucket.name) + (number - (len(runs) - 1) / 2) * width, getattr(bucket, metric)
            axes.bar(x, score, width * 0.92, color=_colour(number))
            axes.annotate(f"{score:.1f}", (x, score), (0, 2), textcoords="offset points", rotation=rotation,
                          ha="center", va="bottom", fontsize=7 if rotation else 8.5, color=INK)  # fmt: skip
    unit = next(iter(runs.values()))["unit"]
    style(axes, f"{BY_LENGTH[metric]} by {unit} of the source, {of}")
    axes.margins(y=0.2 if rotation else 0.15)
    axes.set_xticks(range(len(names)), [f"{name}\n{counts[name]:,} sentences" for name in names])
    _legend(figure, list(runs))
    return figure


def histogram_figure(histograms: Mapping[str, Sequence[int]], width: int) -> Figure:
    """How many training sentences have how many tokens: counts of bins `width` tokens wide, for each side."""
    figure, (axes,) = panels(1, 1, (10.5, 2.8))
    style(axes, "Tokens of training sentences")
    for number, counts in enumerate(histograms.values()):
        edges = [width * place for place in range(len(counts) + 1)]
        axes.stairs(counts, edges, color=_colour(number), linewidth=1.8, fill=False)
    axes.set_xlabel("tokens", fontsize=9.5, color=SOFT)
    axes.set_ylabel("sentences", fontsize=9.5, color=SOFT)
    _legend(figure, list(histograms), always=True)
    return figure


def attention_figure(attention: CrossAttention) -> Figure:
    """A heat map for each decoder layer: rows target tokens, columns source tokens, mean over heads.

    Layers stand side by side as far as a page is wide, so that tokens can be read.
    """
    layers, targets, sources = attention.weights.shape
    width = max(3.2, 0.24 * sources + 1.4)
    columns = max(1, min(layers, 3, int(PAGE_WIDTH // width)))
    rows = -(-layers // columns)
    size = (width * columns, (max(2.0, 0.2 * targets + 1.4)) * rows)
    figure, axes_of = panels(rows, columns, size)
    for number, axes in enumerate(axes_of):
        if number >= layers:
            axes.set_visible(False)
            continue
        axes.imshow(attention.weights[number].numpy(), cmap="Blues", vmin=0, vmax=1, aspect="auto")
        axes.set_title(f"layer {number + 1}", loc="left", fontsize=10, color=INK)
        axes.set_xticks(range(sources), [_plain(token) for token in attention.source_tokens], rotation=90)
        first = number % columns == 0  # the others in its row have the same
        if first:
            axes.set_yticks(range(targets), [_plain(token) for token in attention.target_tokens])
        else:
            axes.set_yticks([])
        axes.tick_params(length=0, labelsize=8, labelcolor=INK)
        axes.spines[:].set_color(RULE)
    return figure


def _plain(text: str) -> str:
    """Text in which matplotlib finds no formula and no control character."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f]", "\N{REPLACEMENT CHARACTER}", text).replace("$", r"\$")


def save_png(figure: Figure, path: Path) -> Path:
    """Writes the figure as a file, whole or not at all; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with unfinished(path) as temporary:
        figure.savefig(temporary, format="png")
    return path


def inline_svg(figure: Figure, name: str) -> str:
    """The figure as an `<svg>` element: text stays text, and ink, grid and background are the page's.

    Args:
        figure: Any of the above.
        name: Unique in the page; it keeps the element's inner names apart from those of others.
    """
    file = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'\sid="([^"]*)"', rf' id="{name}-\1"', svg)
    svg = re.sub(r"url\(#([^)]*)\)", rf"url(#{name}-\1)", svg)
    svg = re.sub(r'href="#([^"]*)"', rf'href="#{name}-\1"', svg)
    for colour, variable in THEME.items():
        svg = svg.replace(colour, variable)
    return re.sub(r'<svg ([^>]*?)height="[^"]*"([^>]*?)width="[^"]*"', r"<svg \1\2", svg, count=1)


def panels(rows: int, columns: int, size: tuple[float, float], *, dpi: int = 160) -> tuple[Figure, list[Axes]]:
    """A figure of that size in inches, and its axes row by row."""
    figure = Figure(figsize=size, dpi=dpi, facecolor="white")
    figure.set_layout_engine("constrained", w_pad=0.1, h_pad=0.1)
    return figure, list(figure.subplots(rows, columns, squeeze=False).flat)


def style(axes: Axes, title: str) -> None:
    """The look of all pictures."""
    axes.set_title(title, **TITLE)
    axes.spines[["top", "left", "right"]].set_visible(False)
    axes.spines["bottom"].set_color(SOFT)
    axes.tick_params(length=0, labelsize=9, labelcolor=SOFT)
    axes.grid(axis="y", color=RULE, linewidth=1)
    axes.set_axisbelow(True)


def _legend(figure: Figure, names: Sequence[str], *, always: bool = False) -> None:
    """Names above the panels; one name alone needs none."""
    if len(names) < 2 and not always:
        return
    handles = [matplotlib.lines.Line2D([], [], color=_colour(number), linewidth=3) for number in range(len(names))]
    columns = max(1, min(4, 110 // (max(map(len, names)) + 5)))  # of a figure 10 inches wide
    labels = [_plain(name) for name in names]
    legend = figure.legend(handles, labels, loc="outside upper left", ncols=columns, frameon=False)
    for text in legend.get_texts():
        text.set(color=INK, fontsize=9.5)


def _colour(number: int) -> str:
    return COLOURS[number % len(COLOURS)]
