"""What the position encodings compute, against other implementations.

- The references are those of transformers (Marian, T5, Llama, GPT-NeoX, Bloom); for Shaw's scheme, which it lacks, the
  equations of the paper in plain loops.
- Each comparison is made once more with a mistake in it, and must then fail.
"""

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, T5Config
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.bloom.modeling_bloom import build_alibi_tensor
from transformers.models.gpt_neox.modeling_gpt_neox import apply_rotary_pos_emb as apply_partial_rotary_pos_emb
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb
from transformers.models.marian.modeling_marian import MarianSinusoidalPositionalEmbedding
from transformers.models.t5.modeling_t5 import T5Attention

from hf_mt.model import POSITION_ENCODINGS
from hf_mt.model.layers_hf_mt import eager_attention_forward


CLOSE, FAR = 1e-4, 1e-2
POSITIONS = torch.arange(9)


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def difference(one: Tensor, other: Tensor) -> float:
    return (one - other).abs().max().item()


def encoding_of(tiny_config: Callable[..., Any], heads: int = 4, *, causal: bool = False, **changes: Any) -> Any:
    """A scheme by itself, with random parameters."""
    config = tiny_config(**changes)
    encoding = POSITION_ENCODINGS[config.position_encoding](config, num_heads=heads, bidirectional=not causal)
    for parameter in encoding.parameters():
        parameter.data = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
    return encoding


def test_sinusoids_are_those_of_marian(tiny_config: Callable[..., Any]) -> None:
    expected = MarianSinusoidalPositionalEmbedding(600, 32).create_weight()
    encoding = encoding_of(tiny_config, position_encoding="sinusoidal")
    embedded = encoding.embed(torch.zeros(1, 600, 32), torch.arange(600))[0]
    assert difference(embedded, expected) < CLOSE
    interleaved = embedded.view(600, 2, 16).transpose(1, 2).flatten(1)
    assert difference(interleaved, expected) > FAR


@pytest.mark.parametrize("causal", [False, True], ids=["encoder", "decoder"])
@pytest.mark.parametrize(("num_buckets", "max_distance"), [(32, 128), (8, 20), (6, 16), (7, 16), (64, 300)])
def test_buckets_and_bias_are_those_of_t5(
    tiny_config: Callable[..., Any], num_buckets: int, max_distance: int, causal: bool
) -> None:
    sizes = {"relative_attention_num_buckets": num_buckets, "relative_attention_max_distance": max_distance}
    config = T5Config(d_model=32, d_kv=8, num_heads=4, is_decoder=causal, **sizes)
    reference = T5Attention(config, has_relative_attention_bias=True, layer_idx=0)
    encoding = encoding_of(tiny_config, causal=causal, position_encoding="t5", **sizes)
    distances = torch.arange(-400, 401)
    assert torch.equal(
        encoding.buckets(distances),
        T5Attention._relative_position_bucket(distances, not causal, num_buckets, max_distance),
    )

    reference.relative_attention_bias.weight.data = encoding.relative_attention_bias.data
    state = encoding.prepare(torch.arange(5) + 40, torch.arange(45))
    expected = reference.compute_bias(5, 45, past_seen_tokens=40)
    assert torch.equal(encoding.bias(torch.zeros(1, 4, 5, 8), state), expected)
    wrong = encoding.prepare(torch.arange(5) + 39, torch.arange(45))
    assert difference(wrong, expected) > FAR


ROPES = {
    "default": {"rope_type": "default"},
    "theta": {"rope_type": "default", "rope_theta": 500.0},
    "partial": {"rope_type": "default", "partial_rotary_factor": 0.5},
    "linear": {"rope_type": "linear", "factor": 4.0},
    "linear-partial": {"rope_type": "linear", "factor": 4.0, "partial_rotary_factor": 0.5},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
    "yarn-32": {"rope_type": "yarn", "factor": 32.0, "original_max_position_embeddings": 2048, "rope_theta": 500.0},
    "yarn-betas": {
        "rope_type": "yarn",
        "factor": 8.0,
        "original_max_position_embeddings": 128,
        "beta_fast": 8.0,
        "beta_slow": 2.0,
        "attention_factor": 1.5,
    },
}


def llama_config(rope: dict[str, Any], **changes: Any) -> LlamaConfig:
    """Heads of width 16; Llama turns all of a head, so a part is given as a narrower one."""
    return LlamaConfig(
        hidden_size=64, num_attention_heads=4, rope_parameters={"rope_theta": 10000.0} | rope, **changes
    )


