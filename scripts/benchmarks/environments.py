"""One virtual environment for each peer, with the versions that were measured, made when it is first needed."""

import subprocess
import sys
from pathlib import Path

from hf_mt.errors import InputError


PACKAGES = {
    "OpenNMT-py": ["OpenNMT-py==3.5.1"],
    "JoeyNMT": ["joeynmt==2.3.0", "importlib_metadata", "sentencepiece==0.2.0"],
    "CTranslate2": ["OpenNMT-py==3.5.1"],  # which brings CTranslate2 and the converter of its own models
}
ROOT = Path(".cache/benchmark")


def python_of(system: str) -> Path | None:
    """The interpreter of a peer's environment; None for systems that run in ours.

    Raises:
        InputError: The packages can't be installed.
    """
    packages = PACKAGES.get(system)
    if packages is None:
        return None
    folder = (ROOT / packages[0].replace("==", "-")).absolute()
    python, marker = folder / "bin" / "python", folder / ".installed"
    if not marker.is_file():
        print(f"installing {packages[0]} into {folder} ...", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        command = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *packages]
        if subprocess.run(command).returncode:
            raise InputError(f"{packages[0]} can't be installed; leave it out with --systems")
        marker.touch()
    return python
