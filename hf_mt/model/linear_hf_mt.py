"""Linear layers whose products round their factors to bfloat16, on processors that are made for it.

- Inputs, weights, outputs and sums stay float32; only what is multiplied is rounded, in training alone.
- oneDNN makes and keeps a kernel for each number of rows, which costs more than the product. Batches of sentences have
  any number, so rows go in two parts, whose numbers repeat: a multiple of `BLOCK`, and a rest filled up by zeros.

Source: Kalamkar et al. 2019 (https://arxiv.org/abs/1905.12322): bfloat16 factors with float32 sums train like float32.

Shapes: N rows, D width in, O width out.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


BLOCK, REST = 256, 64  # rows


class Linear(nn.Linear):
    """`nn.Linear`, and with `rounded` the same by rounded factors while it is trained."""

    rounded = False

    def forward(self, hidden_states: Tensor) -> Tensor:
        if not (self.rounded and self.training) or torch.is_autocast_enabled(hidden_states.device.type):
            return super().forward(hidden_states)
        rows = hidden_states.reshape(-1, self.in_features)
        return _RoundedLinear.apply(rows, self.weight, self.bias).view(*hidden_states.shape[:-1], self.out_features)


class _RoundedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        needs_rows, needs_weight, _ = ctx.needs_input_grad
        ctx.save_for_backward(rows if needs_weight else None, weight if needs_rows else None)
        with _rounded_products():
            output = _by_blocks(rows, weight.T)  # (N, O)
        return output if bias is None else output.add_(bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        rows, weight = ctx.saved_tensors
        with _rounded_products():
            grad_rows = None if weight is None else _by_blocks(grad_output, weight)  # (N, D)
            grad_weight = None if rows is None else _over_blocks(grad_output, rows)  # (O, D)
        return grad_rows, grad_weight, grad_output.sum(0) if ctx.needs_input_grad[2] else None


def _blocks(rows: Tensor) -> Iterator[Tensor]:
    """All whole blocks in one, and what is left of the rows, filled up by zeros."""
    end = len(rows) - len(rows) % BLOCK
    if end:
        yield rows[:end]
    if end < len(rows):
        yield F.pad(rows[end:], (0, 0, 0, -len(rows) % REST))


def _by_blocks(rows: Tensor, matrix: Tensor) -> Tensor:
    """`rows @ matrix`."""
    output, start = rows.new_empty(len(rows), matrix.shape[1]), 0
    for block in _blocks(rows):
        room = output[start : start + len(block)]
        if len(room) == len(block):
            torch.mm(block, matrix, out=room)
        else:
            room.copy_((block @ matrix)[: len(room)])
        start += len(block)
    return output


def _over_blocks(left: Tensor, right: Tensor) -> Tensor:
    """`left.T @ right`."""
    output = left.new_zeros(left.shape[1], right.shape[1])
    for one, other in zip(_blocks(left), _blocks(right), strict=True):
        output.addmm_(one.T, other)
    return output


@contextmanager
def _rounded_products() -> Iterator[None]:
    """A setting of the whole process: nothing else may multiply beside training (evaluation comes after it)."""
    precision = torch.backends.mkldnn.matmul.fp32_precision
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"
    try:
        yield
    finally:
        torch.backends.mkldnn.matmul.fp32_precision = precision
