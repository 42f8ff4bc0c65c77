"""Medians, ratios, a Markdown table for each suite and a picture of all."""

from collections.abc import Sequence
from importlib.metadata import version
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

from matplotlib.axes import Axes

from benchmarks.suites import BATCHES, BEAMS, LENGTHS, TRANSLATION_LENGTHS, Results
from hf_mt.figures import COLOURS, panels, save_png
from hf_mt.hardware import machine
from hf_mt.markdown import table


REFERENCE = "hf_mt rope"
LENGTH_COSTS = {"microseconds_per_token": "Microseconds a token", "step_mib": "MiB of a step of 4,096 tokens"}


def median_of(rows: Sequence[dict[str, Any]], key: str) -> float:
    return median(row[key] for row in rows)


def _systems(results: Results, **wanted: Any) -> list[str]:
    return list(dict.fromkeys(row["system"] for row in results.of(**wanted)))


def report(results: Results) -> str:
    """All tables in Markdown, with machine and versions below."""
    packages = ("torch", "transformers", "accelerate")
    others = {f"{row['system']}: torch {row['torch']}" for row in results.of(suite="training")
              if row.get("torch", version("torch")) != version("torch")}  # fmt: skip
    versions = ", ".join([*(f"{name} {version(name)}" for name in packages), *sorted(others)])
    parts = [*(training_table(results, size) for size in _sizes(results)), profile_table(results)]
    parts += [decoding_table(results), encodings_table(results)]
    parts += [length_table(results, key, unit) for key, unit in LENGTH_COSTS.items()]
    return "\n\n".join([*filter(None, parts), f"{machine()}; {versions}; medians of repeated, interleaved runs."])


def _sizes(results: Results) -> list[str]:
    return list(dict.fromkeys(row["size"] for row in results.of(suite="training")))


def training_table(results: Results, size: str) -> str:
    rows = []
    peaks = results.of(suite="peak", size=size)
    reference = results.of(suite="training", size=size, system=REFERENCE)
    for system in _systems(results, suite="training", size=size):
        found = results.of(suite="training", size=size, system=system)
        speed = median_of(found, "target_tokens_per_second")
        row: list[Any] = [system, f"{speed:,.0f}"]
        row.append(f"{median_of(reference, 'target_tokens_per_second') / speed:.2f}" if reference else "")
        row += [f"{100 * median_of(found, f'{side}_padding'):.1f} %" for side in ("source", "target")]
        row += [f"{median_of(found, 'peak_mib'):,.0f}", _share_of_peak(system, speed, peaks), len(found)]
        rows.append(row)
    header = ("Training", "target tokens/s", f"speed of {REFERENCE} / this", "source padding", "target padding")
    return f"**{size}**\n\n" + table((*header, "peak MiB", "of the peak", "runs"), rows)


def _share_of_peak(system: str, speed: float, peaks: Sequence[dict[str, Any]]) -> str:
    """Arithmetic of our step, a second, over what products of these shapes reach alone, and over square ones; both
    are of float32, and say nothing of rounded factors."""
    if not peaks or not system.startswith("hf_mt") or "," in system:
        return ""
    done = speed * median_of(peaks, "gflop_per_target_token")
    shapes, square = (100 * done / median_of(peaks, key) for key in ("shapes_gflops", "square_gflops"))
    return f"{shapes:.0f} % ({square:.0f} % of square)"


def decoding_table(results: Results) -> str:
    rows = []
    for beams, batch, length in product(BEAMS, BATCHES, TRANSLATION_LENGTHS):
        job = {"suite": "decoding", "num_beams": beams, "batch_size": batch, "length": length}
        ours = results.of(**job, system="hf_mt")
        for system in _systems(results, **job):
            found = results.of(**job, system=system)
            speed = median_of(found, "sentences_per_second")
            ratio = median_of(ours, "sentences_per_second") / speed if ours else 0
            tokens = length or "as the reference"
            rows.append([system, beams, batch, tokens, f"{speed:,.0f}", f"{ratio:.2f}", len(found)])
    header = ("Decoding", "beams", "sentences a batch", "tokens a translation", "sentences/s")
    return table((*header, "speed of hf_mt / this", "runs"), rows) if rows else ""


