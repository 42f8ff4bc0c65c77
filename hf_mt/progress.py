"""What a person sees while a model trains: a bar, and at each evaluation a line and a few translations.

- The meter counts on the device and is read rarely: a step never waits for it.
- Speed is that of training alone, in target tokens without padding; evaluation and saving have their own seconds.
- The same sentences are shown each time, printed and written to `samples.jsonl`.
"""

import json
import math
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
import torch
from accelerate import Accelerator
from datasets import Dataset
from torch import Tensor
from tqdm.auto import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState
from transformers.utils import logging as transformers_logging

from hf_mt.arguments import TranslationTrainingArguments, bleu_of
from hf_mt.errors import visible
from hf_mt.model.loss_hf_mt import LossSums
from hf_mt.text_files import write_whole
from hf_mt.tracking import log_samples


SAMPLE_TEXTS = ("source", "reference", "hypothesis")
SHOWN_CHARACTERS = 160
READERS = ("log", "evaluation")


class Meter:
    """Sums over training batches: loss, right guesses, tokens and padding of both sides, and seconds.

    Args:
        device: Where the sums of batches are.
    """

    def __init__(self, device: torch.device):
        self._window = torch.zeros(4, device=device)  # nll, right guesses, target tokens, source tokens
        self._cells = [0, 0]  # of target and source, padding included
        # for each reader since it last asked: the window's, the cells' and seconds; apart, so that a NaN is told once
        self._unread = {reader: torch.zeros(7, dtype=torch.float64) for reader in READERS}
        self._began = False
        self._start = time.perf_counter()

    def add(self, sums: LossSums, batch: Mapping[str, Tensor]) -> None:
        """Counts one micro-batch."""
        if not self._began:
            self._start, self._began = time.perf_counter(), True  # what came before is not training
        source_tokens = batch["attention_mask"].sum()
        self._window += torch.stack((sums.nll, sums.num_correct, sums.num_tokens, source_tokens))
        self._cells[0] += batch["labels"].numel()
        self._cells[1] += batch["attention_mask"].numel()

    def pause(self, seconds: float) -> None:
        """Leaves out seconds that were spent on something else."""
        self._start += seconds

    def read(self, accelerator: Accelerator, reader: str = "log") -> dict[str, float]:
        """What happened since the same reader last asked, over all processes; call it on each of them."""
        self.drain(accelerator)
        nll, num_correct, tokens, source_tokens, cells, source_cells, seconds = self._unread[reader].tolist()
        self._unread[reader].zero_()
        tokens = max(tokens, 1.0)
        return {
            "loss": nll / tokens,
            "perplexity": math.exp(min(nll / tokens, 700)),
            "accuracy": num_correct / tokens,
            "target_tokens_per_second": tokens / max(seconds, 1e-9),
            "padding_share": 1 - (tokens + source_tokens) / max(cells + source_cells, 1),
            "train_seconds": seconds,
        }

    def unread(self) -> dict[str, list[float]]:
        """What no reader has asked for yet, for a checkpoint; `drain` it first."""
        return {reader: values.tolist() for reader, values in self._unread.items()}

    def go_on(self, unread: Mapping[str, list[float]]) -> None:
        """Begins with what `unread` gave, as in the checkpoint that training goes on from."""
        for reader, values in unread.items():
            self._unread[reader] = torch.tensor(values, dtype=torch.float64)

    def drain(self, accelerator: Accelerator) -> None:
        """Takes the sums from the device; call it on each process."""
        cells = torch.tensor(self._cells, dtype=torch.float32, device=self._window.device)
        counts = accelerator.reduce(torch.cat((self._window, cells))).cpu().double()  # MPS has none
        now = time.perf_counter()
        counts = torch.cat((counts, torch.tensor([now - self._start if self._began else 0.0])))
        for unread in self._unread.values():
            unread += counts
        self._window.zero_()
        self._cells, self._start = [0, 0], now


