"""Files that pin the packages: all of them, to the same versions, with hashes."""

import re
import tomllib
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[1]
PIN = re.compile(r"^([A-Za-z0-9._-]+)==([^\s;]+)( ; [^\\]+)?", re.MULTILINE)


def plain(name: str) -> str:
    """A name as PyPI compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(text: str) -> dict[str, str]:
    return {plain(name): version for name, version, _ in PIN.findall(text)}


def entries(lock: str) -> list[str]:
    """The packages of a lock file, each with its hashes."""
    return re.split(r"\n(?=\S)", re.sub(r"^#.*\n", "", lock, flags=re.MULTILINE).strip())


def without_hash(lock: str) -> list[str]:
    return [entry for entry in entries(lock) if not re.search(r"--hash=sha256:[0-9a-f]{64}\b", entry)]


@pytest.fixture(scope="module")
def lock() -> str:
    return (ROOT / ".ci/requirements.lock").read_text("utf-8")


@pytest.fixture(scope="module")
def constraints() -> str:
    return (ROOT / ".ci/constraints.txt").read_text("utf-8")


def test_every_package_of_the_lock_file_has_a_hash(lock: str) -> None:
    assert len(entries(lock)) > 100 and not without_hash(lock)
    assert without_hash(re.sub(r" \\\n    --hash=\S+", "", lock, count=400))


def test_both_files_name_the_same_versions(lock: str, constraints: str) -> None:
    locked, constrained = pins(lock), pins(constraints)
    assert constrained.items() <= locked.items()
    only_some_systems = {plain(found[1]) for found in PIN.finditer(lock) if found[3]}
    assert locked.keys() - constrained.keys() <= only_some_systems
    assert not pins(constraints.replace("torch==", "torch==0")).items() <= locked.items()


def test_every_dependency_is_in_the_lock_file(lock: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    wanted = [*project["dependencies"], *sum(project["optional-dependencies"].values(), [])]
    names = {plain(re.match(r"[A-Za-z0-9._-]+", one)[0]) for one in wanted}
    assert len(names) > 20 and names <= pins(lock).keys()
    assert "no-such-package" not in pins(lock)
