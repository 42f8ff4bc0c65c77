"""Time and memory of a training step of one encoding at one length, with the same number of tokens at every length."""

import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from meter import peak_mib, read_job
from train_hf_mt import build

from hf_mt.hardware import prepare_hardware
from hf_mt.model import HfMtForConditionalGeneration
from hf_mt.models import SHORT


def new_model(job: dict[str, Any]) -> HfMtForConditionalGeneration:
    """The job's model, without dropout, with the kernel that training chooses at its length."""
    kernel = "eager" if job["length"] <= SHORT else None
    size = {**job["size"], "dropout": 0.0}
    return build({**job, "size": size}, kernel, max_position_embeddings=job["length"]).train()


def new_ids(job: dict[str, Any]) -> torch.Tensor:
    """(B, length) random tokens, about as many as the job wants."""
    shape = (max(1, job["tokens"] // job["length"]), job["length"])
    return torch.randint(4, job["size"]["vocab_size"], shape)


def step_seconds(model: HfMtForConditionalGeneration, ids: torch.Tensor) -> float:
    """Time of one step, forward and backward."""
    start = time.perf_counter()
    model(input_ids=ids, labels=ids).loss.backward()
    model.zero_grad()
    return time.perf_counter() - start


def main() -> None:
    job = read_job()
    prepare_hardware(job["threads"])
    torch.manual_seed(0)
    model, ids = new_model(job), new_ids(job)
    before = peak_mib()
    times = [step_seconds(model, ids) for _ in range(job["repeats"] + 1)]
    result = {
        "microseconds_per_token": 1e6 * statistics.median(times[1:]) / ids.numel(),
        "step_mib": peak_mib() - before,
    }
    Path(job["result"]).write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main()
