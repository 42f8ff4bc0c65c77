"""Sentences a second of our search or of Marian's `generate`, the length of every translation being forced.

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
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import LogitsProcessor, LogitsProcessorList

from hf_mt.hardware import keep_freed_memory, map_in_threads
from hf_mt.search import BeamSearch, SearchOptions


def batches(job: dict[str, Any]) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Source ids and masks (B, S), by length, longest first, and how many tokens (B,) each translation is to have."""
    pairs = Dataset.from_parquet(f"{job['text']}/ids.parquet")[: job["sentences"]]
    lengths = [job["length"] or len(labels) for labels in pairs["labels"]]
    rows = sorted(zip(map(torch.tensor, pairs["input_ids"]), lengths, strict=True), key=lambda row: -len(row[0]))
    groups = (rows[start : start + job["batch_size"]] for start in range(0, len(rows), job["batch_size"]))
    padded = [(pad_sequence([ids for ids, _ in group], batch_first=True), group) for group in groups]
    return [(ids, (ids != 0).long(), torch.tensor([length for _, length in group])) for ids, group in padded]


class EndAt(LogitsProcessor):
    """Lets the end of a sentence be the last of its tokens, (B,) in number, and no other."""

    def __init__(self, lengths: Tensor, eos: int):
        self.lengths, self.eos = lengths, eos

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        lengths = self.lengths.repeat_interleave(len(scores) // len(self.lengths))
        last = input_ids.shape[1] >= lengths  # the start token counts for the one that is to come
        scores[:, self.eos] = -torch.inf
        scores[last] = -torch.inf
        scores[last, self.eos] = 0.0
        return scores


@torch.inference_mode()
def search(model: Any, job: dict[str, Any], batch: tuple[Tensor, Tensor, Tensor]) -> list[int]:
    """How many tokens the best translation of each sentence has."""
    ids, mask, lengths = batch
    states = model.get_encoder()(ids, mask).last_hidden_state
    beams = BeamSearch(model, states, mask, lengths, SearchOptions(job["num_beams"]))
    beams.eos = torch.tensor([-1])  # nothing ends before the limit
    return [len(found[0][0]) for found in beams.run()]


@torch.inference_mode()
def generate(model: Any, job: dict[str, Any], batch: tuple[Tensor, Tensor, Tensor]) -> list[int]:
    """How many tokens the translation of each sentence has."""
    ids, mask, lengths = batch
    eos = model.config.eos_token_id
    rules = LogitsProcessorList([EndAt(lengths, eos)])
    limit = {"max_new_tokens": int(lengths.max()), "num_beams": job["num_beams"]}
    rows = model.generate(ids, attention_mask=mask, logits_processor=rules, **limit)
    return [row.index(eos) for row in rows.tolist()]


def measure(job: dict[str, Any]) -> Callable[[Any], list[int]]:
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
    lengths = list(run(work, inputs))
    seconds = time.perf_counter() - start
    if lengths != [wanted.tolist() for _, _, wanted in inputs]:
        raise RuntimeError("the translations don't have the lengths that were asked for")
    result = {"sentences_per_second": job["sentences"] / seconds, "seconds": seconds}
    Path(job["result"]).write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main()
