"""Curves, verdicts and tables on histories whose course is known."""

import io
import math
from contextlib import redirect_stdout
from itertools import combinations
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
import torch

from hf_mt.attention import CrossAttention
from hf_mt.figures import COLOURS, RED, SOFT, attention_figure, course_figure, length_figure, save_png
from hf_mt.tables import print_samples, print_scores
from hf_mt.verdict import best_point, has_minutes, series, verdict


Row = dict[str, Any]


def history(train: list[float], dev: list[float] = (), bleu: list[float] = ()) -> list[Row]:
    """Training losses every 10 steps; evaluations spread evenly, the last one at the last step."""
    rows: list[Row] = [{"loss": loss, "step": 10 * (i + 1), "epoch": (i + 1) / 4} for i, loss in enumerate(train)]
    for i, loss in enumerate(dev):
        step = 10 * len(train) * (i + 1) // len(dev)
        row = {"eval_loss": loss, "step": step, "epoch": step / 40}
        rows.append(row | ({"eval_bleu": bleu[i], "eval_chrf": bleu[i] + 20} if bleu else {}))
    return sorted(rows, key=lambda row: row["step"])


def decay(start: float, floor: float, rate: float, count: int = 20) -> list[float]:
    """Exponential from `start` to `floor`; at rate 20 it has long arrived, at rate 2 it is far from it."""
    return [floor + (start - floor) * math.exp(-rate * i / (count - 1)) for i in range(count)]


FLAT_BLEU = [5.0, 20.0, 30.0, 35.0, 37.0, 37.5, 37.6, 37.5, 37.6, 37.55]
RISING = decay(2.5, 2.0, 20, 10)[:5] + [2.02, 2.05, 2.1, 2.15, 2.2]
CONVERGED = history(decay(9, 1.5, 20), decay(9, 2, 20, 10), FLAT_BLEU)
CASES = {
    "converged": CONVERGED,
    "still improving": history(decay(9, 1.5, 2), decay(9, 2, 2, 10), FLAT_BLEU),
    "overfitting": history(decay(9, 0.5, 4), RISING, FLAT_BLEU),
    "diverged: the training loss rose": history(decay(9, 4, 20, 10) + [6.0, 7.5, 8, 8, 8, 8, 8, 8, 8, 8], [4, 8]),
    "diverged: the training loss stays at 6.2": history(decay(9, 6.2, 20), decay(9, 6.3, 20, 10), [0.3] * 10),
    "diverged: the training loss is not finite from step 160": history(decay(9, 2, 20)[:15] + [math.nan] * 5, [3.0]),
    "diverged: the development loss is not finite": history(decay(9, 2, 20), [3.0, math.inf]),
    "undecided: a single development loss": history(decay(9, 2, 20), [2.5], [30.0]),
    "undecided: no training loss": [],
}


@pytest.mark.parametrize("words", CASES)
def test_verdict_names_the_case_and_no_other(words: str) -> None:
    found = verdict(CASES[words])
    assert found.startswith(words)
    assert "\n" not in found
    assert not any(found.startswith(other) for other in CASES if other != words)


def test_rising_bleu_is_still_falling_though_the_loss_rises() -> None:
    rising_bleu = [10.0, 20, 25, 28, 30, 31, 32, 33, 34, 35]
    assert verdict(history(decay(9, 0.5, 4), RISING, rising_bleu)).startswith("still improving")
    assert verdict(history(decay(9, 0.5, 4), RISING, FLAT_BLEU)).startswith("overfitting")


def test_a_flat_loss_above_three_nats_is_one_of_guesses() -> None:
    assert verdict(history(decay(9, 3.1, 20), decay(9, 4, 20, 10))).startswith("diverged")
    assert verdict(history(decay(9, 2.9, 20), decay(9, 4, 20, 10))).startswith("converged")


