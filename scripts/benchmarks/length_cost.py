"""Time and memory of a training step of one encoding at one length, with the same number of tokens at every length."""

import json
import statistics
import time
from pathlib import Path

import torch
from meter import peak_mib, read_job
from train_hf_mt import build

from hf_mt.hardware import prepare_hardware
from hf_mt.models import SHORT


def main() -> None:
    job = read_job()
    prepare_hardware(job["threads"])
    torch.manual_seed(0)
    size = {**job["size"], "dropout": 0.0}
    kernel = "eager" if job["length"] <= SHORT else None  # as training chooses it
    model = build({**job, "size": size}, kernel, max_position_embeddings=job["length"]).train()
    ids = torch.randint(4, size["vocab_size"], (max(1, job["tokens"] // job["length"]), job["length"]))
    before = peak_mib()
    times = []
    for _ in range(job["repeats"] + 1):
        start = time.perf_counter()
        model(input_ids=ids, labels=ids).loss.backward()
        model.zero_grad()
        times.append(time.perf_counter() - start)
    result = {
        "microseconds_per_token": 1e6 * statistics.median(times[1:]) / ids.numel(),
        "step_mib": peak_mib() - before,
    }
    Path(job["result"]).write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main()
