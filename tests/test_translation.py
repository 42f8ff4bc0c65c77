"""What Translator and its script promise, on random models. Broken versions fail each check."""

import json
import runpy
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from copy import copy
from io import BytesIO, TextIOWrapper
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_models import MODELS, POSITIONS, SENTENCES, SIZES, build, logged, word_tokenizer
from tokenizers import normalizers, pre_tokenizers, processors
from transformers import MarianConfig, MarianMTModel, NllbTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from hf_mt import InputError
from hf_mt.data import encode_pairs
from hf_mt.generation import GeneratedBatch, generate_batch, position_limit
from hf_mt.translation import Translator, _token_batches
from hf_mt.translation_output import write_translations


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return word_tokenizer()


@pytest.fixture(scope="module")
def marian() -> PreTrainedModel:
    return build("marian")


@pytest.fixture
def messages() -> Iterator[list[str]]:
    with logged() as found:
        yield found


@pytest.mark.parametrize("name, limit", [("marian", POSITIONS), ("bart", POSITIONS), ("learned", POSITIONS)])
def test_positions_that_a_model_lacks_are_refused_by_line(
    name: str, limit: int, tokenizer: PreTrainedTokenizerFast
) -> None:
    model = build(name)
    assert position_limit(model.get_encoder()) == limit
    translator = Translator(model, tokenizer)
    longest = " ".join(["w7"] * (limit - 1))  # and </s>
    translator(["w4", longest], max_length_b=100)  # outputs stop where positions do

    with pytest.raises(InputError, match=f"line 5 has {limit + 1} tokens.* {limit}:"):
        list(translator.translate_stream(["w4", "", "w5", "w4", longest + " w8"], block_size=2))
    with pytest.raises(IndexError):  # what a user would see without the check
        MODELS["marian"][-1]()(torch.full((1, limit + 1), 7), decoder_input_ids=torch.zeros(1, 1, dtype=torch.long))


@pytest.mark.parametrize("name", ["t5", "rope"])
def test_models_without_a_table_take_any_length(name: str, tokenizer: PreTrainedTokenizerFast) -> None:
    translator = Translator(build(name), tokenizer)
    assert len(translator([" ".join(["w7"] * 2 * POSITIONS)], max_new_tokens=2 * POSITIONS)) == 1


SHORT, LONG = "W4 w9.", "W7 w8. W5 w6 w4. W9! w7 w7 w7"


@pytest.fixture
def stops() -> PreTrainedTokenizerFast:
    """Words, whatever their case, and marks are tokens: a sentence `w4 w9.` has four with `</s>`."""
    tokenizer = word_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


def test_a_long_line_is_split_at_its_sentences_and_reported(
    marian: PreTrainedModel, stops: PreTrainedTokenizerFast, messages: list[str]
) -> None:
    translator = Translator(marian, stops)
    options = {"max_source_tokens": 8, "max_new_tokens": 6, "long_lines": "split"}
    parts = ["W7 w8. W5 w6 w4.", "W9! w7 w7 w7"]
    assert [len(row) for row in translator._tokenize(parts)] == [8, 6]
    lines = [SHORT, LONG, "", SHORT]
    translations = translator(lines, **options)
    assert [message for message in messages if "split" in message] == [
        "1 of 4 lines were too long and were split into sentences"
    ]
    single = translator([SHORT, *parts], max_new_tokens=6)
    assert translations == [single[0], f"{single[1]} {single[2]}", "", single[0]]
    stream = [best[0] for best in translator.translate_stream(lines, block_size=1, **options)]
    assert [hypothesis.text for hypothesis in stream] == translations
    assert [hypothesis.parts for hypothesis in stream] == [1, 2, 1, 1]
    assert translations != translator(lines, max_new_tokens=6), "control: whole lines have other translations"


