"""The property matrix of position encodings: every scheme, every property, each with a control that must fail it.

- Schemes come from `POSITION_ENCODINGS`, so a new one is tested by being there.
- `CLOSE` is what rounding may do to scores of about unit size, `FAR` what a mistake does at least.
- What the schemes compute is compared with other implementations in test_position_encoding_references.py.
"""

from collections.abc import Callable, Iterator
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn
from transformers import DynamicCache, EncoderDecoderCache, StaticCache

from hf_mt.model import POSITION_ENCODINGS, HfMtForConditionalGeneration, PositionEncoding, modeling_hf_mt
from hf_mt.model.configuration_hf_mt import PositionEncodingName
from hf_mt.model.layers_hf_mt import eager_attention_forward


CLOSE, FAR = 1e-4, 1e-2
PER_SIDE = {"encoder_position_encoding": "t5", "decoder_position_encoding": "alibi"}
SCHEMES: dict[str, dict[str, Any]] = {name: {"position_encoding": name} for name in POSITION_ENCODINGS} | {
    f"rope-{name}": {"position_encoding": "rope", "rope_parameters": parameters}
    for name, parameters in {
        "partial": {"rope_type": "default", "partial_rotary_factor": 0.5},
        "linear": {"rope_type": "linear", "factor": 4.0},
        "ntk": {"rope_type": "ntk", "factor": 4.0},
        "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
    }.items()
}
SCHEMES["a side each"] = PER_SIDE
SCHEMES["a limit on one side"] = {"position_encoding": "rope", "decoder_position_encoding": "learned"}
SOURCE = torch.tensor([[5, 6, 7, 8, 9, 10, 2], [11, 12, 13, 2, 0, 0, 0], [14, 15, 16, 17, 18, 2, 0]])  # (B, S)
SOURCE_MASK = (SOURCE != 0).long()
TARGET = torch.tensor([[1, 20, 21, 22, 23, 24], [1, 25, 26, 27, 28, 29], [1, 30, 31, 32, 33, 34]])  # (B, T)
POSITIONS = torch.arange(9)

Build = Callable[..., HfMtForConditionalGeneration]


@pytest.fixture(params=SCHEMES)
def changes(request: pytest.FixtureRequest) -> dict[str, Any]:
    """What sets a scheme apart in the configuration."""
    return SCHEMES[request.param]


@pytest.fixture
def model(tiny_model: Build, changes: dict[str, Any]) -> HfMtForConditionalGeneration:
    return tiny_model(**changes)


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def says(model: nn.Module, flag: str) -> bool:
    """Whether the scheme of either side has this flag."""
    return any(getattr(encoding, flag) for encoding in encodings_of(model))


def knows_order(part: nn.Module) -> bool:
    """Whether anything but the causal mask tells this model, or scheme, the order of words."""
    schemes = [part] if isinstance(part, PositionEncoding) else encodings_of(part)
    return any(type(scheme) is not PositionEncoding for scheme in schemes)


def difference(one: Tensor, other: Tensor) -> float:
    assert one.shape == other.shape
    return (one - other).abs().max().item()


def encode(model: nn.Module, source: Tensor, mask: Tensor | None = None) -> Tensor:
    return model.model.encoder(source, mask).last_hidden_state


def full_logits(model: nn.Module, rows: Any = slice(None)) -> Tensor:
    """Scores of all target positions in one forward: (B, T, V)."""
    return model(input_ids=SOURCE[rows], attention_mask=SOURCE_MASK[rows], decoder_input_ids=TARGET[rows]).logits


def continue_with(model: nn.Module, cache: EncoderDecoderCache, target: Tensor, rows: Any = slice(None)) -> Tensor:
    """Scores of new target tokens after those that the cache holds."""
    return model(
        encoder_outputs=(encode(model, SOURCE[rows], SOURCE_MASK[rows]),),
        attention_mask=SOURCE_MASK[rows],
        decoder_input_ids=target,
        past_key_values=cache,
        use_cache=True,
    ).logits


