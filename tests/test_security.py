"""Nothing that a stranger wrote is executed, obeyed by a terminal, or taken for a secret that may be told."""

import argparse
import json
import os
import pickle
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from random_models import logged
from safetensors.torch import load_file, save_file
from test_scripts import ROOT, TINY, TUNING, run
from wandb_record import record_content

from hf_mt.averaging import checkpoint_weights
from hf_mt.checkpoints import MANIFEST, verify_checkpoint
from hf_mt.command_line import run_script
from hf_mt.corpora import load_corpus
from hf_mt.errors import InputError
from hf_mt.evaluation import evaluate_model, parse_evaluation
from hf_mt.experiment import parse_experiment
from hf_mt.model_card import write_model_card
from hf_mt.models import _pretrained_model
from hf_mt.pretrained import MOVING_AVERAGE_NAME, load_seq2seq
from hf_mt.progress import _shown as shown_sample
from hf_mt.report import write_report
from hf_mt.run_record import read_run
from hf_mt.settings import read_yaml
from hf_mt.significance import Comparison
from hf_mt.tables import print_comparisons, print_samples
from hf_mt.tokenization import get_tokenizer, load_tokenizer, train_tokenizer
from hf_mt.translation import Translator
from hf_mt.translator_options import add_input_options, add_translator_options, source_from, translator_from


PICKLED_STATE = ("optimizer.pt", "scheduler.pt", "rng_state.pth")


