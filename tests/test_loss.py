"""The sliced loss equals the plain one, and holds no scores of a batch."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode

from hf_mt.losses import scores_to_sums
from hf_mt.model import loss_hf_mt
from hf_mt.model.loss_hf_mt import LossSums, labelled_rows, linear_cross_entropy


ROWS, WIDTH, VOCABULARY = (3, 9), 16, 50


class Case:
    """Hidden states (3, 9, D), output weights (V, D) and labels (3, 9), some of them ignored."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.hidden = torch.randn(*ROWS, WIDTH, generator=generator).requires_grad_()
        self.weight = torch.randn(VOCABULARY, WIDTH, generator=generator).requires_grad_()
        self.labels = torch.randint(VOCABULARY, ROWS, generator=generator)
        self.labels[0, 5:] = self.labels[2, :2] = -100

    def gradients(self, loss: Tensor) -> tuple[Tensor, Tensor]:
        return torch.autograd.grad(loss, (self.hidden, self.weight))


@pytest.fixture
def case() -> Case:
    return Case()


@pytest.fixture(params=[1, 7, 10_000], ids=["row-slices", "7-row-slices", "one-slice"])
def rows_in_slice(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    monkeypatch.setattr(loss_hf_mt, "SLICE_ELEMENTS", request.param * VOCABULARY)
    return request.param


def plain_loss(case: Case, smoothing: float = 0.0) -> Tensor:
    """The same with all scores at once, summed over labels, in float64."""
    scores = case.hidden.double() @ case.weight.double().T
    return cross_entropy(scores.flatten(0, 1), case.labels.flatten(), reduction="sum", label_smoothing=smoothing)


def sliced(case: Case, smoothing: float = 0.0) -> LossSums:
    return linear_cross_entropy(case.hidden, case.weight, case.labels, label_smoothing=smoothing)


def relative_error(value: Tensor, expected: Tensor) -> float:
    return ((value.double() - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.usefixtures("rows_in_slice")
def test_value_is_that_of_the_plain_loss(case: Case, smoothing: float) -> None:
    assert relative_error(sliced(case, smoothing).loss, plain_loss(case, smoothing)) < 1e-5
    assert relative_error(sliced(case, smoothing).loss, plain_loss(case, smoothing + 0.05)) > 1e-3


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.usefixtures("rows_in_slice")
def test_gradients_are_those_of_the_plain_loss(case: Case, smoothing: float) -> None:
    expected = case.gradients(plain_loss(case, smoothing))
    other = case.gradients(plain_loss(case, smoothing + 0.05))
    for ours, theirs, wrong in zip(case.gradients(sliced(case, smoothing).loss), expected, other, strict=True):
        assert ours.shape == theirs.shape
        assert relative_error(ours, theirs) < 1e-5
        assert relative_error(ours, wrong) > 1e-3


@pytest.mark.usefixtures("rows_in_slice")
def test_counts_and_unsmoothed_loss(case: Case) -> None:
    sums, kept = sliced(case, smoothing=0.1), case.labels != -100
    guesses = (case.hidden @ case.weight.T).argmax(-1)
    assert relative_error(sums.nll, plain_loss(case)) < 1e-5
    assert relative_error(sums.nll, plain_loss(case, 0.1)) > 1e-3
    assert sums.num_tokens == kept.sum() == 21
    assert sums.num_correct == (guesses == case.labels)[kept].sum()
    case.labels[kept] = guesses[kept]
    assert sliced(case).num_correct == 21


def test_ignored_rows_get_no_gradient(case: Case) -> None:
    gradient, _ = case.gradients(sliced(case, 0.1).loss)
    ignored = case.labels == -100
    assert not gradient[ignored].any()
    assert gradient[~ignored].any(-1).all()


def test_a_batch_without_labels_is_zero(case: Case) -> None:
    case.labels.fill_(-100)
    sums = sliced(case, 0.1)
    assert [value.item() for value in sums] == [0, 0, 0, 0]
    assert not any(gradient.any() for gradient in case.gradients(sums.loss))


def test_gradients_follow_what_the_loss_is_multiplied_by(case: Case) -> None:
    once = case.gradients(sliced(case).loss)
    for gradient, scaled in zip(once, case.gradients(sliced(case).loss / 8), strict=True):
        assert relative_error(scaled, gradient / 8) < 1e-6
        assert relative_error(scaled, gradient) > 0.5


def test_only_the_loss_has_a_gradient(case: Case) -> None:
    sums = sliced(case)
    assert sums.loss.requires_grad
    assert not any(value.requires_grad for value in (sums.nll, sums.num_correct, sums.num_tokens))


def test_frozen_weights_get_no_gradient(case: Case) -> None:
    expected, _ = case.gradients(sliced(case).loss)
    case.weight.requires_grad_(False)
    sliced(case).loss.backward()
    assert torch.equal(case.hidden.grad, expected)
    assert case.weight.grad is None


def test_values_are_the_same_without_gradients(case: Case) -> None:
    expected = sliced(case, 0.1)
    with torch.no_grad():
        sums = sliced(case, 0.1)
    assert not sums.loss.requires_grad
    assert [value.item() for value in sums] == [value.item() for value in expected]


def test_extreme_scores_stay_finite(case: Case) -> None:
    case.hidden.data *= 1e4
    sums = sliced(case, 0.1)
    assert relative_error(sums.loss, plain_loss(case, 0.1)) < 1e-4
    assert all(gradient.isfinite().all() for gradient in case.gradients(sums.loss))


def test_autocast_to_bfloat16_is_close(case: Case) -> None:
    expected = case.gradients(plain_loss(case, 0.1))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        sums = sliced(case, 0.1)
    assert sums.loss.dtype == torch.float32
    # not nearer than its rounding allows: the scores were in fact computed in bfloat16
    assert 1e-5 < relative_error(sums.loss, plain_loss(case, 0.1)) < 1e-2
    for ours, theirs in zip(case.gradients(sums.loss), expected, strict=True):
        assert ours.dtype == torch.float32
        assert relative_error(ours, theirs) < 2e-2


@pytest.mark.usefixtures("rows_in_slice")
def test_rows_that_fill_up_half_precision_count_for_nothing(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    ends = []
    for rows in (64, 1):  # 21 labels, and 43 rows more; no more rows
        monkeypatch.setattr(loss_hf_mt, "HALF_ROWS", rows)
        hidden, labels = labelled_rows(case.hidden, case.labels, torch.bfloat16)
        assert len(hidden) == len(labels) == (64 if rows == 64 else 21)
        sums = linear_cross_entropy(case.hidden, case.weight, case.labels, label_smoothing=0.1, dtype=torch.bfloat16)
        ends.append([*sums, *case.gradients(sums.loss)])
    assert 1e-5 < relative_error(ends[0][0], plain_loss(case, 0.1)) < 1e-2
    for filled, bare in zip(*ends, strict=True):
        torch.testing.assert_close(filled, bare, rtol=1e-2, atol=1e-2)
    assert len(labelled_rows(case.hidden, case.labels, None)[1]) == 21  # whole precision needs none


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_slices_of_half_precision_have_few_numbers_of_rows(dtype: torch.dtype) -> None:
    for vocab_size in (6000, 32_000):
        most = loss_hf_mt.slice_rows(vocab_size, torch.empty(0, dtype=dtype))
        assert most > 0.5 * loss_hf_mt.SLICE_ELEMENTS / vocab_size
        filled = range(64, 64 * 100, 64) if dtype == torch.bfloat16 else range(64, 64 * 100)
        sizes = {min(most, rows - start) for rows in filled for start in range(0, rows, most)}
        assert len(sizes) <= 10 if dtype == torch.bfloat16 else len(sizes) > 100


def test_an_accelerator_gets_few_large_slices() -> None:
    here, there = (loss_hf_mt.slice_rows(32_000, torch.empty(0, device=device)) for device in ("cpu", "meta"))
    assert there > 20 * here


def test_a_label_that_is_none_is_an_error(case: Case) -> None:
    case.labels[0, 0] = -1
    with pytest.raises(RuntimeError, match="index -1"):
        sliced(case)


class Searches(TorchDispatchMode):
    """Counts operations that look for the true places of a mask, whose number a GPU has to tell first."""

    ops = torch.ops.aten
    indexing = (ops.index, ops.index_put, ops.index_put_, ops._index_put_impl_)

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket in self.indexing:
            self.count += sum(index is not None and index.dtype == torch.bool for index in args[1])
        self.count += func.overloadpacket is self.ops.nonzero
        return func(*args, **(kwargs or {}))


def test_rows_with_a_label_are_looked_for_once(case: Case) -> None:
    with Searches() as ours:
        sliced(case).loss.backward()
    kept = case.labels != -100
    with Searches() as masks:
        (case.hidden[kept].sum() + case.labels[kept].sum()).backward()
    assert (ours.count, masks.count) == (1, 3)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_scores_of_other_models_give_the_same_sums_without_a_copy(case: Case, smoothing: float) -> None:
    case.labels[0, :3] = (case.hidden @ case.weight.T)[0, :3].argmax(-1)
    expected = sliced(case, smoothing)
    with Searches() as searches:
        sums = scores_to_sums(case.hidden @ case.weight.T, case.labels, smoothing)
        gradients = case.gradients(sums.loss)
    assert searches.count == 0
    for ours, theirs in zip(sums, expected, strict=True):
        assert relative_error(ours, theirs) < 1e-5 < relative_error(ours, 1.001 * theirs)
    for ours, theirs in zip(gradients, case.gradients(plain_loss(case, smoothing)), strict=True):
        assert relative_error(ours, theirs) < 1e-5


class LargestTensor(TorchDispatchMode):
    """Records the elements of the largest tensor that any operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple | list) else (result,):
            if isinstance(value, Tensor):
                self.elements = max(self.elements, value.numel())
        return result


def largest_tensor(loss: Callable[[Tensor, Tensor, Tensor], Tensor], rows: int) -> int:
    hidden, weight = torch.randn(rows, 4).requires_grad_(), torch.randn(1000, 4).requires_grad_()
    with LargestTensor() as largest:
        loss(hidden, weight, torch.randint(1000, (rows,))).backward()
    return largest.elements


def test_no_tensor_is_as_large_as_rows_times_vocabulary(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss_hf_mt, "SLICE_ELEMENTS", 8 * 1000)

    def plain(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
        return cross_entropy(hidden @ weight.T, labels, reduction="sum")

    def ours(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
        return linear_cross_entropy(hidden, weight, labels, label_smoothing=0.1).loss

    assert [largest_tensor(plain, rows) for rows in (64, 512)] == [64_000, 512_000]
    assert [largest_tensor(ours, rows) for rows in (64, 512)] == [8_000, 8_000]


def test_nothing_larger_than_gradients_is_kept_for_backward(case: Case) -> None:
    def kept(loss: Callable[[], Tensor]) -> int:
        saved: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda value: saved.append(value.numel()) or value, lambda x: x):
            loss()
        return max(saved)

    assert kept(lambda: plain_loss(case)) == case.labels.numel() * VOCABULARY
    assert kept(lambda: sliced(case).loss) == VOCABULARY * WIDTH
