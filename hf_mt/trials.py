"""Several trainings of one recipe, one after another, each in a folder of its own, so that they can be compared.

A finished run is kept and an interrupted one goes on, since training itself does so: the same command again loses
nothing.
"""

import json
import shlex
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from hf_mt.arguments import InputError
from hf_mt.corpora import check_source
from hf_mt.experiment import parse_experiment
from hf_mt.key_rules import SECRET_KEYS
from hf_mt.text_files import check_folder


LAUNCH = ("-m", "accelerate.commands.launch", "--quiet", "--config_file")


def joined(words: Iterable[str]) -> list[str]:
    """Options of a command line, `--key value` as `--key=value`."""
    options: list[str] = []
    for word in words:
        if word.startswith("--") or not options or "=" in options[-1]:
            options.append(word)
        else:
            options[-1] += f"={word}"
    return options


def merged(*groups: Iterable[str]) -> list[str]:
    """Options as `--key=value`, each key once, with what the last group says."""
    return list({option.partition("=")[0]: option for group in groups for option in group}.values())


def without_secrets(options: Iterable[str]) -> list[str]:
    """Options of a command line as they may be written to a file."""
    return [option for option in options if not _is_secret(option)]


def command_line() -> str:
    """The command that this process was started with, as it can be given again, without secrets."""
    words, kept = iter(sys.argv[1:]), []
    for word in words:
        if not _is_secret(word):
            kept.append(word)
        elif "=" not in word:
            next(words, None)  # its value
    return shlex.join(("python", f"scripts/{Path(sys.argv[0]).name}", *kept))


def _is_secret(option: str) -> bool:
    return option.startswith("-") and option.partition("=")[0].strip("-").replace("-", "_") in SECRET_KEYS


def check_plan(runs: Iterable[tuple[str, Sequence[str]]], folder: Path, launcher: str) -> None:
    """Looks at everything that can be wrong before the first training starts.

    Args:
        runs: Recipe and options of each that will be compared on its test set.
        folder: Of all runs.
        launcher: The configuration of `accelerate launch`.

    Raises:
        InputError: A run is no valid experiment or has no test set, or the folder or the launcher's file is of no use.
    """
    check_folder(folder)
    if not Path(launcher).is_file():
        raise InputError(f"{launcher} is no file; name a configuration of `accelerate launch`")
    for recipe, options in runs:
        data = parse_experiment([recipe, *options]).data
        check_source(data)
        if data.train_file is not None and data.test_file is None:
            raise InputError(f"{recipe}: runs are compared on a test set, and there is none; give --test_file")


def train_run(recipe: str, options: Sequence[str], folder: Path, *, script: Path, launcher: str) -> dict[str, Any]:
    """Results of a run, trained now unless it is finished; what it prints goes to `FOLDER.log`.

    Args:
        recipe: The YAML file.
        options: As `--key=value`, apart from the folder.
        folder: Of the run.
        script: scripts/train.py.
        launcher: The configuration of `accelerate launch`.

    Raises:
        InputError: Training failed, or the folder has a run of other settings; the message names the log that tells.
    """
    log = folder.with_name(f"{folder.name}.log")
    log.parent.mkdir(parents=True, exist_ok=True)
    own = [f"--output_dir={folder}", f"--run_name={folder.name}"]
    with log.open("ab") as output:
        command = [sys.executable, *LAUNCH, launcher, str(script), recipe, *options, *own]
        code = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT).returncode
    if code:
        raise InputError(f"{folder.name!r} did not finish (exit code {code}); see {log}")
    return json.loads((folder / "all_results.json").read_text(encoding="utf-8"))
