"""Trains, kills the training at many moments, starts it again each time, and says how every start ended.

    python tests/system/kill_and_resume.py CONFIG FOLDER --kills 30 --seed 1

Each start is a fork of this process, in which everything is imported already; SIGKILL comes as to any program.
FOLDER/whole is the undisturbed run, FOLDER/killed the other one. Prints one JSON object.
"""

import argparse
import json
import os
import random
import runpy
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers.modeling_utils
import transformers.trainer

from hf_mt import averaging, checkpoints, evaluation_loop, training


SCRIPT = Path(__file__).parents[2] / "scripts" / "train.py"
# where to kill: owner, attribute, and how often it is called before the next checkpoint is whole, about
PLACES: dict[str, tuple[Any, str, int]] = {
    "a step": (training.TranslationTrainer, "compute_loss", 8),
    "evaluation": (evaluation_loop.TranslationEvaluator, "_evaluate_batch", 2),
    "the scores of an evaluation": (evaluation_loop.TranslationEvaluator, "_metrics", 2),
    "weights": (transformers.modeling_utils, "safe_save_file", 2),
    "optimizer and random numbers": (torch, "save", 8),
    "moving average": (averaging.MovingAverage, "save", 2),
    "state": (training.TranslationTrainer, "_save_state", 2),
    "checksums": (checkpoints, "_digest", 20),
    "flushing": (os, "fsync", 25),
    "renaming": (os, "replace", 6),
    "removing an old checkpoint": (shutil, "rmtree", 6),
}


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def arm(rng: random.Random, seconds: float) -> str:
    """Chooses a moment at which this process will kill itself, and says which; a whole run takes so many seconds."""
    place = rng.choice([*PLACES, "any moment"])
    if place == "any moment":
        timer = threading.Timer(rng.uniform(0.1, 0.2) * seconds, kill)
        timer.daemon = True
        timer.start()
        return place
    owner, name, calls = PLACES[place]
    setattr(owner, name, mortal(getattr(owner, name), rng.randint(1, calls), rng.random() < 0.5))
    return place


def mortal(call: Callable[..., Any], number: int, before: bool) -> Callable[..., Any]:
    """The function, which kills the process in its `number`-th call, before or after it does its work."""
    left = number

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        nonlocal left
        left -= 1
        if left == 0 and before:
            kill()
        result = call(*args, **kwargs)
        if left == 0:
            kill()
        return result

    return wrapped


def start(config: str, folder: Path, rng: random.Random | None = None, seconds: float = 0.0) -> tuple[str, int]:
    """Runs the training in a fork: where it was to be killed, and how it ended (-9: killed)."""
    told, tell = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(tell, (arm(rng, seconds) if rng else "nowhere").encode())
            with open(f"{folder}.log", "a") as log:
                sys.stdout = sys.stderr = log
                sys.argv = [str(SCRIPT), config, "--output_dir", str(folder)]
                runpy.run_path(str(SCRIPT), run_name="__main__")
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    os.close(tell)
    with open(told) as pipe:
        return pipe.read(), os.waitstatus_to_exitcode(status)


def whole(folder: Path) -> list[str]:
    """Names of the checkpoints, each of which must pass its checksums."""
    found = checkpoints.checkpoints(folder)
    for checkpoint in found:
        assert (checkpoint / checkpoints.MANIFEST).is_file(), checkpoint
        checkpoints.verify_checkpoint(checkpoint)
    assert len(found) == len(list(folder.glob("checkpoint-*")))
    return [checkpoint.name for checkpoint in found]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("config")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    rng = random.Random(args.seed)
    killed, starts = args.folder / "killed", []
    begun = time.monotonic()
    _, code = start(args.config, args.folder / "whole")
    seconds = time.monotonic() - begun
    assert code == 0, f"{args.folder}/whole.log"
    while sum(one["code"] == -signal.SIGKILL for one in starts) < args.kills:
        place, code = start(args.config, killed, random.Random(rng.random()), seconds)
        starts.append({"place": place, "code": code, "checkpoints": whole(killed) if killed.is_dir() else []})
        if code == 0:
            break
    if starts[-1]["code"]:
        starts.append({"place": "nowhere", "code": start(args.config, killed)[1], "checkpoints": whole(killed)})
    print(json.dumps(starts))
    print(f"{seconds:.1f} s undisturbed", file=sys.stderr)


if __name__ == "__main__":
    main()
