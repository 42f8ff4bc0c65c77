"""A checkpoint is loaded with the weights that were scored: the moving average beside its plain ones."""

from pathlib import Path
from typing import Any

import pytest
import torch
from random_models import MODELS, word_tokenizer
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from hf_mt import InputError, Translator
from hf_mt.averaging import MovingAverage
from hf_mt.loading import model_identity
from hf_mt.pretrained import MOVING_AVERAGE_NAME, load_seq2seq


def checkpoint(folder: Path, name: str) -> tuple[Path, PreTrainedModel]:
    """A folder with random weights, and an average in which each of those that are trained is larger by one."""
    model = MODELS[name][-1]()
    model.save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    average = MovingAverage(model, 0.9)
    for weight in average.weights.values():
        weight += 1.0
    average.save(folder)
    return folder, model


def trained(model: PreTrainedModel) -> dict[str, Tensor]:
    return {name: weight.detach() for name, weight in model.named_parameters() if weight.requires_grad}


def are_moved(model: PreTrainedModel, plain: PreTrainedModel, by: float) -> bool:
    weights = trained(model)
    return all(torch.equal(weights[name], weight + by) for name, weight in trained(plain).items())


@pytest.mark.parametrize("name", ["marian", "t5", "rope"])
def test_a_checkpoint_gives_the_average(name: str, tmp_path: Path) -> None:
    folder, model = checkpoint(tmp_path / "checkpoint-3", name)
    loaded = load_seq2seq(str(folder))
    assert are_moved(loaded, model, by=1.0)
    tied = loaded.get_input_embeddings().weight
    assert loaded.get_output_embeddings().weight is tied, "weights that are tied stay tied"
    (folder / MOVING_AVERAGE_NAME).unlink()
    assert are_moved(load_seq2seq(str(folder)), model, by=0.0), "the control"


def test_a_translator_of_a_checkpoint_translates_with_the_average(tmp_path: Path) -> None:
    folder, model = checkpoint(tmp_path / "checkpoint-3", "rope")
    assert are_moved(Translator(folder, device="cpu").model, model, by=1.0)
    (folder / MOVING_AVERAGE_NAME).unlink()
    assert are_moved(Translator(folder, device="cpu").model, model, by=0.0), "the control"


def test_the_average_takes_the_type_that_was_asked_for(tmp_path: Path) -> None:
    folder, model = checkpoint(tmp_path, "rope")
    weights = trained(load_seq2seq(str(folder), dtype=torch.bfloat16))
    for name, weight in trained(model).items():
        assert torch.equal(weights[name], (weight + 1.0).to(torch.bfloat16))


def test_a_model_with_another_average_is_another_model(tmp_path: Path) -> None:
    folder, model = checkpoint(tmp_path, "rope")
    before = model_identity(str(folder), model)
    average = folder / MOVING_AVERAGE_NAME
    save_file({name: weight + 1.0 for name, weight in load_file(average).items()}, average)
    after = model_identity(str(folder), model)
    assert [name for name in before if before[name] != after[name]] == [MOVING_AVERAGE_NAME]
    average.unlink()
    assert model_identity(str(folder), model).keys() == before.keys() - {MOVING_AVERAGE_NAME}


@pytest.mark.parametrize(
    ("change", "message"),
    [("cut", "can't be loaded"), ("name", "the model lacks: x"), ("shape", "can't be loaded.*size mismatch")],
)
def test_a_damaged_average_is_named(change: str, message: str, tmp_path: Path) -> None:
    folder, _ = checkpoint(tmp_path, "rope")
    path = folder / MOVING_AVERAGE_NAME
    weights: dict[str, Any] = load_file(path)
    name = next(iter(weights))
    if change == "name":
        weights["x"] = weights.pop(name)
    elif change == "shape":
        weights[name] = weights[name][:-1].contiguous()
    save_file(weights, path)
    if change == "cut":
        path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(InputError, match=f"(?s){MOVING_AVERAGE_NAME}.*{message}.*plain weights"):
        load_seq2seq(str(folder))
