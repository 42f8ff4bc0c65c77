"""The model as a whole: loss, layers, tying, saving, initial values, checkpointing, generation, outputs."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import AutoModel, AutoModelForSeq2SeqLM
from transformers.modeling_outputs import BaseModelOutput

from hf_mt.model import POSITION_ENCODINGS, HfMtConfig, HfMtForConditionalGeneration, HfMtModel


SOURCE = torch.tensor([[5, 6, 7, 8, 9, 10, 2], [11, 12, 13, 2, 0, 0, 0]])  # (B, S)
LABELS = torch.tensor([[20, 21, 22, 23, 2], [24, 25, 2, -100, -100]])  # (B, T)
BATCH = {"input_ids": SOURCE, "attention_mask": (SOURCE != 0).long(), "labels": LABELS}

Build = Callable[..., HfMtForConditionalGeneration]
every_encoding = pytest.mark.parametrize("encoding", POSITION_ENCODINGS)
every_tie = pytest.mark.parametrize("tie", ["none", "decoder", "all"])


def batch(rows: slice) -> dict[str, Tensor]:
    return {name: value[rows] for name, value in BATCH.items()}


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(**BATCH).logits


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.grad.clone() for name, value in model.named_parameters()}


def calls_of(module: nn.Module) -> list[int]:
    """A list that grows by one each time the module runs."""
    calls: list[int] = []
    module.register_forward_hook(lambda *_: calls.append(1))
    return calls


# --- loss


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_is_the_plain_formula_on_the_logits(tiny_model: Build, smoothing: float) -> None:
    output = tiny_model(label_smoothing=smoothing)(**BATCH)
    scores = output.logits.flatten(0, 1)
    torch.testing.assert_close(output.loss, cross_entropy(scores, LABELS.flatten(), label_smoothing=smoothing))
    assert not output.loss.isclose(cross_entropy(scores, LABELS.flatten(), label_smoothing=0.2))
    torch.testing.assert_close(output.nll, cross_entropy(scores, LABELS.flatten(), reduction="sum"))
    assert output.num_tokens == 8
    assert output.num_correct == (scores.argmax(-1) == LABELS.flatten()).sum()


def test_labels_are_shifted_once(tiny_model: Build) -> None:
    model = tiny_model()
    shifted = torch.tensor([[1, 20, 21, 22, 23], [1, 24, 25, 2, 0]])
    assert torch.equal(model.prepare_decoder_input_ids_from_labels(LABELS), shifted)
    output = model(**BATCH)
    given = model(input_ids=SOURCE, attention_mask=BATCH["attention_mask"], decoder_input_ids=shifted)
    assert torch.equal(output.logits, given.logits)
    shifted_twice = cross_entropy(output.logits[:, :-1].flatten(0, 1), LABELS[:, 1:].flatten())
    assert not output.loss.isclose(shifted_twice, rtol=1e-3)
    assert LABELS[1, 3] == -100, "the labels of the caller stay as they are"


@pytest.mark.parametrize("number", [20, torch.tensor(20), torch.tensor(20.0)])
def test_the_number_of_items_divides_the_summed_loss(tiny_model: Build, number: Any) -> None:
    model = tiny_model(label_smoothing=0.1)
    torch.testing.assert_close(model(**BATCH, num_items_in_batch=number).loss, model(**BATCH).loss * 8 / 20)


def test_micro_batches_add_up_to_the_batch(tiny_model: Build) -> None:
    whole, split = tiny_model(label_smoothing=0.1), tiny_model(label_smoothing=0.1)
    whole(**BATCH).loss.backward()
    for rows in (slice(0, 1), slice(1, 2)):
        split(**batch(rows), num_items_in_batch=8).loss.backward()
    torch.testing.assert_close(gradients(split), gradients(whole), atol=1e-6, rtol=1e-4)

    split.zero_grad()
    for rows in (slice(0, 1), slice(1, 2)):  # the mean of means gives the words of short sentences more weight
        (split(**batch(rows)).loss / 2).backward()
    name = "model.decoder.layers.0.ffn.up_proj.weight"
    assert not gradients(split)[name].allclose(gradients(whole)[name], atol=1e-4)


SKIPPED = {  # training, labels, skip_logits: whether there are no logits
    (True, True, None): True,
    (True, True, False): False,
    (True, False, None): False,
    (False, True, None): False,
    (False, True, True): True,
}


@pytest.mark.parametrize(("training", "labels", "skip_logits"), SKIPPED)
def test_logits_are_skipped_where_nobody_needs_them(
    tiny_model: Build, training: bool, labels: bool, skip_logits: bool | None
) -> None:
    inputs = BATCH if labels else {"input_ids": SOURCE, "decoder_input_ids": SOURCE}
    output = tiny_model().train(training)(**inputs, skip_logits=skip_logits)
    assert (output.logits is None) == SKIPPED[training, labels, skip_logits]
    assert (output.loss is not None) == labels


def test_outputs_as_a_tuple_begin_with_loss_and_logits(tiny_model: Build) -> None:
    output = tiny_model()(**BATCH)
    loss, scores, *_ = tiny_model()(**BATCH, return_dict=False)
    assert torch.equal(loss, output.loss)
    assert torch.equal(scores, output.logits)
    assert output["loss"] is output.loss
    without_labels = tiny_model()(input_ids=SOURCE, decoder_input_ids=SOURCE)
    assert torch.equal(without_labels[0], without_labels.logits)


# --- layers


def copy_attention(attention: nn.Module, theirs: nn.MultiheadAttention) -> None:
    """Gives an attention of torch the weights of ours."""
    projections = (attention.q_proj, attention.k_proj, attention.v_proj)
    theirs.in_proj_weight.data = torch.cat([projection.weight for projection in projections])
    theirs.in_proj_bias.data = torch.cat([projection.bias for projection in projections])
    theirs.out_proj.load_state_dict(attention.o_proj.state_dict())


def torch_layer(ours: nn.Module, kind: type[nn.Module], norm_position: str) -> nn.Module:
    """A layer of torch with the weights of ours."""
    theirs = kind(32, 4, 48, dropout=0.0, batch_first=True, norm_first=norm_position == "pre").eval()
    residuals = [ours.self_attn_residual, ours.ffn_residual]
    copy_attention(ours.self_attn, theirs.self_attn)
    if kind is nn.TransformerDecoderLayer:
        residuals.insert(1, ours.cross_attn_residual)
        copy_attention(ours.cross_attn, theirs.multihead_attn)
    for number, residual in enumerate(residuals, 1):
        getattr(theirs, f"norm{number}").load_state_dict(residual.norm.state_dict())
    theirs.linear1.load_state_dict(ours.ffn.up_proj.state_dict())
    theirs.linear2.load_state_dict(ours.ffn.down_proj.state_dict())
    return theirs


@pytest.mark.parametrize("norm_position", ["pre", "post"])
def test_layers_compute_what_layers_of_torch_compute(tiny_model: Build, norm_position: str) -> None:
    model = tiny_model(position_encoding="none", norm_position=norm_position)
    encoder, decoder, padding = model.model.encoder, model.model.decoder, SOURCE == 0
    targets = model.prepare_decoder_input_ids_from_labels(LABELS)
    memory, states = (model.get_input_embeddings()(ids) * 32**0.5 for ids in (SOURCE, targets))
    for layer in encoder.layers:
        theirs = torch_layer(layer, nn.TransformerEncoderLayer, norm_position)
        memory = theirs(memory, src_key_padding_mask=padding)
    memory, future = encoder.norm(memory), torch.ones(5, 5, dtype=torch.bool).triu(1)
    for layer in decoder.layers:
        theirs = torch_layer(layer, nn.TransformerDecoderLayer, norm_position)
        states = theirs(states, memory, tgt_mask=future, memory_key_padding_mask=padding)
    torch.testing.assert_close(model.lm_head(decoder.norm(states)), model(**BATCH).logits, atol=1e-4, rtol=1e-4)
    assert not logits(tiny_model(norm_position=norm_position)).allclose(logits(model), atol=1e-2)


@pytest.mark.parametrize("r_drop", [0.0, 5.0])
def test_products_are_rounded_in_training_alone(tiny_model: Build, r_drop: float) -> None:
    whole, rounded = tiny_model(r_drop=r_drop), tiny_model(r_drop=r_drop)
    rounded.round_products(layers=True)
    assert torch.equal(whole(**BATCH).loss, rounded(**BATCH).loss)
    exact, near = whole.train()(**BATCH).loss, rounded.train()(**BATCH).loss
    assert near.dtype == torch.float32 and 0 < abs(exact - near) < 0.02 * exact


@pytest.mark.parametrize("name", ["dropout", "attention_dropout", "activation_dropout"])
def test_every_dropout_acts_in_training_alone(tiny_model: Build, name: str) -> None:
    model = tiny_model(**{name: 0.5})
    assert torch.equal(logits(model), logits(tiny_model()))
    trained = [model.train()(**BATCH).loss.item() for _ in range(2)]
    assert trained[0] != trained[1]
    without = [tiny_model().train()(**BATCH).loss.item() for _ in range(2)]
    assert without[0] == without[1]


# --- tying, saving, loading


SHARED = {"none": 3, "decoder": 2, "all": 1}  # different matrices for source, target and output


def vocabulary_matrices(model: nn.Module) -> list[Tensor]:
    encoder, decoder = model.model.encoder, model.model.decoder
    return [encoder.embed_tokens.weight, decoder.embed_tokens.weight, model.lm_head.weight]


def stored_names(folder: Path) -> list[str]:
    with safe_open(folder / "model.safetensors", "pt") as file:
        return list(file.keys())


@every_tie
def test_tied_matrices_are_one_before_and_after_loading(tiny_model: Build, tmp_path: Path, tie: str) -> None:
    model = tiny_model(tie_embeddings=tie)
    model.save_pretrained(tmp_path)
    for each in (model, AutoModelForSeq2SeqLM.from_pretrained(tmp_path)):
        encoder, decoder, output = vocabulary_matrices(each)
        assert len({matrix.data_ptr() for matrix in (encoder, decoder, output)}) == SHARED[tie]
        assert (decoder is output) == (tie != "none")
        assert (decoder is encoder) == (tie == "all")
    assert sum("embed_tokens" in name or "lm_head" in name for name in stored_names(tmp_path)) == SHARED[tie]


@every_tie
def test_reloaded_scores_are_the_same_to_the_last_bit(tiny_model: Build, tmp_path: Path, tie: str) -> None:
    model = tiny_model(tie_embeddings=tie)
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(AutoModelForSeq2SeqLM.from_pretrained(tmp_path)), logits(model))

    base = AutoModel.from_pretrained(tmp_path)
    assert type(base) is HfMtModel
    inputs = {"input_ids": SOURCE, "decoder_input_ids": SOURCE}
    assert torch.equal(base(**inputs).last_hidden_state, model.model(**inputs).last_hidden_state)


@every_encoding
def test_every_encoding_survives_loading_on_the_meta_device(tiny_model: Build, tmp_path: Path, encoding: str) -> None:
    model = tiny_model(position_encoding=encoding)
    model.save_pretrained(tmp_path)
    loaded = HfMtForConditionalGeneration.from_pretrained(tmp_path)
    assert torch.equal(logits(loaded), logits(model))
    assert not torch.equal(logits(HfMtForConditionalGeneration(model.config).eval()), logits(model))


def test_nothing_but_safetensors_is_written(tiny_model: Build, tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path)
    written = {path.name for path in tmp_path.iterdir() if path.suffix != ".py"}
    assert written == {"config.json", "generation_config.json", "model.safetensors"}


def test_generation_settings_stay_out_of_the_model_configuration(tiny_model: Build, tmp_path: Path) -> None:
    tiny_model(max_position_embeddings=77).save_pretrained(tmp_path)
    assert "max_length" not in json.loads((tmp_path / "config.json").read_text())
    assert AutoModelForSeq2SeqLM.from_pretrained(tmp_path).generation_config.max_length == 77


def test_a_model_loads_in_bfloat16(tiny_model: Build, tmp_path: Path) -> None:
    model = tiny_model()
    model.save_pretrained(tmp_path)
    loaded = AutoModelForSeq2SeqLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {value.dtype for value in loaded.parameters()} == {torch.bfloat16}
    error = (logits(loaded).float() - logits(model)).std() / logits(model).std()
    assert 0 < error < 0.1


@every_tie
def test_the_vocabulary_can_grow(tiny_model: Build, tie: str) -> None:
    model = tiny_model(tie_embeddings=tie)
    before = logits(model)
    model.resize_token_embeddings(45, mean_resizing=False)
    assert [matrix.shape for matrix in vocabulary_matrices(model)] == [(45, 32)] * 3
    assert len({matrix.data_ptr() for matrix in vocabulary_matrices(model)}) == SHARED[tie]
    assert torch.equal(logits(model)[..., :40], before)
    assert model(input_ids=SOURCE, labels=torch.full_like(LABELS, 44)).loss.isfinite()


# --- initial values


def fresh_output(config: HfMtConfig) -> Any:
    """Of a model at its initial values."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        tokens = torch.randint(4, config.vocab_size, (8, 12))
        return HfMtForConditionalGeneration(config).eval()(input_ids=tokens, labels=tokens.flip(0))


