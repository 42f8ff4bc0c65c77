"""COMET, by its own program.

The package `unbabel-comet` needs an older transformers than this one (below 5, as of its version 2.2.7), so the two
can't share an environment: install it in one of its own and name the program there.
"""

import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from hf_mt.errors import InputError
from hf_mt.text_files import one_line


PROGRAM = "comet-score"


def find_program(program: str) -> str:
    """Where the program is; raises InputError if it is nowhere."""
    found = shutil.which(program)
    if found is None:
        raise InputError(
            f"COMET needs its program, and there is no {program!r}: python -m venv comet && comet/bin/pip install "
            "unbabel-comet, then --comet_program comet/bin/comet-score"
        )
    return found


def comet_score(
    sources: Sequence[str], hypotheses: Sequence[str], references: Sequence[str], *, model: str, program: str = PROGRAM
) -> float:
    """COMET of a whole test set, on the scale of the model (Rei et al. 2020, https://arxiv.org/abs/2009.09025).

    Args:
        sources, hypotheses, references: One text each a sentence.
        model: Name on the Hub, such as Unbabel/wmt22-comet-da, or the path of a checkpoint.
        program: `comet-score`, or where it is.

    Raises:
        InputError: There is no such program, or it can't load the model, or fails otherwise.
    """
    found = find_program(program)
    with tempfile.TemporaryDirectory() as folder:
        paths = []
        for flag, texts in (("-s", sources), ("-t", hypotheses), ("-r", references)):
            path = Path(folder, flag.strip("-"))
            path.write_text("".join(f"{one_line(text)}\n" for text in texts), "utf-8")
            paths += [flag, str(path)]
        command = [found, *paths, "--model", model, "--quiet", "--only_system"]
        done = subprocess.run(command, capture_output=True, text=True)
    scores = re.findall(r"score:\s*(-?\d+(?:\.\d+)?)", done.stdout)
    if done.returncode or not scores:
        reason = (done.stderr.strip() or done.stdout.strip() or "no word of explanation").splitlines()[-1]
        raise InputError(f"COMET could not score with the model {model!r} (exit code {done.returncode}): {reason}")
    return float(scores[-1])