class Program:
    """A pickle of it writes a file where it is read."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.write_text, (self.path, "executed"))


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """What appears if a stranger's code runs."""
    return tmp_path / "trace"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with its checkpoints."""
    folder = tmp_path_factory.mktemp("security")
    config = folder / "tiny.yaml"
    config.write_text(TINY)
    saved, sys.argv = sys.argv, ["train.py", str(config), "--output_dir", str(folder / "run")]
    try:
        runpy.run_path(str(Path(__file__).parents[1] / "scripts" / "train.py"), run_name="__main__")
    finally:
        sys.argv = saved
    return folder / "run"


def test_a_pickle_runs_what_it_holds(trace: Path, tmp_path: Path) -> None:
    """The control of all that follows."""
    torch.save(Program(trace), tmp_path / "x.pt")
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "x.pt", weights_only=True)
    assert not trace.exists()
    torch.load(tmp_path / "x.pt", weights_only=False)
    assert trace.read_text() == "executed"


@pytest.mark.parametrize("name", PICKLED_STATE)
@pytest.mark.parametrize("manifest", [True, False], ids=["changed", "without manifest"])
def test_a_program_in_the_state_of_training_is_not_run(
    name: str, manifest: bool, trained: Path, trace: Path, tmp_path: Path, capsys: Any
) -> None:
    folder, config = tmp_path / "run", tmp_path / "tiny.yaml"
    config.write_text(TINY)
    shutil.copytree(trained / "checkpoint-3", folder / "checkpoint-3")
    shutil.copy(trained / "config_resolved.yaml", folder)
    assert (folder / "checkpoint-3" / name).is_file()
    torch.save(Program(trace), folder / "checkpoint-3" / name)
    if not manifest:
        (folder / "checkpoint-3" / MANIFEST).unlink()
    code, _, err = run("train", config, "--output_dir", folder, capsys=capsys)
    assert code == 2 and not trace.exists(), err
    assert ("is damaged" if manifest else "which was not run") in err and name.split(".")[0] in err


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "pytorch_model-00001-of-00001.bin"])
def test_weights_that_are_a_pickle_are_refused(name: str, trained: Path, trace: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(trained / "checkpoint-3", folder)
    for path in (*folder.glob("*.safetensors"), folder / MANIFEST):
        path.unlink()
    torch.save({"weight": Program(trace)}, folder / name)
    for load in (Translator, load_seq2seq):
        with pytest.raises(InputError, match=f"{name} is a pickle.*never read.*use_safetensors=False"):
            load(str(folder))
    with pytest.raises(InputError, match="has no model.safetensors"):
        checkpoint_weights(folder)
    if name.startswith("pytorch"):
        with pytest.raises(InputError, match="as a pickle"):
            verify_checkpoint(folder)
    assert not trace.exists()


def test_weights_of_plain_numbers_in_a_pickle_are_refused_too(trained: Path, tmp_path: Path) -> None:
    """transformers alone would read them; and what the message says converts them."""
    from transformers import AutoModelForSeq2SeqLM

    folder = tmp_path / "model"
    shutil.copytree(trained / "checkpoint-3", folder, ignore=shutil.ignore_patterns(MOVING_AVERAGE_NAME))
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    whole = load_seq2seq(str(folder))
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match="pickle"):
        load_seq2seq(str(folder))
    AutoModelForSeq2SeqLM.from_pretrained(folder, use_safetensors=False).save_pretrained(tmp_path / "converted")
    again = load_seq2seq(str(tmp_path / "converted"))
    assert all(torch.equal(one, two) for one, two in zip(whole.parameters(), again.parameters(), strict=True))


def test_a_pickle_beside_safetensors_is_not_read(trained: Path, trace: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(trained / "checkpoint-3", folder)
    for name in ("pytorch_model.bin", "training_args.bin", "model.pt", *PICKLED_STATE):
        torch.save(Program(trace), folder / name)
    Translator(folder, device="cpu")(["1 2 3"])
    checkpoint_weights(folder)
    assert not trace.exists()


def test_no_pickle_of_the_arguments_is_written(trained: Path) -> None:
    """Nobody reads training_args.bin, and it would hold the Hub token."""
    pickles = {path.name for path in trained.rglob("*") if path.suffix in (".bin", ".pt", ".pth", ".pkl")}
    assert pickles == set(PICKLED_STATE)


@pytest.mark.parametrize("change", ["missing", "shape", "truncated", "another"])
def test_weights_that_are_not_the_models_are_refused(change: str, trained: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(trained / "checkpoint-3", folder)
    path = folder / "model.safetensors"
    weights = load_file(path)
    name = max(weights, key=lambda name: weights[name].numel())
    if change == "missing":
        del weights[name]
    elif change == "shape":
        weights[name] = weights[name][:-1].contiguous()
    elif change == "another":
        weights = {f"x.{name}": weight for name, weight in weights.items()}
    save_file(weights, path, {"format": "pt"})
    if change == "truncated":
        path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match="lacks weights" if change in ("missing", "another") else "can't be loaded"):
        load_seq2seq(str(folder))


def test_no_terminal_obeys_the_name_of_a_weight(trained: Path, tmp_path: Path) -> None:
    """Neither where we tell of it nor where transformers does."""
    folder = tmp_path / "model"
    shutil.copytree(trained / "checkpoint-3", folder)
    weights = load_file(folder / "model.safetensors") | {"\x1b[2Jx\x07": torch.zeros(1)}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with logged() as messages:
        load_seq2seq(str(folder))
    text = "\n".join(messages)
    assert "weights that are not used: \N{SYMBOL FOR ESCAPE}[2Jx\N{SYMBOL FOR BELL}" in text
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", text)


CODE = """
from pathlib import Path
Path({trace!r}).write_text("executed")
from transformers import {base}
class Own({base}):
    model_type = "strange"
