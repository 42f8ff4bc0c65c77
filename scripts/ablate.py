"""Trains one recipe several times, something changed each time, and compares the scores on the development set.

    python scripts/ablate.py configs/ablations/multi30k.yaml --train_file data/tok/train --validation_file data/tok/val

The file names the recipe, settings that all runs share, and what is different in each run; options are for all runs
too. Runs follow each other, so that their minutes can be compared; finished ones are kept, and the same command goes
on. Development scores alone are compared: leave test data out, so that no choice can be made on it.
"""

import argparse
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_mt.arguments import InputError
from hf_mt.experiment import parse_experiment, run_script
from hf_mt.markdown import table
from hf_mt.option_types import path_name, word
from hf_mt.settings import read_yaml, untyped
from hf_mt.text_files import write_whole
from hf_mt.trials import check_plan, joined, merged, train_run, without_secrets


TRAIN = Path(__file__).parent / "train.py"


@dataclass(frozen=True)
class Ablation:
    """A recipe, what all runs change in it, and what each run changes in that, as options of a command line."""

    recipe: str
    common: tuple[str, ...]
    runs: dict[str, tuple[str, ...]]


def read_ablation(path: Path, options: list[str]) -> Ablation:
    """The file's settings, each run's checked as a whole.

    Raises:
        InputError: The file has other keys than recipe, common and runs, or a run is no valid experiment.
    """
    settings = {key: setting.raw for key, setting in read_yaml(path).items()}
    named = settings.keys() - {"common"} == {"recipe", "runs"}
    if not named or not isinstance(settings["runs"], dict) or not settings["runs"]:
        raise InputError(f"{path}: found {', '.join(settings)}; wanted recipe, common and runs (a name and settings)")
    common = (*_as_options(path, settings.get("common", {})), *options)
    runs = {name: tuple(_as_options(path, changes)) for name, changes in settings["runs"].items()}
    ablation = Ablation(str(settings["recipe"]), common, runs)
    for name in runs:
        if not re.search(r"\w", name):
            raise InputError(f"{path}: a run is called {name!r}; a name needs a letter or digit")
        parse_experiment([ablation.recipe, *merged(ablation.common, runs[name])])
    return ablation


def _as_options(path: Path, changes: Any) -> Iterator[str]:
    if not isinstance(changes, Mapping):
        raise InputError(f"{path}: found {changes!r} where settings are wanted, as {{key: value}}")
    for key, value in changes.items():
        yield f"--{key}={value if isinstance(value, str) else json.dumps(untyped(value))}"


def report(ablation: Ablation, results: Mapping[str, Mapping[str, Any]]) -> str:
    """A row for each run: what it changed, its scores and their difference to the first run's, and its cost."""
    first = next(iter(results.values()))
    bleu = "eval_bleu_lc_tok" if "eval_bleu_lc_tok" in first else "eval_bleu"  # tokenized_scores
    rows = []
    for name, found in results.items():
        changes = " ".join(without_secrets(ablation.runs[name])) or "nothing"
        gain = f"{found[bleu] - first[bleu]:+.2f}"
        cost = f"{found['train_minutes']:.1f}", f"{found['epoch']:.1f}"
        rows.append((name, changes, f"{found[bleu]:.2f}", gain, f"{found['eval_loss']:.3f}", *cost))
    header = ("Run", "changes", "development BLEU", "to the first", "development loss", "minutes", "epochs")
    facts = [f"- {key}: {first[key]}" for key in (f"{bleu}_signature", "seed", "machine") if key in first]
    common = f"- in all runs: `{ablation.recipe} {' '.join(without_secrets(ablation.common))}`"
    return "\n".join((table(header, rows), "", common, *facts)) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0], allow_abbrev=False)
    parser.add_argument("ablation", type=path_name, help="a .yaml file such as configs/ablations/multi30k.yaml")
    parser.add_argument("--output_dir", type=path_name, help="runs/ablation/NAME by default")
    parser.add_argument(
        "--launcher", type=word, default="configs/accelerate/cpu.yaml", help="configuration of accelerate launch"
    )
    args, more = parser.parse_known_args()
    ablation = read_ablation(args.ablation, joined(more))
    folder = args.output_dir or Path("runs/ablation") / args.ablation.stem
    check_plan([], folder, args.launcher)
    results: dict[str, Any] = {}
    for name in ablation.runs:
        run = folder / re.sub(r"[^\w.=+-]+", "_", name)
        options = merged(ablation.common, ablation.runs[name])
        results[name] = train_run(ablation.recipe, options, run, script=TRAIN, launcher=args.launcher)
        print(f"{name}: development BLEU {results[name]['eval_bleu']:.2f}", flush=True)
        write_whole(folder / "ablation.md", report(ablation, results))
    print(f"\n{report(ablation, results)}\nwritten to {folder / 'ablation.md'}")


if __name__ == "__main__":
    run_script(main)
