"""One batch through `generate`, on ours, Marian, BART and T5. Broken versions fail each check."""

from collections.abc import Iterator

import pytest
import torch
from random_models import EOS, MODELS, SENTENCES, build, logged, word_tokenizer
from torch import Tensor
from transformers import PreTrainedModel

from hf_mt.generation import generate_batch, length_limits


SEARCHES = {
    "greedy": {"num_beams": 1},
    "beams": {"num_beams": 4, "length_penalty": 0.7},
    "early": {"num_beams": 3, "early_stopping": True},
    "never": {"num_beams": 2, "early_stopping": "never", "length_penalty": 2.0},
}


@pytest.fixture(params=list(MODELS), scope="module")
def any_model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return build(request.param)


@pytest.fixture(scope="module")
def marian() -> PreTrainedModel:
    return build("marian")


@pytest.fixture(scope="module")
def batch() -> tuple[Tensor, Tensor]:
    encoded = word_tokenizer()(SENTENCES, padding=True, return_tensors="pt")
    return encoded["input_ids"], encoded["attention_mask"]


@pytest.fixture
def messages() -> Iterator[list[str]]:
    with logged() as found:
        yield found


def one_by_one(model: PreTrainedModel, batch: tuple[Tensor, Tensor], **options: object) -> list[list[int]]:
    """The same sentences, each alone and without padding."""
    outputs = []
    for row, mask in zip(*batch, strict=True):
        tokens = row[mask.bool()][None]
        limits = length_limits(torch.ones_like(tokens), 1.0, 3)
        outputs += generate_batch(model, tokens, torch.ones_like(tokens), limits=limits, **options).sequences
    return outputs


@pytest.mark.parametrize("search", SEARCHES)
def test_a_translation_does_not_depend_on_its_batch(
    any_model: PreTrainedModel, batch: tuple[Tensor, Tensor], search: str
) -> None:
    input_ids, mask = batch
    limits, options = length_limits(mask, 1.0, 3), SEARCHES[search]
    alone = one_by_one(any_model, batch, **options)

    assert generate_batch(any_model, input_ids, mask, limits=limits, **options).sequences == alone
    shared = torch.full_like(limits, int(limits.max()))
    assert generate_batch(any_model, input_ids, mask, limits=shared, **options).sequences != alone
    unmasked = generate_batch(any_model, input_ids, torch.ones_like(mask), limits=limits, **options)
    assert unmasked.sequences != alone


@pytest.mark.parametrize("beams", [1, 4])
def test_finished_means_that_the_model_ended_the_sentence(
    marian: PreTrainedModel, batch: tuple[Tensor, Tensor], beams: int
) -> None:
    limits = length_limits(batch[1], 1.0, 0)
    output = generate_batch(marian, *batch, limits=limits, num_beams=beams)

    assert 0 < output.finished.sum() < len(SENTENCES), "the sentences must show both"
    for sequence, limit, finished in zip(output.sequences, limits.tolist(), output.finished, strict=True):
        assert (sequence[-1] == EOS) == finished and EOS not in sequence[:-1]
        assert len(sequence) == limit if not finished else len(sequence) <= limit
    never = generate_batch(marian, *batch, limits=limits, num_beams=beams, suppress_tokens=[EOS])
    assert not never.finished.any(), "beam search fills short rows up with </s>: that is no ending"