def dynamic_cache(model: nn.Module) -> EncoderDecoderCache:
    return EncoderDecoderCache(DynamicCache(config=model.config), DynamicCache(config=model.config))


def static_cache(model: nn.Module) -> EncoderDecoderCache:
    """One with more room than the test uses."""
    return EncoderDecoderCache(
        StaticCache(config=model.config, max_cache_len=TARGET.shape[1] + 3),
        StaticCache(config=model.config, max_cache_len=SOURCE.shape[1]),
    )


def attend(encoding: PositionEncoding, positions: Tensor) -> Tensor:
    """All hooks of a scheme on fixed random inputs, in the order and place in which self-attention calls them."""
    length, heads, width = len(positions), encoding.num_heads, encoding.head_dim
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 2, heads, length, width, generator=generator)
    embedded = encoding.embed(torch.randn(2, length, heads * width, generator=generator), positions)
    state = encoding.prepare(positions, positions)
    q, k = encoding.rotate(q, k, state)
    mask = None if encoding.bidirectional else torch.full((length, length), -torch.inf).triu(1)
    output, weights = eager_attention_forward(
        encoding, q, k, v, mask, scaling=width**-0.5, position_bias=encoding.bias(q, k, state)
    )
    return embedded + encoding.add_values(output, weights, state).flatten(2)


def encodings_of(model: nn.Module) -> list[PositionEncoding]:
    return [model.model.encoder.position_encoding, model.model.decoder.position_encoding]


# --- the list of schemes


def test_configuration_and_code_name_the_same_schemes() -> None:
    assert set(get_args(PositionEncodingName)) == set(POSITION_ENCODINGS)


# --- hooks


def test_hooks_keep_shapes(model: HfMtForConditionalGeneration) -> None:
    for encoding in encodings_of(model):
        q, k = torch.randn(2, 2, encoding.num_heads, 1, encoding.head_dim)
        state = encoding.prepare(torch.tensor([5]), torch.arange(6))
        rotated_q, rotated_k = encoding.rotate(q, k, state)
        width = encoding.head_dim * (2 if encoding.widens else 1)
        assert rotated_q.shape == rotated_k.shape == (*q.shape[:3], width)
        weights = torch.rand(2, encoding.num_heads, 1, 6)
        bias = encoding.bias(rotated_q, rotated_k.expand(-1, -1, 6, -1), state)
        assert (bias is not None) == encoding.uses_bias
        assert bias is None or bias.expand_as(weights).shape == weights.shape
        output = torch.randn(2, 1, encoding.num_heads, encoding.head_dim)
        assert encoding.add_values(output, weights, state).shape == output.shape
        hidden_states = torch.randn(2, 1, encoding.d_model)
        assert encoding.embed(hidden_states, torch.tensor([5])).shape == hidden_states.shape


def test_only_schemes_that_say_so_need_attention_weights(model: HfMtForConditionalGeneration) -> None:
    encoding = encodings_of(model)[0]
    state, output = encoding.prepare(POSITIONS, POSITIONS), torch.randn(2, 9, encoding.num_heads, encoding.head_dim)
    weights = torch.rand(2, encoding.num_heads, 9, 9)
    assert torch.equal(encoding.add_values(output, weights, state), output) != encoding.uses_weights


def test_relative_schemes_see_distances_alone(model: HfMtForConditionalGeneration) -> None:
    for encoding in encodings_of(model):
        moved = difference(attend(encoding, POSITIONS + 7), attend(encoding, POSITIONS))
        assert moved < CLOSE if encoding.relative else moved > FAR


def test_distances_matter(model: HfMtForConditionalGeneration) -> None:
    for encoding in encodings_of(model):
        stretched = difference(attend(encoding, POSITIONS * 2), attend(encoding, POSITIONS))
        assert stretched > FAR if knows_order(encoding) and not encoding.counts_words else stretched == 0


