"""
Prints versions and machine as a block to paste into a bug report.

    python scripts/env.py
    accelerate launch scripts/env.py        # as training sees it
"""

import os
import platform
from importlib.metadata import PackageNotFoundError, requires, version
from re import match

import torch
from accelerate.commands.config.config_args import default_config_file


def package_versions() -> dict[str, str]:
    """The installed version of hf_mt and of everything that it requires, extras included."""
    needed = [found[0] for line in requires("hf_mt") or [] if (found := match(r"[\w.-]+", line))]
    return {name: _version(name) for name in dict.fromkeys(["hf_mt", *needed])}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def machine() -> dict[str, str]:
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


if __name__ == "__main__":
    if os.environ.get("LOCAL_RANK", "0") == "0":
        print("```")
        for key, value in {**package_versions(), **machine()}.items():
            print(f"{key:<20}{value}")
        print("```")