def test_a_loss_that_falls_on_the_training_text_alone_is_no_overfitting() -> None:
    """As of a deep post-norm model without warm-up: its development loss is no better than after the first epoch."""
    falling, bleu = decay(7.6, 6.0, 2), [0.02, 0.02, 0.01, 0.0, 0.01]
    assert verdict(history(falling, [7.01, 6.98, 7.30, 7.11, 7.24], bleu)).startswith("diverged: the training loss is")
    assert verdict(history(falling, [7.90, 6.98, 7.30, 7.11, 7.24], bleu)).startswith("overfitting")  # it did learn
    low = decay(7.6, 1.0, 2)
    assert verdict(history(low, [7.01, 6.98, 7.30, 7.11, 7.24], bleu)).startswith("overfitting")


def test_noise_of_the_batches_is_no_divergence() -> None:
    noise = np.random.default_rng(0).normal(0, 0.15, 200)
    level = history([1.2 + shift for shift in noise], [1.4, 1.4, 1.4])
    assert verdict(level).startswith("converged")
    rising = history([1.2 + shift + 0.01 * i for i, shift in enumerate(noise)], [1.4, 1.4, 1.4])
    assert verdict(rising).startswith("diverged")
    levels = [1.050, 1.045, 1.052, 1.048, 1.044, 1.050, 1.046, 1.042, 1.047, 1.058]  # of a model that is fine-tuned
    assert verdict(history(levels, [1.4, 1.4, 1.4])).startswith("converged")
    assert verdict(history([*levels, 1.12], [1.4, 1.4, 1.4])).startswith("diverged")


def test_early_stop_is_told_with_the_planned_length() -> None:
    assert verdict(CONVERGED, max_steps=400).startswith("stopped early at step 200 of 400, converged")
    assert verdict(CONVERGED, max_steps=200).startswith("converged")
    end = {"train_runtime": 1.0, "step": 205, "epoch": 6.0}  # five steps after the last logged loss
    assert verdict([*CONVERGED, end], max_steps=205).startswith("converged")


def test_best_is_the_highest_bleu_and_not_the_evaluation_after_training() -> None:
    assert best_point(CONVERGED).value == 37.6
    after = [*CONVERGED, {"eval_bleu": 99.0, "eval_loss": 0.1, "step": 200, "epoch": 5.0}]
    assert best_point(after) == best_point(CONVERGED)
    assert best_point([*CONVERGED, {"eval_bleu": 99.0, "step": 201, "epoch": 5.0}]).value == 99.0
    assert best_point(history([3.0], [2.0, 1.0, 1.5])).value == 1.0
    assert best_point([]) is None


def test_the_best_is_by_the_bleu_of_the_target_language() -> None:
    rows = [
        {"eval_bleu": bleu, "eval_bleu_zh": zh, "step": step} for step, bleu, zh in ((1, 2.0, 20.0), (2, 1.0, 30.0))
    ]
    assert best_point(rows).value == 30.0
    assert best_point([{key: row[key] for key in ("eval_bleu", "step")} for row in rows]).value == 2.0  # control


def share_of(colour: str, path: Path) -> float:
    """Share of the pixels that have exactly this colour."""
    wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    pixels = (matplotlib.image.imread(path)[..., :3] * 255).round()
    return float((pixels == wanted).all(axis=-1).mean())


