"""Runs of one recipe with several seeds: their scores side by side, with mean and spread, for a model card."""

from collections.abc import Sequence
from dataclasses import MISSING
from statistics import mean, stdev
from typing import Any

from hf_mt.errors import InputError, listing
from hf_mt.experiment import valid_keys
from hf_mt.key_rules import FREE_KEYS, LENGTH_KEYS
from hf_mt.markdown import table
from hf_mt.run_record import METRICS, Run


# What one seed may have and another not; the number of processes is part of what a step sees
MAY_DIFFER = FREE_KEYS - LENGTH_KEYS - {"num_processes"} | {"seed"}


def seeds_section(runs: Sequence[Run]) -> str:
    """A table of every score of each run, their mean and standard deviation, as a section of a card.

    Raises:
        InputError: The runs differ in more than seed, paths and names, two have one seed, or one lacks scores that the
            first has.
    """
    first = runs[0]
    for other in runs[1:]:
        _check_settings(first, other)
    seeds = [_seed(run) for run in runs]
    if len(set(seeds)) < len(seeds):
        raise InputError(f"the runs have the seeds {', '.join(map(str, seeds))}: give each seed once")
    is_tested = any(key.startswith("test_") for key in first.results)
    prefix, name = ("test", "test") if is_tested else ("eval", "development")
    keys = [f"{prefix}_{key}" for key in METRICS if f"{prefix}_{key}" in first.results]
    if not keys:
        raise InputError(f"{first.folder} has no scores; finish that run first")
    for run in runs:
        _check_scores(run, first, keys)
    rows = []
    for key in keys:
        values = [float(run.results[key]) for run in runs]
        rows.append([METRICS[key.removeprefix(f"{prefix}_")], *values, mean(values), stdev(values)])
    header = ("Metric", *(f"seed {seed}" for seed in seeds), "mean", "standard deviation")
    words = f"The same recipe with {len(runs)} seeds, on the {name} set:"
    return f"### Seeds\n\n{words}\n\n{table(header, rows)}"


def _seed(run: Run) -> Any:
    return run.settings.get("seed", run.results.get("seed"))


def _check_settings(first: Run, other: Run) -> None:
    defaults = {key.name: key.default for key in valid_keys().values() if key.default is not MISSING}
    one, two = ({**defaults, **run.settings} for run in (first, other))
    changes = [
        f"{key} {one.get(key)} and {two.get(key)}"
        for key in {**one, **two}
        if key not in MAY_DIFFER and one.get(key) != two.get(key)
    ]
    if changes:
        raise InputError(
            f"{first.folder} and {other.folder} differ in more than the seed ({listing(changes)}): give runs of "
            "one recipe"
        )


def _check_scores(run: Run, first: Run, keys: Sequence[str]) -> None:
    missing = [key for key in keys if key not in run.results]
    if missing:
        raise InputError(f"{run.folder} has no {', '.join(missing)}, which {first.folder} has; finish that run first")
    signed = [key for key in keys if run.results.get(f"{key}_signature") != first.results.get(f"{key}_signature")]
    if signed:
        raise InputError(
            f"{first.folder} and {run.folder} differ in the signatures of {', '.join(signed)}: give runs that one "
            "version of sacrebleu scored"
        )
