"""What one process or several make of the same training; test_processes.py calls `alone`, and launches `together`.

accelerate launch --config_file configs/accelerate/ddp_cpu.yaml tests/system/processes.py FOLDER some
"""

import gc
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any


sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import random_models
import torch
from accelerate import PartialState
from accelerate.utils import DistributedType, gather_object
from datasets import Dataset
from torch import Tensor
from torch.distributed import GradBucket
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    MarianConfig,
    MarianMTModel,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Seq2SeqTrainer,
    T5Config,
    T5ForConditionalGeneration,
    set_seed,
)

from hf_mt import HfMtConfig, HfMtForConditionalGeneration
from hf_mt.arguments import TranslationTrainingArguments
from hf_mt.batching import TranslationCollator
from hf_mt.errors import InputError
from hf_mt.model import POSITION_ENCODINGS
from hf_mt.scaling import STRATEGIES, size_of
from hf_mt.slices import describe_outputs
from hf_mt.training import TranslationTrainer


STEPS, BUDGET, VOCABULARY = 20, 96, 40
SIZES = {"d_model": 16, "encoder_attention_heads": 2, "decoder_attention_heads": 2, "vocab_size": VOCABULARY}
SIZES |= {"encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
NAMES = ("loss", "smoothed_loss", "grad_norm")


def ours(**settings: Any) -> PreTrainedModel:
    return HfMtForConditionalGeneration(
        HfMtConfig(**SIZES, **TOKENS, dropout=0.0, max_relative_position=4, max_position_embeddings=32, **settings)
    )


def marian() -> PreTrainedModel:
    return MarianMTModel(MarianConfig(**SIZES, **TOKENS, dropout=0.0, forced_eos_token_id=None))


def t5() -> PreTrainedModel:
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2, "dropout_rate": 0.0}
    return T5ForConditionalGeneration(
        T5Config(vocab_size=VOCABULARY, **sizes, pad_token_id=0, decoder_start_token_id=0)
    )


PRETRAINED: dict[str, Callable[[], PreTrainedModel]] = {"marian": marian, "t5_of_transformers": t5}
ALL = [(name, smoothing) for name in (*POSITION_ENCODINGS, *PRETRAINED) for smoothing in (0.0, 0.1)]
SOME = [(name, smoothing) for name, smoothing in ALL if smoothing or name in ("rope", "marian")]
CASES = {"all": ALL, "some": SOME}
ACCUMULATED = {"all": ALL, "some": [case for case in SOME if case[0] in ("rope", "marian")]}  # test_training has more
SHARDED = {"all": [*POSITION_ENCODINGS, *PRETRAINED], "some": ["fire", "marian"]}


def build(name: str, smoothing: float = 0.0) -> PreTrainedModel:
    set_seed(3)
    own = name not in PRETRAINED
    return ours(position_encoding=name, label_smoothing=smoothing) if own else PRETRAINED[name]()


@cache
def rows(pairs: int, longest: int, seed: int = 0) -> Dataset:
    """Random words of lengths like those of real pairs: a long tail, and sides that differ by some tenths."""
    rng = np.random.default_rng(seed)
    source = rng.poisson(rng.gamma(4.0, longest / 16, pairs)) + 2
    target = np.maximum(2, source * rng.normal(1.1, 0.2, pairs)).astype(int)
    lengths = np.minimum(np.stack([source, target], axis=1), longest)  # (N, 2)
    words = [[[*rng.integers(4, VOCABULARY, length - 1).tolist(), 2] for length in pair] for pair in lengths]
    columns = {"input_ids": [pair[0] for pair in words], "labels": [pair[1] for pair in words]}
    return Dataset.from_dict({**columns, "length": lengths.tolist(), "index": list(range(pairs))})


def with_sentences(data: Dataset, tokenizer: PreTrainedTokenizerBase) -> Dataset:
    texts = {name: tokenizer.batch_decode(data[key][:], skip_special_tokens=True)
             for name, key in (("source", "input_ids"), ("target", "labels"))}  # fmt: skip
    return data.add_column("source", texts["source"]).add_column("target", texts["target"])


def arguments(folder: Path, **changes: Any) -> TranslationTrainingArguments:
    settings = {"max_steps": STEPS, "tokens_per_batch": BUDGET, "learning_rate": 1e-3, "warmup_steps": 0}
    settings |= {"lr_scheduler_type": "constant", "logging_steps": 1, "eval_strategy": "no", "save_strategy": "no"}
    settings |= {"load_best_model_at_end": False, "use_cpu": True, "disable_tqdm": True, "num_samples_shown": 0}
    return TranslationTrainingArguments(output_dir=str(folder), **{**settings, **changes})


def trainer(model: PreTrainedModel, args: TranslationTrainingArguments, **more: Any) -> TranslationTrainer:
    more = {"train_dataset": rows(120, 16), **more}
    return TranslationTrainer(model, args, random_models.word_tokenizer(), **more)


