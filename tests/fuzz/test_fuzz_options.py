"""Every option of every script with values that it can't have: a message and exit code 2 before any work, no file."""

import argparse
import json
import runpy
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from fuzzing import files, no_hang
from safetensors.torch import save_file
from scripts_on_path import SCRIPTS, load_script

from hf_mt import HfMtForConditionalGeneration
from hf_mt.command_line import run_script
from hf_mt.scores import sentence_scores, write_sentence_scores
from hf_mt.tokenization import train_tokenizer


load_script("benchmarks")  # the package that two of them import
RECIPE = "source_lang: en\ntarget_lang: de\ndataset_name: cldr\n"
ODD = [
    "",
    " ",
    "-1",
    "0",
    "0.5",
    "1000000000",
    "9" * 400,
    "1e999",
    "nan",
    "inf",
    "-inf",
    "x",
    "x\0y",
    "\udcff",
    "\u202e",
]
ODD += ["{folder}", "{empty_folder}", "{absent}", "{absent}/below", "{file}/below", "{empty}", "{binary}", "{loop}"]
ODD += ["/dev/null", "{long}"]
# What a script needs besides; names are those of the fixture `place`
NEEDED: dict[str, list[str]] = {
    "ablate": ["{ablation}", "--launcher={launcher}", "--output_dir={new}"],
    "average_checkpoints": ["{run}", "{run}", "--output_dir={new}"],
    "benchmark": ["--train_file={text}", "--source_lang=en", "--target_lang=de", "--output_dir={new}"],
    "benchmark_quality": ["{run}", "--output_dir={new}"],
    "compare": ["{text}.de", "{text}.en", "--references", "{text}.de", "--samples=10"],
    "compare_position_encodings": ["{recipe}", "--launcher={launcher}", "--output_dir={new}"],
    "draw_position_encodings": ["--output={new}", "--encodings", "none"],
    "env": [],
    "model_card": ["{run}", "--output={new}/README.md"],
    "push_to_hub": ["{run}", "--repo_id=user/name", "--dry_run"],
    "report": ["{run}", "--output={new}"],
    "reproduce_report": ["--launcher={launcher}", "--output_dir={new}", "--test_file={new}"],
    "scaling": [],
    "score": ["{run}", "--source={text}.en", "--target={text}.de"],
    "translate": ["{run}", "--input={text}.en", "--output={out}"],
    "translate_ray": ["{run}", "--input={text}.en", "--output={out}"],
}
BY_KEYS = {"train", "evaluate"}  # their options are keys, tested with YAML


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny_config: Callable[..., Any]) -> dict[str, str]:
    """Files of every kind, and what scripts need, by name."""
    root = tmp_path_factory.mktemp("options")
    for name in ("folder", "empty_folder", "run"):
        (root / name).mkdir()
    (root / "folder" / "x").write_text("x")
    (root / "file").write_text("w4 w5\n")
    (root / "empty").touch()
    (root / "binary").write_bytes(bytes(range(256)) * 10)
    (root / "loop").symlink_to(root / "loop")
    for language in ("en", "de"):
        (root / f"text.{language}").write_text("a b\nb a\n")
    (root / "recipe.yaml").write_text(RECIPE)
    (root / "launcher.yaml").write_text("use_cpu: true\n")
    (root / "ablation.yaml").write_text(f"recipe: {root}/recipe.yaml\nruns: {{one: {{seed: 1}}}}\n")
    run = root / "run"
    tokenizer = train_tokenizer(["a b c"] * 9, vocab_size=20)
    torch.manual_seed(0)
    HfMtForConditionalGeneration(tiny_config(vocab_size=len(tokenizer))).save_pretrained(run)
    tokenizer.save_pretrained(run)
    write_sentence_scores(run / "test_scores.tsv", sentence_scores(["a"], ["b"], ["b"]))
    (run / "all_results.json").write_text(json.dumps({"test_bleu": 1.0, "train_minutes": 1.0}))
    (run / "config_resolved.yaml").write_text(RECIPE)
    names = {name: str(root / name) for name in ("folder", "empty_folder", "run", "file", "empty", "binary", "loop")}
    names |= {"text": f"{root}/text", "recipe": f"{root}/recipe.yaml", "launcher": f"{root}/launcher.yaml"}
    (root / "empty_folder" / "configs").symlink_to(SCRIPTS.parent / "configs")
    names |= {"out": f"{root}/out"}
    names |= {
        "ablation": f"{root}/ablation.yaml",
        "absent": f"{root}/absent",
        "new": f"{root}/new/new",
    }
    return names | {"long": "x" * 5000, "root": str(root)}


