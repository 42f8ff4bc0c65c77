"""One virtual environment for each peer, with the versions that were measured, made when it is first needed.

OpenNMT-py asks for a torch that is years old, and is measured with that and with ours.
"""

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from hf_mt.errors import InputError


OUR_TORCH = f"torch=={version('torch').partition('+')[0]}"
NEEDED_BY_OPENNMT = ["configargparse", "ctranslate2<5,>=4", "tensorboard>=2.3", "flask", "waitress"]
NEEDED_BY_OPENNMT += ["pyonmttok<2,>=1.37", "pyyaml", "sacrebleu", "rapidfuzz", "pyahocorasick", "fasttext-wheel"]
NEEDED_BY_OPENNMT += ["spacy", "six", "setuptools"]
ENVIRONMENTS = {  # system -> name of its environment
    "OpenNMT-py": "OpenNMT-py-3.5.1",
    "OpenNMT-py, torch of hf_mt": "OpenNMT-py-3.5.1-our-torch",
    "JoeyNMT": "joeynmt-2.3.0",
    "CTranslate2": "OpenNMT-py-3.5.1",  # which brings CTranslate2 and the converter of its own models
}
INSTALLATIONS = {  # name of an environment -> what pip is asked for, one call after the other
    "OpenNMT-py-3.5.1": [["OpenNMT-py==3.5.1"]],
    "OpenNMT-py-3.5.1-our-torch": [["--no-deps", "OpenNMT-py==3.5.1"], [OUR_TORCH, *NEEDED_BY_OPENNMT]],
    "joeynmt-2.3.0": [[OUR_TORCH, "joeynmt==2.3.0", "importlib_metadata", "sentencepiece==0.2.0"]],
}
ROOT = Path(".cache/benchmark")


class NotInstalled(InputError):
    """A peer can't be measured on this machine."""


def python_of(system: str) -> Path | None:
    """The interpreter of a peer's environment; None for systems that run in ours.

    Raises:
        NotInstalled: The packages can't be installed.
    """
    name = ENVIRONMENTS.get(system)
    if name is None:
        return None
    folder = (ROOT / name).absolute()
    python, marker = folder / "bin" / "python", folder / ".installed"
    if not marker.is_file():
        print(f"installing {name} into {folder} ...", file=sys.stderr)
        pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        for command in ([sys.executable, "-m", "venv", folder], *([*pip, *asked] for asked in INSTALLATIONS[name])):
            if subprocess.run(command).returncode:
                raise NotInstalled(f"{name} can't be installed here; what pip or venv wrote above tells why")
        marker.touch()
    return python