def curve(run: TranslationTrainer) -> list[list[float]]:
    return [[row[name] for name in NAMES] for row in run.state.log_history if "smoothed_loss" in row]


def curves(folder: Path, cases: Sequence[tuple[str, float]], **changes: Any) -> dict[str, list[list[float]]]:
    """Losses and gradient norms of each step, for every encoding and for models of others, in double precision."""
    found = {}
    for name, smoothing in cases:
        args = arguments(folder, **changes)
        run = trainer(build(name, smoothing).double(), args, label_smoothing=smoothing)
        run.train()
        found[f"{name} {smoothing}"] = curve(run)
    return found


def stock_norm(folder: Path) -> float:
    """The first gradient norm of Marian under `Seq2SeqTrainer`, on 16 pairs shared by the processes."""
    set_seed(3)
    args = arguments(folder, max_steps=1)
    args.per_device_train_batch_size = 16 // args.world_size
    data = rows(16, 16).remove_columns(["length", "index"])
    run = Seq2SeqTrainer(marian(), args, TranslationCollator(random_models.word_tokenizer()), data)
    run.train()
    return run.state.log_history[0]["grad_norm"]


def batches(folder: Path, pairs: int, epoch: int) -> list[list[tuple[list[int], int]]]:
    """For each process its micro-batches of an epoch: which pairs, and how many padded tokens on both sides."""
    run = trainer(build("none"), arguments(folder, tokens_per_batch=1024), train_dataset=rows(pairs, 100))
    collate = run.data_collator
    run.data_collator = lambda some: {**collate(some), "index": torch.tensor([row["index"] for row in some])}
    loader = run.get_train_dataloader()
    run.train_sampler.set_epoch(epoch)
    dealt = [(batch["index"].tolist(), batch["input_ids"].numel() + batch["labels"].numel()) for batch in loader]
    return gather_object([dealt])


def evaluation(folder: Path) -> dict[str, Any]:
    """Scores and translations of 13 sentences; every other reference is what the model says."""
    set_seed(3)
    model, tokenizer = random_models.MODELS["rope"][2](), random_models.word_tokenizer()
    data = with_sentences(rows(13, 12, seed=4).remove_columns("index"), tokenizer)
    run = trainer(model, arguments(folder, eval_tokens_per_batch=40), eval_dataset=data, score=describe_outputs)
    predictions = run.predict(data).predictions
    known = [text if row % 2 else data["target"][row] for row, text in enumerate(predictions)]
    metrics = run.evaluate(data.remove_columns("target").add_column("target", known))
    scores = {name: value for name, value in metrics.items() if not name.endswith(("runtime", "per_second"))}
    return {"scores": scores, "predictions": predictions}


# ---- shards


@contextmanager
def sharding(**options: str) -> Iterator[None]:
    """Within the block Accelerate shards with FSDP2, over gloo.

    Accelerate 1.15 shards on accelerators only, and on processors leaves the plugin out. So the processes say that
    they are what it shards; its code, the trainer's and ours then run as they do on GPUs.
    """
    options = {"VERSION": "2", "STATE_DICT_TYPE": "FULL_STATE_DICT", "RESHARD_AFTER_FORWARD": "true", **options}
    names = {"ACCELERATE_USE_FSDP": "true", **{f"FSDP_{name}": value for name, value in options.items()}}
    plain = PartialState.__init__

    def on_a_processor(self: PartialState, *args: Any, **kwargs: Any) -> None:
        plain(self, *args, **kwargs)
        if self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type = DistributedType.MULTI_GPU

    os.environ.update(names)
    PartialState.__init__ = on_a_processor  # type: ignore[method-assign]
    try:
        yield
    finally:
        PartialState.__init__ = plain  # type: ignore[method-assign]
        for name in names:
            del os.environ[name]


def refusal(folder: Path, **changes: Any) -> str:
    """What a trainer says that cannot be had."""
    try:
        trainer(build("none"), arguments(folder, **changes))
    except InputError as error:
        return str(error)
    return ""


KEPT = {"max_steps": 9, "save_strategy": "steps", "save_steps": 3, "eval_strategy": "steps", "eval_steps": 3}
KEPT |= {"load_best_model_at_end": True, "metric_for_best_model": "loss", "ema_decay": 0.9, "average_checkpoints": 2}
KEPT |= {"predict_with_generate": False}


def kept(folder: Path, checkpoint: str | None = None) -> dict[str, Any]:
    """A run with everything that is kept or loaded: moving average, checkpoints, the best of them, their mean."""
    data = with_sentences(rows(13, 12, seed=4).remove_columns("index"), random_models.word_tokenizer())
    run = trainer(build("t5"), arguments(folder, **KEPT), eval_dataset=data, score=describe_outputs)
    run.train(resume_from_checkpoint=checkpoint)
    run.save_model(str(folder / "model"), _internal_call=True)
    shares = [_held(weight) / weight.numel() for weight in run.model.parameters()]
    evaluated = [row["eval_loss"] for row in run.state.log_history if "eval_loss" in row]
    run.args.predict_with_generate = True
    return {"curve": curve(run), "evaluated": evaluated, "shares": shares, "texts": run.predict(data).predictions}