class Work(BaseException):
    """What a script would begin now; its arguments were taken."""


def start_work(*args: Any, **options: Any) -> Any:
    raise Work


def work_of(monkeypatch: pytest.MonkeyPatch) -> None:
    """Long work is not done here: a script that comes so far has taken its arguments."""
    monkeypatch.setattr("hf_mt.trials.launch", start_work)
    monkeypatch.setattr("hf_mt.translation.generate_batch", start_work)
    monkeypatch.setattr("hf_mt.ray_job._run", start_work)  # Ray is not installed everywhere
    monkeypatch.setattr("hf_mt.scoring.sequence_log_probs", start_work)
    for name, function in (("benchmark", "prepare_text"), ("benchmark_quality", "load_corpus")):
        monkeypatch.setattr(load_script(name), function, start_work)
    monkeypatch.setattr(load_script("draw_position_encodings"), "encoding_figure", start_work)
    monkeypatch.setattr("hf_mt.hub.HfApi", start_work)


def main_of(name: str) -> Callable[[], None]:
    if name == "evaluate":  # a package has that name, too
        return runpy.run_path(str(SCRIPTS / "evaluate.py"), run_name="script")["main"]
    return load_script(name).main


def clean(place: dict[str, str]) -> None:
    """Takes away what whole command lines wrote."""
    shutil.rmtree(Path(place["new"]).parent, ignore_errors=True)
    Path(place["out"]).unlink(missing_ok=True)


def outcome(name: str, words: list[str], monkeypatch: pytest.MonkeyPatch) -> str:
    """done, work (it would have begun) or refused; anything else fails."""
    monkeypatch.setattr(sys, "argv", [f"scripts/{name}.py", *words])
    with no_hang():
        try:
            run_script(main_of(name))
        except SystemExit as stop:
            assert stop.code in (0, 2), words
            return "refused" if stop.code else "done"
        except Work:
            return "work"
    return "done"


def options_of(name: str, words: list[str], monkeypatch: pytest.MonkeyPatch) -> list[argparse.Action]:
    """What the script's parser knows."""
    parsers: list[argparse.ArgumentParser] = []

    def keep(parser: argparse.ArgumentParser, *args: Any, **more: Any) -> Any:
        parsers.append(parser)
        raise Work

    with monkeypatch.context() as patch:
        for method in ("parse_args", "parse_known_args", "parse_intermixed_args"):
            patch.setattr(argparse.ArgumentParser, method, keep)
        assert outcome(name, words, patch) == "work"
    return [action for action in parsers[0]._actions if action.dest != "help"]


def variants(needed: list[str], action: argparse.Action, values: list[str]) -> Iterator[list[str]]:
    """Command lines with a value in the place of this option's or argument's."""
    flag = next(iter(action.option_strings), None)
    rest = [word for word in needed if flag is None or word.split("=")[0] != flag]
    if flag is None:
        yield from ([value, *needed[1:]] for value in values)
        yield needed[1:]  # missing
        return
    if action.nargs == 0:
        yield from ([*rest, f"{flag}={value}"] for value in values)
        return
    yield from ([*rest, f"{flag}={value}"] for value in values)
    yield [*rest, flag]  # without its value
    yield [*rest, flag[:-1], "1"]  # abbreviated, or misspelt


def test_every_script_is_here() -> None:
    assert {path.stem for path in SCRIPTS.glob("*.py")} == NEEDED.keys() | BY_KEYS


