"""Cross entropy over a vocabulary without ever holding the scores of a batch.

- Rows that carry no label never reach the vocabulary projection.
- The rest pass through it a slice at a time; the gradient of a slice is computed right after its scores, in the same
  memory, so that one slice is all that is kept (the idea of Liger Kernel, https://arxiv.org/abs/2410.10989, and of
  Wijmans et al. 2024, https://arxiv.org/abs/2411.09009).
- Label smoothing never touches the scores: their mean over the vocabulary is the product with the mean weight, and its
  gradient is the same for every row.
- What is left is as few passes over a slice as there can be: two to find the largest, one softmax in place.
- The unsmoothed loss and the number of right guesses fall out of the same slices, and are returned for the log.
- Products may be in half precision; everything between them is float32. Scores are rounded then, so that more than one
  can be the largest: each counts as the best guess.

Shapes: N rows (positions), D d_model, V vocabulary size.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


IGNORE_INDEX = -100
SLICE_ELEMENTS = 4_194_304  # scores held at a time: 16 MiB in float32, about the size of a processor's last cache
GPU_SLICE_ELEMENTS = 134_217_728  # 512 MiB: on an accelerator each operation has a price, whatever its size
HALF_ROWS = 64  # in half precision rows come in multiples of this: a new number of rows costs a new kernel


class LossSums(NamedTuple):
    """Sums over the labels of a batch, each a scalar float32 tensor; only `loss` has a gradient."""

    loss: Tensor  # smoothed
    nll: Tensor  # unsmoothed negative log-likelihood, in nats
    num_correct: Tensor
    num_tokens: Tensor


class _LinearCrossEntropy(torch.autograd.Function):
    """Sums of the smoothed loss, the unsmoothed loss and right guesses; scores are as precise as `hidden`."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor, smoothing: float, needs_gradient: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        vocab_size, matrix = weight.shape[0], weight.to(hidden.dtype)
        rows_in_slice = slice_rows(vocab_size, hidden)
        mean_weight = weight.mean(0, dtype=torch.float32)  # (D,)
        buffer = hidden.new_empty(min(rows_in_slice, hidden.shape[0]), vocab_size)
        sums = torch.zeros(3, dtype=torch.float32, device=hidden.device)
        grad_hidden = torch.empty_like(hidden) if needs_gradient else None  # (N, D)
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if needs_gradient else None  # (V, D)
        for start in range(0, hidden.shape[0], rows_in_slice):
            states, label = hidden[start : start + rows_in_slice], labels[start : start + rows_in_slice, None]
            counted = label != IGNORE_INDEX  # (rows, 1)
            index = label.masked_fill(~counted, 0)
            scores = torch.mm(states, matrix.T, out=buffer[: len(states)]).float()  # (rows, V)
            maximum, right = scores.amax(-1, keepdim=True), scores.gather(-1, index)
            probabilities = torch.softmax(scores, -1, out=scores)
            log_total = maximum - probabilities.amax(-1, keepdim=True).log()  # the largest is exp(maximum) / total
            mean = states.float() @ mean_weight[:, None]
            sums[0] += (log_total - (1 - smoothing) * right - smoothing * mean).mul(counted).sum()
            sums[1] += (log_total - right).mul(counted).sum()
            sums[2] += (right == maximum).mul(counted).sum()
            if grad_hidden is None or grad_weight is None:
                continue
            gradient = probabilities.scatter_add_(-1, index, torch.full_like(right, smoothing - 1)).to(hidden.dtype)
            torch.mm(gradient, matrix, out=grad_hidden[start : start + rows_in_slice])
            if states.dtype == torch.float32:
                grad_weight.addmm_(gradient.T, states)  # with no product of this size beside the sum
            else:
                grad_weight += gradient.T @ states
        if grad_hidden is not None and grad_weight is not None:  # the mean's share, which is the same for every row
            grad_hidden -= smoothing * mean_weight.to(hidden.dtype)
            grad_weight -= smoothing / vocab_size * hidden.float().sum(0)
        ctx.save_for_backward(grad_hidden, grad_weight)
        ctx.weight_dtype = weight.dtype
        loss, nll, num_correct = sums.unbind()
        ctx.mark_non_differentiable(nll, num_correct)
        return loss, nll, num_correct

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor, *_: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        grad_hidden, grad_weight = ctx.saved_tensors
        grad_weight = (grad_weight * grad_loss).to(ctx.weight_dtype)
        return grad_hidden * grad_loss.to(grad_hidden.dtype), grad_weight, None, None, None


def slice_rows(vocab_size: int, hidden: Tensor) -> int:
    """How many of these states (..., N, D) have their scores held at a time."""
    elements = SLICE_ELEMENTS if hidden.device.type == "cpu" else GPU_SLICE_ELEMENTS
    rows = max(1, elements // vocab_size)
    return rows - rows % HALF_ROWS if hidden.dtype.itemsize == 2 and rows > HALF_ROWS else rows


def labelled_rows(hidden: Tensor, labels: Tensor, dtype: torch.dtype | None) -> tuple[Tensor, Tensor]:
    """States (..., N, D) of the labels that are not -100, and these (N,).

    In half precision rows of zeros, labelled -100, fill up to a multiple of `HALF_ROWS`.

    Args:
        dtype: Of the states returned; None takes autocast's, or leaves them as they are.
    """
    device_type = hidden.device.type
    if dtype is None and torch.is_autocast_enabled(device_type):
        dtype = torch.get_autocast_dtype(device_type)
    # looked for once: given the mask, each index and its gradient would count again, for which a GPU is waited for
    places = (labels != IGNORE_INDEX).nonzero(as_tuple=True)
    hidden, labels = hidden[(..., *places, slice(None))].to(dtype), labels[places]
    missing = -len(labels) % HALF_ROWS
    if missing and hidden.dtype.itemsize == 2:
        hidden, labels = F.pad(hidden, (0, 0, 0, missing)), F.pad(labels, (0, missing), value=IGNORE_INDEX)
    return hidden, labels


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    label_smoothing: float = 0.0,
    dtype: torch.dtype | None = None,
) -> LossSums:
    """Loss of the scores `hidden @ weight.T`, which are never held at once.

    With p the softmax of a row's scores z, y its label and eps the smoothing, the loss of a row is
    -(1 - eps) log p[y] - eps / V sum_v log p[v] = logsumexp(z) - (1 - eps) z[y] - eps mean(z)
    (Szegedy et al. 2016, section 7, https://arxiv.org/abs/1512.00567); checked against
    `torch.nn.functional.cross_entropy` in value and gradient.

    Args:
        hidden: (..., D) states of the decoder.
        weight: (V, D) output embeddings.
        labels: (...) token ids; rows labelled -100 are dropped first.
        label_smoothing: eps, at least 0 and less than 1.
        dtype: Of the products; None takes autocast's, or that of `hidden`.

    Returns:
        Sums over all labels, not means: what to divide by is known only to whoever sees the whole batch.
    """
    num_tokens = (labels != IGNORE_INDEX).sum().float()
    hidden, labels = labelled_rows(hidden, labels, dtype)  # (N, D), (N,)
    needs_gradient = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    with torch.autocast(hidden.device.type, enabled=False):
        loss, nll, num_correct = _LinearCrossEntropy.apply(hidden, weight, labels, label_smoothing, needs_gradient)
    return LossSums(loss, nll, num_correct, num_tokens)
