"""What Weights & Biases gets besides the numbers that transformers logs: sample tables, scores and the report.

Nothing happens where no run of W&B is active; `WANDB_MODE=offline` keeps everything on disk.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def log_samples(samples: Sequence[Mapping[str, Any]]) -> None:
    """A table of the sample translations of one evaluation."""
    import wandb  # only here: it takes a second, and most runs do without

    if wandb.run is not None and samples:
        columns = list(samples[0])
        table = wandb.Table(columns=columns, data=[[row[name] for name in columns] for row in samples])
        wandb.log({"samples": table})


def log_results(run_folder: Path, results: Mapping[str, Any]) -> None:
    """Scores of the finished run into its summary, its pictures, and its report as an artefact."""
    import wandb

    if wandb.run is None:
        return
    wandb.run.summary.update({key: value for key, value in results.items() if isinstance(value, int | float | str)})
    pictures = sorted((run_folder / "report").glob("*.png"))
    wandb.log({f"report/{picture.stem}": wandb.Image(str(picture)) for picture in pictures})
    artifact = wandb.Artifact(f"report-{wandb.run.id}", type="report")
    artifact.add_dir(str(run_folder / "report"))
    wandb.log_artifact(artifact)
