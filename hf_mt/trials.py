"""Several trainings of one recipe, one after another, each in a folder of its own, so that they can be compared.

A finished run is kept and an interrupted one goes on, since training itself does so: the same command again loses
nothing.
"""

import argparse
import hashlib
import json
import logging
import re
import signal
import subprocess
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch

from hf_mt.command_line import word
from hf_mt.corpora import check_source
from hf_mt.errors import InputError
from hf_mt.experiment import parse_experiment
from hf_mt.key_rules import LENGTH_KEYS
from hf_mt.models import check_architecture
from hf_mt.run_folder import CONFIG_NAME, read_config
from hf_mt.text_files import check_folder


LONGEST_NAME = 100  # of a folder
LAUNCH = ("-m", "accelerate.commands.launch", "--quiet", "--config_file")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PlannedRun:
    """A recipe, its options as `--key=value`, and the folder of the run."""

    recipe: str
    options: Sequence[str]
    folder: Path


def add_launcher(parser: argparse.ArgumentParser) -> None:
    profile = "single_gpu" if torch.cuda.is_available() else "cpu"
    parser.add_argument(
        "--launcher",
        type=word,
        default=f"configs/accelerate/{profile}.yaml",
        help="configuration of accelerate launch; by default configs/accelerate/single_gpu.yaml where there is a GPU, "
        "and cpu.yaml elsewhere",
    )


def joined(words: Iterable[str]) -> list[str]:
    """Options of a command line, `--key value` as `--key=value`."""
    options: list[str] = []
    for part in words:
        if part.startswith("--") or not options or "=" in options[-1]:
            options.append(part)
        else:
            options[-1] += f"={part}"
    return options


def merged(*groups: Iterable[str]) -> list[str]:
    """Options as `--key=value`, each key once, with what the last group says."""
    return list({option.partition("=")[0]: option for group in groups for option in group}.values())


def folder_name(text: str) -> str:
    """A name that a folder can have anywhere: `text`, or what can stand of it with a hash of the whole."""
    name = re.sub(r"[^\w.=+-]+", "_", text, flags=re.ASCII)
    if name == text and len(name) <= LONGEST_NAME and not name.startswith("."):
        return name
    return f"{name[: LONGEST_NAME - 13]}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def _key(option: str) -> str:
    return option.partition("=")[0].strip("-").replace("-", "_")


def check_plan(
    runs: Iterable[PlannedRun], options: Sequence[str], folder: Path, launcher: str, *, decided: Collection[str] = ()
) -> None:
    """Looks at everything that can be wrong before the first training starts.

    Args:
        runs: All of them.
        options: Those of the command line, for all runs.
        folder: Of all runs.
        launcher: The configuration of `accelerate launch`.
        decided: Keys with a value for each run, which the command line can't give.

    Raises:
        InputError: A run is no valid experiment, an option is decided for each run, a finished run has another
            length, or the folder or the launcher's file is of no use.
    """
    check_folder(folder)
    if not Path(launcher).is_file():
        raise InputError(f"{launcher} is no file; name a configuration of `accelerate launch`")
    refused = [key for key in map(_key, options) if key in {"run_name", "dry_run", "push_to_hub", *decided}]
    if refused:
        raise InputError(f"--{refused[0]} can't be given for all runs: each has its own; leave it out")
    for run in runs:
        experiment = parse_experiment([run.recipe, *run.options])
        check_source(experiment.data)
        check_architecture(experiment)
        _check_same_length(run, experiment.resolved)


def check_test_sets(runs: Iterable[PlannedRun]) -> None:
    """
    Raises:
        InputError: A run has no test set to be compared on.
    """
    for run in runs:
        data = parse_experiment([run.recipe, *run.options]).data
        if data.train_file is not None and data.test_file is None:
            raise InputError(f"{run.recipe}: runs are compared on a test set, and there is none; give --test_file")


def _check_same_length(run: PlannedRun, settings: Mapping[str, Any]) -> None:
    """A run that began with another length would be compared with those of this length."""
    path = run.folder / CONFIG_NAME
    has_begun = (run.folder / "all_results.json").is_file() or any(run.folder.glob("checkpoint-*"))
    if not has_begun or not path.is_file():
        return
    old = {key: value for key, value in read_config(path).items() if key in LENGTH_KEYS}
    changes = [f"{key} {value} -> {settings[key]}" for key, value in old.items() if value != settings[key]]
    if changes:
        raise InputError(
            f"{run.folder} holds a run of another length ({', '.join(changes)}), and runs that are compared have one: "
            "set it back, delete that folder, or choose another --output_dir"
        )


def train_all(runs: Mapping[str, PlannedRun], *, script: Path, launcher: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and results of each run, as soon as it is finished; one that fails leaves the others to be trained.

    Raises:
        InputError: At the end, if a training failed or its folder has a run of other settings.
    """
    failures = []
    for name, run in runs.items():
        try:
            results = train_run(run, script=script, launcher=launcher)
        except InputError as error:
            logger.warning("%s: %s", name, error)
            failures.append(str(error))
        else:
            yield name, results
    if failures:
        raise InputError("\n".join(failures))


def train_run(run: PlannedRun, *, script: Path, launcher: str) -> dict[str, Any]:
    """Results of a run, trained now unless it is finished; what it prints goes to `FOLDER.log`.

    Args:
        run: What to train.
        script: scripts/train.py.
        launcher: The configuration of `accelerate launch`.

    Raises:
        InputError: Training failed, or the folder has a run of other settings; the message names the log that tells.
    """
    log = run.folder.with_name(f"{run.folder.name}.log")
    log.parent.mkdir(parents=True, exist_ok=True)
    own = [f"--output_dir={run.folder}", f"--run_name={run.folder.name}"]
    with log.open("ab") as output:
        code = launch([sys.executable, *LAUNCH, launcher, str(script), run.recipe, *run.options, *own], output)
    if code:
        raise InputError(f"{run.folder.name!r} did not finish (exit code {code}); see {log}")
    return json.loads((run.folder / "all_results.json").read_text(encoding="utf-8"))


def launch(command: Sequence[str], output: IO[bytes]) -> int:
    """Exit code of a command. Where this process is told to end, by SIGTERM or Ctrl-C, it tells the command so."""
    before = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        with subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT) as child:
            try:
                return child.wait()
            finally:
                child.terminate()
    finally:
        signal.signal(signal.SIGTERM, before)
