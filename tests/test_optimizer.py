"""Muon: orthogonal steps for the matrices of the layers, AdamW's for everything else."""

from copy import deepcopy

import pytest
import torch
from random_models import SIZES, build
from torch import Tensor, nn
from torch.optim import AdamW
from transformers import Seq2SeqTrainingArguments

from hf_mt import HfMtConfig, HfMtForConditionalGeneration
from hf_mt.optimizer import Muon, muon_for, orthogonalized


RATE, DECAY = 0.01, 0.1


def matrices(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("shape", [(16, 16), (8, 24), (24, 8)])
def test_steps_are_orthogonal_and_point_where_the_gradient_does(shape: tuple[int, int]) -> None:
    given = matrices(3, *shape)
    left, values, right = torch.linalg.svd(given, full_matrices=False)
    result = orthogonalized(given)
    lengths = torch.diagonal(left.mT @ result @ right.mT, dim1=1, dim2=2)  # along the directions of the gradient
    assert lengths.min() > 0.3 and lengths.max() < 1.3
    assert values.max() / values.min() > 3  # which they are not to begin with
    aside = left.mT @ result @ right.mT - torch.diag_embed(lengths)
    assert aside.abs().max() < 1e-4


def test_a_gradient_of_zeros_is_no_step() -> None:
    assert not orthogonalized(torch.zeros(2, 4, 6)).any()


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("shape", [(16, 16), (8, 24), (24, 8)])
def test_matrices_follow_the_muon_of_torch(
    shape: tuple[int, int], fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hf_mt.optimizer.multiplies_bfloat16", lambda device: fast)
    start, gradients = matrices(*shape), matrices(4, *shape)
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    optimizers = [
        Muon([ours], [], lr=RATE, weight_decay=DECAY),
        torch.optim.Muon([theirs], lr=RATE, weight_decay=DECAY, adjust_lr_fn="match_rms_adamw"),
    ]
    for gradient in gradients:
        for param, optimizer in zip((ours, theirs), optimizers, strict=True):
            param.grad = gradient.clone()
            optimizer.step()
    way = (theirs - start).norm()
    assert (ours - theirs).norm() < 0.05 * way  # torch iterates in bfloat16
    momentum = torch.optim.SGD([nn.Parameter(start.clone())], lr=RATE, momentum=0.95, nesterov=True)
    momentum.param_groups[0]["params"][0].grad = gradients[0]
    momentum.step()
    assert (momentum.param_groups[0]["params"][0] - theirs).norm() > 0.5 * way


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_steps_are_rounded_where_that_is_fast_and_never_those_of_doubles(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = []
    for fast in (False, True):
        monkeypatch.setattr("hf_mt.optimizer.multiplies_bfloat16", lambda device, fast=fast: fast)
        param = nn.Parameter(torch.zeros(8, 24, dtype=dtype))
        param.grad = matrices(8, 24).to(dtype)
        Muon([param], [], lr=RATE).step()
        ends.append(param.detach())
    assert ends[1].dtype == dtype and ends[0].any()
    assert torch.equal(*ends) == (dtype == torch.float64)


def test_all_else_follows_adamw() -> None:
    start = matrices(5)
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    group = {"weight_decay": DECAY}
    settings = {"lr": RATE, "betas": (0.9, 0.98), "eps": 1e-6}
    optimizers = [Muon([], [{"params": [ours], **group}], **settings), AdamW([theirs], **group, **settings)]
    for gradient in matrices(4, 5):
        for param, optimizer in zip((ours, theirs), optimizers, strict=True):
            param.grad = gradient.clone()
            optimizer.step()
    assert torch.allclose(ours, theirs, atol=1e-7) and not torch.allclose(ours, start)


def test_only_matrices_are_taken_as_matrices() -> None:
    with pytest.raises(ValueError, match=r"\(3,\)"):
        Muon([nn.Parameter(torch.zeros(3))], [], lr=RATE)


def test_parameters_without_a_gradient_stay() -> None:
    params = [nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(3))]
    optimizer = Muon(params[:1], [{"params": params[1:], "weight_decay": DECAY}], lr=RATE, weight_decay=DECAY)
    optimizer.step()
    assert all((param == 1).all() for param in params)
    for param in params:
        param.grad = torch.ones_like(param)
    optimizer.step()
    assert all((param != 1).all() for param in params)


@pytest.mark.parametrize("tie_embeddings", ["all", "none"])
@pytest.mark.parametrize("position_encoding", ["rope", "learned", "shaw"])
def test_every_weight_has_one_optimizer_and_embeddings_have_adamw(tie_embeddings: str, position_encoding: str) -> None:
    config = HfMtConfig(**SIZES, position_encoding=position_encoding, tie_embeddings=tie_embeddings)
    model = HfMtForConditionalGeneration(config)
    _check_division(model, "embed", "lm_head", "norm", "bias", "position_encoding")


def test_other_models_are_divided_likewise() -> None:
    _check_division(build("marian"), "embed", "shared", "lm_head", "norm", "bias")


def _check_division(model: nn.Module, *adamw: str) -> None:
    optimizer = muon_for(model, Seq2SeqTrainingArguments(weight_decay=DECAY, report_to="none"), {"lm_head.weight"})
    places = {id(param): group for group in optimizer.param_groups for param in group["params"]}
    trained = {name: param for name, param in model.named_parameters() if param.requires_grad}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(trained)
    for name, param in trained.items():
        assert ("momentum" in places[id(param)]) != any(part in name for part in adamw), name


@pytest.mark.parametrize("old", [False, True])
def test_a_loaded_state_is_where_the_weights_are(old: bool) -> None:
    """A GPU's kernel takes the number of steps from the GPU; the meta device stands for one here."""
    params = [nn.Parameter(matrices(4, 6)), nn.Parameter(matrices(3))]
    others = {"weight_decay": 0.0}
    optimizer = Muon(params[:1], [{"params": params[1:], **others}], lr=RATE)
    for param in params:
        param.grad = torch.ones_like(param)
    optimizer.step()
    saved = deepcopy(optimizer.state_dict())
    if old:  # as earlier versions wrote it
        del saved["param_groups"][1]["fused"]
    elsewhere = [nn.Parameter(param.detach().to("meta")) for param in params]
    resumed = Muon(elsewhere[:1], [{"params": elsewhere[1:], **others}], lr=RATE)
    resumed.load_state_dict(saved)
    assert {value.device.type for state in resumed.state.values() for value in state.values()} == {"meta"}


def test_a_loaded_state_goes_on() -> None:
    def new() -> tuple[list[nn.Parameter], Muon]:
        params = [nn.Parameter(matrices(4, 6)), nn.Parameter(matrices(3))]
        return params, Muon(params[:1], [{"params": params[1:], "weight_decay": 0.0}], lr=RATE)

    def step(params: list[nn.Parameter], optimizer: Muon, seed: int) -> None:
        for param in params:
            param.grad = torch.randn(param.shape, generator=torch.Generator().manual_seed(seed))
        optimizer.step()

    params, optimizer = new()
    step(params, optimizer, 1)
    again, resumed = new()
    fresh, forgetful = new()
    for other in (again, fresh):
        for mine, theirs in zip(params, other, strict=True):
            theirs.data.copy_(mine.data)
    resumed.load_state_dict(deepcopy(optimizer.state_dict()))
    for each in ((params, optimizer), (again, resumed), (fresh, forgetful)):
        step(*each, 2)
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(params, again, strict=True))
    assert not any(torch.equal(mine, theirs) for mine, theirs in zip(params, fresh, strict=True))
