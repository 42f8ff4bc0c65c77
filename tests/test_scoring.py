"""Scores of given pairs: what the loss says of them, whatever the batches; and attention that sums to one."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from random_models import MODELS, SENTENCES, SIZES, word_tokenizer
from scripts_on_path import load_script

from hf_mt import HfMtConfig, HfMtForConditionalGeneration, InputError, Translator
from hf_mt.attention import cross_attention
from hf_mt.data import encode_pairs
from hf_mt.losses import loss_sums
from hf_mt.scoring import corpus_perplexity, score_pairs


SOURCES = SENTENCES
TARGETS = [" ".join(reversed(line.split())) for line in SENTENCES]


@pytest.fixture(params=["rope", "marian", "t5", "m2m100"])
def translator(request: pytest.FixtureRequest) -> Translator:
    return Translator(MODELS[request.param][-1]().double().eval(), word_tokenizer())


def nll_of(translator: Translator, source: str, target: str) -> tuple[float, int]:
    encoded = translator.tokenizer([source], text_target=[target], return_tensors="pt")
    batch = {name: encoded[name] for name in ("input_ids", "attention_mask", "labels")}
    with torch.no_grad():
        sums = loss_sums(translator.model, batch)
    return float(sums.nll), int(sums.num_tokens)


def test_scores_are_the_losses_of_the_pairs_alone(translator: Translator) -> None:
    scores = score_pairs(translator, SOURCES, TARGETS)
    for score, source, target in zip(scores, SOURCES, TARGETS, strict=True):
        nll, tokens = nll_of(translator, source, target)
        assert score.log_probability == pytest.approx(-nll, rel=1e-5) and score.num_tokens == tokens
        assert score.per_token == score.log_probability / tokens
    total, tokens = (sum(values) for values in zip(*map(lambda *pair: nll_of(translator, *pair), SOURCES, TARGETS),
                                                   strict=True))  # fmt: skip
    assert corpus_perplexity(scores)[0] == pytest.approx(total / tokens, rel=1e-5)
    others = score_pairs(translator, SOURCES, TARGETS[1:] + TARGETS[:1])
    assert [score.log_probability for score in others] != [score.log_probability for score in scores]


@pytest.mark.parametrize("name", ["m2m100", "marian"])
def test_a_token_that_is_given_is_not_scored(name: str) -> None:
    translator = Translator(MODELS[name][-1]().double().eval(), word_tokenizer())
    before = score_pairs(translator, SOURCES, TARGETS)
    translator.language_options = {"forced_bos_token_id": 7}  # the first of each target is one, as in NLLB
    after = score_pairs(translator, SOURCES, TARGETS)
    for one, other in zip(before, after, strict=True):
        assert other.num_tokens == one.num_tokens - 1 and other.log_probability > one.log_probability


def test_the_language_of_targets_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    translator = Translator(MODELS["m2m100"][-1]().eval(), word_tokenizer())
    translator.tokenizer.src_lang, translator.tokenizer.tgt_lang = "en", None
    with pytest.raises(InputError, match="give --target_lang"):
        score_pairs(translator, SOURCES, TARGETS)


def test_batches_change_nothing(translator: Translator) -> None:
    together = score_pairs(translator, SOURCES, TARGETS)
    apart = score_pairs(translator, SOURCES, TARGETS, tokens_per_batch=1)
    for one, other in zip(together, apart, strict=True):
        assert one.log_probability == pytest.approx(other.log_probability, rel=1e-6)
    assert score_pairs(translator, [], []) == []


def test_the_mode_of_the_model_is_given_back() -> None:
    translator = Translator(MODELS["rope"][-1]().train(), word_tokenizer())
    score_pairs(translator, SOURCES[:1], TARGETS[:1])
    assert translator.model.training


def test_a_language_behind_the_end_of_sentence_is_not_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in mBART's targets; a token before the end is scored."""
    translator = Translator(MODELS["rope"][-1]().double().eval(), word_tokenizer())
    expected = score_pairs(translator, SOURCES, TARGETS)
    rows = encode_pairs(SOURCES, TARGETS, translator.tokenizer)
    for labels in rows["labels"]:
        labels.append(9)
    monkeypatch.setattr("hf_mt.scoring.encode_pairs", lambda *args, **options: rows)
    assert score_pairs(translator, SOURCES, TARGETS) == expected
    for labels in rows["labels"]:
        labels.insert(-2, 9)
    longer = score_pairs(translator, SOURCES, TARGETS)
    assert [score.num_tokens for score in longer] == [score.num_tokens + 1 for score in expected]