@pytest.mark.parametrize("name", sorted(NEEDED))
def test_no_option_ends_in_a_traceback(
    name: str, place: dict[str, str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    work_of(monkeypatch)
    monkeypatch.chdir(place["empty_folder"])
    needed = [word.format_map(place) for word in NEEDED[name]]
    values = [value.format_map(place) for value in ODD]
    root = Path(place["root"])
    clean(place)
    assert outcome(name, needed, monkeypatch) in ("work", "done"), "whole command lines are taken"
    counts = {"refused": 0, "work": 0, "done": 0}
    for action in options_of(name, needed, monkeypatch):
        for words in variants(needed, action, values):
            clean(place)
            before = files(root)
            found = outcome(name, words, monkeypatch)
            counts[found] += 1
            assert "Traceback" not in capfd.readouterr().err
            assert found != "refused" or files(root).keys() == before.keys(), words
    if name not in ("ablate", "compare_position_encodings", "reproduce_report"):  # which pass options on to training
        assert outcome(name, [*needed, "--no_such_option"], monkeypatch) == "refused"
    assert counts["refused"] > 10 or name == "env"


OUT_OF_RANGE = [
    ("translate", "--num_beams", ["0", "-1", "1000000000", "1.5", "nan"]),
    ("translate", "--length_penalty", ["nan", "inf", "-1000", "x"]),
    ("translate", "--nbest", ["-1", "1000000000", "2.0"]),
    ("translate", "--max_length_a", ["nan", "inf", "-0.1", "1e9"]),
    ("translate", "--max_length_b", ["-1", "9" * 400]),
    ("translate", "--tokens_per_batch", ["0", "-5", "9" * 400]),
    ("score", "--tokens_per_batch", ["0", "-1", "nan"]),
    ("compare", "--samples", ["-1", "1000000000"]),
    ("compare", "--seed", ["-1", "0", "4294967296"]),
    ("benchmark", "--repeats", ["0", "-1"]),
    ("benchmark", "--seconds", ["0", "nan", "inf", "-1"]),
    ("benchmark", "--threads", ["0", "100000"]),
    ("benchmark_quality", "--minutes", ["0", "nan", "-1"]),
    ("compare_position_encodings", "--seeds", ["-1", "4294967296"]),
    ("report", "--sentences", ["0", "-1"]),
]


@pytest.mark.parametrize(("name", "option", "values"), OUT_OF_RANGE, ids=[" ".join(row[:2]) for row in OUT_OF_RANGE])
def test_values_out_of_range_are_refused_before_any_work(
    name: str, option: str, values: list[str], place: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    work_of(monkeypatch)
    needed = [word.format_map(place) for word in NEEDED[name] if word.split("=")[0] != option]
    before = files(Path(place["root"]))
    for value in values:
        assert outcome(name, [*needed, f"{option}={value}"], monkeypatch) == "refused"
    assert files(Path(place["root"])) == before


def test_evaluation_refuses_before_any_work(
    place: dict[str, str], monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    work_of(monkeypatch)
    needed = [place["run"], f"--test_file={place['text']}", "--source_lang=en", "--target_lang=de"]
    needed += [f"--output_dir={place['new']}"]
    clean(place)
    assert outcome("evaluate", needed, monkeypatch) == "work"
    odd_words = ["--num_beams=0", "--num_beams=1000000000", "--length_penalty=nan", "--tokens_per_batch=-1", "x.yaml"]
    odd_words += ["--split=train", "--more_references=/dev/null", "--tokenize=x", "--nbest=2", "--device=x"]
    for odd in odd_words:
        assert outcome("evaluate", [*needed, odd], monkeypatch) == "refused", odd
    assert outcome("evaluate", [*needed[:-1], f"--output_dir={place['file']}/x"], monkeypatch) == "refused"
    assert "is no folder" in capfd.readouterr().err and not Path(place["new"]).parent.exists()


def test_weights_that_cannot_be_averaged_leave_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        save_file({"x": torch.zeros(3)}, tmp_path / name / "model.safetensors")
    path = tmp_path / "two" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-2])
    before = files(tmp_path)
    words = [str(tmp_path / "one"), str(tmp_path / "two"), f"--output_dir={tmp_path / 'mean'}"]
    assert outcome("average_checkpoints", words, monkeypatch) == "refused" and files(tmp_path) == before
    monkeypatch.setattr("hf_mt.averaging.save_file", lambda *args, **more: (_ for _ in ()).throw(OSError(28, "full")))
    words[1] = words[0]
    assert outcome("average_checkpoints", words, monkeypatch) == "refused" and files(tmp_path) == before
