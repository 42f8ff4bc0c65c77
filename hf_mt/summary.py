"""What is made of a finished run's files: report, model card, and the tables at the end of the terminal.

Everything is read from the run folder, so it can be made again at any time.
"""

from pathlib import Path

from hf_mt.model_card import write_model_card
from hf_mt.report import write_report
from hf_mt.run_record import read_run
from hf_mt.tables import print_samples, print_scores
from hf_mt.verdict import verdict


def summarise(folder: Path, *, license: str | None = None, show_samples: bool = True) -> str:
    """Writes report and card, and prints samples and scores.

    Args:
        folder: A run folder with `trainer_state.json` and `all_results.json`.
        license: Of the weights, for the card.
        show_samples: Whether the card may show sentences of the corpus.

    Returns:
        A few lines that close a run: how training went, and where everything is.
    """
    run = read_run(folder, name=folder.name)
    page = write_report([folder])
    card = write_model_card(folder, license=license, show_samples=show_samples)
    print_samples(run.samples)
    print_scores(run.results)
    lines = {
        "verdict": verdict(run.log_history, max_steps=run.max_steps),
        "model": folder,
        "report": page,
        "card": card,
    }
    return "\n".join(f"{name:<9} {value}" for name, value in lines.items())