def test_bad_pairs_are_refused() -> None:
    translator = Translator(MODELS["learned"][-1]().eval(), word_tokenizer())
    with pytest.raises(InputError, match="2 sources, but 1 targets"):
        score_pairs(translator, SOURCES[:2], TARGETS[:1])
    with pytest.raises(InputError, match=r"line 2: \d+ tokens, but the model has positions for \d+"):
        score_pairs(translator, ["w1", "w1 " * 300], ["w1", "w1"])


def test_a_side_without_a_limit_may_be_long() -> None:
    config = HfMtConfig(**SIZES, encoder_position_encoding="learned", decoder_position_encoding="rope")
    translator = Translator(HfMtForConditionalGeneration(config).eval(), word_tokenizer())
    assert score_pairs(translator, ["w5"], ["w5 " * 30])[0].num_tokens == 31
    with pytest.raises(InputError, match="31 tokens, but the model has positions for 24"):
        score_pairs(translator, ["w5 " * 30], ["w5"])


def test_the_script_prints_a_line_for_each_pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    MODELS["rope"][-1]().double().save_pretrained(tmp_path / "model")
    word_tokenizer().save_pretrained(tmp_path / "model")
    for name, lines in (("source", SOURCES), ("target", TARGETS)):
        (tmp_path / name).write_text("".join(f"{line}\n" for line in lines))
    words = [str(tmp_path / "model"), "--source", str(tmp_path / "source"), "--target", str(tmp_path / "target")]
    monkeypatch.setattr(sys, "argv", ["score.py", *words, "--device", "cpu"])
    load_script("score").main()
    out, err = capsys.readouterr()
    expected = score_pairs(Translator(tmp_path / "model", device="cpu"), SOURCES, TARGETS)
    assert [float(line.split("\t")[0]) for line in out.splitlines()] == [
        pytest.approx(score.log_probability, abs=1e-4) for score in expected
    ]
    assert f"{len(SOURCES)} pairs: {corpus_perplexity(expected)[0]:.4f} nats per token" in err


def test_attention_of_a_pair_sums_to_one_over_the_source(translator: Translator) -> None:
    kernel = translator.model.config._attn_implementation
    found = cross_attention(translator, SOURCES[:2], TARGETS[:2])
    for one, source, target in zip(found, SOURCES, TARGETS, strict=False):
        assert one.source_tokens[:-1] == source.split() and one.target_tokens[:-1] == target.split()
        assert one.weights.shape[1:] == (len(one.target_tokens), len(one.source_tokens))
        assert torch.allclose(one.weights.sum(-1), torch.ones(()), atol=1e-5)
        assert one.weights.std() > 0
    assert translator.model.config._attn_implementation == kernel


def test_what_fails_leaves_kernel_and_mode_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    model = MODELS["rope"][-1]().train()
    model.set_attn_implementation("sdpa")
    monkeypatch.setattr("hf_mt.attention._one", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        cross_attention(Translator(model, word_tokenizer()), SOURCES[:1], TARGETS[:1])
    assert model.config._attn_implementation == "sdpa" and model.training


def test_dropout_is_left_out_of_attention() -> None:
    model = HfMtForConditionalGeneration(HfMtConfig(**SIZES, dropout=0.5)).train()
    translator = Translator(model, word_tokenizer())
    one, other = (cross_attention(translator, SOURCES[:1], TARGETS[:1])[0] for _ in range(2))
    assert one is not None and other is not None and torch.equal(one.weights, other.weights)


def test_a_pair_too_long_for_the_model_has_no_attention() -> None:
    translator = Translator(MODELS["learned"][-1]().eval(), word_tokenizer())
    found = cross_attention(translator, ["w5 " * 300, "w6"], ["w5", "w6"])
    assert found[0] is None and found[1] is not None