"""


def strange_folder(folder: Path, trace: Path) -> Path:
    """A model and tokenizer whose classes come in the folder."""
    folder.mkdir()
    classes = {"AutoConfig": "code.Own", "AutoModelForSeq2SeqLM": "code.Own"}
    (folder / "config.json").write_text(json.dumps({"model_type": "strange", "auto_map": classes}))
    tokenizer = {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["code.Own", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    (folder / "code.py").write_text(CODE.format(trace=str(trace), base="PreTrainedConfig"))
    save_file({"x": torch.zeros(1)}, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.mark.parametrize("load", [Translator, load_seq2seq, load_tokenizer])
def test_code_in_a_folder_runs_only_if_it_is_trusted(
    load: Any, trace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path / "modules")])
    folder = strange_folder(tmp_path / "strange", trace)
    with pytest.raises(InputError, match="trust_remote_code"):
        load(str(folder))
    assert not trace.exists()
    with pytest.raises(InputError):  # the control: the code is run, and is no whole model
        load(str(folder), trust_remote_code=True)
    assert trace.read_text() == "executed"


def test_scripts_trust_no_code_unless_told_to(trace: Path, tmp_path: Path, capsys: Any) -> None:
    folder = strange_folder(tmp_path / "strange", trace)
    config = tmp_path / "tuning.yaml"
    config.write_text(TUNING)
    for words in (
        ("translate", folder, "1 2"),
        ("evaluate", folder, "--dataset_name=toy_copy", "--source_lang=a", "--target_lang=b"),
        ("train", config, f"--model_name_or_path={folder}", f"--output_dir={tmp_path / 'run'}"),
    ):
        code, _, err = run(*words, capsys=capsys)
        assert code == 2 and "trust_remote_code" in err
    assert not trace.exists() and not (tmp_path / "run").exists()


def test_yaml_makes_no_objects(trace: Path, tmp_path: Path) -> None:
    evil = f"x: !!python/object/apply:os.mkdir [{trace}]\n"
    for name in ("x.yaml", "config_resolved.yaml"):
        (tmp_path / name).write_text(evil)
    with pytest.raises(InputError, match="tags are refused"):
        read_yaml(tmp_path / "x.yaml")
    with pytest.raises(InputError, match="cannot be read"):
        read_run(tmp_path, name="x")
    assert not trace.exists()
    yaml.unsafe_load(evil)
    assert trace.exists(), "the control"


DOUBLED = [f"k{number}: &k{number} [*k{number - 1}, *k{number - 1}]\n" for number in range(1, 25)]


@pytest.mark.parametrize("text", ["x: &x [*x]\n", "k0: &k0 [x, x]\n" + "".join(DOUBLED)], ids=["circle", "bomb"])
def test_aliases_in_the_settings_of_a_run_are_refused(text: str, tmp_path: Path) -> None:
    """A page or card of the first would never end, and of the second have millions of words."""
    (tmp_path / "config_resolved.yaml").write_text(text)
    message = "config_resolved.yaml:[12]: aliases"
    with pytest.raises(InputError, match=message):
        write_model_card(tmp_path)
    with pytest.raises(InputError, match=message):
        write_report([tmp_path])
    assert isinstance(yaml.safe_load(text), dict), "the control"


# Secrets

TOKENS = {
    "HF_TOKEN": "hf_EnvironmentEnvironmentEnvironment0",
    "HUGGING_FACE_HUB_TOKEN": "hf_OldNameOldNameOldNameOldNameOldN1",
    "WANDB_API_KEY": "0123456789abcdef0123456789abcdefdeadbeef",
    "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMIK7MDENGbPxRfiCYEXAMPLEKEY12",
    "GITHUB_TOKEN": "ghp_TokenTokenTokenTokenTokenTokenToken",
}
IN_YAML, ON_COMMAND_LINE = "hf_YamlYamlYamlYamlYamlYamlYamlYaml02", "hf_OptionOptionOptionOptionOption0003"


def places_of(secret: str, folder: Path, printed: str) -> list[str]:
    """Files, and what was printed, that hold a secret, as it is or with its letters two bytes apart."""
    forms = [secret.encode(), secret.encode("utf-16-le"), secret.encode().hex().encode()]
    found = ["printed"] if secret in printed else []
    for path in folder.rglob("*"):
        read = record_content if path.suffix == ".wandb" else Path.read_bytes
        if path.is_file() and any(form in read(path) for form in forms):
            found.append(str(path.relative_to(folder)))
    return found


def test_a_run_tells_no_secret(tmp_path: Path) -> None:
    """Nor does its record of Weights & Biases, which keeps the command line of a program unless told otherwise."""
    written = tmp_path / "written"
    written.mkdir()
    folders = ("WANDB_DIR", "WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_ARTIFACT_DIR")
    environment = {**os.environ, **TOKENS, "WANDB_MODE": "offline", **dict.fromkeys(folders, str(written))}
    (tmp_path / "secret.yaml").write_text(f"{TINY}hub_token: {IN_YAML}\nreport_to: wandb\n")
    words = [sys.executable, "scripts/train.py", tmp_path / "secret.yaml", "--token", ON_COMMAND_LINE, "--output_dir"]
    done = subprocess.run(
        [*map(str, words), written / "run"], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    assert (written / "run" / "all_results.json").is_file() and list(written.glob("wandb/offline-run-*/*.wandb"))
    for secret in (*TOKENS.values(), IN_YAML, ON_COMMAND_LINE):
        assert places_of(secret, written, done.stdout + done.stderr) == [], secret


def test_a_secret_that_is_told_would_be_found(tmp_path: Path) -> None:
    (tmp_path / "a").write_text(f"x{IN_YAML}")
    (tmp_path / "b").write_bytes(IN_YAML.encode("utf-16-le"))
    assert sorted(places_of(IN_YAML, tmp_path, f"-{IN_YAML}-")) == ["a", "b", "printed"]
    torch.save({"hub_token": IN_YAML}, tmp_path / "training_args.bin")
    assert "training_args.bin" in places_of(IN_YAML, tmp_path, ""), "in a pickle too"


# What is shown

EVIL = "<script>alert(1)</script> [x](http://evil) ![y](http://evil/z.png) "
EVIL += "<img src=x onerror=alert(1)> | `c` \x1b[31mred"
EVIL += "\x1b]0;title\x07 \x9b2J \u202e www.evil.com http://evil $a$ &lt;"


def test_terminals_get_no_control_characters(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables, samples while training, and messages, whatever is in the text."""

    def main() -> None:
        raise InputError(f"column {EVIL}\nsecond line")

    print_samples([{"source": EVIL, "reference": EVIL, "hypothesis": EVIL}])
    print(shown_sample(EVIL))
    print_comparisons([Comparison(EVIL, "bleu", 1.0, 1.0, 0.1, None)])
    with pytest.raises(SystemExit):
        run_script(main)
    captured = capsys.readouterr()
    for text in (captured.out, captured.err):
        assert "red" in text and not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", text)
    assert re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", EVIL), "the control"
    assert "second line" in captured.err.splitlines()[-2]


