"""
The folder of a run: whose it is, and whether to begin, go on, or leave it as it is.

- `config_resolved.yaml` marks the folder as that of one run. A start with another value of any key but the free ones
  would mix two experiments in one folder, so it is refused and each difference is shown.
- Files may lie elsewhere when a run goes on, if it is known which sentences were in them; with other sentences than it
  began with it would be neither the one run nor the other, and is refused.
- A finished run that had no test set may be asked for one: it trains no further, and is tested.
- Batch sizes are compared as what a step sees: tokens (or sentences) x accumulation x processes.
- All processes call `open_run_folder` and only the first writes, so the answer must not depend on whether that has
  happened: a folder with a config but no checkpoint is as new as an empty one.
- The first process holds a lock while the run goes on, which the system releases whatever ends the program.
"""

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from hf_mt.errors import InputError, listing
from hf_mt.experiment import Experiment, typed_values, valid_keys
from hf_mt.key_rules import EFFECTIVE_BATCH_KEYS, FILE_KEYS, FREE_KEYS, SECRET_KEYS, WITHOUT_WARMUP
from hf_mt.settings import read_yaml, yaml_value
from hf_mt.text_files import write_whole


logger = logging.getLogger(__name__)

CONFIG_NAME = "config_resolved.yaml"
DATA_TABLE_NAME = "data_table.json"
LOCK_NAME = ".lock"
RESULTS_NAME = "all_results.json"  # written last
EFFECTIVE_BATCH = "tokens_per_batch x gradient_accumulation_steps x processes"
# The learning rate of these schedules does not depend on the length of training.
ENDLESS_SCHEDULES = frozenset({"constant", "constant_with_warmup", "inverse_sqrt", "reduce_lr_on_plateau", "greedy"})


@contextmanager
def open_run_folder(
    experiment: Experiment, digests: Mapping[str, str]
) -> Iterator[Literal["new", "resume", "finished"]]:
    """
    What to do in `output_dir`: start ("new"), go on from a checkpoint ("resume"), or nothing ("finished").

    Within the block the folder is this program's own. The first process writes `config_resolved.yaml`, also on
    resuming, since free keys may have changed.

    Args:
        digests: of the texts of each split, as `text_digests` computes them; read in the first process only.

    Raises:
        InputError: the folder holds another run, one of other texts, or something else, is in use, or cannot be
            written. It is left as it was.
    """
    folder = Path(experiment.training.output_dir)
    status = _status(folder, experiment)
    if status == "finished" or experiment.training.process_index > 0:
        yield status
        return
    with _lock(folder):
        if status == "resume":
            _refuse_other_texts(folder, digests)
        # of a shorter run that goes on: until it is tested again, nothing may say that it is finished
        (folder / RESULTS_NAME).unlink(missing_ok=True)
        save_config(experiment, folder / CONFIG_NAME)
        yield status


def _status(folder: Path, experiment: Experiment) -> Literal["new", "resume", "finished"]:
    try:
        names = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    except FileNotFoundError:
        names = set()
    except OSError as error:
        raise InputError(f"output_dir {folder}: {error.strerror}; choose another") from error
    if not names:
        return "new"
    if CONFIG_NAME not in names:
        raise InputError(
            f"output_dir {folder} holds something else ({listing(sorted(names), 3)}); choose another, or empty it"
        )
    old = read_config(folder / CONFIG_NAME)
    status = _progress(folder, names, experiment.resolved)
    if status != "new" or "model.safetensors" in names:
        _refuse_another_run(old, experiment.resolved, folder, moved=status == "resume" and _knows_its_texts(folder))
    _warn_of_new_length(old, experiment.resolved, status)
    return status


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    lock = FileLock(folder / LOCK_NAME)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(blocking=False)
    except Timeout:
        raise InputError(
            f"output_dir {folder} is in use by a training that is running now; wait for its end, or choose another"
        ) from None
    except OSError as error:
        raise InputError(f"output_dir {folder} can't be written: {error.strerror}; choose another") from error
    try:
        yield
    finally:
        lock.release()


def save_config(experiment: Experiment, path: Path) -> Path:
    """
    Writes `experiment.resolved` as a YAML file, grouped and commented, which `parse_experiment` reads as the same run.

    Raises:
        InputError: the file cannot be written.
    """
    try:
        return write_whole(path, _as_yaml(experiment.resolved))
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}; choose another output_dir") from error


def _as_yaml(resolved: Mapping[str, Any]) -> str:
    lines = ["# Every key of this run. The same run again: accelerate launch scripts/train.py THIS_FILE"]
    for group, names in groupby(resolved, key=lambda name: valid_keys()[name].group):
        lines += ["", f"# {group}"]
        for name in names:
            text = f"{name}: {yaml_value(resolved[name])}"
            meaning = valid_keys()[name].metadata.get("help") if group != "transformers" else None
            lines.append(f"{text:<40}  # {meaning}" if meaning else text)
    return "\n".join(lines) + "\n"


