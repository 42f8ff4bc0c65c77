"""What a result depends on besides the code of an experiment: versions, machine, and the state of this package."""

import os
import platform
import subprocess
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from re import match

import torch
from accelerate.commands.config.config_args import default_config_file


# packages that a score may depend on
DECIDING = ("torch", "transformers", "datasets", "evaluate", "accelerate", "tokenizers", "safetensors", "sacrebleu")


def environment() -> dict[str, str]:
    """Everything below, by name, for a bug report or beside a result."""
    return {**package_versions(), "git revision": git_revision(), **machine_details()}


def git_revision() -> str:
    """Commit of the checkout that this package is used from, and whether files differ from it; or why none."""
    folder = Path(__file__).parent
    try:
        commit, changed = (
            subprocess.run(["git", "-C", str(folder), *command], capture_output=True, text=True, check=True).stdout
            for command in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no", "."])
        )
    except (OSError, subprocess.CalledProcessError):
        return "none: not a git checkout"
    return commit.strip() + (" with changes" if changed.strip() else "")


def package_versions() -> dict[str, str]:
    """The installed version of hf_mt and of everything that it requires, extras included."""
    needed = [found[0] for line in _required() if (found := match(r"[\w.-]+", line))]
    return {name: _version(name) for name in dict.fromkeys(["hf_mt", *needed])}


def _required() -> Sequence[str]:
    try:
        return requires("hf_mt") or []
    except PackageNotFoundError:  # used from a folder on the path, without having been installed
        return DECIDING


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def machine_details() -> dict[str, str]:
    """Python, processor, torch build, accelerators and launcher settings."""
    gpus = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    config = os.environ.get("ACCELERATE_CONFIG_FILE", default_config_file)
    return {
        "Python": platform.python_version(),
        "platform": platform.platform(),
        "CPUs": f"{os.cpu_count()}, torch uses {torch.get_num_threads()} threads",
        "torch CUDA": f"{torch.version.cuda or 'no'}, cuDNN {torch.backends.cudnn.version() or 'no'}",
        "GPUs": ", ".join(f"{gpu.name} ({gpu.total_memory / 2**30:.0f} GiB)" for gpu in gpus) or "none",
        "processes": os.environ.get("WORLD_SIZE", "1"),
        "accelerate config": config if os.path.exists(config) else f"none at {config}",
    }