@pytest.mark.parametrize("rope", ROPES.values(), ids=ROPES)
def test_rotations_are_those_of_llama(tiny_config: Callable[..., Any], rope: dict[str, Any]) -> None:
    encoding = encoding_of(tiny_config, d_model=64, position_encoding="rope", rope_parameters=dict(rope))
    whole = {key: value for key, value in rope.items() if key != "partial_rotary_factor"}
    reference = LlamaRotaryEmbedding(llama_config(whole, head_dim=int(16 * rope.get("partial_rotary_factor", 1))))
    positions = torch.arange(30) + 100
    q, k = torch.randn(2, 2, 4, 30, 16, generator=torch.Generator().manual_seed(0))
    rotate = apply_partial_rotary_pos_emb if "partial_rotary_factor" in rope else apply_rotary_pos_emb
    expected = torch.stack(rotate(q, k, *reference(q, positions[None])))
    turned = torch.stack(encoding.rotate(q, k, encoding.prepare(positions, positions)))
    assert difference(turned, expected) < CLOSE
    elsewhere = torch.stack(encoding.rotate(q, k, encoding.prepare(positions + 1, positions + 1)))
    assert difference(elsewhere, expected) > FAR


@pytest.mark.parametrize("factor", [1.0, 2.0, 8.0])
@pytest.mark.parametrize("share", [1.0, 0.5])
def test_ntk_is_the_dynamic_one_at_a_fixed_length(
    tiny_config: Callable[..., Any], factor: float, share: float
) -> None:
    """Dynamic NTK of factor 1 at s times the trained length stretches the base as static NTK of factor s does."""
    rope = {"rope_type": "ntk", "factor": factor, "partial_rotary_factor": share}
    encoding = encoding_of(tiny_config, d_model=64, position_encoding="rope", rope_parameters=rope)
    config = llama_config(
        {"rope_type": "dynamic", "factor": 1.0}, max_position_embeddings=64, head_dim=int(16 * share)
    )
    frequencies, _ = ROPE_INIT_FUNCTIONS["dynamic"](config, seq_len=int(64 * factor))
    cos, sin = encoding.prepare(POSITIONS, POSITIONS)
    angles = POSITIONS[:, None] * frequencies
    assert difference(cos, angles.cos()) < CLOSE
    assert difference(sin, angles.sin()) < CLOSE
    assert difference(cos, (angles * 1.1).cos()) > FAR


@pytest.mark.parametrize("heads", [1, 2, 3, 4, 6, 8, 12])
def test_slopes_are_those_of_bloom(tiny_config: Callable[..., Any], heads: int) -> None:
    encoding = encoding_of(tiny_config, heads, causal=True, position_encoding="alibi")
    expected = build_alibi_tensor(torch.ones(1, 9), heads, torch.float32)  # (H, 1, K)
    bias = encoding.bias(torch.zeros(1, heads, 9, 8), encoding.prepare(POSITIONS, POSITIONS))[0]  # (H, Q, K)
    past = torch.ones(9, 9).tril()
    # both count from another zero for each query, which the softmax takes back
    assert difference((bias - bias[..., :1]) * past, expected * past) < CLOSE
    assert difference((bias - bias[..., :1]) * past, 2 * expected * past) > FAR


def test_alibi_penalises_both_directions_alike_in_the_encoder(tiny_config: Callable[..., Any]) -> None:
    bias = encoding_of(tiny_config, position_encoding="alibi").prepare(POSITIONS, POSITIONS)[0]
    assert torch.equal(bias, bias.transpose(1, 2))
    assert (bias.diff(dim=-1).triu() < 0).sum() == 4 * 36


def shaw_by_the_equations(encoding: Any, q: Tensor, k: Tensor, v: Tensor, farthest: int) -> Tensor:
    """Equations 3 to 5 of Shaw et al. 2018, one query of one head at a time: (B, H, Q, E) to (B, Q, H, E)."""
    output = torch.zeros_like(q)
    for b, h, i in product(*map(range, q.shape[:3])):
        seen = range(q.shape[2] if encoding.bidirectional else i + 1)
        index = [max(-farthest, min(farthest, j - i)) + farthest for j in seen]
        keys = k[b, h, seen] + encoding.relative_keys[index]
        values = v[b, h, seen] + encoding.relative_values[index]
        scores = torch.stack([q[b, h, i] @ key / q.shape[3] ** 0.5 for key in keys])
        output[b, h, i] = scores.softmax(0) @ values
    return output.transpose(1, 2)


@pytest.mark.parametrize("causal", [False, True], ids=["encoder", "decoder"])
def test_shaw_follows_the_equations(tiny_config: Callable[..., Any], causal: bool) -> None:
    encoding = encoding_of(tiny_config, causal=causal, position_encoding="shaw", max_relative_position=3)
    q, k, v = torch.randn(3, 2, 4, 6, 8, generator=torch.Generator().manual_seed(1))
    state = encoding.prepare(torch.arange(6), torch.arange(6))
    mask = torch.full((6, 6), -torch.inf).triu(1) if causal else None
    output, weights = eager_attention_forward(
        encoding, q, k, v, mask, scaling=8**-0.5, position_bias=encoding.bias(q, state)
    )
    expected = shaw_by_the_equations(encoding, q, k, v, farthest=3)
    assert difference(encoding.add_values(output, weights, state), expected) < CLOSE
    assert difference(output, expected) > FAR
