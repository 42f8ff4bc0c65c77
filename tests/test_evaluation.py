"""Scores are sacrebleu's, names tell flavours apart, nothing needs the network. Broken versions fail each check."""

import json
import multiprocessing
import random
import re
import runpy
import shutil
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import evaluate
import pytest
import sacrebleu
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_models import MODELS, SENTENCES, word_tokenizer

from hf_mt import InputError
from hf_mt.comet import comet_score
from hf_mt.evaluation import EvaluationArguments, evaluate_model, parse_evaluation
from hf_mt.metric import TranslationMetric
from hf_mt.scores import (
    SentenceScore,
    corpus_scores,
    read_sentence_scores,
    scores_of_tokenized,
    sentence_scores,
    write_sentence_scores,
)
from hf_mt.scoring import corpus_perplexity, score_pairs
from hf_mt.translation import Translator


SCRIPT = Path(__file__).parents[1] / "scripts" / "evaluate.py"
REFERENCES = ["The cat sat on the mat.", "Two men are talking, loudly.", "It's 3,000 km away!", "Hello world .", "Yes"]
HYPOTHESES = ["The cat sat on a mat.", "two men talk, loudly.", "It is 3,000 km far away!", "Hello World .", ""]
SECOND = ["A cat was on the mat.", "Two men talk loudly.", "It's far.", "Hi world .", "Yes , yes"]


def command_line(folder: Path, references: list[list[str]], *options: str) -> dict[str, tuple[float, str]]:
    """What `sacrebleu REF... -i HYP` prints: score and signature by metric."""
    paths = []
    for name, lines in (("hyp", HYPOTHESES), *((f"ref{i}", lines) for i, lines in enumerate(references))):
        paths.append(folder / name)
        paths[-1].write_text("".join(f"{line}\n" for line in lines), "utf-8")
    command = [sys.executable, "-m", "sacrebleu", *map(str, paths[1:]), "-i", str(paths[0]), "-w", "12"]
    command += ["-f", "json", *options]
    found = []
    for metrics in (["-m", "bleu", "chrf", "ter"], ["-m", "chrf", "bleu", "--chrf-word-order", "2"]):
        output = subprocess.run([*command, *metrics], capture_output=True, text=True, check=True).stdout
        found += json.loads(output)
    return {row["name"]: (row["score"], row["signature"]) for row in found}


LOWER, LOWER_WORDS = {"lowercase": True, "tokenize": "none"}, ["-lc", "-tok", "none", "--chrf-lowercase"]


@pytest.mark.parametrize(
    "options, words, names, sets",
    [
        ({}, [], ("bleu", "chrf", "chrf_pp", "ter"), [REFERENCES]),
        ({}, [], ("bleu", "chrf", "chrf_pp", "ter"), [REFERENCES, SECOND]),
        (LOWER, LOWER_WORDS, ("bleu_lc_tok", "chrf_lc", "chrf_pp_lc", "ter"), [REFERENCES]),
        ({"tokenize": "char"}, ["-tok", "char"], ("bleu_char", "chrf", "chrf_pp", "ter"), [REFERENCES]),
    ],
    ids=["default", "two references", "lower-cased and tokenised", "characters"],
)
def test_scores_and_signatures_are_those_of_the_command(
    tmp_path: Path, options: dict[str, Any], words: list[str], names: tuple[str, ...], sets: list[list[str]]
) -> None:
    expected = command_line(tmp_path, sets, *words)
    scores = corpus_scores(HYPOTHESES, [list(refs) for refs in zip(*sets, strict=True)], **options)

    for name, metric in zip(names, ("BLEU", "chrF2", "chrF2++", "TER"), strict=True):
        assert (round(scores[name], 12), scores[f"{name}_signature"]) == expected[metric]
        assert "version:" in scores[f"{name}_signature"]
    assert set(scores) == {*names, *(f"{name}_signature" for name in names), "length_ratio", "empty_hypotheses"}
    if len(sets) == 1:
        assert corpus_scores(HYPOTHESES, REFERENCES, **options) == scores
    shuffled = corpus_scores(HYPOTHESES[::-1], [list(refs) for refs in zip(*sets, strict=True)], **options)
    assert all(shuffled[name] != scores[name] for name in names)


