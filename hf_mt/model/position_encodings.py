"""Where a Transformer learns the order of words: one class for each scheme.

- The base class is a working scheme, `none`; the others override the hooks they need. Hooks are the only places where
  positions enter, so the model never asks which scheme it has.
- A scheme holds parameters only. Angles, slopes and buckets are computed from positions once in a stack's forward, in
  float32: nothing to refill after loading on the meta device, nothing to lose when a model is cast to bfloat16.
- Encoder and decoder own one instance each, shared by their layers; cross-attention has none.
- A new scheme is a class here, a line in `POSITION_ENCODINGS` at the end and a word in `PositionEncodingName`.

Shapes: B batch, H heads, Q query length, K key length, D d_model, E head size, R relative distances.
"""

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import initialization as init

from .configuration_hf_mt import HfMtConfig


class PositionEncoding(nn.Module):
    """The scheme `none`: the encoder sees a set of words, the decoder knows order by its causal mask alone.

    Source: for decoders, Haviv et al. 2022 (https://arxiv.org/abs/2203.16634).

    Args:
        config: Sizes, and the fields of the schemes.
        num_heads: Attention heads of the stack (H).
        bidirectional: Whether keys may follow the query (encoder) or never do (decoder).
    """

    uses_bias: ClassVar[bool] = False  # adds to attention scores: no flash attention
    uses_weights: ClassVar[bool] = False  # needs attention weights: eager attention only
    relative: ClassVar[bool] = True  # sees distances alone, so that moving a sentence changes nothing
    citation: ClassVar[str] = "Haviv et al. 2022, https://arxiv.org/abs/2203.16634"

    def __init__(self, config: HfMtConfig, *, num_heads: int, bidirectional: bool):
        super().__init__()
        self.d_model = config.d_model
        self.num_heads = num_heads
        self.head_dim = config.d_model // num_heads
        self.bidirectional = bidirectional

    @property
    def max_length(self) -> int | None:
        """Longest sequence this scheme can take; None if it has no limit."""
        return None

    def reset(self, std: float) -> None:
        """Draws the initial values of the scheme's parameters.

        Args:
            std: Standard deviation of the model's embeddings.
        """

    def embed(self, hidden_states: Tensor, positions: Tensor) -> Tensor:
        """Adds positions to embeddings: (B, Q, D) and (Q,) to (B, Q, D)."""
        return hidden_states

    def prepare(self, q_positions: Tensor, k_positions: Tensor) -> Any:
        """Whatever depends on positions alone, once in a stack's forward: (Q,) and (K,) to a state for the hooks."""
        return None

    def rotate(self, q: Tensor, k: Tensor, state: Any) -> tuple[Tensor, Tensor]:
        """Changes queries and new keys before keys are cached: two (B, H, Q, E) to two of the same shape."""
        return q, k

    def bias(self, q: Tensor, state: Any) -> Tensor | None:
        """What to add to the scaled scores: None, or (1 or B, H, Q, K) in the dtype of `q` (B, H, Q, E)."""
        return None

    def add_values(self, attn_output: Tensor, attn_weights: Tensor | None, state: Any) -> Tensor:
        """Adds positions to what attention read: (B, Q, H, E) and (B, H, Q, K) to (B, Q, H, E)."""
        return attn_output


class SinusoidalPositionEncoding(PositionEncoding):
    """Fixed sines and cosines of geometrically spaced frequencies, added to the embeddings.

    Source: Vaswani et al. 2017, section 3.5 (https://arxiv.org/abs/1706.03762); sines fill the first half of the
    width and cosines the second, as in tensor2tensor. Checked against transformers' Marian.
    """

    relative = False
    citation = "Vaswani et al. 2017, https://arxiv.org/abs/1706.03762"

    def __init__(self, config: HfMtConfig, *, num_heads: int, bidirectional: bool):
        super().__init__(config, num_heads=num_heads, bidirectional=bidirectional)
        if self.d_model % 2:
            raise ValueError(f"position_encoding 'sinusoidal' needs an even d_model, not {self.d_model}")

    def embed(self, hidden_states: Tensor, positions: Tensor) -> Tensor:
        even = torch.arange(0, self.d_model, 2, device=positions.device, dtype=torch.float32)
        angles = positions[:, None] * 10000.0 ** (-even / self.d_model)  # (Q, D/2)
        table = torch.cat((angles.sin(), angles.cos()), dim=-1)  # (Q, D)
        return hidden_states + table.to(hidden_states.dtype)