# --- the encoder


def test_encoder_knows_the_order_of_words(model: HfMtForConditionalGeneration) -> None:
    order = torch.tensor([3, 0, 6, 1, 5, 2, 4])
    moved = difference(encode(model, SOURCE[:1, order]), encode(model, SOURCE[:1])[:, order])
    assert moved > FAR if knows_order(encodings_of(model)[0]) else moved < CLOSE


def test_padded_row_equals_unpadded_row(model: HfMtForConditionalGeneration) -> None:
    length = int(SOURCE_MASK[1].sum())
    alone = model(input_ids=SOURCE[1:2, :length], decoder_input_ids=TARGET[1:2]).logits
    assert difference(full_logits(model)[1:2], alone) < CLOSE
    unmasked = model(input_ids=SOURCE, decoder_input_ids=TARGET).logits[1:2]
    assert difference(unmasked, alone) > FAR


def test_padding_of_targets_changes_no_earlier_score(model: HfMtForConditionalGeneration) -> None:
    padded = torch.cat((TARGET, torch.zeros_like(TARGET)), dim=1)
    longer = model(input_ids=SOURCE, attention_mask=SOURCE_MASK, decoder_input_ids=padded).logits
    assert difference(longer[:, : TARGET.shape[1]], full_logits(model)) < CLOSE
    assert difference(longer[:, TARGET.shape[1] :], full_logits(model)) > FAR


# --- the decoder


def test_decoder_sees_no_future(model: HfMtForConditionalGeneration) -> None:
    changed = TARGET.clone()
    changed[:, 3:] = torch.tensor([35, 36, 37])
    logits = model(input_ids=SOURCE, attention_mask=SOURCE_MASK, decoder_input_ids=changed).logits
    assert difference(logits[:, :3], full_logits(model)[:, :3]) < CLOSE
    assert difference(logits[:, 3:], full_logits(model)[:, 3:]) > FAR


def test_encoder_sees_the_future(model: HfMtForConditionalGeneration) -> None:
    changed = SOURCE.clone()
    changed[0, 3:] = torch.tensor([35, 36, 37, 2])
    assert difference(encode(model, changed)[0, :3], encode(model, SOURCE)[0, :3]) > FAR


@pytest.mark.parametrize("make_cache", [dynamic_cache, static_cache])
@pytest.mark.parametrize("chunks", [[1] * 6, [3, 1, 2]], ids=["tokens", "chunks"])
def test_cached_steps_equal_a_full_forward(
    model: HfMtForConditionalGeneration, make_cache: Callable[..., EncoderDecoderCache], chunks: list[int]
) -> None:
    cache = make_cache(model)
    steps = [continue_with(model, cache, part) for part in TARGET.split(chunks, dim=1)]
    assert difference(torch.cat(steps, dim=1), full_logits(model)) < CLOSE


def test_cached_steps_at_wrong_positions_differ(model: HfMtForConditionalGeneration, monkeypatch: Any) -> None:
    def one_too_few(cache: Any, length: int) -> tuple[int, int]:
        past, keys = past_and_key_length(cache, length)
        return past - 1, keys

    expected, cache = full_logits(model)[:, 4:5], dynamic_cache(model)
    continue_with(model, cache, TARGET[:, :4])
    past_and_key_length = modeling_hf_mt._past_and_key_length
    monkeypatch.setattr(modeling_hf_mt, "_past_and_key_length", one_too_few)
    moved = difference(continue_with(model, cache, TARGET[:, 4:5]), expected)
    assert moved > FAR if knows_order(model) else moved < CLOSE