def test_what_cannot_be_split_is_refused(marian: PreTrainedModel, stops: PreTrainedTokenizerFast) -> None:
    translator = Translator(marian, stops)
    with pytest.raises(InputError, match="line 2 has 13 tokens, but the limit is 12: .*split"):
        translator([SHORT, LONG], max_source_tokens=12)
    with pytest.raises(InputError, match="line 3 has a sentence of 6 tokens, but the limit is 5"):
        list(translator.translate_stream([SHORT, "", LONG], max_source_tokens=5, long_lines="split", block_size=2))
    with pytest.raises(InputError, match="line 2 has a sentence of 30 tokens, but the limit is 24"):
        translator([SHORT, "w4 " * 29], long_lines="split")
    with pytest.raises(InputError, match="line 2"):
        translator.check_lines([SHORT, LONG], max_source_tokens=12)
    translator.check_lines([SHORT, LONG], max_source_tokens=12, long_lines="split")
    for wrong in ({"max_source_tokens": 25}, {"max_source_tokens": 1}, {"long_lines": "cut"}):
        with pytest.raises(InputError, match=f"{next(iter(wrong))} is"):
            translator([SHORT], **wrong)
    with pytest.raises(InputError, match="parts can't be put together"):
        translator.nbest([SHORT], 2, long_lines="split")
    with pytest.raises(InputError, match="parts can't be put together"):
        translator([SHORT], num_return_sequences=2, long_lines="split")
    assert len(Translator(build("rope"), stops)([LONG * 3], long_lines="split", max_new_tokens=3)) == 1


LINES = st.lists(st.sampled_from([SHORT, LONG, "", "  ", "w4\u2028w5.", "\u2028", "w8\x85w9", *SENTENCES]), max_size=7)


@given(lines=LINES, block_size=st.integers(1, 4))
@settings(max_examples=15, deadline=None)
def test_lines_stay_what_and_where_they_are(lines: list[str], block_size: int) -> None:
    translator = Translator(MODELS["rope"][-1]().double(), word_tokenizer())
    options = {"max_new_tokens": 3, "block_size": block_size}
    found = [best[0].text for best in translator.translate_stream(lines, **options)]
    assert found == [translator(line, max_new_tokens=3) for line in lines]
    split = translator.translate_stream(lines, long_lines="split", max_source_tokens=30, **options)
    assert [best[0].text for best in split] == found
    turned = translator(lines[::-1], max_new_tokens=3)
    assert turned == found[::-1] and (turned != found or found == found[::-1]), "control: the order shows"


