"""What every measured program does alike: read its job, count what each optimizer step sees, and stop in time.

This file is imported in the environment of each peer: it needs torch alone, of any version.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any


class EnoughMeasured(Exception):
    """Ends the training of a peer that knows no limit of time."""


def peak_mib() -> float:
    """The most memory that this program held; getrusage would count the one that started it."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))) / 1024


def leave_out_dropout(model: Any, *names: str) -> None:
    """Takes away the dropout of modules whose names end so: inside feed-forward blocks and attention none drops here.

    Raises:
        RuntimeError: A name is that of no module.
    """
    for ending in names:
        found = [module for name, module in model.named_modules() if name.endswith(ending)]
        if not found:
            raise RuntimeError(f"no module is called ...{ending}")
        for module in found:
            module.p = 0.0


def read_job() -> dict[str, Any]:
    """The job that the driver wrote; its file is the only argument of a program."""
    return json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))


class Meter:
    """Tokens, cells and seconds of optimizer steps, from the end of the warm-up steps on.

    Args:
        job: `warmup_steps` not to count, `seconds` to count for, and `result`, the file to write.
    """

    def __init__(self, job: dict[str, Any]):
        self.job, self.steps, self.start, self.end = job, 0, 0.0, 0.0
        self.counts = {"target_tokens": 0, "target_cells": 0, "source_tokens": 0, "source_cells": 0}

    def step(self, **counts: int) -> None:
        """Counts a step that has ended; raises EnoughMeasured once the time is up."""
        self.steps += 1
        if self.steps <= self.job["warmup_steps"]:
            self.start = time.perf_counter()
            return
        self.end = time.perf_counter()
        for name, count in counts.items():
            self.counts[name] += int(count)
        if self.end - self.start >= self.job["seconds"]:
            raise EnoughMeasured

    def write(self, **more: Any) -> None:
        """Writes what was counted, and the most memory that this process ever held."""
        steps, seconds = self.steps - self.job["warmup_steps"], self.end - self.start
        padding = {
            f"{side}_padding": 1 - self.counts[f"{side}_tokens"] / max(self.counts[f"{side}_cells"], 1)
            for side in ("source", "target")
        }
        import torch

        result = {
            "torch": torch.__version__,
            "steps": steps,
            "seconds": seconds,
            "target_tokens_per_second": self.counts["target_tokens"] / max(seconds, 1e-9),
            "source_tokens_per_second": self.counts["source_tokens"] / max(seconds, 1e-9),
            "peak_mib": peak_mib(),
            **padding,
            **more,
        }
        Path(self.job["result"]).write_text(json.dumps(result, indent=2), encoding="utf-8")
