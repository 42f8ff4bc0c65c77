"""Folders of models and of runs whose files hold anything, and settings of the search: a result or a refusal."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fuzzing import EXAMPLES, accepted, broken, files, fuzz
from hypothesis import strategies as st

from hf_mt import HfMtForConditionalGeneration
from hf_mt.errors import InputError
from hf_mt.hub import files_to_push
from hf_mt.model_card import write_model_card
from hf_mt.pretrained import load_seq2seq
from hf_mt.report import write_report
from hf_mt.search_limits import LIMITS
from hf_mt.tokenization import load_tokenizer, train_tokenizer
from hf_mt.translation import Translator


ODD = [
    "null",
    "-1",
    "0",
    "1e999",
    "NaN",
    '""',
    '"x"',
    "[]",
    "{}",
    "[1]",
    "true",
    "9" * 400,
    "10000000000",
    '"\\ud800"',
]
WORDS = [word.encode() for word in [*ODD, "{", "}", ",", ":", '"', '"</s>"', '"../../x.y"', "[" * 50]] + [
    b"\xff",
    b"\0",
]
RUN_WORDS = [*WORDS, b"&a ", b"*a", b"&a [*a]", b"[&a 1, *a]", b"&b {x: *b}"]  # of runs, whose settings are YAML


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, tiny_config: Callable[..., Any]) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tokenizer = train_tokenizer(["a b c d"] * 9, vocab_size=20)
    torch.manual_seed(0)
    sizes = {"vocab_size": len(tokenizer), "encoder_layers": 1, "decoder_layers": 1}
    HfMtForConditionalGeneration(tiny_config(**sizes)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_tokenizers(model: Path, tmp_path: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(model / name, tmp_path)
    taken = 0
    for number, content in enumerate(broken("tokenizer", [(model / "tokenizer.json").read_bytes()], WORDS)):
        target = tmp_path / ("tokenizer.json" if number % 2 else "tokenizer_config.json")
        other = content if number % 2 else next(changed(target.name, model, number))
        target.write_bytes(other)
        taken += accepted(lambda: load_tokenizer(str(tmp_path)))
        shutil.copy(model / target.name, target)
    assert 0 < taken < EXAMPLES["tokenizer"]


def changed(name: str, folder: Path, number: int) -> Any:
    """A JSON file of a folder with one value replaced."""
    values = json.loads((folder / name).read_text())
    key = sorted(values)[number % len(values)]
    text = json.dumps({**values, key: "HERE"})
    yield text.replace('"HERE"', ODD[number // 3 % len(ODD)]).encode()


@pytest.mark.parametrize("role", ["pad_token", "eos_token"])
def test_a_tokenizer_without_its_specials_is_refused(role: str, model: Path, tmp_path: Path) -> None:
    shutil.copy(model / "tokenizer.json", tmp_path)
    settings = json.loads((model / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**settings, role: None}))
    with pytest.raises(InputError, match=f"has no {role[:3]} token"):
        load_tokenizer(str(tmp_path))


def test_configurations(model: Path, tmp_path: Path) -> None:
    """Damaged text, and every key with every odd value; what loads has all its weights."""
    shutil.copytree(model, tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    taken = 0
    for number, content in enumerate(broken("config", [path.read_bytes()], WORDS)):
        path.write_bytes(content if number % 2 else next(changed("config.json", model, number)))
        taken += accepted(lambda: load_seq2seq(str(path.parent)))
        accepted(lambda: files_to_push(path.parent))
    assert 0 < taken < EXAMPLES["config"]


GENERATION = {
    "num_beams": 2,
    "early_stopping": True,
    "length_penalty": 1.0,
    "no_repeat_ngram_size": 2,
    "encoder_no_repeat_ngram_size": 9,
    "repetition_penalty": 1.1,
    "forced_bos_token_id": 5,
    "suppress_tokens": [6],
    "min_length": 1,
    "num_return_sequences": 1,
}


def test_settings_of_a_models_own_search(model: Path, tmp_path: Path) -> None:
    """Every one with odd values, and damaged text: a translation of each line, or a message."""
    shutil.copytree(model, tmp_path / "whole")
    path = tmp_path / "whole" / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **GENERATION}))
    shutil.copytree(path.parent, tmp_path / "model")
    taken = 0

    def translates() -> None:
        found = Translator(tmp_path / "model", device="cpu")(["a b", "", "c"], max_length_b=4)
        assert len(found) == 3 and found[1] == ""

    for number, content in enumerate(broken("generation", [path.read_bytes()], WORDS)):
        content = content if number % 4 == 3 else next(changed(path.name, path.parent, number))
        (tmp_path / "model" / path.name).write_bytes(content)
        taken += accepted(translates)
    assert 0 < taken < EXAMPLES["generation"]


def test_weights(model: Path, tmp_path: Path) -> None:
    shutil.copytree(model, tmp_path / "model")
    path = tmp_path / "model" / "model.safetensors"
    whole = path.read_bytes()
    header = whole[: 8 + int.from_bytes(whole[:8], "little")]
    taken = 0
    for number, content in enumerate(broken("safetensors", [header, whole], WORDS)):
        path.write_bytes(content + whole[len(header) :] if number % 2 else content)
        taken += accepted(lambda: load_seq2seq(str(path.parent)))
    assert taken < EXAMPLES["safetensors"] and accepted(lambda: load_seq2seq(str(model)))


@pytest.mark.parametrize("kind", ["bert", "gpt2", "marian", "no such type", 7, None])
def test_another_kind_of_model_is_refused(kind: object, model: Path, tmp_path: Path) -> None:
    shutil.copytree(model, tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text(json.dumps({"model_type": kind}))
    with pytest.raises(InputError):
        load_seq2seq(str(tmp_path / "model"))


@pytest.mark.parametrize("place", ["../secret.Own", "a/b.Own", "/etc/passwd.x", ".hidden.Own", 3, ["../x.Own", None]])
def test_a_push_takes_no_file_from_elsewhere(place: object, model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(model, folder)
    (tmp_path / "secret.py").write_text("secret")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModel": place}}))
    with pytest.raises(InputError):
        files_to_push(folder)
    (folder / "config.json").write_text(json.dumps(config))
    assert accepted(lambda: files_to_push(folder)), "the control"
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": "../secret.py"}}))
    with pytest.raises(InputError, match="no file in it"):
        files_to_push(folder)


RUN_FILES = {
    "trainer_state.json": {"log_history": [{"step": 1, "loss": 2.0}, {"step": 2, "epoch": 1.0, "eval_loss": 1.5}],
                           "max_steps": 2, "best_global_step": 2},
    "all_results.json": {"test_bleu": 1.0, "test_bleu_signature": "x", "num_parameters": 5, "train_minutes": 1.0},
    "data_table.json": {"train": {"read": 3, "found": {"empty": 1}, "kept": 2, "source_tokens": {"mean": 2.0},
                                  "target_tokens": {"mean": 2.0}}},
    "test_analysis.json": {"best": [], "worst": [], "unit": "words", "buckets": []},
    "environment.json": {"python": "3"},
    "config.json": {"model_type": "hf_mt", "position_encoding": "rope"},
    "config_resolved.yaml": {"source_lang": "en", "target_lang": "de", "dataset_name": "cldr"},
    "samples.jsonl": {"step": 2, "source": "a", "reference": "b", "hypothesis": "c"},
}  # fmt: skip


def test_run_folders(tmp_path: Path) -> None:
    """A page and a card of any files, or a message; and nothing half written."""
    folder, taken = tmp_path / "run", 0
    folder.mkdir()
    names = sorted(RUN_FILES)
    wholes = [json.dumps(RUN_FILES[name]).encode() for name in names]
    for number, content in enumerate(broken("run folders", wholes, RUN_WORDS)):
        for name in names:
            (folder / name).write_text(json.dumps(RUN_FILES[name]))
        (folder / names[number % len(names)]).write_bytes(content)
        before = files(folder).keys()
        taken += accepted(lambda: write_model_card(folder, path=tmp_path / "card.md"))
        if number % 6 == 0:
            taken += accepted(lambda: write_report([folder], folder=tmp_path / "page"))
        assert files(folder).keys() == before and not list(tmp_path.rglob(".*"))
    assert 0 < taken < 2 * EXAMPLES["run folders"]


def test_settings_of_the_search(model: Path) -> None:
    """Whatever is asked for: translations in order, or a message before any work."""
    translator = Translator(model, device="cpu")
    numbers = st.sampled_from(
        [-1, 0, 1, 2, 3, 5, 40, 10**9, 10**400, 1.5, 0.0, float("nan"), float("inf"), "3", True, None]
    )
    names = st.sampled_from(["num_beams", "num_return_sequences", "max_new_tokens", "max_length_a", "max_length_b",
                             "length_penalty", "tokens_per_batch"])  # fmt: skip
    taken = 0

    def check(options: dict[str, Any]) -> None:
        nonlocal taken
        given = {name: value for name, value in options.items() if value is not None}
        found: list[Any] = []
        if accepted(lambda: found.extend(translator(["a b", "", "c"], **{"max_new_tokens": 4, **given}))):
            taken += 1
            assert len(found) == 3 and all(
                LIMITS[name][0] <= value <= LIMITS[name][1] for name, value in given.items()
            )

    fuzz("search", st.dictionaries(names, numbers, max_size=3), check)
    assert 0 < taken < EXAMPLES["search"]


@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 10**9},
        {"nbest": 10**9},
        {"nbest": -1},
        {"length_penalty": float("nan")},
        {"max_length_b": -1},
        {"max_length_a": 0.0, "max_length_b": 0},
        {"tokens_per_batch": 0},
        {"block_size": 0},
        {"num_beams": 2.0},
        {"num_beams": True},
    ],
)
def test_searches_that_make_no_sense_are_refused(options: dict[str, Any], model: Path) -> None:
    with pytest.raises(InputError, match="must be|needs a token"):
        list(Translator(model, device="cpu").translate_stream(["a b"], **options))
