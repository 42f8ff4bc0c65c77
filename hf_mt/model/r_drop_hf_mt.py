"""R-Drop: the same sentences twice, under different dropout, and a price for disagreement.

With p1 and p2 what the model says about a label in the two passes, the loss of a label is
1/2 (CE(p1) + CE(p2)) + alpha/4 (KL(p1|p2) + KL(p2|p1)): half of equation 4 of Liang et al. 2021
(https://arxiv.org/abs/2106.14448), so that it is on the scale of the plain loss, and alpha is theirs.

As in `loss_hf_mt.py` the vocabulary is passed a slice of rows at a time, and the gradient is computed there and then.

Shapes: N rows (positions with a label), D d_model, V vocabulary size.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .loss_hf_mt import IGNORE_INDEX, SLICE_ELEMENTS, LossSums


class _LinearRDrop(torch.autograd.Function):
    """Sums of the loss, of the unsmoothed cross entropy and of right guesses, the last two as means of both passes."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor, smoothing: float, alpha: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        vocab_size = weight.shape[0]
        rows_in_slice = max(1, SLICE_ELEMENTS // (2 * vocab_size))
        sums = torch.zeros(3, dtype=torch.float32, device=hidden.device)
        grad_hidden = torch.empty_like(hidden)  # (2, N, D)
        grad_weight = torch.zeros_like(weight, dtype=torch.float32)  # (V, D)
        for start in range(0, hidden.shape[1], rows_in_slice):
            rows = slice(start, start + rows_in_slice)
            states, index = hidden[:, rows], labels[rows, None].expand(2, -1, -1)  # (2, rows, D), (2, rows, 1)
            log_probs = (states @ weight.T).float().log_softmax(-1)  # (2, rows, V)
            probabilities = log_probs.exp()
            right = log_probs.gather(-1, index)
            ratio = log_probs[0] - log_probs[1]
            apart = torch.stack((ratio, -ratio))  # of each pass over the other
            divergence = (probabilities * apart).sum(-1, keepdim=True)  # (2, rows, 1)
            smoothed = (1 - smoothing) * right + smoothing * log_probs.mean(-1, keepdim=True)
            sums[0] += alpha / 4 * divergence.sum() - smoothed.sum() / 2
            sums[1] -= right.sum() / 2
            sums[2] += (right == log_probs.amax(-1, keepdim=True)).sum() / 2
            # d KL(p1|p2) / d z1 = p1 (log p1/p2 - KL), and d KL(p2|p1) / d z1 = p1 - p2
            gradient = probabilities * (apart - divergence) + probabilities - probabilities.flip(0)
            gradient.mul_(alpha / 4).add_(probabilities, alpha=0.5).sub_(smoothing / (2 * vocab_size))
            gradient.scatter_add_(-1, index, torch.full_like(right, (smoothing - 1) / 2))
            gradient = gradient.to(hidden.dtype)
            grad_hidden[:, rows] = gradient @ weight
            grad_weight += gradient.flatten(0, 1).T @ states.flatten(0, 1)
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


def linear_r_drop(
    hidden: Tensor, weight: Tensor, labels: Tensor, *, alpha: float, label_smoothing: float = 0.0
) -> LossSums:
    """Loss of the scores `hidden @ weight.T` of two passes, which are never held at once.

    Checked against `torch.nn.functional.cross_entropy` and `kl_div` in value and gradient.

    Args:
        hidden: (2, ..., D) states of the decoder in the two passes.
        weight: (V, D) output embeddings.
        labels: (...) token ids; rows labelled -100 are dropped first.
        alpha: Weight of the disagreement; 5 in the paper's translation experiments.
        label_smoothing: As in `linear_cross_entropy`.

    Returns:
        Sums over the labels, each counted once.
    """
    kept = labels != IGNORE_INDEX
    hidden, labels = hidden[:, kept], labels[kept]  # (2, N, D), (N,)
    device_type = hidden.device.type
    if torch.is_autocast_enabled(device_type):
        hidden = hidden.to(torch.get_autocast_dtype(device_type))
    weight = weight.to(hidden.dtype)
    with torch.autocast(device_type, enabled=False):
        loss, nll, num_correct = _LinearRDrop.apply(hidden, weight, labels, label_smoothing, alpha)
    return LossSums(loss, nll, num_correct, kept.sum().float())
