"""What a result depends on is told whole: versions of all that is required, the machine, and the commit."""

import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from hf_mt import environment as module
from hf_mt.environment import environment, git_revision, package_versions


ROOT = Path(__file__).parents[1]


def test_everything_required_has_its_version() -> None:
    found = package_versions()
    assert {"hf_mt", "torch", "transformers", "sacrebleu", "accelerate"} <= set(found)
    assert re.match(r"\d+\.\d+", found["torch"]) and "not installed" not in (found["torch"], found["datasets"])
    assert set(environment()) > set(found) | {"Python", "CPUs", "git revision"}


def test_a_folder_on_the_path_that_nobody_installed_still_tells_what_scores_depend_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def requires(name: str) -> list[str]:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(module, "requires", requires)
    assert {"hf_mt", "torch", "transformers", "sacrebleu"} <= set(package_versions())


def git(*words: str, folder: Path) -> str:
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    return subprocess.run(["git", *who, *words], cwd=folder, capture_output=True, text=True, check=True).stdout.strip()


def test_the_revision_tells_whether_files_differ_from_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "__file__", str(tmp_path / "module.py"))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert git_revision() == "none: not a git checkout"
    (tmp_path / "module.py").write_text("1\n")
    git("init", "-q", folder=tmp_path)
    git("add", ".", folder=tmp_path)
    git("commit", "-q", "-m", "one", folder=tmp_path)
    commit = git("rev-parse", "HEAD", folder=tmp_path)
    assert git_revision() == commit
    (tmp_path / "module.py").write_text("2\n")
    assert git_revision() == f"{commit} with changes"


def test_the_script_prints_a_block_for_a_bug_report() -> None:
    command = [sys.executable, str(ROOT / "scripts" / "env.py")]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert out[0] == out[-1] == "```"
    for name in ("hf_mt", "torch", "transformers", "Python", "CPUs", "GPUs", "accelerate config", "git revision"):
        assert any(re.match(rf"{name} +\S", line) for line in out), name