class LearnedPositionEncoding(PositionEncoding):
    """A learned vector for each position, added to the embeddings; the model refuses longer sequences.

    Source: Gehring et al. 2017 (https://arxiv.org/abs/1705.03122), as in BART.
    """

    relative = False
    citation = "Gehring et al. 2017, https://arxiv.org/abs/1705.03122"

    def __init__(self, config: HfMtConfig, *, num_heads: int, bidirectional: bool):
        super().__init__(config, num_heads=num_heads, bidirectional=bidirectional)
        self.table = nn.Parameter(torch.empty(config.max_position_embeddings, config.d_model))

    @property
    def max_length(self) -> int | None:
        return self.table.shape[0]

    def reset(self, std: float) -> None:
        init.normal_(self.table, mean=0.0, std=std)

    def embed(self, hidden_states: Tensor, positions: Tensor) -> Tensor:
        return hidden_states + self.table[positions].to(hidden_states.dtype)


class ShawPositionEncoding(PositionEncoding):
    """A learned vector for each clipped distance, added to keys and to values.

    Source: Shaw et al. 2018, equations 3 to 5 (https://arxiv.org/abs/1803.02155); as there, heads share the tables,
    and scores follow the efficient form of section 3.3. Checked against the direct form of the equations.
    """

    uses_bias = True
    uses_weights = True
    citation = "Shaw et al. 2018, https://arxiv.org/abs/1803.02155"

    def __init__(self, config: HfMtConfig, *, num_heads: int, bidirectional: bool):
        super().__init__(config, num_heads=num_heads, bidirectional=bidirectional)
        if config.max_relative_position < 1:
            raise ValueError(f"max_relative_position is {config.max_relative_position}, but must be at least 1")
        self.max_relative_position = config.max_relative_position
        distances = self.max_relative_position * (2 if bidirectional else 1) + 1
        self.relative_keys = nn.Parameter(torch.empty(distances, self.head_dim))  # (R, E)
        self.relative_values = nn.Parameter(torch.empty(distances, self.head_dim))  # (R, E)

    def reset(self, std: float) -> None:
        init.xavier_uniform_(self.relative_keys)
        init.xavier_uniform_(self.relative_values)

    def prepare(self, q_positions: Tensor, k_positions: Tensor) -> Tensor:
        farthest = self.max_relative_position
        distances = k_positions[None, :] - q_positions[:, None]  # (Q, K)
        return distances.clamp(-farthest, farthest if self.bidirectional else 0) + farthest

    def bias(self, q: Tensor, state: Tensor) -> Tensor:
        scores = q @ self.relative_keys.to(q.dtype).T * self.head_dim**-0.5  # (B, H, Q, R)
        return scores.gather(-1, state.expand(*q.shape[:2], -1, -1))  # (B, H, Q, K)

    def add_values(self, attn_output: Tensor, attn_weights: Tensor | None, state: Tensor) -> Tensor:
        assert attn_weights is not None, "eager attention returns weights"
        index = state.expand_as(attn_weights)
        by_distance = attn_weights.new_zeros(*attn_weights.shape[:3], len(self.relative_values))
        by_distance = by_distance.scatter_add(-1, index, attn_weights)  # (B, H, Q, R)
        return attn_output + (by_distance @ self.relative_values.to(attn_weights.dtype)).transpose(1, 2)


