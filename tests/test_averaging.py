"""Properties of averaged weights."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from hf_mt import InputError
from hf_mt.averaging import (
    MOVING_AVERAGE_NAME,
    MovingAverage,
    UpdateAverage,
    average_checkpoints,
    checkpoint_weights,
    save_average,
)


def layer(seed: int = 0) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(3, 2)


def step(model: nn.Module, by: float) -> None:
    with torch.no_grad():
        for weight in model.parameters():
            weight += by


def checkpoint(folder: Path, seed: int) -> Path:
    folder.mkdir()
    save_file(layer(seed).state_dict(), folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    (folder / "optimizer.pt").write_bytes(b"state")
    (folder / "manifest.json").write_text('{"files": {}}')
    return folder


def test_the_moving_average_is_the_weighted_sum_of_all_steps() -> None:
    model = layer()
    expected = model.weight.detach().clone()
    average = MovingAverage(model, 0.5)
    for number in range(1, 6):
        step(model, 1.0)
        average.update()
        decay = min(0.5, (1 + number) / (10 + number))
        expected = decay * expected + (1 - decay) * model.weight.detach()
    assert torch.allclose(average.weights["weight"], expected)
    assert not torch.allclose(average.weights["weight"], model.weight)


def test_a_model_has_the_average_within_the_block_and_its_own_weights_after_it() -> None:
    model = layer()
    average = MovingAverage(model, 0.9)
    step(model, 1.0)
    average.update()
    own = model.weight.detach().clone()
    with pytest.raises(RuntimeError), average.applied():
        assert torch.equal(model.weight, average.weights["weight"])
        raise RuntimeError
    assert torch.equal(model.weight, own) and not torch.equal(own, average.weights["weight"])


def test_the_moving_average_follows_a_model_that_moves_when_training_begins() -> None:
    model = layer()
    average = MovingAverage(model, 0.9)
    own = average.weights["weight"]
    UpdateAverage(average, None).on_train_begin(None, None, None)
    assert average.weights["weight"] is own, "nothing has moved"
    average._live = {name: weight.to("meta") for name, weight in model.named_parameters()}
    UpdateAverage(average, None).on_train_begin(None, None, None)
    assert {weight.device.type for weight in average.weights.values()} == {"meta"}


def test_a_saved_average_goes_on_as_if_it_had_not_been_saved(tmp_path: Path) -> None:
    model, again = layer(), layer(1)
    average, loaded = MovingAverage(model, 0.99), MovingAverage(again, 0.99)
    step(model, 1.0)
    average.update()
    average.save(tmp_path)
    loaded.load(tmp_path)
    assert loaded.steps == 1 and torch.equal(loaded.weights["bias"], average.weights["bias"])
    with pytest.raises(InputError, match="another model"):
        MovingAverage(nn.Conv1d(1, 1, 1, bias=False), 0.9).load(tmp_path)
    with pytest.raises(InputError, match="without ema_decay"):
        loaded.load(tmp_path / "nowhere")


def test_the_mean_of_checkpoints_is_the_mean(tmp_path: Path) -> None:
    folders = [checkpoint(tmp_path / str(seed), seed) for seed in range(3)]
    mean = average_checkpoints(folders)
    expected = sum(layer(seed).weight.detach() for seed in range(3)) / 3
    assert torch.allclose(mean["weight"], expected)
    assert not torch.allclose(average_checkpoints(folders[:2])["weight"], expected)


def test_a_checkpoint_counts_with_its_moving_average_if_it_has_one(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "one", 0)
    assert torch.equal(checkpoint_weights(folder)["weight"], layer(0).weight)
    save_file({"weight": layer(1).weight.detach()}, folder / MOVING_AVERAGE_NAME)
    weights = checkpoint_weights(folder)
    assert torch.equal(weights["weight"], layer(1).weight) and torch.equal(weights["bias"], layer(0).bias)


def test_an_averaged_folder_holds_a_model_and_nothing_of_its_training(tmp_path: Path) -> None:
    folders = [checkpoint(tmp_path / str(seed), seed) for seed in range(2)]
    save_average(folders, tmp_path / "mean")
    assert {path.name for path in (tmp_path / "mean").iterdir()} == {"model.safetensors", "config.json"}
    assert torch.equal(
        load_file(tmp_path / "mean" / "model.safetensors")["bias"], average_checkpoints(folders)["bias"]
    )
    with pytest.raises(InputError, match="exists"):
        save_average(folders, tmp_path / "mean")


def test_a_damaged_checkpoint_is_no_part_of_a_mean(tmp_path: Path) -> None:
    folders = [checkpoint(tmp_path / name, seed) for seed, name in enumerate(("checkpoint-1", "checkpoint-2"))]
    average_checkpoints(folders)  # control
    listed = {"model.safetensors": {"bytes": (folders[1] / "model.safetensors").stat().st_size, "sha256": "other"}}
    (folders[1] / "manifest.json").write_text(json.dumps({"files": listed}))
    with pytest.raises(InputError, match="checkpoint-2 is damaged: model.safetensors has other content"):
        average_checkpoints(folders)


def test_folders_that_cannot_be_averaged_are_named(tmp_path: Path) -> None:
    one = checkpoint(tmp_path / "one", 0)
    other = tmp_path / "other"
    other.mkdir()
    with pytest.raises(InputError, match="other has no model.safetensors"):
        average_checkpoints([one, other])
    save_file({"weight": torch.zeros(1)}, other / "model.safetensors")
    with pytest.raises(InputError, match="another model"):
        average_checkpoints([one, other])
