"""What only a GPU can show: skipped where there is none, and the last tests where there is one.

pytest -m gpu
"""

import copy
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from hf_mt import HfMtForConditionalGeneration
from hf_mt.arguments import DataArguments
from hf_mt.averaging import MovingAverage
from hf_mt.corpora import toy_corpus
from hf_mt.data import prepare_data
from hf_mt.generation import generate_batch, sequence_log_probs
from hf_mt.model import POSITION_ENCODINGS
from hf_mt.tokenization import train_tokenizer


ROOT = Path(__file__).parents[2]
DEVICE = "cuda"
BATCH = {
    "input_ids": torch.tensor([[5, 6, 7, 8, 9, 10, 2, 3], [11, 12, 13, 2, 0, 0, 0, 0]]),
    "attention_mask": torch.tensor([[1, 1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0, 0, 0]]),
    "labels": torch.tensor([[20, 21, 22, 23, 2], [24, 25, 2, -100, -100]]),
}
WIDE = {"d_model": 64, "encoder_attention_heads": 2, "decoder_attention_heads": 2}  # heads that fast kernels take
KERNELS = {"flash": SDPBackend.FLASH_ATTENTION, "efficient": SDPBackend.EFFICIENT_ATTENTION, "plain": SDPBackend.MATH}

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(DEVICE == "cuda" and not torch.cuda.is_available(), reason="there is no GPU"),
]
Build = Callable[..., HfMtForConditionalGeneration]


def on_device(model: nn.Module) -> tuple[nn.Module, dict[str, Tensor]]:
    return copy.deepcopy(model).to(DEVICE), {name: value.to(DEVICE) for name, value in BATCH.items()}


@pytest.mark.parametrize("name", sorted(POSITION_ENCODINGS))
def test_a_gpu_computes_what_a_processor_does(name: str, tiny_model: Build) -> None:
    model = tiny_model(position_encoding=name)
    expected = model(**BATCH)
    there, batch = on_device(model)
    found = there(**batch)
    torch.testing.assert_close(found.logits.cpu(), expected.logits, rtol=1e-3, atol=1e-3)
    other, _ = on_device(tiny_model(position_encoding=name, norm_position="post"))
    assert (other(**batch).logits.cpu() - expected.logits).abs().max() > 1e-2


@pytest.mark.parametrize("name", sorted(POSITION_ENCODINGS))
def test_bfloat16_learns_about_the_same_gradient(name: str, tiny_model: Build) -> None:
    gradients = []
    for half in (False, True):
        model, batch = on_device(tiny_model(position_encoding=name))
        with torch.autocast(DEVICE, torch.bfloat16, enabled=half):
            loss = model(**batch).loss
        loss.backward()
        gradients.append(
            torch.cat([weight.grad.flatten() for weight in model.parameters() if weight.grad is not None])
        )
    full, half = gradients
    assert full.dtype == half.dtype == torch.float32 and half.isfinite().all()
    assert 0 < (half - full).norm() < 0.1 * full.norm()


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("name", ["rope", "sinusoidal", "alibi", "t5"])
def test_every_kernel_of_sdpa_gives_the_scores_of_eager(name: str, kernel: str, tiny_model: Build) -> None:
    if kernel == "flash" and POSITION_ENCODINGS[name].uses_bias:
        pytest.skip("flash attention takes no bias")
    models = {
        which: on_device(tiny_model(position_encoding=name, **WIDE))[0].bfloat16() for which in ("eager", "sdpa")
    }
    batch = {
        name: value.to(DEVICE) for name, value in BATCH.items() if name != "attention_mask"
    }  # flash takes no mask
    for which, model in models.items():
        model.set_attn_implementation(which)
    expected = models["eager"](**batch).logits
    with sdpa_kernel(KERNELS[kernel]):
        found = models["sdpa"](**batch).logits
    gap = (found - expected).float().norm() / expected.float().norm()
    assert gap < 0.03
    batch["labels"] = batch["labels"].flip(1)
    other = models["sdpa"](**batch).logits
    assert (other - expected).float().norm() / expected.float().norm() > 2 * gap