@pytest.mark.parametrize("make_cache", [dynamic_cache, static_cache])
def test_reordered_beams_continue_their_own_rows(
    model: HfMtForConditionalGeneration, make_cache: Callable[..., EncoderDecoderCache]
) -> None:
    cache, rows = make_cache(model), torch.tensor([2, 0, 0])
    continue_with(model, cache, TARGET[:, :4])
    cache.reorder_cache(rows)
    step = continue_with(model, cache, TARGET[rows, 4:5], rows)
    assert difference(step, full_logits(model, rows)[:, 4:5]) < CLOSE


def test_beams_left_in_place_continue_others(model: HfMtForConditionalGeneration) -> None:
    cache, rows = dynamic_cache(model), torch.tensor([2, 0, 0])
    continue_with(model, cache, TARGET[:, :4])
    step = continue_with(model, cache, TARGET[rows, 4:5], rows)
    assert difference(step, full_logits(model, rows)[:, 4:5]) > FAR


def test_selected_rows_continue_alone(model: HfMtForConditionalGeneration) -> None:
    cache, rows = dynamic_cache(model), torch.tensor([2, 0])
    continue_with(model, cache, TARGET[:, :4])
    cache.batch_select_indices(rows)
    step = continue_with(model, cache, TARGET[rows, 4:5], rows)
    assert difference(step, full_logits(model, rows)[:, 4:5]) < CLOSE


# --- kernels and numbers


def test_sdpa_equals_eager_or_is_refused(model: HfMtForConditionalGeneration) -> None:
    if says(model, "uses_weights"):
        assert model.config._attn_implementation == "eager"
        with pytest.raises(ValueError, match="scaled_dot_product_attention"):
            model.set_attn_implementation("sdpa")
        return
    assert model.config._attn_implementation == "sdpa"
    masked, unmasked = full_logits(model), encode(model, SOURCE)
    model.set_attn_implementation("eager")
    assert difference(full_logits(model), masked) < CLOSE
    assert difference(encode(model, SOURCE), unmasked) < CLOSE


def test_a_causal_encoder_would_differ(model: HfMtForConditionalGeneration) -> None:
    """The control of the test above: what the kernels read from modules where the mask is None does matter."""
    before = encode(model, SOURCE)
    for layer in model.model.encoder.layers:
        layer.self_attn.is_causal = True
    moved = difference(encode(model, SOURCE), before)
    assert moved == 0 if says(model, "uses_weights") else moved > FAR  # eager attention reads the mask alone


def test_a_bias_reaches_the_kernel(model: HfMtForConditionalGeneration, monkeypatch: pytest.MonkeyPatch) -> None:
    before = full_logits(model)
    for encoding in encodings_of(model):
        monkeypatch.setattr(encoding, "bias", lambda q, k, state: None)
    moved = difference(full_logits(model), before)
    assert moved > FAR if says(model, "uses_bias") else moved == 0


def test_flash_attention_is_refused_by_each_of_its_names(model: HfMtForConditionalGeneration) -> None:
    with pytest.raises(ValueError, match="Flash Attention 2"):
        model.set_attn_implementation("flash_attention_2")
    full_logits(model)
    model.config._attn_implementation = "kernels-community/flash-attn2"  # which transformers asks nobody about
    with pytest.raises(ValueError, match="use sdpa or eager"):
        full_logits(model)


def test_bfloat16_is_close_to_float32(model: HfMtForConditionalGeneration, tiny_model: Build, changes: dict) -> None:
    exact = full_logits(model)
    rounded = full_logits(tiny_model(**changes).to(torch.bfloat16)).float()
    assert rounded.isfinite().all()
    assert ((rounded - exact).std() / exact.std()).item() < 0.1
    other = full_logits(tiny_model(**changes, norm_position="post"))
    assert ((other - exact).std() / exact.std()).item() > 0.5


# --- length


LONG = torch.arange(4, 24)[None]  # 20 tokens, for models that were promised at most 8


@pytest.fixture
def short_model(tiny_model: Build, changes: dict[str, Any]) -> HfMtForConditionalGeneration:
    return tiny_model(**changes, max_position_embeddings=8)


