"""What is made of a finished run's files: curves, report, model card, and the tables at the end of the terminal.

Everything is read from the run folder, so it can be made again at any time.
"""

import json
from pathlib import Path
from typing import Any

from hf_mt.curves import plot_curves
from hf_mt.model_card import write_model_card
from hf_mt.report import write_report
from hf_mt.tables import print_samples, print_scores
from hf_mt.verdict import verdict


def summarise(folder: Path, *, license: str | None = None, show_samples: bool = True) -> str:
    """Draws the curves, writes report and card, and prints samples and scores.

    Args:
        folder: A run folder with `trainer_state.json` and `all_results.json`.
        license: Of the weights, for the card.
        show_samples: Whether the card may show sentences of the corpus.

    Returns:
        A few lines that close a run: how training went, and where everything is.
    """
    state = json.loads((folder / "trainer_state.json").read_text("utf-8"))
    results = json.loads((folder / "all_results.json").read_text("utf-8"))
    curves = plot_curves(state["log_history"], folder / "report" / "curves.png", best_step=state["best_global_step"])
    page = write_report([folder])
    card = write_model_card(folder, license=license, show_samples=show_samples)
    print_samples(_last_samples(folder / "samples.jsonl"))
    print_scores(results)
    lines = {
        "verdict": verdict(state["log_history"], max_steps=state["max_steps"]),
        "model": folder,
        "curves": curves,
        "report": page,
        "card": card,
    }
    return "\n".join(f"{name:<9} {value}" for name, value in lines.items())


def _last_samples(path: Path) -> list[dict[str, Any]]:
    """Those of the last evaluation."""
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.is_file() else []
    return [row for row in rows if row["step"] == rows[-1]["step"]]
