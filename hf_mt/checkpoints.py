"""Checkpoints that are whole or not there, and can be checked.

- One is written aside, flushed to the disk, given a manifest of its files, and renamed last: whatever kills the
  program, a folder `checkpoint-N` is whole.
- The manifest has the size and SHA-256 of every file; both are compared before training goes on from it.
- Folders of versions that wrote no manifest are taken as they are, if their state, written last, can be read.
"""

import errno
import hashlib
import json
import logging
import os
import pickle
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from accelerate import PartialState
from safetensors import SafetensorError

from hf_mt.errors import InputError
from hf_mt.text_files import write_whole


logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
STATE = "trainer_state.json"
UNFINISHED = ".unfinished-"  # before the name of a folder that is being written


@contextmanager
def whole_checkpoint(folder: Path) -> Iterator[Path]:
    """Where all processes write a checkpoint; it becomes `folder` at the end of the block, and only if all is well.

    Raises:
        InputError: It can't be written, for example since the disk is full; what was written of it is removed.
    """
    aside, processes = folder.with_name(UNFINISHED + folder.name), PartialState()
    if processes.is_local_main_process:
        remove_unfinished(folder.parent)
    processes.wait_for_everyone()
    try:
        with told_if_unwritable(folder, folder.parent):
            yield aside
            processes.wait_for_everyone()
            if processes.is_local_main_process:
                _finish(aside, folder, processes.process_index)
            processes.wait_for_everyone()
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _finish(aside: Path, folder: Path, process: int) -> None:
    """Makes `folder` of what all processes wrote: once for each file system, by the machine that takes it first."""
    own = aside.with_name(f"{aside.name}-{process}")
    try:
        os.rename(aside, own)
    except FileNotFoundError:  # nothing is saved here, or another machine shares the disk
        return
    try:
        _seal(own)
        if folder.exists():  # one that was left out as damaged
            _remove(folder)
        os.replace(own, folder)
        _flush(folder.parent)
    finally:
        shutil.rmtree(own, ignore_errors=True)


def _remove(folder: Path) -> None:
    """Takes away a checkpoint's name before its files: a program killed meanwhile leaves no half of a checkpoint."""
    aside = folder.with_name(f"{UNFINISHED}{folder.name}-removed")
    os.replace(folder, aside)
    shutil.rmtree(aside, ignore_errors=True)


@contextmanager
def state_without_code() -> Iterator[None]:
    """Around whatever reads the state of training, which torch keeps as pickles and transformers reads as data alone.

    Raises:
        InputError: A pickle holds more than data, or is none.
    """
    try:
        yield
    except pickle.UnpicklingError as error:
        raise InputError(
            "a file of the checkpoint (optimizer.pt, scheduler.pt, rng_state*.pth, scaler.pt) is damaged, or holds a "
            f"program where only numbers belong, which was not run: {str(error).splitlines()[0]}. Delete this "
            "checkpoint, unless you wrote it yourself, and look who can write to its folder"
        ) from error


def remove_oldest(
    run_folder: Path, limit: int | None, best: str | None, is_planned: Callable[[Path], bool] = lambda path: True
) -> None:
    """Keeps so many checkpoints, the last and the best among them, as transformers' `rotate_checkpoints` does.

    One that was not planned takes no other's place, and goes as soon as another follows. Folders that are no whole
    checkpoints are left alone, and count for nothing.
    """
    found = checkpoints(run_folder)
    others = [path for path in found[:-1] if best is None or path != Path(best)]
    room = limit + (not is_planned(found[-1])) if limit and found else len(found)
    for path in sorted(others, key=is_planned)[: max(0, len(found) - room)]:
        _remove(path)


def remove_unfinished(run_folder: Path) -> None:
    """What programs that were killed left of checkpoints."""
    for path in run_folder.glob(f"{UNFINISHED}*"):
        shutil.rmtree(path, ignore_errors=True)