def test_long_input_works_or_is_refused(short_model: HfMtForConditionalGeneration) -> None:
    def logits(source: Tensor, target: Tensor) -> Tensor:
        return short_model(input_ids=source, decoder_input_ids=target).logits

    assert logits(LONG[:, :8], LONG[:, :8]).isfinite().all()
    for encoding, lengths in zip(encodings_of(short_model), ((LONG, LONG[:, :8]), (LONG[:, :8], LONG)), strict=True):
        if encoding.max_length is None:
            assert logits(*lengths).isfinite().all()
        else:
            with pytest.raises(ValueError, match=r"20 tokens.*max_position_embeddings \(8\)"):
                logits(*lengths)


def test_long_cached_steps_equal_a_full_forward_or_are_refused(short_model: HfMtForConditionalGeneration) -> None:
    def logits(target: Tensor, cache: EncoderDecoderCache | None = None) -> Tensor:
        return short_model(input_ids=SOURCE[:1], decoder_input_ids=target, past_key_values=cache).logits

    cache = dynamic_cache(short_model)
    logits(LONG[:, :8], cache)
    if short_model.max_length is None:
        steps = [logits(token, cache) for token in LONG[:, 8:].split(1, dim=1)]
        assert difference(torch.cat(steps, dim=1), logits(LONG)[:, 8:]) < CLOSE
    else:
        with pytest.raises(ValueError, match="9 tokens"):
            logits(LONG[:, 8:9], cache)


def test_generation_past_the_table_is_refused(short_model: HfMtForConditionalGeneration) -> None:
    def generate(length: int) -> Tensor:
        return short_model.generate(LONG[:, :8], max_length=length, min_length=length, do_sample=False)

    assert generate(8).shape == (1, 8)
    if short_model.max_length is None:
        assert generate(20).shape == (1, 20)
    else:
        with pytest.raises(ValueError, match="max_position_embeddings"):
            generate(20)


# --- training


def test_initial_values_are_drawn(model: HfMtForConditionalGeneration) -> None:
    for encoding in encodings_of(model):
        for parameter in encoding.parameters():
            parameter.data.fill_(torch.nan)  # as whatever lies in memory that nobody has written
        model._init_weights(encoding)
        for parameter in encoding.parameters():
            assert parameter.isfinite().all()
            assert 0.01 < parameter.std() < 1


def unreached(model: nn.Module) -> list[str]:
    """Names of parameters without a gradient after a training step.

    Biases of keys have none in theory: they move all scores of a query alike, which the softmax takes back.
    """
    with torch.enable_grad():
        model(input_ids=SOURCE, attention_mask=SOURCE_MASK, labels=TARGET).loss.backward()
    reached = {name for name, value in model.named_parameters() if value.grad is not None and value.grad.norm() > 1e-6}
    return [name for name, _ in model.named_parameters() if name not in reached and not name.endswith("k_proj.bias")]


def test_gradient_reaches_every_parameter(model: HfMtForConditionalGeneration) -> None:
    assert unreached(model) == []


def test_an_unused_parameter_is_noticed(model: HfMtForConditionalGeneration) -> None:
    model.model.encoder.position_encoding.forgotten = nn.Parameter(torch.ones(3))
    assert unreached(model) == ["model.encoder.position_encoding.forgotten"]


# --- positions of training


def positions_of(model: nn.Module, length: int = 8) -> list[Tensor]:
    return [stack.positions(length, torch.device("cpu")) for stack in (model.model.encoder, model.model.decoder)]


def test_shifted_positions_keep_their_distances(tiny_model: Build) -> None:
    model = tiny_model(position_shift=50).train()
    drawn = [positions for _ in range(40) for positions in positions_of(model)]
    assert all(torch.equal(positions.diff(), torch.ones(7, dtype=torch.long)) for positions in drawn)
    starts = {int(positions[0]) for positions in drawn}
    assert len(starts) > 20 and min(starts) >= 0 and max(starts) <= 50