def test_order_is_kept_and_blank_lines_stay_blank(marian: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    translator = Translator(marian, tokenizer)
    lines = [SENTENCES[2], "", SENTENCES[1], "  \t", SENTENCES[0], "\n", SENTENCES[4]]
    options = {"num_beams": 2, "min_length": 4}
    single = [translator(line, **options) for line in lines]

    assert translator(lines, **options) == single
    assert translator(lines, tokens_per_batch=1, **options) == single
    assert [text == "" for text in single] == [not line.strip() for line in lines]
    assert translator(sorted(lines, key=len), **options) != single
    assert translator([]) == [] and translator("") == ""


def test_blank_lines_never_reach_the_model(
    marian: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object, **kwargs: object) -> GeneratedBatch:
        raise AssertionError("the model was called")

    monkeypatch.setattr("hf_mt.translation.generate_batch", fail)
    translator = Translator(marian, tokenizer, source_prefix="w5 ")
    assert translator(["", " "]) == ["", ""]
    with pytest.raises(AssertionError):
        translator(["w4"])


@given(lengths=st.lists(st.integers(1, 50), max_size=40), budget=st.integers(1, 100))
@settings(max_examples=50, deadline=None)
def test_batches_cover_every_sentence_within_the_budget(lengths: list[int], budget: int) -> None:
    encoded = [[7] * length for length in lengths]
    batches = list(_token_batches(encoded, budget))
    assert sorted(number for numbers in batches for number in numbers) == list(range(len(encoded)))
    for numbers in batches:
        longest = max(len(encoded[number]) for number in numbers)
        assert len(numbers) == 1 or len(numbers) * longest <= budget
    if sum(lengths) > budget:  # control: a single batch breaks the rule
        assert len(batches) > 1 or len(lengths) == 1


def test_a_stream_is_read_in_blocks(marian: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    read: list[str] = []
    lines = (read.append(line) or line for line in SENTENCES)
    translator = Translator(marian, tokenizer)
    stream = translator.translate_stream(lines, block_size=2, num_beams=2)
    first = next(stream)

    assert read == SENTENCES[:2]
    texts = [hypotheses[0].text for hypotheses in [first, *stream]]
    assert texts == translator(SENTENCES, num_beams=2) and read == SENTENCES


def test_nbest_is_sorted_and_begins_with_the_translation(
    marian: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    translator = Translator(marian, tokenizer)
    lists = translator.nbest([*SENTENCES, ""], 3, num_beams=2)
    for hypotheses in lists[:-1]:
        scores = [hypothesis.score for hypothesis in hypotheses]
        assert scores == sorted(scores, reverse=True) and len(scores) == 3 and max(scores) < 0
    assert [hypotheses[0].text for hypotheses in lists] == translator([*SENTENCES, ""], num_beams=3)
    assert [hypothesis.text for hypothesis in lists[-1]] == [""]
    assert translator(SENTENCES[0], num_return_sequences=3) == [hypothesis.text for hypothesis in lists[0]]
    assert [hypotheses[1].text for hypotheses in lists[:-1]] != translator(SENTENCES, num_beams=3)


def test_unfinished_translations_are_counted(
    marian: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, messages: list[str]
) -> None:
    translator = Translator(marian, tokenizer)
    hypotheses = list(translator.translate_stream(SENTENCES, max_new_tokens=3))
    cut = sum(not best[0].finished for best in hypotheses)
    assert 0 < cut < len(SENTENCES) and any(f"{cut} of {len(SENTENCES)}" in message for message in messages)

    messages.clear()
    finished = [line for line, best in zip(SENTENCES, hypotheses, strict=True) if best[0].finished]
    translator(finished, max_new_tokens=3)
    assert not messages


def test_dropout_is_off_and_the_mode_comes_back(tokenizer: PreTrainedTokenizerFast) -> None:
    model = build("rope")
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    expected = Translator(model, tokenizer)(SENTENCES)
    model.train()
    assert Translator(model, tokenizer)(SENTENCES) == expected and model.training
    encoded = tokenizer(SENTENCES, padding=True, return_tensors="pt")
    noisy = generate_batch(model, encoded["input_ids"], encoded["attention_mask"]).sequences
    assert tokenizer.batch_decode(noisy, skip_special_tokens=True) != expected


def test_the_prefix_of_a_run_is_remembered(marian: PreTrainedModel, tokenizer: Any, tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "checkpoint-3"):
        marian.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    assert Translator(tmp_path, device="cpu").source_prefix == ""
    (tmp_path / "config_resolved.yaml").write_text("source_prefix: 'w33 w34 '\nlearning_rate: 1e-3\n")
    for folder in (tmp_path, tmp_path / "checkpoint-3"):
        assert Translator(folder, device="cpu").source_prefix == "w33 w34 "
    assert Translator(tmp_path, device="cpu", source_prefix="w5 ").source_prefix == "w5 "


def test_one_sentence_has_one_list(marian: PreTrainedModel, tokenizer: Any) -> None:
    translator = Translator(marian, tokenizer)
    assert translator.nbest(SENTENCES[0], 2) == translator.nbest(SENTENCES[:1], 2)[0]


def test_samples_are_as_many_as_are_asked_for(marian: PreTrainedModel, tokenizer: Any) -> None:
    translator = Translator(marian, tokenizer)
    beams, marian.generation_config.num_beams = marian.generation_config.num_beams, 3
    try:
        assert [len(found) for found in translator.nbest(SENTENCES, 5, do_sample=True)] == [5] * len(SENTENCES)
    finally:
        marian.generation_config.num_beams = beams


def test_a_prefix_stands_before_each_sentence(marian: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    prefixed = Translator(marian, tokenizer, source_prefix="w33 w34 ")(SENTENCES)
    plain = Translator(marian, tokenizer)
    assert prefixed == plain([f"w33 w34 {sentence}" for sentence in SENTENCES]) != plain(SENTENCES)


def test_a_folder_is_read_without_the_network(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = MODELS["rope"][-1]()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)

    attempts: list[object] = []

    def refuse(*args: object, **kwargs: object) -> None:
        attempts.append(args)
        raise OSError("no network in this test")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    translator = Translator(tmp_path, dtype="float64", device="cpu")
    assert translator.model.dtype == torch.float64
    assert translator(SENTENCES) == Translator(model.double(), tokenizer)(SENTENCES)
    assert not attempts
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between attempts
    with pytest.raises(InputError, match="no folder here, and can't be loaded from the Hub"):
        Translator("someone/something")
    assert attempts


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="lacks config.json and weights.*in it: nothing"):
        Translator(tmp_path)
    MODELS["rope"][-1]().config.save_pretrained(tmp_path)
    (tmp_path / "training_args.bin").touch()
    with pytest.raises(InputError, match="lacks weights.*in it: config.json.*training_args.bin"):
        Translator(str(tmp_path))
    with pytest.raises(InputError, match="no folder here"):
        Translator(tmp_path / "missing")
    with pytest.raises(InputError, match="without its tokenizer"):
        Translator(MODELS["rope"][-1]())


def test_sources_end_as_in_training(tmp_path: Path) -> None:
    """A tokenizer that adds no end of sentence gets it in training, and so it must in translating."""
    tokenizer = word_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.Sequence([])
    assert tokenizer("w4 w5")["input_ids"] == [4, 5]
    translator = Translator(build("rope"), tokenizer)
    assert translator._tokenize(["w4 w5"]) == encode_pairs(["w4 w5"], ["w4"], tokenizer)["input_ids"] == [[4, 5, 2]]
    assert translator(SENTENCES, num_beams=2) == Translator(build("rope"), word_tokenizer())(SENTENCES, num_beams=2)


def test_samples_are_given_best_first() -> None:
    torch.manual_seed(1)
    found = Translator(build("rope"), word_tokenizer()).nbest(SENTENCES, 5, do_sample=True, num_beams=1)
    for samples in found:
        scores = [sample.score for sample in samples]
        assert scores == sorted(scores, reverse=True) and len(set(scores)) > 1


def nllb() -> NllbTokenizer:
    vocabulary = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "▁": 4, "a": 5, "b": 6, "▁a": 7, "▁b": 8}
    return NllbTokenizer(
        vocab=vocabulary,
        merges=[("▁", "a"), ("▁", "b")],
        extra_special_tokens=["eng_Latn", "fra_Latn", "deu_Latn"],
        src_lang="deu_Latn",
    )


def test_multilingual_tokenizers_get_both_languages(tokenizer: PreTrainedTokenizerFast) -> None:
    languages = nllb()
    ids = {code: languages.convert_tokens_to_ids(code) for code in ("eng_Latn", "fra_Latn", "deu_Latn")}
    model = MarianMTModel(MarianConfig(**SIZES | {"pad_token_id": 1, "bos_token_id": 0}, decoder_start_token_id=2))
    translator = Translator(model, languages, source_lang="eng_Latn", target_lang="fra_Latn")
    assert translator._tokenize(["a b"])[0][0] == ids["eng_Latn"] != ids["deu_Latn"]
    pairs = encode_pairs(["a"], ["b"], languages)  # as they are scored
    assert (pairs["input_ids"][0][0], pairs["labels"][0][0]) == (ids["eng_Latn"], ids["fra_Latn"])
    assert translator._tokenize(["a b"])[0][0] == ids["eng_Latn"], "sources after targets"
    assert translator.language_options == {"forced_bos_token_id": ids["fra_Latn"]}
    assert translator.nbest(["a b"], 2)[0][0].score < 0

    assert Translator(model, languages, target_lang="deu").language_options["forced_bos_token_id"] == ids["deu_Latn"]
    with pytest.raises(InputError, match="no language 'ron_Latn'.*fra_Latn"):
        Translator(model, languages, target_lang="ron_Latn")
    with pytest.raises(InputError, match="knows no languages"):
        Translator(model, tokenizer, target_lang="fr")
    model.generation_config.decoder_start_token_id = ids["deu_Latn"]  # mBART-25 starts with the language itself
    started = Translator(model, languages, target_lang="fra_Latn")
    assert started.language_options == {"decoder_start_token_id": ids["fra_Latn"]}


def test_line_breaks_in_texts_are_text_and_never_lines(
    marian: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, tmp_path: Path, messages: list[str]
) -> None:
    translator = Translator(marian, tokenizer)
    assert translator("w4\nw9 w7") == translator("w4 w9 w7"), "white space to this tokenizer"

    output = tmp_path / "out.txt"
    decode = tokenizer.batch_decode
    noisy = Translator(marian, copy(tokenizer))
    noisy.tokenizer.batch_decode = lambda *args, **options: [f"{text}\n!" for text in decode(*args, **options)]
    write_translations(noisy, SENTENCES, str(output))
    assert len(output.read_text().splitlines()) == len(SENTENCES)
    assert any(f"{len(SENTENCES)} translations had line breaks" in message for message in messages)
    assert len("\n".join(noisy(SENTENCES)).splitlines()) > len(SENTENCES)


@pytest.mark.parametrize("wrong", [{"num_beams": 0}, {"max_new_tokens": 0}, {"num_return_sequences": -1}])
def test_counts_below_one_are_refused(
    marian: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, wrong: dict[str, int]
) -> None:
    with pytest.raises(InputError, match=f"{next(iter(wrong))} is"):
        Translator(marian, tokenizer)(SENTENCES, **wrong)
    Translator(marian, tokenizer)(SENTENCES[:1], **dict.fromkeys(wrong, 1))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Path:
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(1)
    MODELS["rope"][-1]().double().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def with_settings(model: Path, folder: Path, **settings: object) -> Path:
    """A copy of a model whose generation configuration says more."""
    shutil.copytree(model, folder)
    path = folder / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))
    return folder


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_beams": 10**9}, "generation_config.json of the model: num_beams is 1000000000.*from 1 to 1,000"),
        ({"num_beams": "x"}, "generation_config.json of the model: num_beams is x"),
        ({"num_beams": 2, "length_penalty": 99.0}, "generation_config.json of the model: length_penalty is 99.0"),
        ({"encoder_no_repeat_ngram_size": 10**9}, "generation_config.json of the model: encoder_no_repeat"),
        ({"eos_token_id": None}, "generation_config.json of the model names no eos_token_id"),
        ({"eos_token_id": [2, "x"]}, r"eos_token_id of generation_config.json is \[2, 'x'\]; .* 0 to 39"),
        ({"decoder_start_token_id": 10**9}, "decoder_start_token_id of generation_config.json is 1000000000"),
        ({"pad_token_id": 1.5}, "pad_token_id of generation_config.json is 1.5; .* -1 to "),
        ({"bad_words_ids": "x"}, "bad_words_ids.*generation_config.json.*ValueError"),
    ],
)
def test_what_a_model_says_of_its_search_is_checked(
    saved: Path, tmp_path: Path, settings: dict[str, object], message: str
) -> None:
    folder = with_settings(saved, tmp_path / "model", **settings)
    with pytest.raises(InputError, match=message):
        Translator(folder, device="cpu")(SENTENCES)