class ProgressLines(TrainerCallback):
    """Bars where somebody watches a terminal; lines and samples everywhere.

    Args:
        eval_dataset: Development set with `source` and `target` texts, or None.
    """

    def __init__(self, eval_dataset: Dataset | None):
        self.eval_dataset = eval_dataset
        self.bar: tqdm | None = None
        self.training: Mapping[str, float] = {}  # set by the trainer: what its meter read since the last evaluation
        self.translations: list[str] = []  # set by the trainer: of the last evaluation

    def on_train_begin(
        self, args: TranslationTrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero:
            hidden = True if args.disable_tqdm else None  # None: hidden unless stderr is a terminal
            self.bar = tqdm(total=state.max_steps, initial=state.global_step, unit="step", disable=hidden)

    def on_step_end(
        self, args: TranslationTrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.bar is not None:
            self.bar.update(state.global_step - self.bar.n)

    def on_train_end(
        self, args: TranslationTrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None

    def on_evaluate(
        self,
        args: TranslationTrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: Mapping[str, float],
        **kwargs: Any,
    ) -> None:
        if self.bar is None or not state.is_world_process_zero:
            return
        samples = self._samples(args.num_samples_shown, state)
        learning_rate = next(
            (row["learning_rate"] for row in reversed(state.log_history) if "learning_rate" in row), 0
        )
        lines = [epoch_line(state, self.training, metrics, learning_rate)]
        lines += [f"    {name:<10} {_shown(row[name])}" for row in samples for name in SAMPLE_TEXTS]
        tqdm.write("\n".join(lines))
        write_samples(Path(args.output_dir) / "samples.jsonl", samples, state.global_step)
        if "wandb" in (args.report_to or ()):
            log_samples(samples)

    def _samples(self, number: int, state: TrainerState) -> list[dict[str, Any]]:
        """Sentences spread evenly over the development set, the same each time."""
        if self.eval_dataset is None or not self.translations:
            return []
        size = len(self.eval_dataset)
        rows = []
        for index in (size * part // number for part in range(min(number, size))):
            pair = self.eval_dataset[index]
            row = {"step": state.global_step, "epoch": state.epoch}
            row |= {"source": pair["source"], "reference": pair["target"], "hypothesis": self.translations[index]}
            rows.append(row)
        return rows


def _shown(text: str) -> str:
    """A sentence that fits a line or two of a terminal; `samples.jsonl` has it whole."""
    whole = visible(text)
    return whole if len(whole) <= SHOWN_CHARACTERS else f"{whole[:SHOWN_CHARACTERS]}... ({len(whole)} characters)"


def epoch_line(
    state: TrainerState, training: Mapping[str, float], metrics: Mapping[str, float], learning_rate: float
) -> str:
    """One evaluation in one line: training since the last one, then the development set."""
    parts = [f"epoch {state.epoch or 0:6.2f}  step {state.global_step:6d}"]
    if training:
        parts.append("train " + _quality(training))
        speed = f"{training['target_tokens_per_second']:,.0f} target tokens/s"
        parts.append(f"lr {learning_rate:.2e}  {speed}  {training['padding_share']:.1%} padding")
    dev = "dev " + _quality({name.removeprefix("eval_"): value for name, value in metrics.items()})
    bleu = f"eval_{bleu_of(metrics)}"
    if bleu in metrics:
        dev += f"  BLEU {metrics[bleu]:.2f}"
        best = max(row[bleu] for row in state.log_history if bleu in row)
        dev += " (best so far)" if metrics[bleu] >= best else f" (best {best:.2f})"
    parts.append(dev)
    if metrics.get("eval_cut_off", 0) > 0.01:
        parts.append(f"{metrics['eval_cut_off']:.1%} of translations hit their length limit")
    parts.append(f"{metrics.get('eval_runtime', 0):.0f} s to evaluate")
    return " | ".join(parts)


def quiet_libraries() -> None:
    """Leaves the terminal to us: no bars of transformers, and those of datasets only where somebody watches; warnings
    from the first process of a machine alone.
    """
    first = os.environ.get("LOCAL_RANK", "0") == "0"
    transformers_logging.disable_progress_bar()
    if not (first and sys.stderr.isatty()):
        datasets.disable_progress_bars()
    if not first:
        transformers_logging.set_verbosity_error()


def _quality(numbers: Mapping[str, float]) -> str:
    return f"loss {numbers['loss']:.3f}  ppl {numbers['perplexity']:.4g}  acc {numbers['accuracy']:.1%}"


def write_samples(path: Path, samples: list[dict[str, Any]], step: int) -> None:
    """Adds rows to a JSONL file, in place of those of the same or a later step (a resumed run repeats some)."""
    kept = []
    if path.is_file():
        kept = [line for line in path.read_text("utf-8").split("\n")[:-1] if json.loads(line)["step"] < step]
    lines = kept + [json.dumps(row, ensure_ascii=False) for row in samples]
    write_whole(path, "".join(f"{line}\n" for line in lines))