@pytest.mark.parametrize("norm_position", ["pre", "post"])
@pytest.mark.parametrize("width", [32, 128, 512])
def test_fresh_scores_have_unit_size_at_every_width(tiny_config: Callable, width: int, norm_position: str) -> None:
    config = tiny_config(d_model=width, vocab_size=2000, norm_position=norm_position)
    assert 0.7 < fresh_output(config).logits.std() < 1.4
    config.init_std = 0.02  # a usual constant, which fits only one width
    assert not 0.7 < fresh_output(config).logits.std() < 1.4


@pytest.mark.parametrize("width", [32, 128])
def test_a_fresh_model_guesses_about_uniformly(tiny_config: Callable, width: int) -> None:
    config = tiny_config(d_model=width, vocab_size=2000)
    assert abs(fresh_output(config).loss - math.log(2000)) < 1.2
    config.init_std = 1.0  # as torch initialises embeddings
    assert fresh_output(config).loss - math.log(2000) > 1.2


# --- gradient checkpointing


@every_encoding
def test_gradient_checkpointing_changes_no_gradient(tiny_model: Build, encoding: str) -> None:
    model = tiny_model(position_encoding=encoding, dropout=0.1, attention_dropout=0.1, activation_dropout=0.1).train()
    runs = []
    for checkpointing in (False, True):
        if checkpointing:
            model.activation_checkpointing_enable()
        model.zero_grad()
        torch.manual_seed(0)
        model(**BATCH).loss.backward()
        runs.append(gradients(model))
    torch.testing.assert_close(runs[1], runs[0], rtol=0, atol=1e-6)


