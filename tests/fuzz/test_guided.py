"""The guided search, for a moment, where its engine is installed."""

import subprocess
import sys
from pathlib import Path

import pytest


PROGRAM = Path(__file__).with_name("guided.py")


@pytest.mark.parametrize("target", ["yaml", "jsonl"])
def test_a_short_search_finds_nothing(target: str, tmp_path: Path) -> None:
    pytest.importorskip("atheris")
    command = [sys.executable, str(PROGRAM), target, "-runs=500", "-seed=1", "-max_len=200", "-rss_limit_mb=8192"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Done 500 runs" in done.stderr and not list(tmp_path.iterdir())