@pytest.mark.parametrize(
    ("rows", "drawn", "broken"),
    [
        (CONVERGED, {"loss", "bleu"}, False),
        (history(decay(9, 2, 20), [3.0, 2.5]), {"loss"}, False),
        (history([3.2]), {"loss"}, False),
        (history(decay(9, 2, 20)[:15] + [math.nan] * 5), {"loss"}, True),
        (history([math.nan]), set(), True),
        ([], set(), False),
    ],
    ids=["whole", "no BLEU", "one point", "NaN", "only NaN", "empty"],
)
def test_what_was_logged_is_drawn_and_a_broken_loss_is_marked(
    rows: list[Row], drawn: set[str], broken: bool, tmp_path: Path
) -> None:
    figure = course_figure({"run": rows}, "step")
    path = save_png(figure, tmp_path / "report" / "course.png")
    points = {
        name: sum(len(line.get_xdata()) for line in axes.get_lines() if line.get_color() == COLOURS[0])
        for name, axes in zip(("loss", "accuracy", "bleu", "rate"), figure.axes, strict=True)
    }
    assert {name for name, count in points.items() if count} == drawn
    told = [any(text.get_text() == "not measured" for text in axes.texts) for axes in figure.axes]
    assert dict(zip(points, told, strict=True)) == {
        name: name not in drawn and not (broken and name == "loss") for name in points
    }
    assert (share_of(RED, path) > 0) == broken and (share_of(COLOURS[0], path) > 0) == bool(drawn)
    assert [file.name for file in path.parent.iterdir()] == ["course.png"]


def test_the_checkpoint_that_was_kept_is_marked_by_step_and_by_epoch() -> None:
    def marks(kept: int | None, unit: Any) -> list[float]:
        lines = [line for axes in course_figure({"run": CONVERGED}, unit, kept=kept).axes for line in axes.get_lines()]
        return [line.get_xdata()[0] for line in lines if line.get_color() == SOFT]

    assert marks(120, "step") == [120] * 4 and marks(120, "epoch") == [3.0] * 4
    assert marks(None, "step") == [] == marks(121, "step")


TIMED: list[Row] = [
    {"step": 10, "epoch": 1.0, "loss": 5.0, "train_seconds": 60.0},
    {"step": 15, "epoch": 1.5, "eval_loss": 4.0, "eval_runtime": 500.0},
    {
        "step": 20,
        "epoch": 2.0,
        "loss": 4.0,
        "train_seconds": 120.0,
    },  # since the row before
    {"step": 25, "epoch": 2.5, "train_runtime": 1.0, "train_seconds": 30.0},
    {"step": 25, "epoch": 2.5, "eval_loss": 3.0},
]


def test_minutes_are_those_of_training_alone() -> None:
    assert [point.minute for point in series(TIMED, "loss")] == [1.0, 3.0]
    assert [point.minute for point in series(TIMED, "eval_loss")] == pytest.approx([2.0, 3.5])
    again = [*TIMED, {"step": 20, "epoch": 2.0, "loss": 9.0, "train_seconds": 999.0}]
    assert series(again, "eval_loss") == series(TIMED, "eval_loss")  # the first row of a step counts
    assert has_minutes(TIMED)


@pytest.mark.parametrize("rows", [CONVERGED, [{"step": 5, "epoch": 0.5, "loss": 6.0}, *TIMED], []])
def test_a_log_that_leaves_out_seconds_tells_no_minutes(rows: list[Row]) -> None:
    assert {point.minute for key in ("loss", "eval_loss") for point in series(rows, key)} <= {None}
    assert not has_minutes(rows)


def test_courses_by_minute_leave_out_runs_that_tell_none() -> None:
    figure = course_figure({"old": CONVERGED, "new": TIMED}, "minute", kept=15)
    lines = figure.axes[0].get_lines()
    found = {line.get_color(): list(line.get_xdata()) for line in lines if line.get_linestyle() == ":"}
    assert found == {COLOURS[0]: [], COLOURS[1]: [1.0, 3.0]}
    marks = [line.get_xdata()[0] for line in lines if line.get_color() == SOFT]
    assert marks == pytest.approx([2.0]) and figure.axes[0].get_xlabel() == "minute of training"


def lengths(counts: int, score: float) -> dict[str, Any]:
    """What `write_analysis` tells of so many lengths, chrF being twice BLEU."""
    rows = [
        {"first": 10 * part + 1, "last": 10 * part + 10, "sentences": 5, "bleu": score, "chrf": 2 * score}
        for part in range(counts)
    ]
    return {"unit": "words", "buckets": rows}


