"""Muon: momentum whose steps are orthogonal matrices, for the weights of the layers; AdamW for all other weights.

Adam scales each weight by itself, so that a step of a matrix is mostly a few directions that many weights share. Muon
gives every direction of the step the same length, which learns the rare ones sooner. Embeddings, biases and norms
aren't maps from vectors to vectors; they keep AdamW.

Sources: Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/ (iteration and coefficients); Liu et al.
2025, https://arxiv.org/abs/2502.16982, section 2.2 (one learning rate for both: 0.2 sqrt(max(rows, columns)) gives
Muon's step the size of AdamW's). Checked against `torch.optim.Muon`, which takes one matrix at a time and iterates in
bfloat16 everywhere; here hardware that would imitate that iterates in float32.
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.adamw import adamw
from transformers import PreTrainedModel, TrainingArguments

from hf_mt.hardware import multiplies_bfloat16


COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5


def orthogonalized(matrices: Tensor) -> Tensor:
    """The nearest matrices with orthogonal rows or columns, about: their singular values are 0.7 to 1.2.

    Args:
        matrices: (number, rows, columns), in the precision to compute in. A matrix of zeros stays one.
    """
    tall = matrices.size(1) > matrices.size(2)
    x = matrices.mT if tall else matrices
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)  # singular values are at most 1
    a, b, c = COEFFICIENTS
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def _iterated_in(matrices: Tensor) -> torch.dtype:
    """bfloat16, as published, in place of float32, where it is fast: the iteration corrects what rounding adds."""
    rounded = matrices.dtype == torch.float32 and multiplies_bfloat16(matrices.device)
    return torch.bfloat16 if rounded else matrices.dtype


def muon_for(model: PreTrainedModel, args: TrainingArguments, decayed: Collection[str]) -> "Muon":
    """The optimizer of a model: Muon for the linear maps of its layers, AdamW for the rest, as `args` has them.

    Args:
        decayed: Names of the parameters that weight decay applies to.
    """
    ends = {id(end.weight) for end in (model.get_input_embeddings(), model.get_output_embeddings()) if end is not None}
    linear = [module.weight for module in model.modules() if isinstance(module, nn.Linear)]
    matrices = [weight for weight in linear if weight.requires_grad and id(weight) not in ends]
    own = {id(matrix) for matrix in matrices}
    named = [(name, param) for name, param in model.named_parameters() if param.requires_grad and id(param) not in own]
    others = [
        {"params": [param for name, param in named if name in decayed], "weight_decay": args.weight_decay},
        {"params": [param for name, param in named if name not in decayed], "weight_decay": 0.0},
    ]
    betas = (args.adam_beta1, args.adam_beta2)
    return Muon(
        matrices, others, lr=args.learning_rate, betas=betas, eps=args.adam_epsilon, weight_decay=args.weight_decay
    )


class Muon(Optimizer):
    """Muon for `matrices`, AdamW for the groups in `others`, under one schedule of the learning rate.

    Args:
        matrices: Weights of two dimensions.
        others: Groups of parameters with their `weight_decay`.
        lr: Learning rate of both.
        betas: Of AdamW.
        eps: Of AdamW.
        weight_decay: Of the matrices.
        momentum: Nesterov momentum of the matrices.

    Raises:
        ValueError: A matrix hasn't two dimensions.
    """

    def __init__(
        self,
        matrices: Iterable[nn.Parameter],
        others: Iterable[dict],
        *,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
    ):
        matrices = list(matrices)
        shapes = [tuple(matrix.shape) for matrix in matrices if matrix.dim() != 2]
        if shapes:
            raise ValueError(f"Muon takes matrices, but found parameters of shape {shapes}; give them as others")
        groups = [{"params": matrices, "momentum": momentum, "weight_decay": weight_decay}]
        groups += [{**group, "betas": betas, "eps": eps, "fused": True} for group in others]  # fused: read on loading
        super().__init__([group for group in groups if group["params"]], {"lr": lr})

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's, which takes the count of steps to a GPU only if a saved group is `fused`; old ones don't say."""
        groups = [group if "momentum" in group else {**group, "fused": True} for group in state_dict["param_groups"]]
        super().load_state_dict({**state_dict, "param_groups": groups})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step. The gradients of some parameters may be missing; these stay as they are."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [param for param in group["params"] if param.grad is not None]
            if params:
                (self._muon if "momentum" in group else self._adamw)(group, params)
        return loss

    def _muon(self, group: dict, params: list[Tensor]) -> None:
        """Matrices of one shape go through the iteration together."""
        buffers = [self._state(param)["momentum_buffer"] for param in params]
        gradients = [param.grad for param in params]
        torch._foreach_lerp_(buffers, gradients, 1 - group["momentum"])
        updates = torch._foreach_lerp(gradients, buffers, group["momentum"])  # Nesterov
        torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
        by_shape = defaultdict(list)
        for param, update in zip(params, updates, strict=True):
            by_shape[param.shape].append((param, update))
        for shape, pairs in by_shape.items():
            stacked = torch.stack([update for _, update in pairs])
            steps = orthogonalized(stacked.to(_iterated_in(stacked))).to(stacked.dtype)
            size = group["lr"] * 0.2 * max(shape) ** 0.5
            torch._foreach_add_([param for param, _ in pairs], list(steps.unbind()), alpha=-size)

    def _adamw(self, group: dict, params: list[Tensor]) -> None:
        states = [self._state(param, moments=True) for param in params]
        adamw(
            params,
            [param.grad for param in params],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            fused=True,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )

    def _state(self, param: Tensor, moments: bool = False) -> dict[str, Tensor]:
        state = self.state[param]
        if not state and moments:
            state["step"] = torch.zeros((), device=param.device)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(param), torch.zeros_like(param)
        elif not state:
            state["momentum_buffer"] = torch.zeros_like(param)
        return state
