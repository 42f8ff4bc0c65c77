"""What a training step of a model takes on this machine: forward, backward and the optimizer, nothing else."""

import time
from collections.abc import Callable

import torch
from torch import Tensor

from hf_mt.hardware import multiplies_bfloat16
from hf_mt.model import HfMtConfig, HfMtForConditionalGeneration


SENTENCE = 25  # tokens


def random_batch(config: HfMtConfig, tokens: int, device: torch.device) -> dict[str, Tensor]:
    """Sentences of 25 random tokens without padding, `tokens` on either side: (sentences, 25) each."""
    shape = (max(1, tokens // SENTENCE), min(tokens, SENTENCE))
    source, target = torch.randint(4, config.vocab_size, (2, *shape), device=device)
    return {"input_ids": source, "attention_mask": torch.ones_like(source), "labels": target}


def training_step(config: HfMtConfig, tokens: int, device: torch.device) -> Callable[[], None]:
    """A step of a new model: in bfloat16 where the device multiplies it, with AdamW in one kernel.

    What the trainer adds to it, such as reading data, clipping and logging, is left out.
    """
    model = HfMtForConditionalGeneration(config).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    batch = random_batch(config, tokens, device)

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=multiplies_bfloat16(device)):
            loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def seconds_of(work: Callable[[], None], device: torch.device, repeats: int = 20) -> float:
    """Seconds that `work` takes when it follows itself: mean of the repeats, after three that warm up."""
    for _ in range(3):
        work()
    _wait(device)
    start = time.perf_counter()
    for _ in range(repeats):
        work()
    _wait(device)
    return (time.perf_counter() - start) / repeats


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def measured_step(config: HfMtConfig, tokens: int, device: torch.device, repeats: int = 20) -> float:
    """Seconds of a step with so many source tokens and as many target tokens."""
    return seconds_of(training_step(config, tokens, device), device, repeats)