def test_names_in_settings_are_as_harmless_as_sentences(trained: Path, tmp_path: Path) -> None:
    """Page and card of a run whose configuration, results and samples hold what a stranger likes."""
    folder = tmp_path / "run"
    shutil.copytree(
        trained, folder, ignore=shutil.ignore_patterns("checkpoint-*", "report", "README.md", "*.safetensors")
    )
    config = yaml.safe_load((folder / "config_resolved.yaml").read_text())
    names = ("source_lang", "dataset_config_name", "source_prefix", "run_name", "position_encoding", "train_file")
    evil = EVIL.replace("\x9b", "")  # which YAML can't hold bare
    (folder / "config_resolved.yaml").write_text(yaml.safe_dump({**config, **dict.fromkeys(names, evil)}))
    for name in ("all_results.json", "environment.json"):
        values = json.loads((folder / name).read_text()) if (folder / name).is_file() else {}
        texts = {key: EVIL for key, value in values.items() if isinstance(value, str)}
        (folder / name).write_text(json.dumps({**values, **texts, "machine": EVIL}))
    rows = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    evil_rows = [{**row, "source": EVIL, "reference": EVIL, "hypothesis": EVIL} for row in rows]
    (folder / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in evil_rows))
    page = write_report([folder]).read_text()
    assert "alert(1)" in page and "<script>alert" not in page and "<img src=x" not in page
    card = write_model_card(folder, license="mit").read_text()
    body = outside_code(card.split("---", 2)[2])
    for piece in ("<script>alert", "<img src", "](http://evil", "www.evil"):
        assert piece not in body
    assert "alert" in body
    front = yaml.safe_load(card.split("---", 2)[1])
    assert front["license"] == "mit" and isinstance(front["tags"], list)