def test_randomized_positions_ascend_within_their_range(tiny_model: Build) -> None:
    model = tiny_model(randomized_positions=30).train()
    drawn = torch.stack([positions for _ in range(400) for positions in positions_of(model)])
    assert (drawn.diff() > 0).all()
    assert drawn.unique().tolist() == list(range(30))
    assert 0.05 < (drawn[:, -1] < 12).float().mean() < 0.6  # near to 0, 1, 2, ..., which all of 30 hardly ever give
    assert torch.equal(positions_of(tiny_model(randomized_positions=8).train())[0], torch.arange(8))
    with pytest.raises(ValueError, match=r"9 tokens does not fit in randomized_positions \(8\)"):
        positions_of(tiny_model(randomized_positions=8).train(), 9)


@pytest.mark.parametrize("wrapper", [{"position_shift": 9}, {"randomized_positions": 30}], ids=str)
def test_random_positions_are_for_training_alone(tiny_model: Build, wrapper: dict[str, int]) -> None:
    plain, model = tiny_model(position_encoding="sinusoidal"), tiny_model(position_encoding="sinusoidal", **wrapper)
    assert torch.equal(full_logits(model), full_logits(plain))
    assert difference(full_logits(model.train()), full_logits(plain)) > FAR


@pytest.mark.parametrize("wrapper", [{"position_shift": 9}, {"randomized_positions": 30}], ids=str)
def test_positions_of_a_cache_are_counted_in_training_too(tiny_model: Build, wrapper: dict[str, int]) -> None:
    """Whoever samples from a model that is being trained must not see each token elsewhere."""
    model = tiny_model(position_encoding="learned", max_position_embeddings=40, **wrapper)
    states = model.get_encoder()(torch.tensor([[5, 6, 7, 2]]))
    found = []
    for mode in (True, False):
        model.train(mode)
        cache = EncoderDecoderCache(DynamicCache(config=model.config), DynamicCache(config=model.config))
        inputs = {"encoder_outputs": states, "past_key_values": cache, "use_cache": True}
        steps = [model(decoder_input_ids=torch.tensor([[token]]), **inputs).logits for token in (1, 20, 21)]
        found.append(torch.cat(steps, dim=1))
    assert difference(*found) < CLOSE


@pytest.mark.parametrize("name", POSITION_ENCODINGS)
def test_a_shift_moves_what_is_not_relative(tiny_model: Build, name: str) -> None:
    model = tiny_model(position_encoding=name, position_shift=9)
    still, moved = full_logits(model), [full_logits(model.train()) for _ in range(3)]
    largest = max(difference(logits, still) for logits in moved)
    assert largest < CLOSE if POSITION_ENCODINGS[name].relative else largest > FAR


def test_a_table_too_small_for_random_positions_is_refused(tiny_model: Build) -> None:
    """Whatever is drawn: a run must not stop by chance after an hour."""
    for wrapper in ({"position_shift": 30}, {"randomized_positions": 40}):
        model = tiny_model(position_encoding="learned", **wrapper)
        assert full_logits(model).isfinite().all()
        with pytest.raises(ValueError, match=r"longer than max_position_embeddings \(32\)"):
            full_logits(model.train())


def test_each_side_has_its_own_scheme(tiny_model: Build) -> None:
    model = tiny_model(**PER_SIDE)
    assert [type(encoding).__name__ for encoding in encodings_of(model)] == [
        "T5PositionEncoding",
        "AlibiPositionEncoding",
    ]
    assert model.config.position_encodings == ("t5", "alibi")
    assert model.config.get_text_config(decoder=True).position_encoding == "alibi"
    one = tiny_model(position_encoding="t5", decoder_position_encoding="alibi")
    assert torch.equal(full_logits(one), full_logits(model))
    assert difference(full_logits(tiny_model(position_encoding="t5")), full_logits(model)) > FAR