def test_beams_that_are_asked_for_take_the_place_of_a_models_own(saved: Path, tmp_path: Path) -> None:
    folder = with_settings(saved, tmp_path / "model", num_beams=10**9)
    assert Translator(folder, device="cpu")(SENTENCES, num_beams=2) == Translator(saved)(SENTENCES, num_beams=2)


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]) -> Run:
    """Runs scripts/translate.py in this process: exit code, standard output, standard error."""

    def run(*words: object, stdin: bytes = b"") -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["translate.py", *map(str, words)])
        monkeypatch.setattr(sys, "stdin", TextIOWrapper(BytesIO(stdin)))
        code = 0
        try:
            runpy.run_path(str(Path(__file__).parents[1] / "scripts" / "translate.py"), run_name="__main__")
        except SystemExit as end:
            code = int(end.code or 0)
        out, err = capfdbinary.readouterr()
        return code, out.decode(), err.decode()

    return run


def test_script_translates_sentences_files_and_streams_alike(saved: Path, script: Run, tmp_path: Path) -> None:
    lines = [*SENTENCES[:3], "", SENTENCES[3]]
    expected = "".join(f"{text}\n" for text in Translator(saved, device="cpu")(lines, num_beams=2))
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_text("\n".join(lines), "utf-8")
    common = (saved, "--num_beams", 2, "--device", "cpu")

    assert script(*common, "--", *lines)[:2] == (0, expected)
    assert script(*common, stdin=source.read_bytes())[:2] == (0, expected)
    assert script(*common, "--input", source, "--output", target)[:2] == (0, "")
    assert target.read_text("utf-8") == expected != script(*common, "--", *lines[::-1])[1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source", "target"]


def test_script_splits_long_lines_and_says_so(saved: Path, script: Run, messages: list[str]) -> None:
    common = (saved, "--device", "cpu", "--max_source_tokens", 6, "--", "W4 w5 w6? W7 w8 w9!", "w4", "")
    code, out, err = script("--long_lines", "split", *common)
    assert (code, out.count("\n")) == (0, 3) and any("1 of 3 lines were too long" in message for message in messages)
    code, out, err = script(*common)
    assert (code, out) == (2, "") and "line 1 has 7 tokens, but the limit is 6" in err
    assert script("--long_lines", "cut", *common)[0] == 2


def test_script_writes_nbest_lists(saved: Path, script: Run) -> None:
    code, out, _ = script(saved, "--nbest", 2, "--device", "cpu", "--", SENTENCES[0], "", SENTENCES[1])
    fields = [line.split(" ||| ") for line in out.splitlines()]
    assert code == 0 and [field[0] for field in fields] == ["0", "0", "1", "2", "2"]
    best = Translator(saved, device="cpu").nbest([SENTENCES[0]], 2)[0]
    assert fields[:2] == [["0", hypothesis.text, f"{hypothesis.score:.6f}"] for hypothesis in best]


@pytest.mark.parametrize(
    "words, stdin, message",
    [
        (["MISSING"], b"", "no folder here"),
        (["RUN", "--input", "MISSING"], b"", "can't be read"),
        (["RUN", "--input", "/dev/null"], b"", "is a pipe or a device"),
        (["RUN"], b"w4\nw5\xff\n", "standard input, line 2"),
        (["RUN", "--num_beam", "2"], b"w4\n", "error:"),
        (["RUN", "--target_lang", "fr"], b"w4\n", "knows no languages"),
        (["RUN", "--output", "MISSING/out"], b"w4\n", "can't be written"),
    ],
)
def test_script_refuses_bad_input_with_exit_code_2(
    saved: Path, script: Run, tmp_path: Path, words: list[str], stdin: bytes, message: str
) -> None:
    places = {
        "RUN": str(saved),
        "MISSING": str(tmp_path / "missing"),
        "MISSING/out": str(tmp_path / "missing" / "out"),
    }
    output = tmp_path / "output"
    target = [] if "--output" in words else ["--output", output]
    code, out, err = script(*(places.get(word, word) for word in words), *target, stdin=stdin)
    assert code == 2 and out == "" and message in err and "Traceback" not in err
    assert not any(tmp_path.iterdir())