def read_config(path: Path) -> dict[str, Any]:
    """A config as an earlier, perhaps older, version wrote it: keys that no longer exist have nothing to say."""
    settings = read_yaml(path)
    gone = sorted(set(settings) - set(valid_keys()))
    if gone:
        logger.warning("%s has keys that this version does not know; they are ignored: %s", path, ", ".join(gone))
    return typed_values({name: setting for name, setting in settings.items() if name not in gone})


def _knows_its_texts(folder: Path) -> bool:
    """Whether its files may lie elsewhere by now: their sentences are compared when they have been read."""
    digests = _digests(folder)
    return bool(digests) and None not in digests.values()


def _digests(folder: Path) -> dict[str, str | None]:
    """Of the texts of each split; empty where nothing tells."""
    try:
        table = json.loads((folder / DATA_TABLE_NAME).read_text(encoding="utf-8"))
        return {split: entry["digest"] for split, entry in table.items()}
    except (OSError, ValueError, AttributeError, KeyError, TypeError):
        return {}


def _refuse_other_texts(folder: Path, digests: Mapping[str, str]) -> None:
    before = _digests(folder)
    changed = [split for split, digest in digests.items() if before.get(split, digest) not in (None, digest)]
    if changed:
        raise InputError(
            f"the sentences of {' and '.join(changed)} are other ones than those that the run in {folder} began with: "
            "put the old files back to go on, choose another --output_dir, or delete the folder"
        )


def _refuse_another_run(old: Mapping[str, Any], new: Mapping[str, Any], folder: Path, *, moved: bool) -> None:
    before, now = _identity({**_defaults(), **old}), _identity(new)
    now = {name: value for name, value in now.items() if not (moved and name in FILE_KEYS)}
    changes = [f"  {name}: {before.get(name)} -> {now[name]}" for name in now if before.get(name) != now[name]]
    if changes:
        raise InputError(
            "\n".join([f"output_dir {folder} holds a run with other settings:", *changes])
            + "\nset these back to go on with that run, or choose another --output_dir, or delete the folder"
        )


def _defaults() -> dict[str, Any]:
    """What the keys that an older version did not have would have been."""
    return {key.name: key.default for key in valid_keys().values() if key.name not in SECRET_KEYS}


def _identity(resolved: Mapping[str, Any]) -> dict[str, Any]:
    left_out = FREE_KEYS | EFFECTIVE_BATCH_KEYS
    if resolved["lr_scheduler_type"] in WITHOUT_WARMUP:
        left_out |= {"warmup_steps"}  # older versions took one without effect
    same = {name: value for name, value in resolved.items() if name not in left_out}
    return {**same, EFFECTIVE_BATCH: _effective_batch(resolved)}


def _effective_batch(resolved: Mapping[str, Any]) -> str:
    """What one step sees on all processes together."""
    unit = "tokens" if resolved["tokens_per_batch"] else "sentences"
    size = resolved["tokens_per_batch"] or resolved["per_device_train_batch_size"]
    return f"{size * resolved['gradient_accumulation_steps'] * (resolved['num_processes'] or 1)} {unit}"


def _progress(folder: Path, names: set[str], resolved: Mapping[str, Any]) -> Literal["new", "resume", "finished"]:
    if RESULTS_NAME in names and not (_asks_for_more(folder, resolved) or _asks_for_a_test(folder, resolved)):
        return "finished"
    return "resume" if any(name.startswith("checkpoint-") for name in names) else "new"


def _asks_for_more(folder: Path, resolved: Mapping[str, Any]) -> bool:
    """Whether the length asked for now exceeds the one asked for when the run finished, early or not."""
    state_path = folder / "trainer_state.json"
    try:
        state = json.loads(state_path.read_text(encoding="utf-8"))
        asked = resolved["max_steps"]
        if asked <= 0:
            asked = resolved["num_train_epochs"] * state["global_step"] / max(state["epoch"], 1e-9)
        return asked > state["max_steps"] + 0.5  # epochs are not exact: half a step more is no more
    except FileNotFoundError:
        return False
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{state_path} can't be read ({type(error).__name__}: {error}), so that nobody knows how long this run "
            "was: put the file back, or choose another --output_dir"
        ) from error


def _asks_for_a_test(folder: Path, resolved: Mapping[str, Any]) -> bool:
    """Whether a test set is named now, and the run had none."""
    digests = _digests(folder)
    return resolved["test_file"] is not None and bool(digests) and "test" not in digests


def _warn_of_new_length(old: Mapping[str, Any], new: Mapping[str, Any], status: str) -> None:
    changed = any(old.get(name) != new[name] for name in ("num_train_epochs", "max_steps"))
    moved = []
    if new["lr_scheduler_type"] not in ENDLESS_SCHEDULES or 0 < new["warmup_steps"] < 1:
        moved.append(f"the learning rate of the {new['lr_scheduler_type']} schedule from here on")
    if new["r_drop_start"]:
        moved.append("the step at which R-Drop begins")
    if status == "resume" and changed and moved:
        logger.warning(
            "the length of training changed, and with it %s: the result is not that of a run of this length from the "
            "start",
            " and ".join(moved),
        )
