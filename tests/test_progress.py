"""What is counted and shown while a model trains."""

import json
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from transformers import TrainerState

from hf_mt.model.loss_hf_mt import LossSums
from hf_mt.progress import Meter, epoch_line, write_samples


def sums(nll: float, correct: float, tokens: float) -> LossSums:
    return LossSums(*(torch.tensor(value) for value in (9.0, nll, correct, tokens)))


def batch(source: list[list[int]], cells: int) -> dict[str, torch.Tensor]:
    return {"attention_mask": torch.tensor(source), "labels": torch.zeros(cells)}


def test_the_meter_weighs_batches_by_their_tokens() -> None:
    meter, accelerator = Meter(torch.device("cpu")), Accelerator()
    meter.add(sums(nll=8.0, correct=1.0, tokens=4.0), batch([[1, 1], [1, 0]], cells=6))
    meter.add(sums(nll=2.0, correct=3.0, tokens=6.0), batch([[1, 1], [1, 1]], cells=6))
    numbers = meter.read(accelerator)
    assert numbers["loss"] == pytest.approx(1.0) and numbers["accuracy"] == pytest.approx(0.4)
    assert numbers["padding_share"] == pytest.approx(1 - (10 + 7) / (12 + 8))
    assert numbers["loss"] != pytest.approx((8 / 4 + 2 / 6) / 2)


def test_sums_leave_the_device_before_they_become_double() -> None:
    """Apple's GPUs have no float64."""
    without_double = SimpleNamespace(reduce=lambda sums: SimpleNamespace(cpu=lambda: sums))
    meter = Meter(torch.device("cpu"))
    meter.add(sums(8.0, 1.0, 4.0), batch([[1]], cells=4))
    meter.drain(without_double)
    assert meter.unread()["log"][0] == 8.0


def test_each_reader_sees_what_came_since_it_last_asked() -> None:
    meter, accelerator = Meter(torch.device("cpu")), Accelerator()
    meter.add(sums(8.0, 1.0, 4.0), batch([[1]], cells=4))
    assert meter.read(accelerator, "log")["loss"] == pytest.approx(2.0)
    meter.add(sums(4.0, 1.0, 4.0), batch([[1]], cells=4))
    assert meter.read(accelerator, "log")["loss"] == pytest.approx(1.0)
    assert meter.read(accelerator, "evaluation")["loss"] == pytest.approx(1.5)


def test_speed_leaves_out_what_is_not_training() -> None:
    accelerator, meters = Accelerator(), [Meter(torch.device("cpu")) for _ in range(2)]
    for meter in meters:
        meter.add(sums(8.0, 1.0, 4.0), batch([[1]], cells=4))
    time.sleep(0.2)
    meters[0].pause(0.2)
    with_pause, without = (meter.read(accelerator)["train_seconds"] for meter in meters)
    assert with_pause < 0.1 < 0.2 <= without


def test_samples_of_a_repeated_step_take_the_place_of_the_old_ones(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    for step, text in ((5, "a"), (10, "b"), (15, "c"), (10, "d\u2028é")):
        write_samples(path, [{"step": step, "hypothesis": text}], step)
    rows = [json.loads(line) for line in path.read_text("utf-8").split("\n")[:-1]]
    assert [(row["step"], row["hypothesis"]) for row in rows] == [(5, "a"), (10, "d\u2028é")]


def test_the_line_tells_the_best_score_and_cut_off_translations() -> None:
    state = TrainerState(epoch=2.0, global_step=20, log_history=[{"eval_bleu": 12.0}, {"eval_bleu": 10.0}])
    numbers = {"loss": 2.0, "perplexity": 7.389, "accuracy": 0.5}
    training = {**numbers, "target_tokens_per_second": 1234.5, "padding_share": 0.04}
    metrics = {**{f"eval_{name}": value for name, value in numbers.items()}, "eval_bleu": 10.0, "eval_cut_off": 0.25}
    line = epoch_line(state, training, metrics, 1e-3)
    for part in ("step     20", "1,234 target tokens/s", "4.0% padding", "BLEU 10.00 (best 12.00)", "25.0% of trans"):
        assert part in line
    state.log_history.append({"eval_bleu": 13.0})
    assert "best so far" in epoch_line(state, {}, {**metrics, "eval_bleu": 13.0, "eval_cut_off": 0.0}, 1e-3)
    state.log_history.append({"eval_bleu_zh": 31.0})
    assert "BLEU 31.00 (best so far)" in epoch_line(state, {}, {**metrics, "eval_bleu_zh": 31.0}, 1e-3)
    assert "length limit" not in epoch_line(state, {}, {**metrics, "eval_cut_off": 0.0}, 1e-3)
