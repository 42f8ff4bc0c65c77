"""Scores and translations in the terminal.

Text is printed as text: control characters of a corpus are shown, not obeyed, and colours and terminal codes appear
only where the output is a terminal.
"""

import re
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from hf_mt.errors import visible
from hf_mt.significance import SIGNIFICANT, Comparison


# scores by length, as `slice_metrics` names them
LENGTH = re.compile(r"_(?P<score>bleu|chrf)_(?P<unit>words|characters)_(?P<length>.+)$")


def print_scores(results: Mapping[str, Any]) -> None:
    """Print the scores of the test set (`test_*`), or of the development set (`eval_*`), with their signatures.

    Args:
        results: As in `all_results.json`; a signature stands under the name of its score plus `_signature`.
    """
    tested = any(key.startswith("test_") and isinstance(value, int | float) for key, value in results.items())
    prefix = "test_" if tested else "eval_"
    table = Table(box=SIMPLE_HEAD, title=f"{prefix[:-1]} set", title_justify="left")
    table.add_column("score", no_wrap=True)
    table.add_column("value", justify="right", no_wrap=True)
    signatures = []
    for key, value in results.items():
        if key.endswith("_per_second") or LENGTH.search(key):
            continue  # scores by length have a table of their own
        if key.startswith(prefix) and isinstance(value, int | float):
            shown = f"{value:,}" if isinstance(value, int) else f"{value:.4g}" if abs(value) < 1 else f"{value:.2f}"
            table.add_row(key.removeprefix(prefix), shown)
        elif key.startswith(prefix) and key.endswith("_signature"):
            signatures.append(f"{key.removeprefix(prefix).removesuffix('_signature')}: {value}")
    console = Console(highlight=False)
    console.print(table)
    for signature in signatures:
        console.print(_visible(signature), overflow="fold")
    if any(key.startswith(prefix) and LENGTH.search(key) for key in results):
        console.print(_by_length(results, prefix))


def _by_length(results: Mapping[str, Any], prefix: str) -> Table:
    """BLEU and chrF of the sentences whose source has so many words, or characters."""
    rows: dict[str, dict[str, Any]] = {}
    for key, value in results.items():
        found = LENGTH.search(key)
        if found and key.startswith(prefix) and isinstance(value, float):
            rows.setdefault(f"{found['length']} {found['unit']}", {})[found["score"]] = f"{value:.2f}"
    table = Table(box=SIMPLE_HEAD, title="by length of the source", title_justify="left")
    table.add_column("source", no_wrap=True)
    for name in ("bleu", "chrf"):
        table.add_column(name, justify="right", no_wrap=True)
    for length, scores in rows.items():
        table.add_row(_visible(length), scores.get("bleu", ""), scores.get("chrf", ""))
    return table


def print_samples(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print source, reference and output of some sentences, one below another, so that they can be compared.

    Args:
        rows: With the keys `source`, `reference` and `hypothesis`; other keys are not shown.
    """
    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True, style="dim")
    table.add_column(overflow="fold")
    for row in rows:
        table.add_row("source", _visible(str(row["source"])))
        table.add_row("reference", _visible(str(row["reference"])))
        table.add_row("output", Text.assemble((_visible(str(row["hypothesis"])).plain, "bold")))
        table.add_row("", "")
    Console(highlight=False).print(table)


def _visible(text: str) -> Text:
    """Text that a terminal shows as it is: no markup, and control characters as pictures."""
    return Text(visible(text))


def print_comparisons(comparisons: Sequence[Comparison]) -> None:
    """Print a table for each metric: systems with scores, intervals, and how likely their difference is luck.

    Args:
        comparisons: As `compare_systems` gives them.
    """
    console = Console(highlight=False)
    for metric, group in groupby(comparisons, key=lambda row: row.metric):
        rows = list(group)
        table = Table(box=SIMPLE_HEAD, title=metric, title_justify="left")
        table.add_column("system", overflow="fold")
        for name in ("score", "95 % interval", "p"):
            table.add_column(name, justify="right", no_wrap=True)
        for row in rows:
            mark = "  *" if row.p_value is not None and row.p_value < SIGNIFICANT else ""
            p_value = "baseline" if row.p_value is None else f"{row.p_value:.4f}{mark}"
            table.add_row(_visible(row.system), f"{row.score:.2f}", f"{row.mean:.2f} ± {row.interval:.2f}", p_value)
        console.print(table)
        console.print(_visible(rows[0].signature), overflow="fold")
    console.print(f"p: how likely so large a difference from the baseline is by luck; * marks p < {SIGNIFICANT}")
