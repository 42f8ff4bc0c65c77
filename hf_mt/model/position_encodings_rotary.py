"""Position encodings that turn queries and keys: RoPE, xPos, PoPE."""

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus
from transformers import initialization as init

from .configuration_hf_mt import HfMtConfig
from .position_encoding_base import PositionEncoding


class RotaryPositionEncoding(PositionEncoding):
    """Queries and keys turned by angles that grow with position, so that their product depends on distance.

    Source: Su et al. 2021, equation 34 (https://arxiv.org/abs/2104.09864), with the halves convention of Llama.
    Scaling for longer input: linear (Chen et al. 2023, https://arxiv.org/abs/2306.15595), static NTK and YaRN (Peng
    et al. 2023, https://arxiv.org/abs/2309.00071). Checked against transformers' Llama and its `ROPE_INIT_FUNCTIONS`.
    """

    citation = "Su et al. 2021, https://arxiv.org/abs/2104.09864"

    def __init__(self, config: HfMtConfig, *, num_heads: int, bidirectional: bool):
        super().__init__(config, num_heads=num_heads, bidirectional=bidirectional)
        self.parameters_of_rope: dict[str, Any] = dict(config.rope_parameters or {})
        self.rotary_dim = int(self.head_dim * self.parameters_of_rope.get("partial_rotary_factor", 1.0))
        if not 2 <= self.rotary_dim <= self.head_dim or self.rotary_dim % 2:
            raise ValueError(
                f"position_encoding 'rope' turns pairs of dimensions, but {self.rotary_dim} of {self.head_dim} in a "
                f"head (d_model {self.d_model} / {num_heads} heads x partial_rotary_factor) is not an even number "
                "from 2 to that; change d_model, the number of heads or partial_rotary_factor"
            )
        rope_type = self.parameters_of_rope.get("rope_type", "default")
        if rope_type not in ROPE_SCALINGS:
            raise ValueError(f"rope_type is {rope_type!r}, but must be one of {', '.join(ROPE_SCALINGS)}")
        unknown = self.parameters_of_rope.keys() - ROPE_KEYS
        if unknown:
            raise ValueError(
                f"rope_parameters has {', '.join(sorted(unknown))}, but may have {', '.join(sorted(ROPE_KEYS))}"
            )
        factor = self.parameters_of_rope.get("factor")
        if rope_type != "default" and not (isinstance(factor, int | float) and 1 <= factor < math.inf):
            raise ValueError(f"rope_type {rope_type!r} needs a factor of at least 1 in rope_parameters")
        self.scaling = ROPE_SCALINGS[rope_type]

    def prepare(self, q_positions: Tensor, k_positions: Tensor) -> tuple[Tensor, Tensor]:
        even = torch.arange(0, self.rotary_dim, 2, device=q_positions.device, dtype=torch.float32)
        frequencies, magnitude = self.scaling(even / self.rotary_dim, self.parameters_of_rope)
        angles = q_positions[:, None] * frequencies  # (Q, rotary_dim / 2)
        return angles.cos() * magnitude, angles.sin() * magnitude

    def rotate(self, q: Tensor, k: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        cos, sin = (part.to(q.dtype) for part in state)
        return self._rotate(q, cos, sin), self._rotate(k, cos, sin)

    def _rotate(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        # the same values; in a step of decoding autograd's wrapper would cost about as much as the rotation, and
        # torch.compile, which takes neither of the two, makes one pass of the plain formula
        turn = _Rotation.apply if torch.is_grad_enabled() else _turned
        if torch.compiler.is_compiling():
            turn = _turned_plainly
        if self.rotary_dim == self.head_dim:
            return turn(x, cos, sin)
        return torch.cat((turn(x[..., : self.rotary_dim], cos, sin), x[..., self.rotary_dim :]), dim=-1)


class _Rotation(torch.autograd.Function):
    """Turns pairs of dimensions; the gradient of a rotation is the rotation back, which needs nothing of its input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _turned(x, cos, sin)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _turned(gradient, cos, -sin), None, None


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """(B, H, Q, E) with the halves of the last dimension as pairs, turned by angles (Q, E / 2)."""
    result = torch.empty_like(x, memory_format=torch.contiguous_format)
    (first, second), (to_first, to_second) = x.chunk(2, dim=-1), result.chunk(2, dim=-1)
    torch.mul(first, cos, out=to_first).addcmul_(second, sin, value=-1)
    torch.mul(second, cos, out=to_second).addcmul_(first, sin)
    return result


def _turned_plainly(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def _default_frequencies(exponents: Tensor, rope: dict[str, Any]) -> tuple[Tensor, float]:
    """Angles by which one step turns each pair of dimensions, and the factor of sines and cosines."""
    return rope.get("rope_theta", 10000.0) ** -exponents, 1.0


def _linear_frequencies(exponents: Tensor, rope: dict[str, Any]) -> tuple[Tensor, float]:
    """All angles divided by `factor`."""
    return _default_frequencies(exponents, rope)[0] / rope["factor"], 1.0


def _ntk_frequencies(exponents: Tensor, rope: dict[str, Any]) -> tuple[Tensor, float]:
    """A larger base: the slowest angle is divided by `factor`, the fastest stays (YaRN, arXiv v2, equation 16)."""
    dim = 2 * len(exponents)
    stretched = rope.get("rope_theta", 10000.0) * rope["factor"] ** (dim / max(dim - 2, 1))
    return stretched**-exponents, 1.0


def _yarn_frequencies(exponents: Tensor, rope: dict[str, Any]) -> tuple[Tensor, float]:
    """Slow angles divided by `factor`, fast ones kept, a ramp between (YaRN, arXiv v2, equations 17 to 22).

    The ramp goes over pairs, as that of transformers; the paper's over turns."""
    theta, factor, dim = rope.get("rope_theta", 10000.0), rope["factor"], 2 * len(exponents)

    def pair_that_turns(times: float) -> float:
        return dim * math.log(rope["original_max_position_embeddings"] / (times * 2 * math.pi)) / (2 * math.log(theta))

    low = max(math.floor(pair_that_turns(rope.get("beta_fast") or 32)), 0)
    high = min(math.ceil(pair_that_turns(rope.get("beta_slow") or 1)), dim - 1)
    pairs = torch.arange(len(exponents), device=exponents.device, dtype=torch.float32)
    slow = ((pairs - low) / max(high - low, 0.001)).clamp(0, 1)
    frequencies = theta**-exponents
    magnitude = rope.get("attention_factor") or 0.1 * math.log(factor) + 1.0
    return frequencies / factor * slow + frequencies * (1 - slow), magnitude


ROPE_KEYS = {"rope_type", "rope_theta", "factor", "partial_rotary_factor", "original_max_position_embeddings"}
ROPE_KEYS |= {"attention_factor", "beta_fast", "beta_slow"}
ROPE_SCALINGS = {
    "default": _default_frequencies,
    "linear": _linear_frequencies,
    "ntk": _ntk_frequencies,
    "yarn": _yarn_frequencies,
}


class XposPositionEncoding(RotaryPositionEncoding):
    """RoPE whose products also shrink with distance: queries fall and keys grow exponentially with position.

    Source: Sun et al. 2022, section 3.2, equations 9 and 10 (https://arxiv.org/abs/2212.10554), with gamma 0.4 and a
    scale base of 512 tokens, as in their code (torchscale). It needs keys before the query, which the encoder's are
    not: there it is RoPE.
    """

    citation = "Sun et al. 2022, https://arxiv.org/abs/2212.10554"
    gamma: ClassVar[float] = 0.4
    scale_base: ClassVar[float] = 512.0

    def prepare(self, q_positions: Tensor, k_positions: Tensor) -> tuple[Tensor, ...]:
        cos, sin = super().prepare(q_positions, k_positions)
        if not self.bidirectional:
            pairs = torch.arange(0, self.rotary_dim, 2, device=q_positions.device, dtype=torch.float32)
            zeta = (pairs / self.rotary_dim + self.gamma) / (1 + self.gamma)  # (rotary_dim / 2,)
            growth = zeta ** (q_positions[:, None] / self.scale_base)  # (Q, rotary_dim / 2)
            return cos * growth, sin * growth, cos / growth, sin / growth
        return cos, sin, cos, sin

    def rotate(self, q: Tensor, k: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        cos_q, sin_q, cos_k, sin_k = (part.to(q.dtype) for part in state)
        return self._rotate(q, cos_q, sin_q), self._rotate(k, cos_k, sin_k)


class PolarPositionEncoding(PositionEncoding):
    """Each dimension becomes a complex number: its length says what the word is, its angle where it stands.

    Source: Gopalakrishnan et al. 2025, equation 6 (https://arxiv.org/abs/2509.10534): the softplus of queries and keys
    is the length, position times frequency the angle, with a learned angle for each dimension of the keys, here near
    zero at first (there zero), and without bounds. The real and imaginary parts double the width of queries and keys.
    """

    widens = True
    citation = "Gopalakrishnan et al. 2025, https://arxiv.org/abs/2509.10534"

    def __init__(self, config: HfMtConfig, *, num_heads: int, bidirectional: bool):
        super().__init__(config, num_heads=num_heads, bidirectional=bidirectional)
        self.angles = nn.Parameter(torch.empty(num_heads, 1, self.head_dim))  # delta of the paper

    def reset(self, std: float) -> None:
        init.normal_(self.angles, mean=0.0, std=0.02)

    def prepare(self, q_positions: Tensor, k_positions: Tensor) -> Tensor:
        places = torch.arange(self.head_dim, device=q_positions.device, dtype=torch.float32)
        return q_positions[:, None] * 10000.0 ** (-places / self.head_dim)  # (Q, E)

    def rotate(self, q: Tensor, k: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        return _polar(softplus(q), state), _polar(softplus(k), state + self.angles.float())


def _polar(lengths: Tensor, angles: Tensor) -> Tensor:
    """Real and imaginary parts, (B, H, Q, 2E), of complex numbers (B, H, Q, E)."""
    return torch.cat((lengths * angles.cos().to(lengths.dtype), lengths * angles.sin().to(lengths.dtype)), dim=-1)