def test_gradient_checkpointing_runs_every_layer_twice(tiny_model: Build) -> None:
    for checkpointing, expected in ((False, 1), (True, 2)):
        model = tiny_model().train()
        if checkpointing:
            model.activation_checkpointing_enable()
        calls = [calls_of(layer.ffn.up_proj) for layer in (*model.model.encoder.layers, *model.model.decoder.layers)]
        model(**BATCH).loss.backward()
        assert [len(each) for each in calls] == [expected] * 4


# --- generation


GENERATION: dict[str, dict[str, Any]] = {
    "greedy": {"do_sample": False},
    "beam-4": {"do_sample": False, "num_beams": 4},
    "sample": {"do_sample": True},
}


def generate(model: HfMtForConditionalGeneration, **options: Any) -> Tensor:
    torch.manual_seed(0)
    inputs = {"input_ids": SOURCE, "attention_mask": BATCH["attention_mask"]}
    return model.generate(**(inputs | options), min_length=12, max_length=12)


@pytest.mark.parametrize("options", GENERATION.values(), ids=GENERATION)
@every_encoding
def test_generation_is_the_same_with_and_without_a_cache(
    tiny_model: Build, encoding: str, options: dict[str, Any]
) -> None:
    # untied, since a fresh tied model repeats what it reads
    model = tiny_model(position_encoding=encoding, encoder_layers=1, tie_embeddings="none")
    expected = generate(model, use_cache=False, **options)
    assert torch.equal(generate(model, **options), expected)
    assert torch.equal(generate(model, cache_implementation="static", disable_compile=True, **options), expected)
    assert expected.shape == (2, 12)
    assert (expected[:, 0] == 1).all()
    assert not torch.equal(generate(model, input_ids=SOURCE.flip(0), use_cache=False, **options), expected)


