"""Trains OpenNMT-py for some minutes and translates with it, by its own commands, in its own environment.

Settings are those published for a Transformer of width 128 (Wu et al. 2021, https://arxiv.org/abs/2105.14462: batches
of 4,096 tokens, peak learning rate 5e-3 after 2,000 updates, mean of the last 10 checkpoints, 5 beams). At another
width the same schedule ("noam") sets the peak, which falls with the square root of the width.
"""

import sys
import time
from pathlib import Path
from typing import Any

import onmt.trainer
import torch
from meter import EnoughMeasured, Meter, read_job
from onmt.bin.average_models import average_models
from onmt.bin.train import main as train
from onmt.bin.translate import main as translate
from train_opennmt import counts, options


WIDTH, WARMUP, PEAK = 128, 2000, 5e-3
RATE = PEAK * WIDTH**0.5 * WARMUP**0.5  # noam: RATE * d_model ** -0.5 * step ** -0.5 after warm-up
CHECKPOINTS = 10


def stopping(meter: Meter, seconds_between: float) -> Any:
    """The trainer's step, followed by a count, and by a checkpoint now and then; the time to save is not counted."""
    plain, due = onmt.trainer.Trainer._gradient_accumulation, [seconds_between]

    def step(self: Any, batches: list, *args: Any) -> None:
        plain(self, batches, *args)
        try:
            meter.step(**counts(batches))
        except EnoughMeasured:
            self.model_saver.save(meter.steps)
            raise
        if meter.end - meter.start >= due[0]:
            before = time.perf_counter()
            self.model_saver.save(meter.steps)
            meter.start += time.perf_counter() - before
            due[0] += seconds_between

    return step


def candidates(folder: Path) -> dict[str, Path]:
    """The last checkpoint, and the means of the last few."""
    saved = sorted(folder.glob("model_step_*.pt"), key=lambda path: int(path.stem.rsplit("_", 1)[1]))
    found = {"last": saved[-1]}
    for count in (5, CHECKPOINTS):
        found[f"mean of {count}"] = folder / f"mean_{count}.pt"
        torch.save(average_models(saved[-count:], fp32=True), found[f"mean of {count}"])
    return found


def main() -> None:
    job = read_job()
    folder = Path(job["folder"])
    sys.argv[1:] = [*options(job, RATE, WARMUP), "-keep_checkpoint", str(CHECKPOINTS)]
    meter = Meter(job)
    onmt.trainer.Trainer._gradient_accumulation = stopping(meter, job["seconds"] / 30)
    try:
        train()
    except EnoughMeasured:
        meter.write()
    for name, model in candidates(folder).items():
        for split in job["splits"]:
            output = folder / f"{split}.{name.replace(' ', '_')}"
            flags = f"-model {model} -src {job['text']}/{split}.source -output {output} -beam_size 5 -batch_size 64"
            sys.argv[1:] = [*flags.split(), "-max_length", "200"]
            translate()


if __name__ == "__main__":
    main()
