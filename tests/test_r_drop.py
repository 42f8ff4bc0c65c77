"""R-Drop equals its formula in value and gradient, and acts in training alone."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div

from hf_mt import HfMtForConditionalGeneration
from hf_mt.losses import LateRDrop
from hf_mt.model import loss_hf_mt
from hf_mt.model.r_drop_hf_mt import linear_r_drop


WIDTH, VOCABULARY = 16, 50
LABELS = torch.randint(VOCABULARY, (3, 9), generator=torch.Generator().manual_seed(1))
LABELS[0, 5:] = LABELS[2, :2] = -100


@pytest.fixture
def case() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(2, 3, 9, WIDTH, generator=generator).requires_grad_()
    return hidden, torch.randn(VOCABULARY, WIDTH, generator=generator).requires_grad_()


def plain(hidden: Tensor, weight: Tensor, alpha: float, smoothing: float) -> Tensor:
    """Half of equation 4 of the paper, by the functions of torch, in float64."""
    kept = LABELS != -100
    first, second = (hidden[:, kept].double() @ weight.double().T).unbind()
    total = sum(cross_entropy(scores, LABELS[kept], reduction="sum", label_smoothing=smoothing) / 2
                for scores in (first, second))  # fmt: skip
    p, q = first.log_softmax(-1), second.log_softmax(-1)
    return total + alpha / 4 * sum(kl_div(b, a, reduction="sum", log_target=True) for a, b in ((p, q), (q, p)))


def relative_error(value: Tensor, expected: Tensor) -> float:
    return ((value.double() - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("rows", [1, 4, 1000])
@pytest.mark.parametrize(("alpha", "smoothing"), [(5.0, 0.1), (0.5, 0.0), (0.02, 0.1)])
def test_value_and_gradient_are_those_of_the_formula(
    case: tuple[Tensor, Tensor], alpha: float, smoothing: float, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loss_hf_mt, "SLICE_ELEMENTS", rows * 2 * VOCABULARY)
    sums = linear_r_drop(*case, LABELS, alpha=alpha, label_smoothing=smoothing)
    expected = plain(*case, alpha, smoothing)
    assert relative_error(sums.loss, expected) < 1e-5
    gradients, wanted = torch.autograd.grad(sums.loss, case), torch.autograd.grad(expected, case)
    wrong = torch.autograd.grad(plain(*case, alpha + 1, smoothing), case)
    for ours, theirs, other in zip(gradients, wanted, wrong, strict=True):
        assert relative_error(ours, theirs) < 1e-5
        assert relative_error(ours, other) > 1e-3


def test_half_precision_is_close_and_its_filled_rows_count_for_nothing(case: tuple[Tensor, Tensor]) -> None:
    hidden, weight = case
    sums = linear_r_drop(hidden, weight, LABELS, alpha=5.0, label_smoothing=0.1, dtype=torch.bfloat16)
    whole = linear_r_drop(hidden, weight, LABELS, alpha=5.0, label_smoothing=0.1)
    assert 1e-6 < relative_error(sums.loss, whole.loss) < 1e-2
    assert relative_error(sums.nll, whole.nll) < 1e-2 and sums.num_tokens == 21
    assert abs(sums.num_correct - whole.num_correct) <= 2  # 43 rows of zeros would all be right
    gradients = (torch.autograd.grad(each.loss, case) for each in (sums, whole))
    for half, exact in zip(*gradients, strict=True):
        assert half.dtype == torch.float32 and relative_error(half, exact) < 2e-2


def test_counts_are_means_of_both_passes(case: tuple[Tensor, Tensor]) -> None:
    sums = linear_r_drop(*case, LABELS, alpha=5.0, label_smoothing=0.1)
    each = [loss_hf_mt.linear_cross_entropy(hidden, case[1], LABELS) for hidden in case[0]]
    assert sums.num_tokens == each[0].num_tokens == 21
    assert relative_error(sums.nll, (each[0].nll + each[1].nll) / 2) < 1e-5
    assert sums.num_correct == (each[0].num_correct + each[1].num_correct) / 2


Build = Callable[..., HfMtForConditionalGeneration]
BATCH: dict[str, Any] = {"input_ids": torch.tensor([[5, 6, 7, 2]]), "labels": torch.tensor([[8, 9, 2]])}


def test_a_batch_is_read_twice_in_training_alone(tiny_model: Build) -> None:
    model = tiny_model(r_drop=5.0, dropout=0.3)
    reads: list[int] = []
    model.model.encoder.register_forward_hook(lambda *_: reads.append(1))
    assert torch.equal(model(**BATCH).loss, tiny_model(dropout=0.3)(**BATCH).loss) and len(reads) == 1
    loss = model.train()(**BATCH).loss
    assert len(reads) == 3
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("start", [0.0, 0.6])
def test_r_drop_begins_at_its_share_of_the_steps(tiny_model: Build, start: float) -> None:
    model = tiny_model(r_drop=5.0, dropout=0.3).train()
    reads: list[int] = []
    model.model.encoder.register_forward_hook(lambda *_: reads.append(1))
    each = []
    for step in range(5):
        state = SimpleNamespace(global_step=step, max_steps=5)
        LateRDrop(start).on_step_begin(None, state, None, model=model)
        reads.clear()
        model(**BATCH)
        each.append(len(reads))
    assert each == ([1, 1, 1, 2, 2] if start else [2] * 5)
    assert model.config.r_drop == 5.0  # what is saved


def test_without_dropout_the_passes_agree(tiny_model: Build) -> None:
    losses = [tiny_model(r_drop=alpha).train()(**BATCH).loss for alpha in (0.0, 5.0)]
    torch.testing.assert_close(losses[0], losses[1])
    torch.manual_seed(0)
    one = tiny_model(r_drop=1.0, dropout=0.3).train()(**BATCH).loss
    torch.manual_seed(0)
    assert tiny_model(r_drop=5.0, dropout=0.3).train()(**BATCH).loss > one
