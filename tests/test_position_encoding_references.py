"""What the position encodings compute, against other implementations.

- The references are those of transformers (Marian, T5, Llama, GPT-NeoX, Bloom, DeBERTa); for what it lacks, the
  equations of the papers in plain loops.
- Each comparison is made once more with a mistake in it, and must then fail.
"""

import math
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import softplus
from transformers import DebertaV2Config, LlamaConfig, T5Config
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.bloom.modeling_bloom import build_alibi_tensor
from transformers.models.deberta_v2.modeling_deberta_v2 import DisentangledSelfAttention
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
    assert torch.equal(encoding.bias(torch.zeros(1, 4, 5, 8), torch.zeros(1, 4, 45, 8), state), expected)
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
    q, k = torch.zeros(2, 1, heads, 9, 8)
    bias = encoding.bias(q, k, encoding.prepare(POSITIONS, POSITIONS))[0]  # (H, Q, K)
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
        encoding, q, k, v, mask, scaling=8**-0.5, position_bias=encoding.bias(q, k, state)
    )
    expected = shaw_by_the_equations(encoding, q, k, v, farthest=3)
    assert difference(encoding.add_values(output, weights, state), expected) < CLOSE
    assert difference(output, expected) > FAR


def random_queries_and_keys(length: int = 6) -> Tensor:
    return torch.randn(2, 2, 4, length, 8, generator=torch.Generator().manual_seed(1))  # twice (B, H, Q, E)


@pytest.mark.parametrize("causal", [False, True], ids=["encoder", "decoder"])
def test_kerple_follows_the_equation(tiny_config: Callable[..., Any], causal: bool) -> None:
    encoding = encoding_of(tiny_config, causal=causal, position_encoding="kerple")
    r1, r2 = (softplus(raw).tolist() for raw in (encoding.height, encoding.width))
    bias = encoding.bias(*random_queries_and_keys(9), encoding.prepare(POSITIONS, POSITIONS))[0]  # (H, Q, K)
    for head, i, j in product(range(4), range(9), range(9)):
        assert abs(bias[head, i, j] + r1[head] * math.log(1 + r2[head] * abs(i - j))) < CLOSE
    assert abs(bias[0, 5, 1] + r1[1] * math.log(1 + r2[1] * 4)) > FAR  # another head's


@pytest.mark.parametrize("causal", [False, True], ids=["encoder", "decoder"])
def test_fire_follows_the_equation(tiny_config: Callable[..., Any], causal: bool) -> None:
    encoding = encoding_of(tiny_config, causal=causal, position_encoding="fire")
    c, threshold = abs(encoding.extent[0].item()), abs(encoding.extent[1].item()) * 32 / 8
    bias = encoding.bias(*random_queries_and_keys(9), encoding.prepare(POSITIONS, POSITIONS))[0]  # (H, Q, K)

    def network(share: float) -> Tensor:
        hidden = (share * encoding.inner[0] + encoding.inner[1]).clamp(min=0)
        return encoding.outer[:-1].T @ hidden + encoding.outer[-1]

    for i, j in product(range(9), range(9)):
        distance = math.log(1 + c * abs(i - j)) * (-1 if j < i else 1)
        share = distance / math.log(1 + c * max(threshold, i, j))
        assert difference(bias[:, i, j], network(share)) < CLOSE
    assert difference(bias[:, 8, 2], network(0.0)) > FAR


def test_xpos_follows_the_equation(tiny_config: Callable[..., Any]) -> None:
    """Equation 10 in complex numbers: q k (zeta e^(i theta))^(n - m)."""
    encoding = encoding_of(tiny_config, causal=True, position_encoding="xpos")
    q, k = random_queries_and_keys(9)
    positions = POSITIONS * 50
    turned_q, turned_k = encoding.rotate(q, k, encoding.prepare(positions, positions))
    as_complex = [torch.complex(x[..., :4], x[..., 4:]) for x in (q, k)]  # halves are the pairs
    even = torch.arange(4) * 2 / 8
    zeta, theta = (even + 0.4) / 1.4, 10000.0**-even
    distances = (positions[:, None] - positions[None, :])[..., None]  # (Q, K, 1)
    turn = zeta ** (distances / 512) * torch.polar(torch.ones(()), theta * distances)  # (Q, K, E / 2)
    expected = torch.einsum("bhqe,bhke,qke->bhqk", as_complex[0], as_complex[1].conj(), turn).real
    past = torch.ones(9, 9).tril()
    assert difference(turned_q @ turned_k.mT * past, expected * past) < CLOSE * 10
    plain = encoding_of(tiny_config, causal=True, position_encoding="rope")
    rotated_q, rotated_k = plain.rotate(q, k, plain.prepare(positions, positions))
    assert difference(rotated_q @ rotated_k.mT * past, expected * past) > FAR


