"""A rehearsal of a run: everything is built and used once, nothing stays.

Three optimizer steps, a few translations, a save and a reload, in a folder that is deleted; then what the real run
will be like. `--dry_run` costs seconds and finds what would otherwise be found at the end of the first epoch.
"""

import math
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForSeq2SeqLM, TrainerCallback
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from hf_mt.batching import padding_share, training_sampler
from hf_mt.data import SegmentedPairs, pair_lengths
from hf_mt.early_stopping import EarlyStopping
from hf_mt.losses import LateRDrop
from hf_mt.sharding import whole_model
from hf_mt.training import TranslationTrainer


STEPS = 3  # the first is slow: memory is taken, kernels are chosen
SHOWN_PAIRS = 3


class _StepTimes(TrainerCallback):
    """The clock at the end of each step."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.ends.append(time.perf_counter())


def dry_run(trainer: TranslationTrainer) -> str:
    """Rehearses the run that a trainer is ready for; the trainer is of no use afterwards.

    Returns:
        A report for a person: tokenised pairs, batches, steps, expected minutes, memory.

    Raises:
        RuntimeError: The saved model, loaded again, is not the model that was saved.
    """
    pairs = trainer.train_dataset if trainer.stream is None else trainer.stream.stream.beginning()
    report = [*_tokenised_pairs(trainer, pairs), "", *_batches(trainer, pairs)]
    steps, output_dir = _planned_steps(trainer), trainer.args.output_dir
    with tempfile.TemporaryDirectory() as folder:
        seconds = _seconds_a_step(trainer, folder)
        report += [*_translations(trainer), *_reload(trainer, folder, pairs)]
    with suppress(OSError):  # transformers makes the folder of the run
        Path(output_dir).rmdir()
    minutes = steps * seconds / 60
    report.append(f"steps     {steps:,} of {seconds:.2f} s: about {minutes:,.1f} minutes, evaluations not counted")
    peak = f"{_peak_gibibytes():.2f} GiB at the peak of these {STEPS} steps"
    report.append(f"memory    {peak}; an evaluation may take more")
    return "\n".join(report)


def _tokenised_pairs(trainer: TranslationTrainer, pairs: Dataset | SegmentedPairs) -> list[str]:
    lines = []
    for row in (pairs[index] for index in range(min(SHOWN_PAIRS, len(pairs)))):
        for name, key in (("source", "input_ids"), ("target", "labels")):
            tokens = trainer.tokenizer.convert_ids_to_tokens(row[key])
            lines.append(f"{name}    {len(tokens)} tokens: " + "|".join(tokens))
    return lines


def _batches(trainer: TranslationTrainer, pairs: Dataset | SegmentedPairs) -> list[str]:
    lengths = pair_lengths(pairs)
    batches = list(training_sampler(lengths, trainer.args))
    size = sum(map(len, batches)) / len(batches)
    number = f"{len(batches):,} an epoch" if trainer.stream is None else "as of the first pairs"
    return [
        f"batches   {number}, {size:.1f} pairs and {lengths[..., 1].mean() * size:,.0f} target tokens each, "
        f"{padding_share(lengths, batches):.1%} padding",
        f"model     {sum(weight.numel() for weight in trainer.model.parameters()):,} parameters",
    ]


def _planned_steps(trainer: TranslationTrainer) -> int:
    args = trainer.args
    if args.max_steps > 0:
        return args.max_steps
    parts = args.world_size * args.gradient_accumulation_steps
    return math.ceil(args.num_train_epochs * len(training_sampler(pair_lengths(trainer.train_dataset), args)) / parts)


def _seconds_a_step(trainer: TranslationTrainer, folder: str) -> float:
    args, times = trainer.args, _StepTimes()
    args.output_dir, args.max_steps = folder, STEPS
    args.eval_strategy, args.save_strategy, args.load_best_model_at_end = IntervalStrategy.NO, SaveStrategy.NO, False
    args.average_checkpoints, args.disable_tqdm, args.eval_on_start = 0, True, False
    for unwanted in (EarlyStopping, LateRDrop):  # R-Drop from the first step on takes the memory that it will take
        trainer.remove_callback(unwanted)
    trainer.add_callback(times)
    trainer.train()
    plain = args.r_drop_start / 2  # without R-Drop a step takes half as long
    return (1 - plain) * (times.ends[-1] - times.ends[0]) / max(len(times.ends) - 1, 1)


def _translations(trainer: TranslationTrainer) -> list[str]:
    if trainer.eval_dataset is None:
        return ["translated nothing: there is no development set"]
    few = trainer.eval_dataset.select(range(min(SHOWN_PAIRS, len(trainer.eval_dataset))))
    start = time.perf_counter()
    translations = trainer.predict(few, num_beams=trainer.args.num_beams).predictions
    return [f"translated {len(translations)} sentences with {trainer.args.num_beams} beams in "
            f"{time.perf_counter() - start:.1f} s"]  # fmt: skip


@torch.no_grad()
def _reload(trainer: TranslationTrainer, folder: str, pairs: Dataset | SegmentedPairs) -> list[str]:
    trainer.save_model(folder, _internal_call=True)
    plain = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)  # without autocast
    model = whole_model(plain).cpu().eval()
    if not trainer.is_world_process_zero():
        return []
    kernel = model.config._attn_implementation
    again = AutoModelForSeq2SeqLM.from_pretrained(folder, attn_implementation=kernel).eval()
    batch = trainer.data_collator([pairs[0]])
    if not torch.equal(model(**batch).logits, again(**batch).logits):
        raise RuntimeError("the model that was saved and loaded again gives other scores")
    return ["saved and loaded again: the same scores"]


def _peak_gibibytes() -> float:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    import resource  # which Windows lacks

    unit = 1 if sys.platform == "darwin" else 1024  # getrusage counts bytes there, kibibytes elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
