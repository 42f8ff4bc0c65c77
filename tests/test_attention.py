"""The softmax of attention is torch's, however short a row is."""

import math

import pytest
import torch

from hf_mt.model import layers_hf_mt
from hf_mt.model.layers_hf_mt import LANES, softmax


@pytest.mark.parametrize("length", [1, 3, LANES - 1, LANES, LANES + 1])
def test_short_rows_have_the_softmax_and_gradient_of_torch(length: int) -> None:
    torch.manual_seed(0)
    scores = torch.randn(2, 3, 4, length)
    scores[0, :, :, length // 2 :] = torch.finfo(torch.float32).min  # masked; all of a row where it has one
    upstream = torch.randn_like(scores)
    ours, theirs = scores.clone().requires_grad_(), scores.clone().requires_grad_()
    softmax(ours).backward(upstream)
    theirs.softmax(-1).backward(upstream)
    assert torch.allclose(softmax(ours), theirs.softmax(-1), rtol=1e-6, atol=1e-7)
    assert ours.grad is not None and theirs.grad is not None
    assert torch.allclose(ours.grad, theirs.grad, rtol=1e-5, atol=1e-7)


def test_what_fills_a_row_counts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Control: filled up by zeros, which are scores like others, rows would sum to less."""
    scores = torch.zeros(2, 3)
    assert torch.equal(softmax(scores).sum(-1), torch.ones(2))
    assert softmax(scores.half()).dtype == torch.float32
    monkeypatch.setattr(layers_hf_mt, "math", type("Wrong", (), {"inf": 0.0}))
    assert softmax(scores).sum(-1).max() < 0.5


def test_a_row_without_a_number_says_so() -> None:
    assert softmax(torch.tensor([[0.0, math.nan]])).isnan().all()