@pytest.mark.parametrize("name", ["rope", "alibi"])
def test_compiled_layers_give_the_same_loss_and_gradient(name: str, tiny_model: Build) -> None:
    results = []
    for compiled in (False, True):
        model, batch = on_device(tiny_model(position_encoding=name))
        for layer in (*model.get_encoder().layers, *model.get_decoder().layers) if compiled else ():
            layer.compile()
        loss = model(**batch).loss
        loss.backward()
        results.append((float(loss), float(model.get_input_embeddings().weight.grad.norm())))
    assert results[0] == pytest.approx(results[1], rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_beam_search_gives_the_scores_of_the_model(dtype: torch.dtype, tiny_model: Build) -> None:
    model, batch = on_device(tiny_model(position_encoding="rope"))
    model, sources = model.to(dtype), (batch["input_ids"], batch["attention_mask"])
    with torch.no_grad():
        found = generate_batch(model, *sources, num_beams=3, num_return_sequences=2, return_scores=True)
        encoded = model.get_encoder()(*sources)
    start = model.config.decoder_start_token_id
    expected = sequence_log_probs(model, found.sequences, encoded, sources[1], start=start)
    lengths = torch.tensor([len(sequence) for sequence in found.sequences])
    torch.testing.assert_close(found.scores, expected / lengths, rtol=3e-2, atol=5e-2)
    assert (found.scores - expected).abs().max() > 0.1 and lengths.max() > 1


def test_half_precision_of_five_bits_of_exponent_learns_about_the_same_gradient(tiny_model: Build) -> None:
    gradients, scale = [], 1024  # of the loss, as the trainer's scaler has one
    for half in (False, True):
        model, batch = on_device(tiny_model())
        with torch.autocast(DEVICE, torch.float16, enabled=half):
            loss = model(**batch).loss
        (loss * scale).backward()
        found = [weight.grad.flatten() for weight in model.parameters() if weight.grad is not None]
        gradients.append(torch.cat(found) / scale)
    full, half = gradients
    assert full.dtype == half.dtype == torch.float32 and half.isfinite().all()
    assert 0 < (half - full).norm() < 0.05 * full.norm()


def waits(work: Callable[[], object]) -> int:
    """How often the processor waits for the GPU meanwhile."""
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            work()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("called a synchronizing" in str(warning.message) for warning in told)


@pytest.mark.parametrize("name", ["none", "rope", "sinusoidal", "alibi"])
def test_forward_and_backward_wait_for_the_gpu_three_times_at_most(name: str, tiny_model: Build) -> None:
    """Twice since transformers asks whether sources have padding, and once to know how many labels there are."""
    model, batch = on_device(tiny_model(position_encoding=name).train())
    model(**batch).loss.backward()
    assert waits(lambda: model(**batch).loss.backward()) <= 3
    assert waits(lambda: torch.tensor([1.0], device=DEVICE)) == waits(lambda: batch["labels"].any().item()) == 1


def test_the_moving_average_follows_a_model_that_is_moved_after_it(tiny_model: Build) -> None:
    model = tiny_model()
    average = MovingAverage(model, 0.9)
    model.to(DEVICE)
    with pytest.raises(RuntimeError, match="device"):
        average.update()
    average.follow()
    average.update()
    assert {weight.device.type for weight in average.weights.values()} == {DEVICE}


def toy_trainer(folder: Path, **changes: Any) -> Any:
    """A trainer on the GPU, of a tiny model with dropout."""
    from test_training import _with_dropout, arguments, trainer

    tokenizer = train_tokenizer(["0 1 2 3 4 5 6 7 8 9"], vocab_size=24)
    corpus = toy_corpus("copy", sizes={"train": 60, "validation": 13, "test": 7}, seed=1, max_digits=8)
    data = prepare_data(corpus, tokenizer, DataArguments(source_lang="src", target_lang="tgt"))
    run = trainer(_with_dropout(), data, tokenizer, arguments(folder, use_cpu=False, **changes))
    assert run.args.device.type == DEVICE
    return run


def test_a_run_that_is_resumed_goes_on_with_the_random_numbers_of_the_gpu(tmp_path: Path) -> None:
    settings = {"max_steps": 9, "tokens_per_batch": 64, "save_strategy": "steps", "save_steps": 6, "ema_decay": 0.9}
    whole = toy_trainer(tmp_path / "whole", **settings)
    whole.train()
    ends = [losses(whole)]
    for restores in (True, False):  # the second is the control
        again = toy_trainer(tmp_path / f"again-{restores}", **settings)
        if not restores:
            again._load_rng_state = lambda checkpoint: None
        again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-6"))
        ends.append(losses(again))
    assert len(ends[0]) == 3 and ends[1] == pytest.approx(ends[0], rel=1e-4)
    assert ends[2] != pytest.approx(ends[0], rel=1e-4)


def losses(run: Any) -> list[float]:
    """Of the last three steps."""
    return [row["loss"] for row in run.state.log_history if "smoothed_loss" in row][-3:]


def test_batches_are_copied_while_other_work_goes_on(tmp_path: Path) -> None:
    loader = toy_trainer(tmp_path).get_train_dataloader()
    next(iter(loader))
    assert waits(lambda: next(iter(loader))) == 0
    loader._non_blocking = False
    assert waits(lambda: next(iter(loader))) > 0


@pytest.mark.parametrize("profile", ["ddp", "fsdp"])
def test_two_gpus_learn_what_one_does(profile: str, tmp_path: Path) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("there is one GPU")
    from system.test_deepspeed import history, train

    one = train("single_gpu", tmp_path / "one", "--gradient_accumulation_steps", "2", processes=1)
    two = train(profile, tmp_path / "two")
    assert one[0] == two[0] == 0, (one[1][-3000:], two[1][-3000:])
    flat, expected = (sum(history(tmp_path / name), []) for name in ("two", "one"))
    assert flat == pytest.approx(expected, rel=1e-3)
    assert train(profile, tmp_path / "other", "--seed", "7")[0] == 0
    assert sum(history(tmp_path / "other"), []) != pytest.approx(expected, rel=1e-3)


def test_ddp_over_nccl_learns_what_one_process_does(tmp_path: Path) -> None:
    """On one GPU there is one process, but it joins a group, and DDP averages its gradients over NCCL."""
    from system.test_deepspeed import OPTIONS, history, train

    assert train("single_gpu", tmp_path / "one", processes=1)[0] == 0
    command = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "1", "scripts/train.py")
    words = [sys.executable, *command, str(tmp_path / "tiny.yaml"), "--output_dir", str(tmp_path / "group"), *OPTIONS]
    environment = os.environ | {"NCCL_DEBUG": "INFO"}
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "NCCL INFO" in done.stdout + done.stderr
    flat, expected = (sum(history(tmp_path / name), []) for name in ("group", "one"))
    assert flat == pytest.approx(expected, rel=1e-3)


def test_a_run_in_bfloat16_on_one_gpu_ends_with_a_model(tmp_path: Path) -> None:
    command = ("-m", "accelerate.commands.launch", "--quiet", "--config_file", "configs/accelerate/single_gpu.yaml")
    options = ("--cldr_train_size", "500", "--max_steps", "6", "--eval_steps", "3", "--save_steps", "3")
    words = [sys.executable, *command, "scripts/train.py", "configs/quickstart.yaml", *options]
    done = subprocess.run(
        [*words, "--output_dir", str(tmp_path / "run")], cwd=ROOT, env=os.environ, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "run" / "all_results.json").is_file()
