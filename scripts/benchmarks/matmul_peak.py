"""What this machine's matrix products reach: at 2048 x 2048 x 2048, and at the shapes of a training step.

The peak at the shapes in use is the arithmetic of a step over the time of its products alone, each at its best:
forward, gradient of the input and gradient of the weight of every linear layer, and of the vocabulary by slices.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from meter import read_job

from hf_mt.hardware import keep_freed_memory
from hf_mt.model.loss_hf_mt import SLICE_ELEMENTS


def best_seconds(work: Callable[[], Any], repeats: int = 7) -> float:
    work()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def product(rows: int, inner: int, columns: int) -> tuple[float, float]:
    """Arithmetic and seconds of a linear layer's three products for so many tokens."""
    x, weight, gradient = torch.randn(rows, inner), torch.randn(columns, inner), torch.randn(rows, columns)
    works = (lambda: x @ weight.T, lambda: gradient @ weight, lambda: gradient.T @ x)
    return 6.0 * rows * inner * columns, sum(best_seconds(work) for work in works)


def layers(job: dict[str, Any]) -> list[tuple[int, int, int, int]]:
    """How many linear layers of which shape (tokens, width in, width out) a step has, without the vocabulary."""
    size, source, target = job["size"], job["source_tokens"], job["target_tokens"]
    width, ffn, encoder, decoder = (size[key] for key in ("d_model", "ffn_dim", "encoder_layers", "decoder_layers"))
    return [
        (4 * encoder + 2 * decoder, source, width, width),
        (encoder, source, width, ffn),
        (encoder, source, ffn, width),
        (6 * decoder, target, width, width),
        (decoder, target, width, ffn),
        (decoder, target, ffn, width),
    ]


def main() -> None:
    job = read_job()
    torch.set_num_threads(job["threads"])
    keep_freed_memory()
    square = torch.randn(2048, 2048)
    square_flops = 2 * 2048**3 / best_seconds(lambda: square @ square)
    size, rows = job["size"], max(1, SLICE_ELEMENTS // job["size"]["vocab_size"])
    totals = [
        [count * value for value in product(tokens, inner, outer)] for count, tokens, inner, outer in layers(job)
    ]
    slices = job["target_tokens"] / rows
    totals.append([slices * value for value in product(rows, size["d_model"], size["vocab_size"])])
    flops, seconds = (sum(column) for column in zip(*totals, strict=True))
    result = {
        "square_gflops": square_flops / 1e9,
        "shapes_gflops": flops / seconds / 1e9,
        "gflop_per_target_token": flops / job["target_tokens"] / 1e9,
    }
    Path(job["result"]).write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main()
