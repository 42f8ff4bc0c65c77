"""Sentences a second of our search or of Marian's `generate`, every translation forced to the same length.

Weights are untrained: what is measured is the search, not what it finds.
"""

import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import train_hf_mt
import train_marian
from datasets import Dataset
from meter import read_job
from torch.nn.utils.rnn import pad_sequence

from hf_mt.hardware import keep_freed_memory, map_in_threads
from hf_mt.search import BeamSearch, SearchOptions


def batches(job: dict[str, Any]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Source ids and masks (B, S), by length, longest first."""
    rows = Dataset.from_parquet(f"{job['text']}/ids.parquet")["input_ids"][: job["sentences"]]
    rows = sorted(map(torch.tensor, rows), key=len, reverse=True)
    groups = (rows[start : start + job["batch_size"]] for start in range(0, len(rows), job["batch_size"]))
    padded = [pad_sequence(group, batch_first=True) for group in groups]
    return [(ids, (ids != 0).long()) for ids in padded]


@torch.inference_mode()
def search(model: Any, job: dict[str, Any], batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    ids, mask = batch
    states = model.get_encoder()(ids, mask).last_hidden_state
    limits = torch.full((len(ids),), job["length"])
    beams = BeamSearch(model, states, mask, limits, SearchOptions(job["num_beams"]))
    beams.eos = torch.tensor([-1])  # nothing ends before the limit
    beams.run()


@torch.inference_mode()
def generate(model: Any, job: dict[str, Any], batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    length = {"max_new_tokens": job["length"], "min_new_tokens": job["length"]}
    model.generate(batch[0], attention_mask=batch[1], num_beams=job["num_beams"], **length)


def measure(job: dict[str, Any]) -> Callable[[Any], None]:
    if job["system"].startswith("Marian"):
        return partial(generate, train_marian.build(job).eval(), job)
    return partial(search, train_hf_mt.build({**job, "system": "hf_mt rope"}).eval(), job)


def main() -> None:
    job = read_job()
    torch.manual_seed(0)
    torch.set_num_threads(job["threads"])
    keep_freed_memory()
    work, inputs = measure(job), batches(job)
    run = map_in_threads if job["system"].endswith("threads") else map
    list(run(work, inputs[:2]))
    start = time.perf_counter()
    list(run(work, inputs))
    seconds = time.perf_counter() - start
    result = {"sentences_per_second": job["sentences"] / seconds, "seconds": seconds}
    Path(job["result"]).write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main()