class T5PositionEncoding(PositionEncoding):
    """A learned score for each head and bucket of distances; buckets grow with distance.

    Source: Raffel et al. 2020, section 2.1 (https://arxiv.org/abs/1910.10683). Checked against transformers' T5.
    """

    uses_bias = True
    citation = "Raffel et al. 2020, https://arxiv.org/abs/1910.10683"

    def __init__(self, config: HfMtConfig, *, num_heads: int, bidirectional: bool):
        super().__init__(config, num_heads=num_heads, bidirectional=bidirectional)
        self.num_buckets = config.relative_attention_num_buckets
        self.max_distance = config.relative_attention_max_distance
        exact = self.num_buckets // (4 if bidirectional else 2)
        if exact < 1 or self.max_distance <= exact:
            raise ValueError(
                f"relative_attention_num_buckets ({self.num_buckets}) must be at least 4, and "
                f"relative_attention_max_distance ({self.max_distance}) larger than half of them"
            )
        self.relative_attention_bias = nn.Parameter(torch.empty(self.num_buckets, num_heads))

    def reset(self, std: float) -> None:
        init.normal_(self.relative_attention_bias, mean=0.0, std=std)

    def buckets(self, distances: Tensor) -> Tensor:
        """Buckets of key minus query positions, any shape to the same shape."""
        offset, count = 0, self.num_buckets
        if self.bidirectional:
            count //= 2
            offset = (distances > 0).long() * count
            distances = distances.abs()
        else:
            distances = (-distances).clamp(min=0)
        exact = count // 2
        growth = (distances.clamp(min=1).float() / exact).log() / math.log(self.max_distance / exact)
        far = (exact + (growth * (count - exact)).long()).clamp(max=count - 1)
        return offset + torch.where(distances < exact, distances, far)

    def prepare(self, q_positions: Tensor, k_positions: Tensor) -> Tensor:
        buckets = self.buckets(k_positions[None, :] - q_positions[:, None])  # (Q, K)
        return self.relative_attention_bias[buckets].permute(2, 0, 1)[None]  # (1, H, Q, K)

    def bias(self, q: Tensor, state: Tensor) -> Tensor:
        return state.to(q.dtype)


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
        # the same values; in a step of decoding autograd's wrapper would cost about as much as the rotation
        turn = _Rotation.apply if torch.is_grad_enabled() else _turned
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


def _default_frequencies(exponents: Tensor, rope: dict[str, Any]) -> tuple[Tensor, float]:
    """Angles by which one step turns each pair of dimensions, and the factor of sines and cosines."""
    return rope.get("rope_theta", 10000.0) ** -exponents, 1.0


def _linear_frequencies(exponents: Tensor, rope: dict[str, Any]) -> tuple[Tensor, float]:
    """All angles divided by `factor`."""
    return _default_frequencies(exponents, rope)[0] / rope["factor"], 1.0


def _ntk_frequencies(exponents: Tensor, rope: dict[str, Any]) -> tuple[Tensor, float]:
    """A larger base: the slowest angle is divided by `factor`, the fastest stays (YaRN paper, equation 16)."""
    dim = 2 * len(exponents)
    stretched = rope.get("rope_theta", 10000.0) * rope["factor"] ** (dim / max(dim - 2, 1))
    return stretched**-exponents, 1.0


def _yarn_frequencies(exponents: Tensor, rope: dict[str, Any]) -> tuple[Tensor, float]:
    """Slow angles divided by `factor`, fast ones kept, a ramp between (YaRN paper, equations 17 to 22)."""
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


class AlibiPositionEncoding(PositionEncoding):
    """A penalty on scores that grows with distance, at a fixed slope for each head.

    Source: Press et al. 2022, section 3 (https://arxiv.org/abs/2108.12409). The encoder penalises both directions
    alike, as its authors do for bidirectional models; in the decoder the causal mask leaves the published form.
    """

    uses_bias = True
    citation = "Press et al. 2022, https://arxiv.org/abs/2108.12409"

    def slopes(self) -> list[float]:
        """One slope a head (H,): a geometric sequence, interleaved where H is no power of two, as published."""
        power = 2 ** math.floor(math.log2(self.num_heads))
        slopes = [2.0 ** (-8 * (head + 1) / power) for head in range(power)]
        between = [2.0 ** (-4 * (head + 1) / power) for head in range(0, 2 * power, 2)]
        return slopes + between[: self.num_heads - power]

    def prepare(self, q_positions: Tensor, k_positions: Tensor) -> Tensor:
        distances = (k_positions[None, :] - q_positions[:, None]).abs()  # (Q, K)
        slopes = torch.tensor(self.slopes(), device=q_positions.device)
        return -slopes[:, None, None] * distances[None, None]  # (1, H, Q, K)

    def bias(self, q: Tensor, state: Tensor) -> Tensor:
        return state.to(q.dtype)


POSITION_ENCODINGS: dict[str, type[PositionEncoding]] = {
    "sinusoidal": SinusoidalPositionEncoding,
    "learned": LearnedPositionEncoding,
    "none": PositionEncoding,
    "shaw": ShawPositionEncoding,
    "t5": T5PositionEncoding,
    "rope": RotaryPositionEncoding,
    "alibi": AlibiPositionEncoding,
}