@pytest.mark.parametrize(("metric", "title", "factor"), [("bleu", "BLEU", 1), ("chrf", "chrF", 2)])
def test_both_scores_are_drawn_by_length(metric: str, title: str, factor: int) -> None:
    (axes,) = length_figure({"one": lengths(3, 10.0), "two": lengths(3, 20.0)}, "test set", metric).axes
    assert axes.get_title(loc="left") == f"{title} by words of the source, test set"
    assert [bar.get_height() for bar in axes.patches] == [10.0 * factor] * 3 + [20.0 * factor] * 3


def test_numbers_over_many_bars_do_not_cover_each_other(tmp_path: Path) -> None:
    for count, upright in ((2, False), (13, True)):
        figure = length_figure({f"run {number}": lengths(5, 99.5) for number in range(count)}, "test set")
        save_png(figure, tmp_path / "lengths.png")  # which lays it out
        (axes,) = figure.axes
        boxes = [text.get_window_extent() for text in axes.texts]
        assert len(boxes) == 5 * count and {text.get_rotation() for text in axes.texts} == {90.0 if upright else 0.0}
        assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))


@pytest.mark.parametrize(("tokens", "side_by_side"), [(5, 3), (12, 2), (40, 1)])
def test_layers_of_attention_stand_side_by_side_as_far_as_a_page_is_wide(tokens: int, side_by_side: int) -> None:
    names = [f"t{place}" for place in range(tokens)]
    figure = attention_figure(CrossAttention(names, names, torch.full((6, tokens, tokens), 1 / tokens)))
    assert len({round(axes.get_position().x0, 3) for axes in figure.axes}) == side_by_side
    assert figure.get_figwidth() <= 10.5 or side_by_side == 1
    assert [axes.get_title(loc="left") for axes in figure.axes][:6] == [f"layer {number + 1}" for number in range(6)]


SIGNATURE = "nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:2.6.0"
RESULTS = {"eval_bleu": 40.0, "test_bleu": 38.423, "test_bleu_signature": SIGNATURE, "test_loss": 1.93, "epoch": 3.0}


def printed(function: Any, value: Any) -> str:
    with redirect_stdout(io.StringIO()) as stream:
        function(value)
    return stream.getvalue()


def test_scores_are_plain_text_with_whole_signatures() -> None:
    text = printed(print_scores, RESULTS)
    assert f"bleu: {SIGNATURE}" in text.splitlines()
    assert "38.42" in text and "1.93" in text
    assert "40.00" not in text and "epoch" not in text
    assert max(map(len, text.splitlines())) <= 80
    assert "40.00" in printed(print_scores, {"eval_bleu": 40.0})
    named = printed(print_scores, {"eval_bleu": 40.0, "test_file": "data/test"})  # the name of a file is no score
    assert "40.00" in named and "eval set" in named


def test_scores_by_length_have_a_table() -> None:
    by_length = {f"test_{score}_words_{length}": value for score, value in (("bleu", 12.5), ("chrf", 33.25))
                 for length in ("1-10", "51+")}  # fmt: skip
    lines = printed(print_scores, {**RESULTS, **by_length, "eval_bleu_words_1-10": 77.0}).splitlines()
    rows = [line.split() for line in lines if "words" in line]
    assert rows == [["1-10", "words", "12.50", "33.25"], ["51+", "words", "12.50", "33.25"]]
    assert "by length" not in printed(print_scores, RESULTS)


def test_samples_are_shown_and_not_obeyed() -> None:
    hostile = "[bold red]x[/] \x1b[31mred\x1b[0m \x07 tab\tnewline\nend"
    row = {"source": hostile, "reference": "Ein Hund rennt. " * 20, "hypothesis": "狗在跑" * 40}
    text = printed(print_samples, [row])
    assert not set(text) & {"\x1b", "\x07", "\t"}
    assert "\x1b" in hostile
    assert "[bold red]x[/] ␛[31mred␛[0m ␇ tab␉newline␊end" in text
    assert text.count("狗") == 40
    assert max(map(len, text.splitlines())) <= 80