def test_the_source_is_encoded_once_a_generation(tiny_model: Build) -> None:
    model = tiny_model()
    encoder, cross = calls_of(model.model.encoder), calls_of(model.model.decoder.layers[0].cross_attn.k_proj)
    decoder = calls_of(model.model.decoder)
    generate(model)
    assert (len(encoder), len(cross), len(decoder)) == (1, 1, 11)


def test_outputs_of_the_encoder_can_be_used_again(tiny_model: Build) -> None:
    model = tiny_model()
    states = model.get_encoder()(SOURCE, BATCH["attention_mask"]).last_hidden_state
    calls, inputs = calls_of(model.model.encoder), {name: BATCH[name] for name in ("attention_mask", "labels")}
    for given in ((states,), BaseModelOutput(last_hidden_state=states)):
        assert torch.equal(model(encoder_outputs=given, **inputs).logits, model(**BATCH).logits)
    assert len(calls) == 2, "only where no outputs were given"
    other = model(encoder_outputs=(states.flip(0),), **inputs).logits
    assert not other.allclose(logits(model), atol=1e-2)


def test_embeddings_can_take_the_place_of_ids(tiny_model: Build) -> None:
    model = tiny_model()
    embedded = model.get_input_embeddings()(SOURCE)
    given = model(inputs_embeds=embedded, attention_mask=BATCH["attention_mask"], labels=LABELS).logits
    torch.testing.assert_close(given, logits(model))
    moved = model(inputs_embeds=embedded * 32**0.5, attention_mask=BATCH["attention_mask"], labels=LABELS).logits
    assert not moved.allclose(given, atol=1e-2), "they are scaled by the model"
    with pytest.raises(ValueError, match="exactly one"):
        model(input_ids=SOURCE, inputs_embeds=embedded, labels=LABELS)
    with pytest.raises(ValueError, match="exactly one"):
        model(input_ids=SOURCE)


