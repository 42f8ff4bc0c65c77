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

from .loss_hf_mt import IGNORE_INDEX, LossSums, _LinearCrossEntropy, labelled_rows, slice_rows


class _LinearRDrop(_LinearCrossEntropy):
    """Sums of the loss, of the unsmoothed cross entropy and of right guesses, the last two as means of both passes."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor, smoothing: float, alpha: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        vocab_size, matrix = weight.shape[0], weight.to(hidden.dtype)
        rows_in_slice = slice_rows(2 * vocab_size, hidden)
        mean_weight = weight.mean(0, dtype=torch.float32)  # (D,)
        sums = torch.zeros(3, dtype=torch.float32, device=hidden.device)
        grad_hidden = torch.empty_like(hidden)  # (2, N, D)
        grad_weight = torch.zeros_like(weight, dtype=torch.float32)  # (V, D)
        for start in range(0, hidden.shape[1], rows_in_slice):
            rows = slice(start, start + rows_in_slice)
            states, label = hidden[:, rows], labels[rows, None].expand(2, -1, -1)  # (2, rows, D), (2, rows, 1)
            counted = label != IGNORE_INDEX
            index = label.masked_fill(~counted, 0)
            scores = (states @ matrix.T).float()  # (2, rows, V)
            score = scores.gather(-1, index)
            log_probs = torch.log_softmax(scores, -1, out=scores)
            right, best = log_probs.gather(-1, index), log_probs.amax(-1, keepdim=True)
            smoothed = right - smoothing * (score - states.float() @ mean_weight[:, None])
            probabilities = log_probs.exp()
            ratio = log_probs[0] - log_probs[1]  # (rows, V)
            divergence = torch.stack([torch.linalg.vecdot(probabilities[own], ratio) for own in (0, 1)])[..., None]
            divergence[1].neg_()  # (2, rows, 1): of each pass from the other
            sums[0] += alpha / 4 * divergence.sum() - smoothed.mul(counted).sum() / 2
            sums[1] -= right.mul(counted).sum() / 2
            sums[2] += (right == best).mul(counted).sum() / 2
            gradient = log_probs
            for own, sign in ((0, 1), (1, -1)):
                # d KL(p1|p2) / d z1 = p1 (log p1/p2 - KL), d KL(p2|p1) / d z1 = p1 - p2, and p1 / 2 of the entropy
                factor = torch.add(1 + 2 / alpha - divergence[own], ratio, alpha=sign)
                torch.addcmul(probabilities[1 - own], factor, probabilities[own], value=-1, out=gradient[own])
            gradient.scatter_add_(-1, index, torch.full_like(right, 2 / alpha * (1 - smoothing)))
            gradient = gradient.to(hidden.dtype)  # times -4 / alpha
            grad_hidden[:, rows] = gradient @ matrix
            for own in (0, 1):
                grad_weight += gradient[own].T @ states[own]
        grad_hidden.mul_(-alpha / 4).sub_(smoothing / 2 * mean_weight.to(hidden.dtype))
        grad_weight.mul_(-alpha / 4).sub_(smoothing / (2 * vocab_size) * hidden.float().sum((0, 1)))
        ctx.save_for_backward(grad_hidden, grad_weight)
        ctx.weight_dtype = weight.dtype
        loss, nll, num_correct = sums.unbind()
        ctx.mark_non_differentiable(nll, num_correct)
        return loss, nll, num_correct


def linear_r_drop(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    alpha: float,
    label_smoothing: float = 0.0,
    dtype: torch.dtype | None = None,
) -> LossSums:
    """Loss of the scores `hidden @ weight.T` of two passes, which are never held at once.

    Checked against `torch.nn.functional.cross_entropy` and `kl_div` in value and gradient.

    Args:
        hidden: (2, ..., D) states of the decoder in the two passes.
        weight: (V, D) output embeddings.
        labels: (...) token ids; rows labelled -100 are dropped first.
        alpha: Weight of the disagreement, above 0; 5 in the paper's translation experiments.
        label_smoothing, dtype: As in `linear_cross_entropy`.

    Returns:
        Sums over the labels, each counted once.
    """
    num_tokens = (labels != IGNORE_INDEX).sum().float()
    hidden, labels = labelled_rows(hidden, labels, dtype)  # (2, N, D), (N,)
    with torch.autocast(hidden.device.type, enabled=False):
        loss, nll, num_correct = _LinearRDrop.apply(hidden, weight, labels, label_smoothing, alpha)
    return LossSums(loss, nll, num_correct, num_tokens)
