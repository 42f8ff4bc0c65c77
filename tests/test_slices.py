"""Scores by length are scores of the parts, and each sign of failure sees its failure and no other."""

import json
import random
from pathlib import Path

import pytest
import sacrebleu
from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

from hf_mt import InputError
from hf_mt.scores import corpus_scores, sentence_scores
from hf_mt.slices import (
    describe_outputs,
    length_buckets,
    metrics_while_training,
    signs_of_failure,
    slice_metrics,
    write_analysis,
)


def texts(lengths: list[int], seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(f"w{rng.randrange(30)}" for _ in range(length)) for length in lengths]


SOURCES = texts([3, 10, 11, 20, 21, 35, 60])
REFERENCES = texts([3, 10, 11, 20, 21, 35, 60], seed=1)
HYPOTHESES = [f"{reference} more" if row % 2 else reference for row, reference in enumerate(REFERENCES)]


def test_no_sentence_is_kept_after_an_evaluation() -> None:
    """sacrebleu's tokenizers keep those of all that asked."""
    cache = Tokenizer13a.__call__
    corpus_scores(["a cat sat"], ["a cat sat there"])
    assert cache.cache_info().currsize > 0
    describe_outputs(["un chat"], ["a cat sat"], ["a cat sat there"])
    assert cache.cache_info().currsize == 0


def test_buckets_hold_each_sentence_once_and_score_as_their_part_alone() -> None:
    buckets, unit = length_buckets(SOURCES, HYPOTHESES, REFERENCES)
    assert unit == "words"
    assert [(bucket.name, bucket.sentences) for bucket in buckets] == [
        ("1-10", 2), ("11-20", 2), ("21-30", 1), ("31-50", 1), ("51+", 1),
    ]  # fmt: skip
    alone = corpus_scores(HYPOTHESES[2:4], REFERENCES[2:4])
    assert (buckets[1].bleu, buckets[1].chrf) == (alone["bleu"], alone["chrf"])
    assert buckets[1].bleu != buckets[2].bleu
    assert [bucket.name for bucket in length_buckets(SOURCES[:2], HYPOTHESES[:2], REFERENCES[:2])[0]] == ["1-10"]


def test_languages_without_spaces_are_measured_in_characters() -> None:
    sources = ["两个人在说话。" * times for times in (1, 3, 8, 20)]
    buckets, unit = length_buckets(sources, sources, sources)
    assert unit == "characters"
    assert [(bucket.name, bucket.sentences) for bucket in buckets] == [("1-20", 1), ("21-40", 1), ("41-60", 1),
                                                                       ("101+", 1)]  # fmt: skip
    assert length_buckets(["Два человека"], ["a"], ["a"])[1] == "words"


def signs(hypothesis: str, source: str = "the 3 dogs", reference: str = "die 3 Hunde") -> dict[str, float]:
    return {name: share for name, share in signs_of_failure([source], [hypothesis], [reference]).items() if share}


@pytest.mark.parametrize(
    ("hypothesis", "found"),
    [
        ("die 3 Hunde", {}),
        ("die Hunde", {"numbers_lost": 1.0}),
        ("the 3 dogs", {"copied_source": 1.0, "copied_words": 1.0}),
        ("die 3 dogs", {"copied_words": 0.5}),
        ("3 a b c d a b c d", {"repeated": 1.0}),
        ("3 Hunde Hunde Hunde", {"repeated": 1.0}),
        ("3 Hunde Hunde", {}),
        ("", {"numbers_lost": 1.0}),
    ],
)
def test_each_failure_is_seen(hypothesis: str, found: dict[str, float]) -> None:
    assert signs(hypothesis) == found


def test_what_the_reference_does_too_is_no_failure() -> None:
    assert signs("Berlin", source="Berlin", reference="Berlin") == {}
    assert signs("nein nein nein", source="no no no", reference="nein nein nein") == {}
    assert signs("drei Hunde", reference="drei Hunde") == {}


@pytest.mark.parametrize("written", ["1,234.5", "1.234,5", "1 234,5", "1\u202f234,5", "1\u2019234.5"])
def test_numbers_are_the_same_however_they_are_written(written: str) -> None:
    lost = signs(written, source="1,234.5 m", reference="1.234,5 m").get("numbers_lost", 0)
    assert lost == (0 if written != "1 234,5" else 1)  # a plain space ends a number
    assert signs("1234", source="12345", reference="12345") == {"numbers_lost": 1.0}


def test_an_evaluation_reports_scores_signs_and_lengths() -> None:
    found = describe_outputs(SOURCES, HYPOTHESES, REFERENCES)
    assert found == {**corpus_scores(HYPOTHESES, REFERENCES), **slice_metrics(SOURCES, HYPOTHESES, REFERENCES)}
    assert {"bleu", "bleu_signature", "repeated", "bleu_words_11-20", "chrf_words_51+"} <= set(found)
    assert "bleu_lc_tok" in describe_outputs(SOURCES, HYPOTHESES, REFERENCES, tokenized=True)


def test_bleu_of_a_language_stands_beside_that_of_13a() -> None:
    """A Chinese sentence is one word to 13a."""
    hypotheses, references = ["我们今天去公园玩。"], ["我们今天去学校玩。"]
    found = describe_outputs(["a"], hypotheses, references, tokenize="zh")
    assert (
        found["bleu"] < 1 and found["bleu_zh"] == corpus_scores(hypotheses, references, tokenize="zh")["bleu_zh"] > 40
    )
    assert "tok:zh" in str(found["bleu_zh_signature"]) and "bleu_zh" not in describe_outputs(
        ["a"], hypotheses, references
    )


@pytest.mark.parametrize("tokenized", [False, True])
def test_an_evaluation_of_training_leaves_out_the_slow_score_alone(tokenized: bool) -> None:
    texts = SOURCES, HYPOTHESES, REFERENCES
    whole = describe_outputs(*texts, tokenized=tokenized)
    quick = describe_outputs(*texts, tokenized=tokenized, metrics=metrics_while_training("bleu"))
    assert {name: whole[name] for name in quick} == quick
    assert whole.keys() - quick.keys() == {"ter", "ter_signature"}
    for best in ("ter", "eval_ter"):
        assert describe_outputs(*texts, tokenized=tokenized, metrics=metrics_while_training(best)) == whole


def test_the_analysis_names_best_and_worst_sentences(tmp_path: Path) -> None:
    scores = write_analysis(tmp_path / "a.json", SOURCES, HYPOTHESES, REFERENCES)
    assert scores == sentence_scores(SOURCES, HYPOTHESES, REFERENCES)
    found = json.loads((tmp_path / "a.json").read_text())
    assert found["worst"][0]["line"] == 2 and found["worst"][0]["hypothesis"] == HYPOTHESES[1]
    assert found["best"][0]["chrf"] == pytest.approx(100) and found["sentences"] == 7
    chrf = sacrebleu.sentence_chrf(HYPOTHESES[1], [REFERENCES[1]]).score
    assert found["worst"][0]["chrf"] == chrf < 100


def test_unequal_lengths_are_refused() -> None:
    with pytest.raises(InputError, match="7 sources, but 6 hypotheses|6 hypotheses, but references for 7"):
        describe_outputs(SOURCES, HYPOTHESES[:6], REFERENCES)
    with pytest.raises(InputError, match="6 sources, but 7 hypotheses"):
        describe_outputs(SOURCES[:6], HYPOTHESES, REFERENCES)