# --- what can be looked at


def test_attentions_and_hidden_states_have_their_shapes(tiny_model: Build) -> None:
    model = tiny_model(encoder_layers=1, decoder_layers=3, encoder_attention_heads=2)
    model.set_attn_implementation("eager")
    output = model(**BATCH, output_attentions=True, output_hidden_states=True)
    assert [weights.shape for weights in output.encoder_attentions] == [(2, 2, 7, 7)]
    assert [weights.shape for weights in output.decoder_attentions] == [(2, 4, 5, 5)] * 3
    assert [weights.shape for weights in output.cross_attentions] == [(2, 4, 5, 7)] * 3
    assert [states.shape for states in output.encoder_hidden_states] == [(2, 7, 32)] * 2
    assert [states.shape for states in output.decoder_hidden_states] == [(2, 5, 32)] * 4
    assert torch.equal(output.encoder_hidden_states[-1], output.encoder_last_hidden_state)
    assert torch.equal(model.lm_head(output.decoder_hidden_states[-1]), output.logits)

    for weights in (*output.encoder_attentions, *output.decoder_attentions, *output.cross_attentions):
        torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))
    assert not output.cross_attentions[0][1, ..., 4:].any(), "padding is not attended to"
    assert not output.decoder_attentions[0].triu(1).any(), "nor is the future"
    assert output.encoder_attentions[0].triu(1).any()


def test_one_hidden_state_can_be_asked_for_where_stacks_differ_in_depth(tiny_model: Build) -> None:
    model = tiny_model(encoder_layers=3, decoder_layers=1)
    last = model(**BATCH, output_hidden_states=-1)
    whole = model(**BATCH, output_hidden_states=True)
    for side in ("encoder_hidden_states", "decoder_hidden_states"):
        (found,) = [states for states in last[side] if states is not None]
        assert torch.equal(found, whole[side][-1]) and not torch.equal(found, whole[side][0])


class Adapter(torch.nn.Module):
    """A head as PEFT wraps it: its `weight` is that of what it wraps."""

    def __init__(self, base_layer: torch.nn.Linear):
        super().__init__()
        self.base_layer = base_layer
        self.low_rank = torch.nn.Parameter(torch.randn(base_layer.weight.shape) / 10)

    @property
    def weight(self) -> torch.Tensor:
        return self.base_layer.weight

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.base_layer(hidden_states) + hidden_states @ self.low_rank.T


def test_the_loss_is_that_of_the_head_with_its_adapter(tiny_model: Build) -> None:
    model = tiny_model()
    plain = model(**BATCH).loss
    model.lm_head = Adapter(model.lm_head)
    output = model(**BATCH)
    expected = torch.nn.functional.cross_entropy(output.logits.flatten(0, 1), LABELS.flatten())
    torch.testing.assert_close(output.loss, expected)
    assert not output.loss.allclose(plain, atol=1e-3)
    output.loss.backward()
    assert model.lm_head.low_rank.grad.abs().sum() > 0


def test_nothing_is_recorded_unless_asked_for(tiny_model: Build) -> None:
    output = tiny_model()(**BATCH)
    recorded = {"encoder_attentions", "decoder_attentions", "cross_attentions"}
    recorded |= {"encoder_hidden_states", "decoder_hidden_states"}
    assert recorded.isdisjoint(output.keys())


def test_a_decoder_alone_says_what_it_lacks(tiny_model: Build) -> None:
    with pytest.raises(ValueError, match="encoder_hidden_states"):
        tiny_model().get_decoder()(input_ids=SOURCE)
