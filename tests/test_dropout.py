"""The cheap dropout drops at its rate, keeps the expectation, and repeats with the seed."""

import pytest
import torch
from torch import nn

from hf_mt.model.dropout_hf_mt import Dropout, dropout_mask


LIKE = torch.empty(1000, 1003)


def scaled_mask(like: torch.Tensor, rate: float) -> torch.Tensor:
    mask, scale = dropout_mask(like, rate)
    return mask * scale


@pytest.mark.parametrize("rate", [0.001, 0.1, 0.3, 0.5, 0.9])
def test_the_rate_is_that_asked_for_and_the_mean_is_kept(rate: float) -> None:
    torch.manual_seed(0)
    mask = scaled_mask(LIKE, rate)
    share = (mask == 0).double().mean().item()
    deviation = (rate * (1 - rate) / LIKE.numel()) ** 0.5
    assert abs(share - rate) < 5 * deviation + 2**-16
    assert abs(mask.double().mean().item() - 1) < 5 * deviation / (1 - rate)
    assert abs(share - 1.03 * rate) > 5 * deviation + 2**-16 or rate < 0.01
    assert len(mask.unique()) == 2


def test_the_exact_rate_decides_what_the_rest_is_divided_by() -> None:
    assert scaled_mask(LIKE, 0.3).max().item() == pytest.approx(1 / (1 - round(0.3 * 2**16) / 2**16), rel=1e-6)
    assert scaled_mask(LIKE[:1], 1 - 1e-9).isfinite().all()


def test_elements_are_independent_of_their_neighbours() -> None:
    """Four of them share a random number: none may tell another."""
    torch.manual_seed(0)
    kept = dropout_mask(LIKE, 0.5)[0].double().flatten() - 0.5
    deviation = 0.25 / len(kept) ** 0.5
    for distance in (1, 2, 3, 4, 1003):
        assert abs((kept[distance:] * kept[:-distance]).mean().item()) < 5 * deviation
    assert (kept[:-1] * kept[:-1]).mean().item() > 5 * deviation


def test_every_lane_has_every_rate() -> None:
    """The sign bit of the number is the first lane's as well as any other's."""
    torch.manual_seed(0)
    lanes = (dropout_mask(torch.empty(4_000_000), 0.3)[0] == 0).double().view(-1, 4).mean(0)
    assert (lanes - 0.3).abs().max() < 5e-3


def test_it_acts_in_training_alone_and_repeats_with_the_seed() -> None:
    dropout, x = Dropout(0.4), torch.randn(8, 5)
    assert torch.equal(dropout.eval()(x), x) and torch.equal(dropout.add(x, x), 2 * x)
    dropout.train()
    torch.manual_seed(1)
    first, second = dropout(x), dropout(x)
    torch.manual_seed(1)
    assert torch.equal(dropout(x), first) and not torch.equal(first, second)
    assert torch.equal(Dropout(0.0)(x), x)


def test_the_sum_drops_what_is_added_and_not_the_stream() -> None:
    dropout, stream, x = Dropout(0.4).train(), torch.randn(64, 5), torch.ones(64, 5, requires_grad=True)
    summed = dropout.add(stream, x)
    kept = (summed != stream).detach()
    assert 0 < kept.sum() < kept.numel()
    torch.testing.assert_close(summed, stream + kept / 0.6, rtol=1e-4, atol=1e-4)
    summed.sum().backward()
    assert torch.equal(x.grad != 0, kept)


def test_other_dtypes_keep_theirs() -> None:
    for dtype in (torch.bfloat16, torch.float64):
        assert Dropout(0.5).train()(torch.ones(3, dtype=dtype)).dtype == dtype
    assert isinstance(Dropout(0.1), nn.Dropout)