def test_xpos_is_rope_in_the_encoder(tiny_config: Callable[..., Any]) -> None:
    q, k = random_queries_and_keys(9)
    turned = [
        torch.stack(encoding.rotate(q, k, encoding.prepare(POSITIONS, POSITIONS)))
        for encoding in (encoding_of(tiny_config, position_encoding=name) for name in ("xpos", "rope"))
    ]
    assert torch.equal(*turned)


@pytest.mark.parametrize("causal", [False, True], ids=["encoder", "decoder"])
def test_pope_follows_the_equation(tiny_config: Callable[..., Any], causal: bool) -> None:
    encoding = encoding_of(tiny_config, causal=causal, position_encoding="pope")
    q, k = random_queries_and_keys(9)
    polar_q, polar_k = encoding.rotate(q, k, encoding.prepare(POSITIONS, POSITIONS))
    theta = 10000.0 ** (-torch.arange(8) / 8)
    for b, h, i, j in product(range(2), range(4), (0, 4, 8), (0, 3, 8)):
        angles = (j - i) * theta + encoding.angles[h, 0]
        expected = (softplus(q[b, h, i]) * softplus(k[b, h, j]) * angles.cos()).sum()
        assert abs(polar_q[b, h, i] @ polar_k[b, h, j] - expected) < CLOSE
    assert abs(polar_q[0, 0, 4] @ polar_k[0, 0, 3] - softplus(q[0, 0, 4]) @ softplus(k[0, 0, 3])) > FAR


def test_deberta_is_that_of_transformers(tiny_config: Callable[..., Any]) -> None:
    """Distances are shorter than the clipping distance, since DeBERTa has one class fewer at its far end."""
    config = DebertaV2Config(
        hidden_size=32, num_attention_heads=4, relative_attention=True, pos_att_type=["c2p", "p2c"],
        max_relative_positions=8, position_buckets=-1, share_att_key=False,
    )  # fmt: skip
    reference = DisentangledSelfAttention(config)
    encoding = encoding_of(tiny_config, position_encoding="deberta", max_relative_position=8)
    table = torch.randn(16, 32, generator=torch.Generator().manual_seed(2))  # distances -8 to 7, query minus key
    projections = {"relative_keys": reference.pos_key_proj, "relative_queries": reference.pos_query_proj}
    for name, projection in projections.items():
        by_head = projection(table).view(16, 4, 8).transpose(0, 1)  # (H, R, E)
        getattr(encoding, name).data[:, 1:] = by_head.flip(1)
    q, k = random_queries_and_keys(7)
    expected = reference.disentangled_attention_bias(
        q.flatten(0, 1), k.flatten(0, 1), None, table, scale_factor=1
    ).view(2, 4, 7, 7)
    bias = encoding.bias(q, k, encoding.prepare(torch.arange(7), torch.arange(7)))
    assert difference(bias, expected) < CLOSE
    assert difference(bias.mT, expected) > FAR


def cope_by_the_equations(encoding: Any, q: Tensor, k: Tensor, i: int, j: int) -> Tensor:
    """Gate, position and interpolation of CoPE for the query at i and the key at j of one head, (Q, E) each."""
    counted = range(min(i, j), max(i, j) + 1)
    position = sum(torch.sigmoid(q[i] @ k[n] / 8**0.5) for n in counted).clamp(max=encoding.max_position)
    table = encoding.table[0 if j <= i else -1]
    low, high = int(position.floor()), int(position.ceil())
    vector = table[low] * (1 - (position - low)) + table[high] * (position - low)
    return q[i] @ vector / 8**0.5


@pytest.mark.parametrize("causal", [False, True], ids=["encoder", "decoder"])
@pytest.mark.parametrize("farthest", [2, 16])
def test_cope_follows_the_equations(tiny_config: Callable[..., Any], causal: bool, farthest: int) -> None:
    encoding = encoding_of(tiny_config, causal=causal, position_encoding="cope", max_relative_position=farthest)
    q, k = random_queries_and_keys(9)
    bias = encoding.bias(q, k, encoding.prepare(POSITIONS, POSITIONS))
    for b, h, i, j in product(range(2), (0, 3), range(9), range(9)):
        if not causal or j <= i:
            assert abs(bias[b, h, i, j] - cope_by_the_equations(encoding, q[b, h], k[b, h], i, j)) < CLOSE
    assert abs(bias[0, 0, 8, 8] - cope_by_the_equations(encoding, q[0, 0], k[0, 0], 8, 7)) > FAR
