"""One recipe several times, something changed each time, compared on the development set."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_mt.arguments import bleu_of
from hf_mt.command_line import without_secrets
from hf_mt.errors import InputError
from hf_mt.experiment import parse_experiment
from hf_mt.markdown import table
from hf_mt.settings import read_yaml, untyped
from hf_mt.significance import FLAVOURS, compare_systems, read_systems
from hf_mt.trials import PlannedRun, merged


MEANING = (
    "- p: how likely so large a difference to the first run is by luck with the development sentences (paired "
    "bootstrap, not corrected for the number of runs); what another seed of training changes is not in it"
)


@dataclass(frozen=True)
class Ablation:
    """A recipe, what all runs change in it, and what each run changes in that, as options of a command line."""

    recipe: str
    common: tuple[str, ...]
    runs: dict[str, tuple[str, ...]]

    def planned(self, folder: Path) -> dict[str, PlannedRun]:
        """Each run in a folder of its own."""
        return {
            name: PlannedRun(self.recipe, merged(self.common, own), folder / re.sub(r"[^\w.=+-]+", "_", name))
            for name, own in self.runs.items()
        }


def read_ablation(path: Path, options: list[str]) -> Ablation:
    """The file's settings; `options` are for all runs.

    Raises:
        InputError: The file has other keys than recipe, common and runs, or a run has no proper name.
    """
    settings = {key: setting.raw for key, setting in read_yaml(path).items()}
    named = settings.keys() - {"common"} == {"recipe", "runs"}
    if not named or not isinstance(settings["runs"], dict) or not settings["runs"]:
        raise InputError(f"{path}: found {', '.join(settings)}; wanted recipe, common and runs (a name and settings)")
    for name in settings["runs"]:
        if not re.search(r"\w", name):
            raise InputError(f"{path}: a run is called {name!r}; a name needs a letter or digit")
    common = (*_as_options(path, settings.get("common", {})), *options)
    runs = {name: tuple(_as_options(path, changes)) for name, changes in settings["runs"].items()}
    return Ablation(str(settings["recipe"]), common, runs)


def _as_options(path: Path, changes: Any) -> Iterator[str]:
    if not isinstance(changes, Mapping):
        raise InputError(f"{path}: found {changes!r} where settings are wanted, as {{key: value}}")
    for key, value in changes.items():
        yield f"--{key}={value if isinstance(value, str) else json.dumps(untyped(value))}"


def check_translated(runs: Iterable[PlannedRun]) -> None:
    """
    Raises:
        InputError: A run has no development BLEU to be compared by.
    """
    for run in runs:
        experiment = parse_experiment([run.recipe, *run.options])
        has_set = experiment.data.train_file is None or experiment.data.validation_file is not None
        if not experiment.training.predict_with_generate or not has_set:
            raise InputError(
                f"{run.folder.name}: runs are compared by their development BLEU, which needs predict_with_generate: "
                "true and a development set (--validation_file)"
            )


def compared_bleu(first: Mapping[str, Any]) -> str:
    """The BLEU that the runs of an ablation are compared by, from the results of the first one."""
    return "bleu_lc_tok" if "eval_bleu_lc_tok" in first else bleu_of(first)  # tokenized_scores


def luck(first: Path, other: Path, metric: str) -> float | None:
    """How likely a difference in development BLEU as large as that of two runs is if there is none: paired bootstrap.

    Args:
        first, other: Folders of finished runs.
        metric: As `compared_bleu` gives it.

    Returns:
        None where the sentences of one of them are not there, or not those of the other.
    """
    try:
        systems, references = read_systems([str(first), str(other)], split="validation")
        return compare_systems(systems, references, metrics=("bleu",), **FLAVOURS[metric])[1].p_value
    except InputError:
        return None


def ablation_table(
    ablation: Ablation, results: Mapping[str, Mapping[str, Any]], p_values: Mapping[str, float | None]
) -> str:
    """A row for each run: what it changed, its scores and their difference to the first run's, and its cost.

    Args:
        ablation: What was planned.
        results: Of the runs that are finished, the first one among them.
        p_values: What `luck` says of each of the others.
    """
    first = next(iter(results.values()))
    bleu = f"eval_{compared_bleu(first)}"
    rows = []
    for name, found in results.items():
        changes = " ".join(without_secrets(ablation.runs[name])) or "nothing"
        gain = f"{found[bleu] - first[bleu]:+.2f}"
        p_value = p_values.get(name)
        likely = "" if p_value is None else f"{p_value:.3f}"
        cost = f"{found['train_minutes']:.1f}", f"{found['epoch']:.1f}"
        rows.append((name, changes, f"{found[bleu]:.2f}", gain, likely, f"{found['eval_loss']:.3f}", *cost))
    header = ("Run", "changes", "development BLEU", "to the first", "p", "development loss", "minutes", "epochs")
    facts = [f"- {key}: {first[key]}" for key in (f"{bleu}_signature", "seed", "machine") if key in first]
    common = f"- in all runs: `{ablation.recipe} {' '.join(without_secrets(ablation.common))}`"
    return "\n".join((table(header, rows), "", MEANING, common, *facts)) + "\n"
