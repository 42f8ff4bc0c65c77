"""Configurations: every choice works and matters; what cannot work is refused with the reason."""

import json
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSeq2SeqLM

from hf_mt.model import HfMtConfig, HfMtForConditionalGeneration


BATCH = {
    "input_ids": torch.tensor([[5, 6, 7, 8, 9, 10, 2], [11, 12, 13, 2, 0, 0, 0]]),
    "attention_mask": torch.tensor([[1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0, 0]]),
    "labels": torch.tensor([[20, 21, 22, 23, 2], [24, 25, 2, -100, -100]]),
}

Build = Callable[..., HfMtForConditionalGeneration]


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(**BATCH).logits


OPTIONS: list[dict[str, Any]] = [
    {"norm_position": position, "norm_type": norm}
    for position, norm in product(("pre", "post"), ("layernorm", "rmsnorm"))
]
OPTIONS += [
    {"activation_function": activation, "gated_ffn": gated}
    for activation, gated in product(("relu", "gelu", "silu"), (False, True))
]
OPTIONS += [{"encoder_layers": 1, "decoder_layers": 3}, {"encoder_layers": 3, "decoder_layers": 1}]
OPTIONS += [{"encoder_attention_heads": 2, "decoder_attention_heads": 8}, {"encoder_ffn_dim": 20}]
OPTIONS += [{"scale_embedding": False}, {"init_std": 0.05}]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(map(str, options.values())))
def test_every_option_trains_and_reloads(tiny_model: Build, tmp_path: Path, options: dict[str, Any]) -> None:
    model = tiny_model(**options)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    before = model(**BATCH).loss
    before.backward()
    optimizer.step()
    assert model(**BATCH).loss < before
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(AutoModelForSeq2SeqLM.from_pretrained(tmp_path)), logits(model))


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(map(str, options.values())))
def test_every_option_matters(tiny_model: Build, options: dict[str, Any]) -> None:
    """The control of the test above. The defaults are among the options, and only they change nothing."""
    default = tiny_model()
    same = all(getattr(default.config, name) == value for name, value in options.items())
    assert torch.equal(logits(tiny_model(**options)), logits(default)) == same


@pytest.mark.parametrize(
    ("given", "tied", "expected"), [("all", False, "none"), ("decoder", True, "decoder"), ("none", True, "all")]
)
def test_ties_are_set_as_transformers_sets_them(
    tiny_model: Build, tmp_path: Path, given: str, tied: bool, expected: str
) -> None:
    tiny_model(tie_embeddings=given).save_pretrained(tmp_path)
    loaded = AutoModelForSeq2SeqLM.from_pretrained(tmp_path, tie_word_embeddings=tied)
    assert loaded.config.tie_embeddings == expected and loaded.config.tie_word_embeddings == tied


def test_the_finer_of_two_ways_to_tie_decides() -> None:
    tied, loose = HfMtConfig(), HfMtConfig(tie_embeddings="none")
    assert tied.to_dict()["tie_word_embeddings"] and "tie_word_embeddings" not in loose.to_dict()
    assert HfMtConfig(tie_word_embeddings=False).tie_embeddings == "none"
    for config in (tied, loose):
        for tie in ("none", "decoder", "all"):
            assert HfMtConfig(**{**config.to_dict(), "tie_embeddings": tie}).tie_embeddings == tie


def test_classes_of_others_stay_in_the_map() -> None:
    ours = HfMtConfig().auto_map
    given = {"AutoModel": "user/repo--modeling_hf_mt.HfMtModel", "AutoModelForSeq2SeqLM": "mine.Mine", "AutoX": "a.X"}
    expected = {"AutoModelForSeq2SeqLM": "mine.Mine", "AutoX": "a.X"}
    assert HfMtConfig(auto_map=given).auto_map == ours | expected and len(ours) == 3


def test_depths_are_those_of_the_configuration(tiny_model: Build) -> None:
    model = tiny_model(encoder_layers=1, decoder_layers=3).model
    assert (len(model.encoder.layers), len(model.decoder.layers)) == (1, 3)


def test_keys_of_a_newer_version_are_kept_and_do_no_harm(tiny_model: Build, tmp_path: Path) -> None:
    model = tiny_model()
    model.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(written | {"number_of_wings": 2}))
    assert AutoConfig.from_pretrained(tmp_path).number_of_wings == 2
    assert torch.equal(logits(AutoModelForSeq2SeqLM.from_pretrained(tmp_path)), logits(model))


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"encoder_attention_heads": 3}, r"d_model \(32\) is not a multiple of encoder_attention_heads \(3\)"),
    ({"decoder_attention_heads": 5}, r"d_model \(32\) is not a multiple of decoder_attention_heads \(5\)"),
    ({"d_model": 36, "position_encoding": "rope"}, r"'rope' turns pairs .* 9 of 9 .* change d_model"),
    ({"position_encoding": "rotary"}, r"position_encoding.*'sinusoidal'.*rotary"),
    ({"d_model": "32"}, "d_model.*expected int, got str"),
    ({"vocab_size": 40.0}, "vocab_size.*expected int, got float"),
    ({"gated_ffn": "yes"}, "gated_ffn.*expected bool"),
    ({"dropout": 1.5}, "dropout is 1.5, but must be at least 0 and less than 1"),
    ({"attention_dropout": -0.1}, "attention_dropout is -0.1"),
    ({"label_smoothing": 1.0}, "label_smoothing is 1.0"),
    ({"decoder_layers": 0}, "decoder_layers is 0, but must be at least 1"),
    ({"init_std": -1.0}, "init_std is -1.0, but must be positive"),
    ({"activation_function": "sigmoidal"}, "activation_function is 'sigmoidal', but must be one of .*relu"),
    ({"norm_position": "middle"}, "norm_position.*'pre', 'post'.*middle"),
    ({"tie_embeddings": "both"}, "tie_embeddings.*'none', 'decoder', 'all'.*both"),
    ({"position_encoding": "sinusoidal", "d_model": 33, "encoder_attention_heads": 3, "decoder_attention_heads": 3},
     "even d_model, not 33"),
    ({"position_encoding": "shaw", "max_relative_position": 0}, "max_relative_position is 0"),
    ({"position_encoding": "t5", "relative_attention_num_buckets": 2}, r"num_buckets \(2\) must be at least 4"),
    ({"position_encoding": "t5", "relative_attention_max_distance": 8}, r"max_distance \(8\) larger"),
    ({"rope_parameters": {"rope_type": "spiral"}}, "rope_type is 'spiral', but must be one of default, linear"),
    ({"rope_parameters": {"rope_type": "default", "rope_thta": 5.0}}, "rope_parameters has rope_thta, but may have"),
    ({"rope_parameters": {"rope_type": "linear", "factor": 0.5}}, "factor of at least 1"),
    ({"rope_parameters": {"rope_type": "linear", "factor": "2"}}, "factor"),
    ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.4}}, "3 of 8"),
    ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 2.0}}, "16 of 8"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "message"), REFUSED, ids=lambda value: str(value)[:50])
def test_what_cannot_work_is_refused_with_the_reason(
    tiny_config: Callable, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises((ValueError, StrictDataclassError), match=f"(?s){message}"):
        HfMtForConditionalGeneration(tiny_config(**changes))
