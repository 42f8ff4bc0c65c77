"""Our beam search finds what transformers' `generate` finds, with every encoding and every way to search."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from random_models import EOS, POSITIONS, SENTENCES, SIZES, build, word_tokenizer
from torch import Tensor, nn

from hf_mt import HfMtConfig, InputError, generation, search
from hf_mt.generation import generate_batch, length_limits, uses_own_search
from hf_mt.model import POSITION_ENCODINGS, HfMtForConditionalGeneration
from hf_mt.search import largest


SEARCHES: dict[str, dict[str, Any]] = {
    "greedy": {"num_beams": 1},
    "beams": {"num_beams": 4, "length_penalty": 0.7},
    "early": {"num_beams": 3, "early_stopping": True},
    "short": {"num_beams": 5, "length_penalty": -1.0},
    "several": {"num_beams": 4, "num_return_sequences": 3, "early_stopping": True},
}
BATCH = word_tokenizer()(SENTENCES, padding=True, return_tensors="pt")
INPUTS: tuple[Tensor, Tensor] = (BATCH["input_ids"], BATCH["attention_mask"])
LIMITS = length_limits(INPUTS[1], 1.5, 4)
Build = Callable[..., HfMtForConditionalGeneration]


def random_model(name: str) -> HfMtForConditionalGeneration:
    """In float64, where batches of other shapes round alike, and inclined to end a sentence."""
    torch.manual_seed(3)
    config = HfMtConfig(
        **{**SIZES, "d_model": 32, "decoder_layers": 2, "tie_embeddings": "none"}, position_encoding=name
    )
    model = HfMtForConditionalGeneration(config).eval().double()

    def raise_end(module: nn.Module, args: object, output: Any) -> None:
        output.logits[..., EOS] += 4

    model.register_forward_hook(raise_end)
    return model


# beams of a sentence can't share one count of words: `cope` goes to `generate`, and would be compared with itself
SEARCHED = [name for name in POSITION_ENCODINGS if name != "cope"]


@pytest.fixture(params=SEARCHED)
def model(request: pytest.FixtureRequest) -> nn.Module:
    return random_model(request.param)


@pytest.fixture
def rope() -> nn.Module:
    return random_model("rope")


def by_generate(model: nn.Module, **options: Any) -> Any:
    """The same by transformers: an option that the search does not know, and that changes nothing, leads there."""
    return generate_batch(model, *INPUTS, limits=LIMITS, do_sample=False, return_scores=True, **options)


def by_search(model: nn.Module, **options: Any) -> Any:
    return generate_batch(model, *INPUTS, limits=LIMITS, return_scores=True, **options)


@pytest.mark.parametrize("name", SEARCHES)
def test_translations_and_scores_are_those_of_generate(model: nn.Module, name: str) -> None:
    ours, theirs = by_search(model, **SEARCHES[name]), by_generate(model, **SEARCHES[name])
    assert ours.sequences == theirs.sequences
    torch.testing.assert_close(ours.scores, theirs.scores, rtol=1e-4, atol=1e-4, check_dtype=False)
    assert torch.equal(ours.finished, theirs.finished)


def test_the_searches_differ(model: nn.Module) -> None:
    """Or the comparison above would prove little."""
    found = {name: by_search(model, **options) for name, options in SEARCHES.items()}
    assert 0 < found["greedy"].finished.sum() + found["beams"].finished.sum() < 2 * len(SENTENCES)
    lengths = {len(row) for row in found["beams"].sequences}
    assert len(lengths) > 2, "sentences must leave the batch at different times"
    assert len({str(found[name].sequences) for name in ("greedy", "beams", "early", "short")}) > 2


@pytest.mark.parametrize("name", POSITION_ENCODINGS)
def test_all_but_one_scheme_are_searched_here(name: str) -> None:
    assert uses_own_search(random_model(name), {"num_beams": 2}) == (name in SEARCHED)


def test_the_start_is_that_of_the_generation_configuration(rope: nn.Module) -> None:
    before = by_search(rope, num_beams=2)
    rope.generation_config.decoder_start_token_id = 5
    ours, theirs = by_search(rope, num_beams=2), by_generate(rope, num_beams=2)
    assert ours.sequences == theirs.sequences != before.sequences


@pytest.mark.parametrize("beams", [1, 4])
def test_scores_that_are_no_numbers_are_named(rope: nn.Module, beams: int) -> None:
    rope.lm_head.weight.data.fill_(float("nan"))
    with pytest.raises(InputError, match="scores are NaN"):
        by_search(rope, num_beams=beams)


def test_the_lowest_penalty_loses_no_translation(rope: nn.Module) -> None:
    limits = torch.full_like(LIMITS, POSITIONS)  # scores of thousands of millions
    found = generate_batch(rope, *INPUTS, limits=limits, return_scores=True, num_beams=3, length_penalty=-5.0)
    assert all(found.sequences) and found.scores.isfinite().all()


def test_generate_is_left_alone_and_the_rest_left_to_it(rope: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    plain = rope.generate
    monkeypatch.setattr(rope, "generate", lambda *args, **options: calls.append("generate") or plain(*args, **options))
    by_search(rope, num_beams=2)
    assert not calls
    for options in ({"num_beams": 2, "early_stopping": "never"}, {"no_repeat_ngram_size": 2}, {"min_new_tokens": 3}):
        by_search(rope, **options)
    rope.generation_config.repetition_penalty = 2.0
    by_search(rope, num_beams=2)
    assert len(calls) == 4


def test_ended_sentences_leave_the_batch(rope: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    def rows(worth_a_copy: float) -> list[int]:
        sizes: list[int] = []
        hook = rope.register_forward_pre_hook(
            lambda module, args, inputs: sizes.append(len(inputs["decoder_input_ids"])), with_kwargs=True
        )
        monkeypatch.setattr(search, "WORTH_A_COPY", worth_a_copy)
        by_search(rope, num_beams=4)
        hook.remove()
        return sizes

    early, late = rows(1.0), rows(0.0)
    assert set(late) == {len(SENTENCES)} and len(early) == len(late)
    assert early[0] == len(SENTENCES) and early[-1] < len(SENTENCES) and early == sorted(early, reverse=True)


def test_beams_see_their_own_past_alone(rope: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    right = by_search(rope, **SEARCHES["beams"]).sequences
    gather = search._gather

    def mixed(values: Tensor, beams: Tensor) -> Tensor:
        return values[:, : beams.shape[1]] if values.dtype == torch.bool else gather(values, beams)

    monkeypatch.setattr(search, "_gather", mixed)
    assert by_search(rope, **SEARCHES["beams"]).sequences != right


def test_the_cache_is_written_and_not_copied() -> None:
    layer = search.GrowingLayer()
    expected = torch.empty(3, 2, 0, 4)
    places = set()
    for step in range(40):
        new = torch.randn(3, 2, 5, 4)
        expected = torch.cat((expected, new), dim=2)
        keys, values = layer.update(new, -new)
        places.add(layer.keys.data_ptr())
        assert torch.equal(keys, expected) and torch.equal(values, -expected), step
    assert len(places) <= 7 and layer.get_seq_length() == 200
    layer.batch_select_indices(torch.tensor([2, 0]))
    keys, _ = layer.update(expected[:2, :, :5], expected[:2, :, :5])
    assert torch.equal(keys[:, :, :200], expected[[2, 0]]) and keys.shape == (2, 2, 205, 4)


def test_other_models_and_kernels_are_left_to_generate(tiny_model: Build) -> None:
    assert not generation.uses_own_search(build("marian"), {})
    assert generation.uses_own_search(tiny_model(), {})
    assert generation.uses_own_search(tiny_model(), {"num_beams": 5, "length_penalty": 0.8, "early_stopping": True})
    assert not generation.uses_own_search(tiny_model(), {"forced_bos_token_id": 7})
    model = tiny_model()
    model.config._attn_implementation = "flex_attention"
    assert not generation.uses_own_search(model, {})


@pytest.mark.parametrize(("size", "count"), [(6000, 10), (40, 10), (11, 10), (7, 1), (3, 3), (50, 2)])
def test_the_largest_are_found_by_columns(size: int, count: int) -> None:
    values = torch.randn(4, 3, size, generator=torch.Generator().manual_seed(size))
    best, places = largest(values, count)
    expected = values.topk(count)
    assert torch.equal(best, expected.values) and torch.equal(places, expected.indices)
    assert not torch.equal(places, (-values).topk(count).indices)
