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


class NotInstalled(InputError):
    """A peer can't be measured on this machine."""


def python_of(system: str) -> Path | None:
    """The interpreter of a peer's environment; None for systems that run in ours.

    Raises:
        NotInstalled: The packages can't be installed.
    """
    packages = PACKAGES.get(system)
    if packages is None:
        return None
    folder = (ROOT / packages[0].replace("==", "-")).absolute()
    python, marker = folder / "bin" / "python", folder / ".installed"
    if not marker.is_file():
        print(f"installing {packages[0]} into {folder} ...", file=sys.stderr)
        install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *packages]
        for command in ([sys.executable, "-m", "venv", folder], install):
            if subprocess.run(command).returncode:
                raise NotInstalled(f"{packages[0]} can't be installed here; what pip or venv wrote above tells why")
        marker.touch()
    return python
