"""The layers of hf_mt models: attention, feed-forward, residual connections.

- Self- and cross-attention are two classes, pre- and post-norm are two classes, so are plain and gated feed-forward:
  no forward asks which kind it is.
- Positions enter only through the hooks of a `PositionEncoding`, in self-attention.
- Kernels are chosen by name (`attn_implementation`) from transformers' attention interface.

Shapes: B batch, S source length, T target length, Q query length, K key length, H heads, E head size, D d_model.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache, EncoderDecoderCache
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .configuration_hf_mt import HfMtConfig
from .dropout_hf_mt import Dropout
from .linear_hf_mt import Linear
from .position_encoding_base import PositionEncoding


# versions of torch differ in the number that RMSNorm adds in half precision if it is given none
NORMS: dict[str, Callable[[int], nn.Module]] = {
    "layernorm": nn.LayerNorm,
    "rmsnorm": partial(nn.RMSNorm, eps=torch.finfo(torch.float32).eps),
}

# numbers that a processor's vector holds
LANES = 16 if torch.backends.cpu.get_cpu_capability() == "AVX512" else 8


def softmax(scores: Tensor) -> Tensor:
    """`scores.softmax(-1)` in float32. On a processor torch goes through rows shorter than a vector number by number,
    for a price up to ten times that of rows that fill one, so they are filled up by what counts nothing."""
    missing = LANES - scores.shape[-1]
    if missing <= 0 or scores.device.type != "cpu":
        return scores.softmax(dim=-1, dtype=torch.float32)
    filled = nn.functional.pad(scores, (0, missing), value=-math.inf)
    return filled.softmax(dim=-1, dtype=torch.float32)[..., :-missing]


def eager_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    dropout: float = 0.0,
    position_bias: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """Attention in plain operations: (B, H, Q, E), twice (B, H, K, E) to (B, Q, H, E) and weights (B, H, Q, K)."""
    scores = query @ key.transpose(2, 3)  # (B, H, Q, K)
    added = [bias for bias in (position_bias, attention_mask) if bias is not None]
    scores = torch.add(sum(added[1:], added[0]), scores, alpha=scaling) if added else scores * scaling
    weights = softmax(scores).to(query.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights


class HfMtAttention(nn.Module):
    """Projections and heads that both kinds of attention have."""

    is_causal = False

    def __init__(self, config: HfMtConfig, num_heads: int, layer_idx: int):
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = config.d_model // num_heads
        self.scaling = self.head_dim**-0.5
        self.attention_dropout = config.attention_dropout
        self.q_proj = Linear(config.d_model, config.d_model)
        self.k_proj = Linear(config.d_model, config.d_model)
        self.v_proj = Linear(config.d_model, config.d_model)
        self.o_proj = Linear(config.d_model, config.d_model)

    def split_heads(self, projected: Tensor) -> Tensor:
        """(B, Q, D) to (B, H, Q, E)."""
        return projected.view(*projected.shape[:2], -1, self.head_dim).transpose(1, 2)

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, attention_mask: Tensor | None, position_bias: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Runs the kernel that the configuration names: outputs (B, Q, H, E), weights (B, H, Q, K) or None.

        Raises:
            ValueError: It is one of flash attention, which transformers does not ask for its name on the Hub whether
                the model supports it.
        """
        if "flash" in (self.config._attn_implementation or ""):
            raise ValueError(f"{self.config._attn_implementation} takes no position bias; use sdpa or eager")
        kernel = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        return kernel(
            self,
            q,
            k,
            v,
            attention_mask,
            dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            position_bias=position_bias,
        )


class HfMtSelfAttention(HfMtAttention):
    """Attention of a stack to itself; the only place where position encodings act on queries, keys and values."""

    def __init__(self, config: HfMtConfig, num_heads: int, layer_idx: int, *, is_causal: bool):
        super().__init__(config, num_heads, layer_idx)
        self.is_causal = is_causal  # read by sdpa where the mask is None

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None,
        position_encoding: PositionEncoding,
        position_state: Any,
        past_key_values: Cache | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """(B, Q, D) to (B, Q, D) and weights."""
        q = self.split_heads(self.q_proj(hidden_states))
        k = self.split_heads(self.k_proj(hidden_states))
        v = self.split_heads(self.v_proj(hidden_states))
        q, k = position_encoding.rotate(q, k, position_state)
        if past_key_values is not None:
            k, v = past_key_values.update(k, v, self.layer_idx)  # (B, H, K, E)
        bias = position_encoding.bias(q, k, position_state)
        attn_output, attn_weights = self.attend(q, k, v, attention_mask, bias)
        attn_output = position_encoding.add_values(attn_output, attn_weights, position_state)
        return self.o_proj(attn_output.flatten(2)), attn_weights