def test_limits_bound_each_sentence_and_follow_the_source(batch: tuple[Tensor, Tensor]) -> None:
    lengths = batch[1].sum(-1)
    assert length_limits(batch[1], 1.5, 2).tolist() == [int(-(-3 * n // 2)) + 2 for n in lengths.tolist()]
    assert length_limits(batch[1]).tolist() == [2 * n + 20 for n in lengths.tolist()]


def test_given_encoder_outputs_are_used_and_left_alone(marian: PreTrainedModel, batch: tuple[Tensor, Tensor]) -> None:
    input_ids, mask = batch
    states = marian.get_encoder()(input_ids=input_ids, attention_mask=mask)
    runs: list[int] = []
    hook = marian.get_encoder().register_forward_hook(lambda *_: runs.append(1))
    reused = generate_batch(marian, input_ids, mask, encoder_outputs=states, num_beams=3, return_scores=True)
    assert not runs and states.last_hidden_state.shape[0] == len(SENTENCES)
    fresh = generate_batch(marian, input_ids, mask, num_beams=3, return_scores=True)
    hook.remove()

    assert len(runs) == 1, "scores must not run the encoder again"
    assert reused.sequences == fresh.sequences and torch.equal(reused.scores, fresh.scores)
    marian.generate(input_ids, attention_mask=mask, encoder_outputs=states, num_beams=3, max_length=4)
    assert states.last_hidden_state.shape[0] == 3 * len(SENTENCES), "generate itself spoils what it is given"


def generate_scores(model: PreTrainedModel, batch: tuple[Tensor, Tensor], limit: int, **options: object) -> Tensor:
    """Scores as transformers computes them while it searches."""
    output = model.generate(
        batch[0],
        attention_mask=batch[1],
        max_length=limit + 1,
        forced_eos_token_id=None,
        output_scores=True,
        return_dict_in_generate=True,
        **options,
    )
    if options["num_beams"] != 1:
        return output.sequences_scores
    steps = model.compute_transition_scores(output.sequences, output.scores, normalize_logits=True)
    ended = (output.sequences[:, 1:] == EOS).cumsum(-1)
    written = (ended - (output.sequences[:, 1:] == EOS).long()) == 0  # up to and with the first </s>
    return steps.where(written, 0).sum(-1) / written.sum(-1)


@pytest.mark.parametrize(
    "options", [{"num_beams": 1}, {"num_beams": 4, "length_penalty": 0.6}, {"num_beams": 3, "forced_bos_token_id": 7}]
)
def test_scores_are_those_of_the_search(
    any_model: PreTrainedModel, batch: tuple[Tensor, Tensor], options: dict[str, float]
) -> None:
    limits = torch.full((len(SENTENCES),), 9)
    several = {"num_return_sequences": 3} if options["num_beams"] > 1 else {}
    output = generate_batch(any_model, *batch, limits=limits, return_scores=True, **options, **several)
    expected = generate_scores(any_model, batch, 9, **options, **several)

    torch.testing.assert_close(output.scores, expected, rtol=1e-4, atol=1e-4, check_dtype=False)
    lengths = torch.tensor([len(sequence) for sequence in output.sequences])
    assert not torch.allclose(output.scores * lengths, expected, atol=1e-2)
    assert generate_batch(any_model, *batch, limits=limits, **options).scores is None


def test_scores_do_not_depend_on_how_much_is_computed_at_once(
    marian: PreTrainedModel, batch: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"num_beams": 3, "num_return_sequences": 3, "return_scores": True}
    whole = generate_batch(marian, *batch, **options).scores
    sizes = []
    hook = marian.register_forward_pre_hook(
        lambda module, args, inputs: sizes.append(len(inputs["decoder_input_ids"])), with_kwargs=True
    )
    monkeypatch.setattr("hf_mt.generation.MAX_LOGITS", 1)
    torch.testing.assert_close(generate_batch(marian, *batch, **options).scores, whole)
    hook.remove()
    assert sizes[-1] == 1 < len(SENTENCES)


def test_settings_of_a_checkpoint_do_not_clash(
    batch: tuple[Tensor, Tensor], messages: list[str], recwarn: pytest.WarningsRecorder
) -> None:
    model = build("marian")
    model.generation_config.update(max_length=512, max_new_tokens=300, num_beams=4, early_stopping=True)
    generate_batch(model, *batch, num_beams=1, length_penalty=0.5)
    generate_batch(model, *batch, num_beams=2, early_stopping=False)
    assert not messages and not [warning for warning in recwarn if "transformers" in warning.filename]

    model.generate(batch[0], attention_mask=batch[1], max_new_tokens=3, max_length=5, num_beams=1)
    assert any("max_new_tokens" in message for message in messages)
