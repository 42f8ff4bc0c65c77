"""The model of an experiment."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import MarianConfig, MarianMTModel

from hf_mt import HfMtForConditionalGeneration, InputError
from hf_mt.averaging import MovingAverage
from hf_mt.corpora import toy_corpus
from hf_mt.data import PreparedData, prepare_data
from hf_mt.experiment import parse_experiment
from hf_mt.model.linear_hf_mt import Linear
from hf_mt.models import check_architecture, load_or_build_model, round_products
from hf_mt.pretrained import MOVING_AVERAGE_NAME
from hf_mt.tokenization import train_tokenizer


LANGUAGES = ["--source_lang", "src", "--target_lang", "tgt", "--dataset_name", "toy_copy", "--use_cpu", "true"]
SMALL = "--d_model 16 --encoder_attention_heads 2 --decoder_attention_heads 2 --encoder_layers 1 --decoder_layers 1"
SMALL += " --encoder_ffn_dim 32 --decoder_ffn_dim 32"


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return train_tokenizer(["0 1 2 3 4 5 6 7 8 9"], vocab_size=24)


@pytest.fixture(scope="module")
def data(tokenizer: Any) -> PreparedData:
    corpus = toy_corpus("copy", sizes={"train": 30, "validation": 5, "test": 5}, seed=1, max_digits=8)
    return prepare_data(corpus, tokenizer, parse_experiment(LANGUAGES).data)


def build(tokenizer: Any, data: PreparedData, options: str) -> Any:
    return load_or_build_model(parse_experiment([*LANGUAGES, *options.split()]), tokenizer, data)


def test_the_seed_decides_the_initial_weights(tokenizer: Any, data: PreparedData) -> None:
    one, same, other = (build(tokenizer, data, f"{SMALL} --seed {seed}") for seed in (1, 1, 2))
    assert torch.equal(one.lm_head.weight, same.lm_head.weight)
    assert not torch.equal(one.lm_head.weight, other.lm_head.weight)


def test_sizes_and_special_tokens_come_from_the_tokenizer(tokenizer: Any, data: PreparedData) -> None:
    config = build(tokenizer, data, f"{SMALL} --vocab_size 1000").config
    assert config.vocab_size == len(tokenizer) != 1000
    assert (config.pad_token_id, config.decoder_start_token_id, config.eos_token_id) == (0, 1, 2)


def test_generation_is_not_cut_at_twenty_tokens(tokenizer: Any, data: PreparedData) -> None:
    settings = build(tokenizer, data, f"{SMALL} --num_beams 3 --length_penalty 0.8").generation_config
    assert settings.max_length == 2 * data.tokens["train"]["target"].max > 20
    assert (settings.num_beams, settings.length_penalty, settings.early_stopping) == (3, 0.8, True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--d_model 30 --encoder_attention_heads 4", "d_model"),
        ("--d_model 6 --encoder_attention_heads 2 --decoder_attention_heads 2", "even number"),
        ("--d_model 15 --encoder_attention_heads 3 --decoder_attention_heads 3", "even number"),
        ("--dropout 1.5", "dropout"),
        ("--activation_function rulu", "rulu"),
        ("--position_encoding t5 --relative_attention_max_distance 2", "relative_attention_max_distance"),
        ("--position_encoding shaw --attn_implementation sdpa", "scaled_dot_product"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_before_any_data_is_read(options: str, message: str) -> None:
    with pytest.raises(InputError, match=f"(?i){message}"):
        check_architecture(parse_experiment([*LANGUAGES, *options.split()]))
    check_architecture(parse_experiment([*LANGUAGES, *SMALL.split()]))


def test_a_sentence_longer_than_learned_positions_is_refused(tokenizer: Any, data: PreparedData) -> None:
    longest = max(data.tokens["train"][side].max for side in ("source", "target"))
    learned = f"{SMALL} --position_encoding learned --max_position_embeddings"
    with pytest.raises(InputError, match=f"{longest - 1} positions.*max_source_length"):
        build(tokenizer, data, f"{learned} {longest - 1}")
    build(tokenizer, data, f"{learned} {longest}")


def test_random_positions_that_do_not_fit_are_refused(tokenizer: Any, data: PreparedData) -> None:
    longest = max(data.tokens["train"][side].max for side in ("source", "target"))
    with pytest.raises(InputError, match=f"randomized_positions is {longest - 1}.*{longest} tokens"):
        build(tokenizer, data, f"{SMALL} --randomized_positions {longest - 1}")
    build(tokenizer, data, f"{SMALL} --randomized_positions {longest}")
    learned = f"{SMALL} --position_encoding learned --max_position_embeddings {longest + 9} --position_shift"
    with pytest.raises(InputError, match=f"reach position {longest + 10}, but the model has {longest + 9}"):
        build(tokenizer, data, f"{learned} 10")
    model = build(tokenizer, data, f"{learned} 9").train()
    model(input_ids=torch.ones(1, longest, dtype=torch.long), labels=torch.ones(1, longest, dtype=torch.long))


def marian(folder: Path, tokenizer: Any) -> Path:
    sizes = {"d_model": 16, "encoder_attention_heads": 2, "decoder_attention_heads": 2, "vocab_size": len(tokenizer)}
    sizes |= {"encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
    tokens = {"pad_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 1, "forced_eos_token_id": None}
    MarianMTModel(MarianConfig(**sizes, **tokens)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_pretrained_model_is_loaded_with_the_dropout_asked_for(
    tokenizer: Any, data: PreparedData, tmp_path: Path
) -> None:
    folder = marian(tmp_path / "marian", tokenizer)
    model = build(tokenizer, data, f"--model_name_or_path {folder} --dropout 0.25 --label_smoothing 0.1")
    assert isinstance(model, MarianMTModel) and model.config.dropout == 0.25
    saved = MarianMTModel.from_pretrained(folder)
    assert torch.equal(model.get_input_embeddings().weight, saved.get_input_embeddings().weight)


@pytest.mark.parametrize(("digits", "kernel"), [(8, "eager"), (200, "sdpa")])
def test_a_processor_gets_the_kernel_that_is_fast_there(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, digits: int, kernel: str
) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)  # beside it, and not used
    corpus = toy_corpus("copy", sizes={"train": 30, "validation": 5, "test": 5}, seed=1, max_digits=digits)
    long = prepare_data(corpus, tokenizer, parse_experiment(LANGUAGES).data)
    pretrained = f"--model_name_or_path {marian(tmp_path / 'marian', tokenizer)}"
    for options in (SMALL, pretrained):
        assert build(tokenizer, long, options).config._attn_implementation == kernel
    asked = build(tokenizer, long, f"{SMALL} --attn_implementation sdpa")
    assert asked.config._attn_implementation == "sdpa"


def test_our_own_model_is_fine_tuned_with_its_smoothing(tokenizer: Any, data: PreparedData, tmp_path: Path) -> None:
    build(tokenizer, data, f"{SMALL} --label_smoothing 0.2").save_pretrained(tmp_path)
    kept = build(tokenizer, data, f"--model_name_or_path {tmp_path}")
    changed = build(tokenizer, data, f"--model_name_or_path {tmp_path} --label_smoothing 0.05")
    assert isinstance(kept, HfMtForConditionalGeneration)
    assert (kept.config.label_smoothing, changed.config.label_smoothing) == (0.2, 0.05)


def test_fine_tuning_begins_with_the_weights_that_were_scored(
    tokenizer: Any, data: PreparedData, tmp_path: Path
) -> None:
    plain = build(tokenizer, data, SMALL)
    plain.save_pretrained(tmp_path)
    average = MovingAverage(plain, 0.9)
    for weight in average.weights.values():
        weight += 1.0
    average.save(tmp_path)
    tuned = build(tokenizer, data, f"--model_name_or_path {tmp_path}")
    assert torch.equal(tuned.lm_head.weight, plain.lm_head.weight + 1.0)
    (tmp_path / MOVING_AVERAGE_NAME).unlink()
    tuned = build(tokenizer, data, f"--model_name_or_path {tmp_path}")
    assert torch.equal(tuned.lm_head.weight, plain.lm_head.weight), "the control"


def test_fine_tuning_may_add_r_drop_to_our_own_model_alone(tokenizer: Any, data: PreparedData, tmp_path: Path) -> None:
    build(tokenizer, data, SMALL).save_pretrained(tmp_path / "ours")
    plain, changed = (
        build(tokenizer, data, f"--model_name_or_path {tmp_path / 'ours'}{more}") for more in ("", " --r_drop 5")
    )
    assert (plain.r_drop, changed.r_drop, changed.config.r_drop) == (0, 5, 5)
    folder = marian(tmp_path / "marian", tokenizer)
    with pytest.raises(InputError, match="r_drop.*MarianMTModel"):
        build(tokenizer, data, f"--model_name_or_path {folder} --r_drop 5")


def test_a_tokenizer_without_a_beginning_begins_with_padding(data: PreparedData) -> None:
    plain = train_tokenizer(["0 1 2 3 4 5 6 7 8 9"], vocab_size=24)
    assert build(plain, data, SMALL).config.decoder_start_token_id == plain.bos_token_id
    plain.bos_token = None  # as those of T5 and Marian
    model = build(plain, data, SMALL)
    assert model.config.decoder_start_token_id == plain.pad_token_id
    ids = torch.tensor([[5, 6, 2]])
    assert model(input_ids=ids, labels=ids).loss.isfinite()


@pytest.mark.parametrize(
    ("precision", "fast", "width", "scores", "layers"),
    [
        ("medium", True, 256, True, True),
        ("medium", True, 128, True, False),
        ("medium", False, 256, False, False),
        ("high", True, 256, False, False),
        ("highest", True, 256, False, False),
    ],
)
def test_products_are_rounded_where_that_is_fast(
    tiny_model: Any, precision: str, fast: bool, width: int, scores: bool, layers: bool,
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setattr("hf_mt.models.multiplies_bfloat16", lambda device: fast)
    model = tiny_model(d_model=width)
    round_products(model, precision, torch.device("cpu"))
    assert {module.rounded for module in model.modules() if isinstance(module, Linear)} == {layers}
    assert model.loss_dtype == (torch.bfloat16 if scores else None)
    assert ("has no effect" in caplog.text) == (not scores and precision != "highest")


def test_a_gpu_rounds_as_torch_does(tiny_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(torch, "set_float32_matmul_precision", asked.append)
    model = tiny_model()
    for precision in ("highest", "high"):
        round_products(model, precision, torch.device("cuda"))
    assert asked == ["high"] and model.loss_dtype is None


def test_products_of_another_model_are_not_rounded(
    tokenizer: Any, data: PreparedData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setattr("hf_mt.models.multiplies_bfloat16", lambda device: True)
    folder = marian(tmp_path / "marian", tokenizer)
    build(tokenizer, data, f"--model_name_or_path {folder} --float32_matmul_precision medium")
    assert "no effect on a MarianMTModel" in caplog.text
    build(tokenizer, data, f"{SMALL} --float32_matmul_precision high")
    assert "no effect on a HfMtForConditionalGeneration" in caplog.text


def test_a_folder_without_a_model_is_refused(tokenizer: Any, data: PreparedData, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="lacks config.json and weights"):
        build(tokenizer, data, f"--model_name_or_path {tmp_path}")
    folder = marian(tmp_path / "marian", tokenizer)
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match="lacks weights"):
        build(tokenizer, data, f"--model_name_or_path {folder}")
    marian(folder, tokenizer)
    (folder / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(InputError, match="can't be loaded.*BertConfig"):
        build(tokenizer, data, f"--model_name_or_path {folder}")