@contextmanager
def told_if_unwritable(folder: Path, run_folder: Path) -> Iterator[None]:
    """Around what writes weights or states of a run into a folder.

    Raises:
        InputError: The system refused, for example since the disk is full.
    """
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        if not _is_disk_error(error):
            raise
        raise InputError(_unwritable(folder, run_folder, error)) from error


def _is_disk_error(error: BaseException) -> bool:
    """torch.save wraps what the system said in a RuntimeError of its own."""
    told = str(error).lower()
    wrapped = any(words in told for words in ("pytorchstreamwriter", "file write failed", "unexpected pos"))
    return wrapped or isinstance(error, (OSError, SafetensorError))


def _unwritable(folder: Path, run_folder: Path, error: BaseException) -> str:
    rest = [path.name for path in checkpoints(run_folder)]
    free = shutil.disk_usage(run_folder).free / 2**20
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return (
        f"{folder} can't be written: {reason} ({free:,.0f} MiB free there). Make room or lower save_total_limit; the "
        f"same command then goes on from {rest[-1] if rest else 'the start'}"
    )


def _seal(folder: Path) -> None:
    """Flushes every file to the disk and writes the manifest."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    listed = {str(path.relative_to(folder)): _digest(path) for path in files}
    write_whole(folder / MANIFEST, json.dumps({"files": listed}, indent=2) + "\n")
    for path in [*files, folder / MANIFEST, *(path for path in folder.rglob("*") if path.is_dir()), folder]:
        _flush(path)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # a file system that has no fsync for folders
            raise
    finally:
        os.close(descriptor)


def _digest(path: Path) -> dict[str, int | str]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def verify_checkpoint(folder: Path) -> None:
    """Compares every file with the manifest; a folder without one is only reported.

    Raises:
        InputError: A file is missing, cut or changed; the message says from where training can go on. Or its weights
            are a pickle.
    """
    if not any(folder.glob("*.safetensors")) and any(folder.glob("pytorch_model*.bin")):
        raise InputError(
            f"{folder} has its weights as a pickle (pytorch_model.bin), which can hold a program and is never read; "
            "delete this folder, or convert it with transformers on a machine where it may do no harm"
        )
    path = folder / MANIFEST
    if not path.is_file():
        logger.warning("%s was written by a version without manifests: its files can't be checked", folder)
        return
    try:
        listed = json.loads(path.read_text(encoding="utf-8"))["files"]
        damage = [text for name, was in listed.items() if (text := _damage(folder / name, was))]
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        damage = [f"{path} can't be read ({error})"]
    if damage:
        others = [other.name for other in checkpoints(folder.parent) if other != folder]
        rest = f"go on from {others[-1]}" if others else "start from the beginning"
        raise InputError(f"{folder} is damaged: {'; '.join(damage)}. Delete this folder to {rest}")


def _damage(path: Path, was: dict[str, int | str]) -> str | None:
    if not path.is_file():
        return f"{path.name} is missing"
    if path.stat().st_size != was["bytes"]:
        return f"{path.name} has {path.stat().st_size:,} bytes instead of {was['bytes']:,}"
    return None if _digest(path)["sha256"] == was["sha256"] else f"{path.name} has other content than was written"


def checkpoints(run_folder: Path) -> list[Path]:
    """Checkpoints of a run, oldest first: those whose state can be read."""
    found = []
    for folder in run_folder.glob("checkpoint-*"):
        with suppress(OSError, ValueError, KeyError, TypeError):
            found.append((int(json.loads((folder / STATE).read_text())["global_step"]), folder))
    return [folder for _, folder in sorted(found)]


def last_checkpoint(run_folder: Path) -> str | None:
    """Where to go on from, checked; None to begin.

    Raises:
        InputError: It, or one whose state can't be read, is damaged.
    """
    found = checkpoints(run_folder)
    for folder in sorted(set(run_folder.glob("checkpoint-*")) - set(found)):
        if (folder / MANIFEST).is_file():  # so it was whole
            verify_checkpoint(folder)
        logger.warning("%s is not whole and is left out", folder)
    if not found:
        return None
    verify_checkpoint(found[-1])
    return str(found[-1])