def outside_code(markdown: str) -> str:
    """Markdown without its blocks and spans of code, which show what they hold."""
    without_blocks = re.sub(r"^(`{3,})[^\n]*\n.*?^\1$", "", markdown, flags=re.S | re.M)
    return re.sub(r"(?<!`)(`+)(?!`).*?(?<!`)\1(?!`)", "", without_blocks)


# Revisions


def test_a_revision_is_passed_on_everywhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """To the model, its tokenizer and the data set, from Python, the scripts and the configuration."""
    asked: list[tuple[str, str | None]] = []

    def note(kind: str) -> Any:
        def load(name: str, *args: Any, revision: str | None = None, **options: Any) -> Any:
            asked.append((kind, revision))
            raise OSError("not here")

        return load

    monkeypatch.setattr("hf_mt.pretrained.AutoModelForSeq2SeqLM.from_pretrained", note("model"))
    monkeypatch.setattr("hf_mt.tokenization.AutoTokenizer.from_pretrained", note("tokenizer"))
    monkeypatch.setattr("hf_mt.corpora.load_dataset", note("data"))
    monkeypatch.setattr("hf_mt.translation_input.load_dataset", note("text"))

    def revisions(call: Any) -> list[tuple[str, str | None]]:
        asked.clear()
        with pytest.raises(InputError):
            call()
        return list(asked)

    words = ["--source_lang=a", "--target_lang=b", "--model_name_or_path=u/m", "--model_revision=abc"]
    experiment = parse_experiment([*words, "--dataset_name=u/d", "--dataset_revision=def"])
    own, pinned = (
        parse_experiment([*words, "--tokenizer_name=u/t", *more]) for more in ([], ["--tokenizer_revision=ghi"])
    )
    empty: Any = {}
    assert revisions(lambda: load_corpus(experiment.data)) == [("data", "def")]
    assert revisions(lambda: get_tokenizer(empty, experiment.data, experiment.model, 9)) == [("tokenizer", "abc")]
    assert revisions(lambda: get_tokenizer(empty, own.data, own.model, 9)) == [("tokenizer", None)], "of elsewhere"
    assert revisions(lambda: get_tokenizer(empty, pinned.data, pinned.model, 9)) == [("tokenizer", "ghi")]
    tokenizer = train_tokenizer(["a"], vocab_size=9)
    assert revisions(lambda: _pretrained_model(experiment, tokenizer, None)) == [("model", "abc")]
    assert revisions(lambda: Translator("u/m", revision="abc")) == [("model", "abc")]
    monkeypatch.setattr("hf_mt.loading.load_seq2seq", lambda *args, **options: None)
    assert revisions(lambda: Translator("u/m", revision="abc")) == [("tokenizer", "abc")]
    assert revisions(lambda: Translator("u/m")) == [("tokenizer", None)], "the control"
    parser = argparse.ArgumentParser()
    add_translator_options(parser)
    args = vars(parser.parse_args(["u/m", "--revision", "abc"]))
    assert revisions(lambda: translator_from(args)) == [("tokenizer", "abc")]
    add_input_options(parser)
    parser.set_defaults(sentences=[])
    column = vars(parser.parse_args(["u/m", "--dataset=u/d", "--column=text", "--dataset_revision=jkl"]))
    assert revisions(lambda: source_from(column)) == [("text", "jkl")]
    given, data = parse_evaluation(["u/m", *words[:2], "--revision=abc", "--dataset_name=toy_copy"])
    assert revisions(lambda: evaluate_model(given, data)) == [("tokenizer", "abc")]
