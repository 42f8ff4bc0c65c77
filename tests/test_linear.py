"""Linear layers with rounded factors stay close to whole ones, and their products have few shapes."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from hf_mt.hardware import multiplies_bfloat16
from hf_mt.model.linear_hf_mt import BLOCK, REST, Linear


WIDTHS = 256, 192  # wide enough for the kernels that round
ROWS = [0, 1, 63, 64, BLOCK - 1, BLOCK, BLOCK + 65, 2 * BLOCK]


def layer(**options: Any) -> Linear:
    torch.manual_seed(0)
    made = Linear(*WIDTHS, **options)
    made.rounded = True
    return made


def results(linear: nn.Linear, hidden: Tensor) -> tuple[Tensor, ...]:
    """Output, and the gradients of input and parameters."""
    hidden = hidden.clone().requires_grad_()
    output = linear(hidden)
    weighed = (output * torch.linspace(-1, 1, output.shape[-1], dtype=output.dtype)).sum()
    return output.detach(), *torch.autograd.grad(weighed, (hidden, *linear.parameters()))


def plain(linear: nn.Linear) -> nn.Linear:
    made = nn.Linear(*WIDTHS, bias=linear.bias is not None)
    made.load_state_dict(linear.state_dict())
    return made.to(linear.weight.dtype)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", ROWS)
def test_values_and_gradients_are_those_of_linear(rows: int, bias: bool) -> None:
    linear, hidden = layer(bias=bias).double(), torch.randn(rows, WIDTHS[0], dtype=torch.float64)  # never rounded
    for ours, theirs in zip(results(linear, hidden), results(plain(linear), hidden), strict=True):
        torch.testing.assert_close(ours, theirs)
    wrong = results(linear, hidden + 0.1)[0]
    assert not rows or not torch.allclose(wrong, results(plain(linear), hidden)[0])


@pytest.mark.skipif(not multiplies_bfloat16(torch.device("cpu")), reason="this processor does not round")
def test_rounding_acts_in_training_alone_and_is_small() -> None:
    linear, hidden = layer(), torch.randn(5, 70, WIDTHS[0])
    whole = plain(linear)
    for ours, theirs in zip(results(linear, hidden), results(whole, hidden), strict=True):
        assert ours.dtype == torch.float32 and ours.shape == theirs.shape
        assert (ours - theirs).norm() < 0.01 * theirs.norm()
    assert not torch.equal(linear(hidden), whole(hidden))
    assert torch.equal(linear.eval()(hidden), whole(hidden))
    assert torch.backends.mkldnn.matmul.fp32_precision != "bf16"  # for everything else it is as it was


def test_autocast_rounds_by_itself() -> None:
    linear, hidden = layer(), torch.randn(3, WIDTHS[0])
    with torch.autocast("cpu", torch.bfloat16):
        for states in (hidden, hidden.bfloat16()):
            assert torch.equal(linear(states), plain(linear)(states))


def test_what_is_frozen_gets_no_gradient_and_what_only_it_needs_is_not_kept() -> None:
    linear, hidden = layer(), torch.randn(9, WIDTHS[0], requires_grad=True)
    kept: dict[bool, list[torch.Size]] = {True: [], False: []}
    for trained in kept:
        linear.weight.requires_grad_(trained)
        sizes = kept[trained]
        with torch.autograd.graph.saved_tensors_hooks(lambda x, sizes=sizes: sizes.append(x.shape) or x, lambda x: x):
            output = linear(hidden)
    output.sum().backward()
    assert linear.weight.grad is None and linear.bias.grad is not None and hidden.grad is not None
    assert set(kept[True]) == {hidden.shape, linear.weight.shape} and set(kept[False]) == {linear.weight.shape}


class Products(TorchDispatchMode):
    """The shapes of all products of two matrices."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: set[tuple[torch.Size, ...]] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm):
            self.shapes.add(tuple(arg.shape for arg in args if arg.dim() == 2 and arg.numel()))
        return func(*args, **(kwargs or {}))


def test_products_of_any_number_of_rows_have_few_shapes() -> None:
    numbers = range(1, 2 * BLOCK + 2, 3)
    shapes = {}
    for linear in (layer(), plain(layer())):
        with Products() as products:
            for rows in numbers:
                results(linear, torch.zeros(rows, WIDTHS[0]))
        shapes[type(linear)] = len(products.shapes)
    assert shapes[nn.Linear] >= 3 * len(numbers) - 10
    assert shapes[Linear] <= 3 * (2 + BLOCK // REST)
