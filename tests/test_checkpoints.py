"""Tests of hf_mt.checkpoints: whole or not there, and every damage found."""

import json
import resource
import signal
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from transformers.trainer_utils import rotate_checkpoints

from hf_mt.checkpoints import (
    MANIFEST,
    STATE,
    _finish,
    checkpoints,
    last_checkpoint,
    remove_oldest,
    told_if_unwritable,
    verify_checkpoint,
    whole_checkpoint,
)
from hf_mt.errors import InputError


def write(run_folder: Path, step: int, weights: bytes = b"weights") -> Path:
    folder = run_folder / f"checkpoint-{step}"
    there = folder.exists()
    with whole_checkpoint(folder) as aside:
        (aside / "shards").mkdir(parents=True)
        (aside / "model.safetensors").write_bytes(weights)
        (aside / "shards" / "0.bin").write_bytes(b"shard")
        (aside / STATE).write_text(json.dumps({"global_step": step}))
        assert folder.exists() == there
    return folder


def test_a_checkpoint_appears_at_the_end_with_a_manifest(tmp_path: Path) -> None:
    folder = write(tmp_path, 5)
    listed = json.loads((folder / MANIFEST).read_text())["files"]
    assert set(listed) == {"model.safetensors", "shards/0.bin", STATE} and listed["shards/0.bin"]["bytes"] == 5
    verify_checkpoint(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-5"]


def test_machines_that_share_a_disk_make_one_checkpoint(tmp_path: Path) -> None:
    """Both of two machines come to the end of the same checkpoint at once."""
    for step in range(5):
        folder, aside = tmp_path / f"checkpoint-{step}", tmp_path / f".unfinished-checkpoint-{step}"
        aside.mkdir()
        (aside / "model.safetensors").write_bytes(b"weights" * 100_000)
        (aside / STATE).write_text(json.dumps({"global_step": step}))
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(partial(_finish, aside, folder), (0, 8)))
        verify_checkpoint(folder)
        assert MANIFEST not in json.loads((folder / MANIFEST).read_text())["files"]
    assert {path.name for path in tmp_path.iterdir()} == {f"checkpoint-{step}" for step in range(5)}


@pytest.mark.parametrize("limit", [None, 1, 2, 3, 9])
@pytest.mark.parametrize("best", [None, 1, 2, 4])
def test_the_same_are_kept_as_by_transformers(limit: int | None, best: int | None, tmp_path: Path) -> None:
    kept = []
    for name, remove in (("ours", remove_oldest), ("theirs", rotate_checkpoints)):
        for step in range(5):
            write(tmp_path / name, step)
        remove(tmp_path / name, limit, best and str(tmp_path / name / f"checkpoint-{best}"))
        kept.append({path.name for path in (tmp_path / name).iterdir()})
    assert kept[0] == kept[1] and len(kept[0]) <= max(limit or 5, 2)


def test_one_that_was_not_planned_takes_no_place(tmp_path: Path) -> None:
    kept = []
    for step in (2, 4, 6, 7, 8, 9, 10):  # asked to end at 7 and 9
        write(tmp_path, step)
        remove_oldest(tmp_path, 3, str(tmp_path / "checkpoint-2"), lambda path: int(path.name[11:]) % 2 == 0)
        kept.append([int(path.name[11:]) for path in checkpoints(tmp_path)])
    assert kept[2:] == [[2, 4, 6], [2, 4, 6, 7], [2, 6, 8], [2, 6, 8, 9], [2, 8, 10]]


def test_a_checkpoint_that_goes_is_never_half_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in range(3):
        write(tmp_path, step)
    monkeypatch.setattr("shutil.rmtree", lambda path, **_: (path / "model.safetensors").unlink())  # and killed
    remove_oldest(tmp_path, 1, None)
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-2"]
    monkeypatch.undo()
    write(tmp_path, 3)
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-2", "checkpoint-3"}