def profile_table(results: Results) -> str:
    """Shares of the time of a step; a column for each size."""
    sizes = list(dict.fromkeys(row["size"] for row in results.of(suite="profile")))
    shares = {size: [row["shares"] for row in results.of(suite="profile", size=size)] for size in sizes}
    kinds = dict.fromkeys(kind for found in shares.values() for share in found for kind in share)
    rows = [
        [kind, *(f"{median(share.get(kind, 0) for share in shares[size]):.1f} %" for size in sizes)] for kind in kinds
    ]
    return table(("Time of a training step", *sizes), rows) if rows else ""


def encodings_table(results: Results) -> str:
    """What each encoding costs beside the cheapest, where all of them took turns."""
    found = [row["microseconds_per_token"] for row in results.of(suite="encodings")]
    costs = {name: median(row[name] for row in found) for name in (found[0] if found else ())}
    rows = [[f"hf_mt {name}", f"{cost:,.0f}", f"{cost / min(costs.values()):.2f}"] for name, cost in costs.items()]
    header = (f"Training, sentences of {LENGTHS[0]} tokens, all encodings in turn", "microseconds a token")
    return table((*header, "this / cheapest"), rows) if rows else ""


def length_table(results: Results, key: str, unit: str) -> str:
    """What a token or a step costs at each length."""
    rows = []
    for system in _systems(results, suite="length"):
        cells = [results.of(suite="length", system=system, length=length) for length in LENGTHS]
        rows.append([system, *(f"{median_of(cell, key):,.0f}" if cell else "" for cell in cells)])
    header = (f"{unit}, by length", *map(str, LENGTHS))
    return table(header, rows) if rows else ""


def plot(results: Results, path: Path) -> Path:
    """Speed of training, and time and memory by length for each encoding."""
    figure, (bars, time, memory) = panels(1, 3, (15, 5.2), dpi=140)
    _draw_bars(bars, results)
    for axes, title, (key, unit) in zip((time, memory), ("Time", "Memory"), LENGTH_COSTS.items(), strict=True):
        _draw_lengths(axes, results, key, f"{title} by length", unit)
    return save_png(figure, path)


def _draw_bars(axes: Axes, results: Results) -> None:
    systems = _systems(results, suite="training", size="tiny")
    speeds = [
        median_of(results.of(suite="training", size="tiny", system=system), "target_tokens_per_second")
        for system in systems
    ]
    pairs = sorted(zip(speeds, systems, strict=True))
    colours = [COLOURS[0] if system.startswith("hf_mt") else COLOURS[7] for _, system in pairs]
    drawn = axes.barh([system for _, system in pairs], [speed for speed, _ in pairs], color=colours)
    axes.bar_label(drawn, fmt="{:,.0f}", padding=4, fontsize=9)
    axes.set_title("Training, tiny: target tokens a second", loc="left", fontweight="bold", fontsize=12)
    axes.spines[["top", "right", "bottom"]].set_visible(False)
    axes.margins(x=0.12)
    axes.set_xticks([])


def _draw_lengths(axes: Axes, results: Results, key: str, title: str, unit: str) -> None:
    for system, colour in zip(_systems(results, suite="length"), COLOURS, strict=False):
        cells = {length: results.of(suite="length", system=system, length=length) for length in LENGTHS}
        points = [(length, median_of(rows, key)) for length, rows in cells.items() if rows]
        axes.plot(*zip(*points, strict=True), "o-", color=colour, label=system.removeprefix("hf_mt "), markersize=4)
    axes.set_title(title, loc="left", fontweight="bold", fontsize=12)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    axes.set_xticks(LENGTHS, [str(length) for length in LENGTHS])
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.set_xlabel("tokens a sentence")
    axes.set_ylabel(unit)
    axes.grid(color="#e4e8ef")
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_lines():
        axes.legend(frameon=False, fontsize=9)