class HfMtCrossAttention(HfMtAttention):
    """Attention of the decoder to the source; its keys and values are computed once a sentence."""

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None,
        encoder_hidden_states: Tensor,
        past_key_values: EncoderDecoderCache | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """(B, Q, D) and (B, S, D) to (B, Q, D) and weights (B, H, Q, S)."""
        q = self.split_heads(self.q_proj(hidden_states))
        k, v = self.keys_and_values(encoder_hidden_states, past_key_values)
        attn_output, attn_weights = self.attend(q, k, v, attention_mask)
        return self.o_proj(attn_output.flatten(2)), attn_weights

    def keys_and_values(
        self, encoder_hidden_states: Tensor, past_key_values: EncoderDecoderCache | None
    ) -> tuple[Tensor, Tensor]:
        """Both (B, H, S, E), from the cache if it has them."""
        if past_key_values is not None and past_key_values.is_updated.get(self.layer_idx):
            cached = past_key_values.cross_attention_cache.layers[self.layer_idx]
            return cached.keys, cached.values
        k = self.split_heads(self.k_proj(encoder_hidden_states))
        v = self.split_heads(self.v_proj(encoder_hidden_states))
        if past_key_values is not None:
            k, v = past_key_values.cross_attention_cache.update(k, v, self.layer_idx)
            past_key_values.is_updated[self.layer_idx] = True
        return k, v


class HfMtFeedForward(nn.Module):
    """Two projections with an activation between: (B, Q, D) to (B, Q, D)."""

    def __init__(self, config: HfMtConfig, ffn_dim: int):
        super().__init__()
        self.up_proj = Linear(config.d_model, ffn_dim)
        self.down_proj = Linear(ffn_dim, config.d_model)
        self.activation = ACT2FN[config.activation_function]
        self.dropout = Dropout(config.activation_dropout)

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.down_proj(self.dropout(self.activation(self.up_proj(hidden_states))))


class HfMtGatedFeedForward(HfMtFeedForward):
    """The activation multiplies a third projection (Shazeer 2020, https://arxiv.org/abs/2002.05202)."""

    def __init__(self, config: HfMtConfig, ffn_dim: int):
        super().__init__(config, ffn_dim)
        self.gate_proj = Linear(config.d_model, ffn_dim)

    def forward(self, hidden_states: Tensor) -> Tensor:
        gated = self.activation(self.gate_proj(hidden_states)) * self.up_proj(hidden_states)
        return self.down_proj(self.dropout(gated))


class PreNorm(nn.Module):
    """Normalises what a block reads (Xiong et al. 2020, https://arxiv.org/abs/2002.04745)."""

    def __init__(self, config: HfMtConfig):
        super().__init__()
        self.norm = NORMS[config.norm_type](config.d_model)
        self.dropout = Dropout(config.dropout)

    def forward(self, hidden_states: Tensor, block: Callable[[Tensor], Tensor]) -> Tensor:
        return self.dropout.add(hidden_states, block(self.norm(hidden_states)))


class PostNorm(PreNorm):
    """Normalises the residual sum, as published in 2017."""

    def forward(self, hidden_states: Tensor, block: Callable[[Tensor], Tensor]) -> Tensor:
        return self.norm(self.dropout.add(hidden_states, block(hidden_states)))


RESIDUALS: dict[str, type[PreNorm]] = {"pre": PreNorm, "post": PostNorm}
FEED_FORWARDS: dict[bool, type[HfMtFeedForward]] = {False: HfMtFeedForward, True: HfMtGatedFeedForward}


class HfMtEncoderLayer(GradientCheckpointingLayer):
    """Self-attention and a feed-forward block."""

    def __init__(self, config: HfMtConfig, layer_idx: int):
        super().__init__()
        residual = RESIDUALS[config.norm_position]
        self.self_attn = HfMtSelfAttention(config, config.encoder_attention_heads, layer_idx, is_causal=False)
        self.self_attn_residual = residual(config)
        self.ffn = FEED_FORWARDS[config.gated_ffn](config, config.encoder_ffn_dim)
        self.ffn_residual = residual(config)

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None,
        position_encoding: PositionEncoding,
        position_state: Any,
    ) -> Tensor:
        """(B, S, D) to (B, S, D)."""
        hidden_states = self.self_attn_residual(
            hidden_states, lambda x: self.self_attn(x, attention_mask, position_encoding, position_state)[0]
        )
        return self.ffn_residual(hidden_states, self.ffn)


class HfMtDecoderLayer(GradientCheckpointingLayer):
    """Self-attention, cross-attention and a feed-forward block."""

    def __init__(self, config: HfMtConfig, layer_idx: int):
        super().__init__()
        residual = RESIDUALS[config.norm_position]
        self.self_attn = HfMtSelfAttention(config, config.decoder_attention_heads, layer_idx, is_causal=True)
        self.self_attn_residual = residual(config)
        self.cross_attn = HfMtCrossAttention(config, config.decoder_attention_heads, layer_idx)
        self.cross_attn_residual = residual(config)
        self.ffn = FEED_FORWARDS[config.gated_ffn](config, config.decoder_ffn_dim)
        self.ffn_residual = residual(config)

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None,
        position_encoding: PositionEncoding,
        position_state: Any,
        encoder_hidden_states: Tensor,
        encoder_attention_mask: Tensor | None,
        past_key_values: EncoderDecoderCache | None = None,
    ) -> Tensor:
        """(B, T, D) and (B, S, D) to (B, T, D)."""
        self_cache = None if past_key_values is None else past_key_values.self_attention_cache
        hidden_states = self.self_attn_residual(
            hidden_states,
            lambda x: self.self_attn(x, attention_mask, position_encoding, position_state, self_cache)[0],
        )
        hidden_states = self.cross_attn_residual(
            hidden_states,
            lambda x: self.cross_attn(x, encoder_attention_mask, encoder_hidden_states, past_key_values)[0],
        )
        return self.ffn_residual(hidden_states, self.ffn)