def _held(weight: Tensor) -> int:
    return weight.to_local().numel() if isinstance(weight, DTensor) else weight.numel()


class Traffic(TorchDispatchMode):
    """Counts the numbers that are gathered and scattered, and how often, while a trainer runs; gradients by a hook."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = self.messages = self.averaged = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        names = {"_allgather_base_": 0, "_reduce_scatter_base_": 1}  # where the whole tensor is among the arguments
        place = names.get(func.__name__.split(".")[0])
        if place is not None:
            self.numbers, self.messages = self.numbers + args[place].numel(), self.messages + 1
        return func(*args, **(kwargs or {}))

    def average(self, state: None, bucket: GradBucket) -> torch.futures.Future[Tensor]:
        self.averaged += bucket.buffer().numel()
        return allreduce_hook(None, bucket)


def traffic(folder: Path) -> dict[str, list[float]]:
    """Numbers and messages of a step, counted and as `hf_mt.scaling` has them."""
    counted, run = Traffic(), trainer(build("rope"), arguments(folder, max_steps=2))
    begin = run.callback_handler.on_train_begin

    def hooked(*args: Any) -> Any:
        if hasattr(run.model_wrapped, "register_comm_hook"):
            run.model_wrapped.register_comm_hook(None, counted.average)
        return begin(*args)

    run.callback_handler.on_train_begin = hooked
    with counted:
        run.train()
    size = size_of("rope", run.model.config)
    ddp, _, fsdp = STRATEGIES
    computed = [ddp.sent(size) / 8, fsdp.sent(size) / 2, fsdp.messages(size)]  # 2 x 4 bytes a number, and 2
    return {"computed": computed, "counted": [counted.averaged / 2, counted.numbers / 2, counted.messages / 2]}


def shards(folder: Path, cases: str) -> dict[str, Any]:
    """The same trainings with whole weights and with sharded ones, and what is refused."""
    found: dict[str, Any] = {"whole": {}, "sharded": {}, "kept whole": kept(folder / "whole")}
    found["muon with whole weights"] = refusal(folder, muon=True)
    for name in SHARDED[cases]:
        run = trainer(build(name), arguments(folder))
        run.train()
        found["whole"][name] = curve(run)
    os.environ["ACCELERATE_USE_FSDP"] = "true"
    found["left out"] = refusal(folder)
    os.environ["ACCELERATE_USE_FSDP"] = "false"
    found["whole traffic"] = traffic(folder)
    with sharding():
        found["traffic"] = traffic(folder)
        for name in SHARDED[cases]:
            run = trainer(build(name), arguments(folder))
            run.train()
            found["sharded"][name] = curve(run)
        run = trainer(build("fire"), arguments(folder, bf16=True))
        run.train()
        found["in bfloat16"] = curve(run)
        found["kept"] = kept(folder / "sharded")
        found["resumed"] = kept(folder / "resumed", str(folder / "sharded" / "checkpoint-6"))
        found["muon"] = refusal(folder, muon=True)
    with sharding(VERSION="1", RESHARD_AFTER_FORWARD="FULL_SHARD"):
        found["version 1"] = refusal(folder)
    with sharding(STATE_DICT_TYPE="SHARDED_STATE_DICT"):
        found["shards in checkpoints"] = refusal(folder)
    return found


def alone(folder: Path, cases: str) -> dict[str, Any]:
    """What one process finds: the same steps, by accumulation and by larger batches."""
    return {
        "accumulated": curves(folder / "accumulated", ACCUMULATED[cases], gradient_accumulation_steps=2),
        "doubled": curves(folder / "doubled", CASES[cases], tokens_per_batch=2 * BUDGET),
        "stock": stock_norm(folder / "stock"),
        "evaluation": evaluation(folder / "evaluation"),
    }


def together(folder: Path, cases: str) -> dict[str, Any]:
    """What several processes find."""
    return {
        "curves": curves(folder / "curves", CASES[cases]),
        "stock": stock_norm(folder / "stock"),
        "batches": [batches(folder / "batches", 6001, epoch) for epoch in (0, 1)],
        "evaluation": evaluation(folder / "evaluation"),
        "shards": shards(folder / "shards", cases),
    }


def main(folder: Path, cases: str) -> None:
    state = PartialState(cpu=True)
    torch.set_num_threads(1)
    gc.freeze()  # each trainer collects garbage, and need not look through all that is imported
    found = together(folder, cases)
    if state.is_main_process:
        (folder / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