def test_one_that_is_written_again_is_never_half_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, 3)
    write(tmp_path, 5)

    def killed(path: Path, **_: object) -> None:
        (path / "model.safetensors").unlink(missing_ok=True)
        raise KeyboardInterrupt

    monkeypatch.setattr("shutil.rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, 5, b"others")
    monkeypatch.undo()
    for folder in checkpoints(tmp_path):
        verify_checkpoint(folder)
    assert checkpoints(tmp_path)


def test_a_folder_that_cannot_be_read_takes_no_place(tmp_path: Path) -> None:
    for step in (5, 10, 15):
        write(tmp_path, step)
    (tmp_path / "checkpoint-15" / STATE).write_text('{"glob')
    written = write(tmp_path, 12)
    remove_oldest(tmp_path, 3, None, lambda path: path != written)
    assert {path.name for path in tmp_path.iterdir()} == {f"checkpoint-{step}" for step in (5, 10, 12, 15)}
    remove_oldest(tmp_path, 1, None)
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-12"]


@pytest.mark.parametrize("error", [ValueError("a bug"), KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_nothing_is_left_of_one_that_failed(error: BaseException, tmp_path: Path) -> None:
    write(tmp_path, 5)
    with pytest.raises((type(error), InputError)), whole_checkpoint(tmp_path / "checkpoint-10") as aside:
        aside.mkdir()
        (aside / "half").write_bytes(b"1")
        raise error
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-5"]


def test_what_a_killed_program_left_is_removed_by_the_next(tmp_path: Path) -> None:
    (tmp_path / ".unfinished-checkpoint-3").mkdir(parents=True)
    write(tmp_path, 5)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-5"]


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("model.safetensors", b"weight", "model.safetensors has 6 bytes instead of 7"),
        ("model.safetensors", b"wEights", "model.safetensors has other content"),
        ("shards/0.bin", None, "0.bin is missing"),
        (MANIFEST, b"{", "can't be read"),
        (MANIFEST, b"[]", "can't be read"),
        (STATE, b'{"glob', f"{STATE} has 6 bytes instead of 19"),
    ],
)
def test_damage_is_named_with_the_remedy(name: str, content: bytes | None, message: str, tmp_path: Path) -> None:
    write(tmp_path, 5)
    folder = write(tmp_path, 10)
    assert last_checkpoint(tmp_path) == str(folder)
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content)
    with pytest.raises(InputError, match=f"checkpoint-10 is damaged: .*{message}.*go on from checkpoint-5"):
        last_checkpoint(tmp_path)
    verify_checkpoint(tmp_path / "checkpoint-5")


def test_files_that_came_later_are_nobodys_business(tmp_path: Path) -> None:
    (write(tmp_path, 5) / "README.md").write_text("a card")
    verify_checkpoint(tmp_path / "checkpoint-5")


def test_folders_of_older_versions_are_taken_and_half_written_ones_left_out(tmp_path: Path, caplog: object) -> None:
    for step, state in ((5, '{"global_step": 5}'), (10, '{"global_step": 10}'), (15, '{"glob')):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / STATE).write_text(state)
    (tmp_path / "checkpoint-20").mkdir()
    assert [folder.name for folder in checkpoints(tmp_path)] == ["checkpoint-5", "checkpoint-10"]
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10")
    assert "without manifests" in caplog.text
    assert last_checkpoint(tmp_path / "nowhere") is None


@pytest.mark.parametrize("how", ["plain", "torch"])
def test_a_full_disk_is_told_and_the_older_checkpoint_stays(how: str, tmp_path: Path) -> None:
    write(tmp_path, 5)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # then the system says EFBIG, as it says ENOSPC
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
        message = pytest.raises(InputError, match=r"checkpoint-10 can't be written: .*goes on from checkpoint-5")
        with message, whole_checkpoint(tmp_path / "checkpoint-10") as aside:
            aside.mkdir()
            if how == "torch":
                torch.save(torch.zeros(100_000), aside / "optimizer.pt")
            else:
                (aside / "weights").write_bytes(b"0" * 100_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-5")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-5"]


def test_weights_that_cannot_be_written_are_told_with_the_remedy(tmp_path: Path) -> None:
    write(tmp_path, 5)
    message = pytest.raises(InputError, match=r"can't be written: I/O error.*goes on from checkpoint-5")
    with message, told_if_unwritable(tmp_path, tmp_path):
        raise SafetensorError("I/O error: No space left on device (os error 28)")


def test_an_error_that_is_no_disk_s_stays_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="shapes differ"), whole_checkpoint(tmp_path / "checkpoint-1"):
        raise RuntimeError("shapes differ")