def test_empty_and_short_translations_show() -> None:
    scores = corpus_scores([*HYPOTHESES[:3], " ", ""], REFERENCES)
    assert scores["empty_hypotheses"] == 2 and scores["length_ratio"] < 1
    whole = corpus_scores(REFERENCES, REFERENCES)
    assert whole["bleu"] == pytest.approx(100)
    assert (whole["ter"], whole["length_ratio"], whole["empty_hypotheses"]) == (0, 1, 0)


def test_sentences_may_have_different_numbers_of_references() -> None:
    both = [[first, second] for first, second in zip(REFERENCES, SECOND, strict=True)]
    mixed = [texts[: 1 + i % 2] for i, texts in enumerate(both)]
    scores = corpus_scores(HYPOTHESES, mixed)
    assert "nrefs:var" in scores["bleu_signature"]
    assert corpus_scores(HYPOTHESES, REFERENCES)["chrf"] < scores["chrf"]
    assert scores["bleu"] < corpus_scores(HYPOTHESES, both)["bleu"]


WRONG = {
    "transposed": (HYPOTHESES, [REFERENCES, SECOND], "transposed"),
    "unequal": (HYPOTHESES, REFERENCES[:-1], "5 hypotheses, but references for 4"),
    "empty": ([], [], "nothing to score"),
    "no reference": (HYPOTHESES, [[text] for text in REFERENCES[:-1]] + [[]], "nothing to score"),
    "one text": ("a cat", "a dog", "one text"),
    "not a text": ([*HYPOTHESES[:-1], None], REFERENCES, "one is None"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_shapes_are_refused(case: str) -> None:
    hypotheses, references, message = WRONG[case]
    for score in (corpus_scores, lambda h, r: TranslationMetric().compute(predictions=h, references=r)):
        with pytest.raises(InputError, match=message):
            score(hypotheses, references)
    with pytest.raises(InputError, match="sacrebleu has none, zh, 13a"):
        corpus_scores(HYPOTHESES, REFERENCES, tokenize="13b")


def test_evaluate_itself_would_score_letters() -> None:
    """Why `TranslationMetric.compute` looks at its arguments first."""
    assert evaluate.Metric.compute(TranslationMetric(), predictions="a cat", references="a dog")["chrf"] > 0


def test_the_script_is_not_taken_for_the_package_of_its_name() -> None:
    run = subprocess.run([sys.executable, SCRIPT], capture_output=True, text=True)
    assert run.returncode == 2 and "nothing to evaluate" in run.stderr


def _compute(seed: int) -> tuple[int, dict]:
    order = random.Random(seed).sample(range(5), 5)
    metric = TranslationMetric()
    metric.add_batch(predictions=[HYPOTHESES[i] for i in order[:3]], references=[REFERENCES[i] for i in order[:3]])
    metric.add_batch(predictions=[HYPOTHESES[order[3]]], references=[REFERENCES[order[3]]])
    return order[4], metric.compute()


def test_metric_is_offline_and_safe_for_many_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise AssertionError("the network was touched")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", str(tmp_path))
    with multiprocessing.get_context("fork").Pool(3) as pool, ThreadPoolExecutor(3) as threads:
        results = [*pool.map(_compute, range(6)), *threads.map(_compute, range(6, 12))]
    for left_out, scores in results:
        kept = [i for i in range(5) if i != left_out]
        expected = corpus_scores([HYPOTHESES[i] for i in kept], [REFERENCES[i] for i in kept])
        assert scores == pytest.approx(expected)
    assert len({left_out for left_out, _ in results}) > 1
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]

    class OnDisk(TranslationMetric):
        def __init__(self) -> None:
            evaluate.Metric.__init__(self)

    OnDisk().compute(predictions=HYPOTHESES, references=REFERENCES)
    assert [path for path in tmp_path.rglob("*") if path.is_file()], "the default of evaluate leaves locks behind"


def test_metric_takes_several_references_and_options() -> None:
    several = [[first, second] for first, second in zip(REFERENCES, SECOND, strict=True)]
    metric = TranslationMetric()
    found = metric.compute(predictions=HYPOTHESES, references=several, lowercase=True)
    assert found == corpus_scores(HYPOTHESES, several, lowercase=True) != corpus_scores(HYPOTHESES, several)
    assert metric.compute(predictions=HYPOTHESES, references=REFERENCES) == corpus_scores(HYPOTHESES, REFERENCES)


def test_sentence_scores_are_those_of_sacrebleu() -> None:
    scores = sentence_scores(SENTENCES[:5], HYPOTHESES, REFERENCES)
    for score, source, hypothesis, reference in zip(scores, SENTENCES, HYPOTHESES, REFERENCES, strict=False):
        assert (score.source, score.hypothesis, score.references) == (source, hypothesis, (reference,))
        assert score.bleu == sacrebleu.sentence_bleu(hypothesis, [reference]).score
        assert score.chrf == sacrebleu.sentence_chrf(hypothesis, [reference]).score
    assert scores[0].bleu != pytest.approx(corpus_scores(HYPOTHESES, REFERENCES)["bleu"])
    with pytest.raises(InputError, match="4 sources, but 5 hypotheses"):
        sentence_scores(SENTENCES[:4], HYPOTHESES, REFERENCES)


LETTERS = {"\\\\": "\\", "\\t": "\t", "\\n": "\n", "\\r": "\r"}


def unescape(text: str) -> str:
    return re.sub(r"\\.", lambda match: LETTERS[match[0]], text)


@given(texts=st.lists(st.text("ab\\tnr\t\n\r \u2028", max_size=8), min_size=3, max_size=3))
@settings(max_examples=60, deadline=None)
def test_table_of_sentences_can_be_read_back(texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "scores.tsv"
    score = SentenceScore(texts[0], texts[1], (texts[2], "second"), 12.5, 50.0)
    plain = SentenceScore("s", "h", ("r",), 0.0, 0.0)
    write_sentence_scores(path, [score, plain])

    lines = path.read_bytes().decode().split("\n")
    assert lines[0].split("\t") == ["source", "hypothesis", "reference", "reference_2", "bleu", "chrf"]
    assert [unescape(field) for field in lines[1].split("\t")] == [*texts, "second", "12.5000", "50.0000"]
    assert lines[2].split("\t") == ["s", "h", "r", "", "0.0000", "0.0000"] and lines[3:] == [""]
    assert read_sentence_scores(path) == [score, plain]
    if any(set(text) & set("\t\n") for text in texts):  # control: without escapes columns or lines move
        assert len("\t".join(texts).replace("\n", "\t").split("\t")) > 3


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with the configuration of its run, and test data of 5 pairs in another folder."""
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(1)
    MODELS["rope"][-1]().double().save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    data = tmp_path_factory.mktemp("data")
    (data / "test.en").write_text("".join(f"{line}\n" for line in SENTENCES), "utf-8")
    (data / "test.de").write_text("".join(f"{line[::-1]}\n" for line in SENTENCES), "utf-8")
    (data / "other.tsv").write_text("w4\tw5\nw6 w7\tw7 w6\n", "utf-8")
    (folder / "config_resolved.yaml").write_text(
        f"source_lang: en\ntarget_lang: de\nlearning_rate: 1e-3\ntest_file: {data / 'test'}\n"
        "max_predict_samples: 4\nsource_prefix: 'w33 '\n"
    )
    return folder


def run_evaluate(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *map(str, words)])
    try:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_script_evaluates_a_run_with_its_own_data(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_evaluate(monkeypatch, run_folder, "--num_beams", 2, "--device", "cpu") == 0
    shown = capsys.readouterr().out
    folder = run_folder / "evaluation" / "test"
    results = json.loads((folder / "results.json").read_text("utf-8"))
    predictions = (folder / "predictions.txt").read_text("utf-8").splitlines()

    sources, references = SENTENCES[:4], [line[::-1] for line in SENTENCES[:4]]
    translator = Translator(run_folder, source_prefix="w33 ", device="cpu")
    assert predictions == translator(sources, num_beams=2) == Translator(run_folder)(sources, num_beams=2)
    assert predictions != Translator(run_folder, source_prefix="")(sources, num_beams=2)
    expected = corpus_scores(predictions, references)
    assert {name: results[f"test_{name}"] for name in expected} == expected
    assert (results["sentences"], results["num_beams"], results["model"]) == (4, 2, str(run_folder))
    assert expected["bleu_signature"] in shown.replace("\n", "") and f"{expected['chrf']:.2f}" in shown
    assert len((folder / "test_scores.tsv").read_text("utf-8").splitlines()) == 5


def test_what_a_model_says_of_its_search_is_checked(run_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(run_folder, folder)
    path = folder / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "num_beams": 10**9}))
    with pytest.raises(InputError, match="generation_config.json of the model: num_beams is 1000000000"):
        evaluate_model(*parse_evaluation([str(folder), "--device=cpu"]))
    assert evaluate_model(*parse_evaluation([str(folder), "--device=cpu", "--num_beams=2"]))["num_beams"] == 2


def test_other_data_replaces_that_of_the_run(run_folder: Path) -> None:
    own = parse_evaluation([str(run_folder)])[1]
    assert (own.source_lang, own.max_predict_samples, own.source_prefix) == ("en", 4, "w33 ")
    other = parse_evaluation([str(run_folder), "--test_file", "x.tsv"])[1]
    assert (other.test_file, other.max_predict_samples) == ("x.tsv", None)
    assert (other.source_lang, other.source_prefix) == ("en", "w33 ")
    built_in = parse_evaluation([str(run_folder), "--dataset_name=cldr", "--max_predict_samples", "7"])[1]
    assert (built_in.test_file, built_in.dataset_name, built_in.max_predict_samples) == (None, "cldr", 7)


def test_a_checkpoint_is_evaluated_as_its_run_is(tmp_path: Path) -> None:
    (tmp_path / "config_resolved.yaml").write_text(
        "source_lang: en\ntarget_lang: de\ntest_file: own\nsource_prefix: 'w33 '\n"
    )
    for name in ("checkpoint-3", "elsewhere"):
        (tmp_path / name).mkdir()
    data = parse_evaluation([str(tmp_path / "checkpoint-3")])[1]
    assert data == parse_evaluation([str(tmp_path)])[1] and (data.test_file, data.source_prefix) == ("own", "w33 ")
    with pytest.raises(InputError, match="--source_lang and --target_lang needed"):
        parse_evaluation([str(tmp_path / "elsewhere")])


def test_a_run_is_scored_as_its_training_scored_it(tmp_path: Path) -> None:
    (tmp_path / "test.en").write_text("a dog .\n")
    (tmp_path / "test.de").write_text("Ein Hund .\n")
    (tmp_path / "hyp").write_text("ein Hund .\n")
    settings = f"source_lang: en\ntarget_lang: de\ntest_file: {tmp_path / 'test'}\n"
    (tmp_path / "config_resolved.yaml").write_text(f"{settings}tokenized_scores: true\nbleu_tokenize: char\n")

    def scores(*words: str) -> set[str]:
        found = evaluate_model(*parse_evaluation([str(tmp_path), f"--hypotheses={tmp_path / 'hyp'}", *words]))
        return {name.removeprefix("test_") for name in found if "bleu" in name and "signature" not in name}

    assert scores() >= {"bleu", "bleu_lc_tok", "bleu_char"}
    assert not {"bleu_lc_tok", "bleu_char"} & scores("--tokenized_scores=false", "--bleu_tokenize=13a")
    assert "bleu_char" not in scores("--lowercase") and "bleu_lc" in scores("--lowercase")
    with pytest.raises(InputError, match="13b"):
        scores("--bleu_tokenize=13b")
    with pytest.raises(InputError, match="or lowercase and tokenize"):
        scores("--bleu_tokenize=char", "--lowercase")


def test_the_size_of_one_development_set_is_not_that_of_another(tmp_path: Path) -> None:
    (tmp_path / "config_resolved.yaml").write_text(
        "source_lang: en\ntarget_lang: de\nvalidation_file: own\nmax_eval_samples: 3\n"
    )
    assert parse_evaluation([str(tmp_path), "--split", "validation"])[1].max_eval_samples == 3
    other = parse_evaluation([str(tmp_path), "--split", "validation", "--validation_file", "other"])[1]
    assert (other.validation_file, other.max_eval_samples) == ("other", None)


def test_given_translations_are_scored_without_a_model(run_folder: Path, tmp_path: Path) -> None:
    hypotheses, data = tmp_path / "hyp", parse_evaluation([str(run_folder)])[1]
    hypotheses.write_text("w4\nw5\nw6\n\n", "utf-8")
    args = EvaluationArguments(hypotheses=str(hypotheses), lowercase=True)
    results = evaluate_model(args, data)
    assert results["test_empty_hypotheses"] == 1 and "test_bleu_lc" in results and "test_bleu" not in results
    assert results["output_dir"] is None and "num_beams" not in results
    hypotheses.write_text("w4\nw5\nw6\n", "utf-8")
    with pytest.raises(InputError, match="3 hypotheses, but references for 4"):
        evaluate_model(args, data)


@pytest.mark.parametrize(
    "words, message",
    [
        ([], "nothing to evaluate"),
        (["RUN", "--num_beems", "3"], "unknown option --num_beems; did you mean 'num_beams'"),
        (["RUN", "--num_beams", "many"], "num_beams: found 'many'"),
        (["RUN", "--split", "train"], "split: found 'train'"),
        (["x/y", "--dataset_name", "cldr"], "--source_lang and --target_lang needed"),
        (["RUN", "--test_file", "missing.tsv"], "missing.tsv does not exist"),
    ],
)
def test_script_refuses_bad_input_with_exit_code_2(
    run_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    message: str,
) -> None:
    assert run_evaluate(monkeypatch, *(str(run_folder) if word == "RUN" else word for word in words)) == 2
    assert message in capsys.readouterr().err


def test_tokenised_text_is_scored_as_it_stands_too(caplog: pytest.LogCaptureFixture) -> None:
    hypotheses, references = ["ein mann &apos; s hund", "Zwei Hunde"], ["ein mann &apos; s hund .", "zwei Hunde ."]
    found = scores_of_tokenized(hypotheses, references)
    plain = sacrebleu.corpus_bleu(hypotheses, [references], lowercase=True, tokenize="none", force=True)
    assert found["bleu_lc_tok"] == plain.score != found["bleu"]
    assert "case:lc" in found["bleu_lc_tok_signature"] and "tok:none" in found["bleu_lc_tok_signature"]
    assert {key: value for key, value in found.items() if "lc_tok" not in key} == corpus_scores(hypotheses, references)
    sentences = ["ein Hund ."] * 100
    scores_of_tokenized(sentences, sentences)
    assert "tokenized period" not in caplog.text
    corpus_scores(sentences, sentences)
    assert "tokenized period" in caplog.text


def test_further_references_count(run_folder: Path, tmp_path: Path) -> None:
    hypotheses = SENTENCES[:4]
    (tmp_path / "hyp").write_text("".join(f"{line}\n" for line in hypotheses), "utf-8")
    (tmp_path / "more").write_text("".join(f"{line}\n" for line in hypotheses), "utf-8")
    words = [str(run_folder), "--hypotheses", str(tmp_path / "hyp"), "--output_dir", str(tmp_path / "out")]
    assert evaluate_model(*parse_evaluation(words))["test_chrf"] < 100
    found = evaluate_model(*parse_evaluation([*words, "--more_references", str(tmp_path / "more")]))
    assert found["test_chrf"] == pytest.approx(100) and "nrefs:2" in found["test_bleu_signature"]
    assert [len(row.references) for row in read_sentence_scores(tmp_path / "out" / "test_scores.tsv")] == [2] * 4
    (tmp_path / "more").write_text("one\n", "utf-8")
    with pytest.raises(InputError, match="more has 1 lines, but the test set 4 sentences"):
        evaluate_model(*parse_evaluation([*words, "--more_references", str(tmp_path / "more")]))


def test_the_loss_of_references_is_reported_too(run_folder: Path, tmp_path: Path) -> None:
    words = [str(run_folder), "--device", "cpu", "--output_dir", str(tmp_path)]
    found = evaluate_model(*parse_evaluation(words))
    translator = Translator(run_folder, source_prefix="w33 ", device="cpu")
    scores = score_pairs(translator, SENTENCES[:4], [line[::-1] for line in SENTENCES[:4]])
    assert found["test_loss"] == pytest.approx(corpus_perplexity(scores)[0])
    assert found["test_perplexity"] == pytest.approx(corpus_perplexity(scores)[1])


COMET = """#!{python}
import sys
words = sys.argv
texts = [open(words[words.index(flag) + 1]).read().splitlines() for flag in ("-s", "-t", "-r")]
if words[words.index("--model") + 1] != "known":
    sys.exit("no such model")
print(f"hyp\tscore: {{sum(one == other for one, other in zip(*texts[1:])) / len(texts[0]):.4f}}")
"""


def test_comet_is_scored_by_its_own_program_and_refused_without(tmp_path: Path) -> None:
    program = tmp_path / "comet-score"
    program.write_text(COMET.format(python=sys.executable))
    program.chmod(0o755)
    sentences = (["a", "b\nc", "d", "e"], ["a", "x", "d", "y"], ["a", "b", "d", "e"])
    assert comet_score(*sentences, model="known", program=str(program)) == 0.5
    with pytest.raises(InputError, match="could not score with the model 'other' .*no such model"):
        comet_score(*sentences, model="other", program=str(program))
    with pytest.raises(InputError, match=r"there is no 'nowhere/comet-score'.*pip install unbabel-comet"):
        comet_score(*sentences, model="known", program="nowhere/comet-score")


def test_spbleu_takes_the_model_on_disk_and_fetches_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    for module in ("hf_mt.scores", "sacrebleu.tokenizers.tokenizer_spm"):
        monkeypatch.setattr(f"{module}.SACREBLEU_DIR", str(tmp_path))
    with pytest.raises(InputError, match="'flores200', whose model is not on this machine: put https://.* at "):
        corpus_scores(HYPOTHESES, REFERENCES, tokenize="flores200")
    (tmp_path / "text").write_text("\n".join(REFERENCES * 20), "utf-8")
    (tmp_path / "models").mkdir()
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "text"), model_prefix=str(tmp_path / "m"), vocab_size=40, minloglevel=2
    )
    (tmp_path / "m.model").rename(tmp_path / "models" / "flores200sacrebleuspm")
    found = corpus_scores(HYPOTHESES, REFERENCES, tokenize="flores200", metrics=("bleu",))
    assert "tok:flores200" in found["spbleu_signature"] and "bleu" not in found
    assert found["spbleu"] != corpus_scores(HYPOTHESES, REFERENCES)["bleu"]
