"""The commands as users give them, on tiny models and toy corpora."""

import json
import os
import runpy
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import random_models
import torch
import wandb
import yaml
from safetensors.torch import load_file
from wandb_record import record_content

from hf_mt.experiment import parse_experiment
from hf_mt.models import check_architecture
from hf_mt.tokenization import train_tokenizer


ROOT = Path(__file__).parents[1]
CONFIGS = sorted(path for folder in ("", "report/") for path in ROOT.glob(f"configs/{folder}*.yaml"))
TINY = """
dataset_name: toy_copy
source_lang: src
target_lang: tgt
vocab_size: 30
cldr_train_size: 200
cldr_validation_size: 13
cldr_test_size: 11
d_model: 16
encoder_layers: 1
decoder_layers: 1
encoder_attention_heads: 2
decoder_attention_heads: 2
encoder_ffn_dim: 32
decoder_ffn_dim: 32
max_steps: 6
tokens_per_batch: 256
learning_rate: 1e-2
warmup_steps: 0
logging_steps: 1
eval_strategy: steps
eval_steps: 3
save_strategy: steps
save_steps: 3
num_beams: 2
ema_decay: 0.9
dropout: 0.0
cpu_threads: 1
use_cpu: true
"""


def tiny(**changes: object) -> str:
    """The configuration with other values; None leaves a key out."""
    keys = {**dict(line.split(": ") for line in TINY.split("\n") if line), **changes}
    return "".join(f"{key}: {value}\n" for key, value in keys.items() if value is not None)


ARCHITECTURE = ("vocab_size", "d_model", "encoder_", "decoder_", "dropout")
TUNING = "".join(f"{line}\n" for line in TINY.splitlines() if not line.startswith(ARCHITECTURE))


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY)
    return path


def run(script: str, *arguments: object, capsys: Any) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of a script in this process."""
    saved = sys.argv
    sys.argv = [f"scripts/{script}.py", *map(str, arguments)]
    code = 0
    try:
        runpy.run_path(str(ROOT / "scripts" / f"{script}.py"), run_name="__main__")
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
    finally:
        sys.argv = saved
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_a_run_that_a_gradient_stopped_is_not_finished(tmp_path: Path, capsys: Any) -> None:
    config, folder = tmp_path / "spoilt.yaml", tmp_path / "run"
    config.write_text(tiny(learning_rate="1e30", max_grad_norm=0, lr_scheduler_type="constant", ema_decay=None))
    for _ in range(2):  # the same command goes on, and comes to the same step
        code, out, err = run("train", config, "--output_dir", folder, capsys=capsys)
        assert code == 2 and "--non_finite_steps skip" in err and "is a finished run" not in out
        assert not (folder / "all_results.json").exists() and any((folder / "non_finite").iterdir())


def test_a_run_that_translates_only_at_its_end(config: Path, tmp_path: Path, capsys: Any) -> None:
    options = "--predict_with_generate", "false", "--metric_for_best_model", "loss", "--max_steps", 4
    folder = tmp_path / "run"
    code, _, err = run("train", config, "--output_dir", folder, *options, "--report_to", "none", capsys=capsys)
    assert code == 0, err
    results = json.loads((folder / "all_results.json").read_text())
    assert "test_bleu" in results and "eval_bleu" not in results and "eval_loss" in results


def test_a_rehearsal_has_nothing_to_stop_early(config: Path, tmp_path: Path, capsys: Any) -> None:
    code, out, err = run("train", config, "--dry_run", "--early_stopping_patience", 2, capsys=capsys)
    assert code == 0 and "minutes" in out, err


def test_a_run_from_training_to_translation(config: Path, tmp_path: Path, capsys: Any) -> None:
    folder = tmp_path / "run"
    code, out, err = run("train", config, "--output_dir", folder, capsys=capsys)
    assert code == 0, err
    for part in ("split", "Training from the start", "epoch", "dev loss", "verdict", "bleu: nrefs:1"):
        assert part in out
    expected = {"all_results.json", "generated_predictions.txt", "config_resolved.yaml", "trainer_state.json"}
    expected |= {"report/course-by-step.png", "README.md", "samples.jsonl", "data_table.json", "model.safetensors"}
    expected |= {"tokenizer.json", "generation_config.json", "modeling_hf_mt.py", "position_encodings.py"}
    assert expected <= files(folder)
    results = json.loads((folder / "all_results.json").read_text())
    assert {"test_bleu", "test_chrf", "test_bleu_signature", "eval_bleu", "train_target_tokens_per_second"} <= set(
        results
    )
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    evaluations = [row for row in history if "eval_bleu" in row]  # those of training, and the last one
    assert ["eval_ter" in row for row in evaluations] == [False, False, True]
    assert {"test_ter", "eval_ter"} <= results.keys()
    assert len((folder / "generated_predictions.txt").read_text().split("\n")) == 11 + 1

    code, out, _ = run("train", config, "--output_dir", folder, capsys=capsys)
    assert code == 0 and "is a finished run" in out
    before = files(folder)
    code, _, err = run("train", config, "--output_dir", folder, "--learning_rate", "3e-3", capsys=capsys)
    assert code == 2 and "learning_rate: 0.01 -> 0.003" in err and files(folder) == before

    code, out, err = run("evaluate", folder, "--output_dir", tmp_path / "scores", capsys=capsys)
    assert code == 0, err
    again = json.loads((tmp_path / "scores" / "results.json").read_text())
    assert again["test_bleu" if "test_bleu" in again else "bleu"] == pytest.approx(results["test_bleu"])
    predictions = (folder / "generated_predictions.txt").read_text()
    assert (tmp_path / "scores" / "predictions.txt").read_text() == predictions

    code, out, err = run("translate", folder, "1 2 3", "", "4 5", capsys=capsys)
    assert code == 0 and len(out.split("\n")) == 3 + 1 and out.split("\n")[1] == "", err
    code, out, _ = run("push_to_hub", folder, "--repo_id", "user/name", "--dry_run", capsys=capsys)
    assert code == 0 and "modeling_hf_mt.py" in out and "generated_predictions.txt" not in out
    checkpoints = [folder / "checkpoint-3", folder / "checkpoint-6"]
    code, _, err = run("average_checkpoints", *checkpoints, "--output_dir", tmp_path / "mean", capsys=capsys)
    assert code == 0 and (tmp_path / "mean" / "model.safetensors").is_file(), err


def test_an_interrupted_run_goes_on_and_becomes_the_same(config: Path, tmp_path: Path, capsys: Any) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert run("train", config, "--output_dir", whole, capsys=capsys)[0] == 0
    cut.mkdir()
    for name in ("config_resolved.yaml", "data_table.json", "samples.jsonl"):
        shutil.copy(whole / name, cut / name)
    shutil.copytree(whole / "checkpoint-3", cut / "checkpoint-3")
    (cut / "checkpoint-6").mkdir()  # killed while it was written
    code, out, err = run("train", config, "--output_dir", cut, capsys=capsys)
    assert code == 0 and f"Resuming from {cut}/checkpoint-3" in out, err
    one, other = (load_file(folder / "checkpoint-6" / "model.safetensors") for folder in (whole, cut))
    assert all((one[name] == other[name]).all() for name in one)
    early = load_file(whole / "checkpoint-3" / "model.safetensors")
    assert not all((one[name] == early[name]).all() for name in one)


@pytest.mark.parametrize("name", ["rope", "marian", "bart", "t5"])
def test_any_model_is_fine_tuned_by_the_same_script(name: str, tmp_path: Path, capsys: Any) -> None:
    config, pretrained, folder = tmp_path / "tuning.yaml", tmp_path / "pretrained", tmp_path / "run"
    config.write_text(TUNING)
    random_models.build(name).save_pretrained(pretrained)
    train_tokenizer(["0 1 2 3 4 5 6 7 8 9"], vocab_size=24).save_pretrained(pretrained)
    options = ("--model_name_or_path", pretrained, "--output_dir", folder, "--label_smoothing", 0.1)
    code, out, err = run("train", config, *options, capsys=capsys)
    assert code == 0, err
    start, end = (load_file(path / "model.safetensors") for path in (pretrained, folder))
    assert start.keys() == end.keys() and not all(torch.equal(start[key], end[key]) for key in start)
    assert (folder / "tokenizer.json").read_text() == (pretrained / "tokenizer.json").read_text()
    code, out, err = run("translate", folder, "1 2", "3", capsys=capsys)
    assert code == 0 and out.count("\n") == 2, err


def test_training_in_bfloat16_saves_float32_and_stays_close(config: Path, tmp_path: Path, capsys: Any) -> None:
    options = {"full": (), "half": ("--bf16", "true"), "other": ("--seed", 7)}
    for name, more in options.items():
        code, _, err = run("train", config, "--output_dir", tmp_path / name, *more, capsys=capsys)
        assert code == 0, err
    losses = {name: torch.tensor(_logged(tmp_path / name, "loss")) for name in options}
    assert {weight.dtype for weight in load_file(tmp_path / "half" / "model.safetensors").values()} == {torch.float32}
    gap = (losses["half"] - losses["full"]).abs().max()
    assert 0 < gap < 0.1 * (losses["other"] - losses["full"]).abs().max()


def test_a_rehearsal_reports_and_leaves_nothing(config: Path, tmp_path: Path, capsys: Any) -> None:
    before = files(tmp_path)
    code, out, err = run("train", config, "--output_dir", tmp_path / "run", "--dry_run", capsys=capsys)
    assert code == 0, err
    for part in (
        "tokens: ",
        "an epoch",
        "6 of",
        "these 3 steps; an evaluation may take more",
        "saved and loaded again",
        "translated 3 sentences",
    ):
        assert part in out
    assert files(tmp_path) == before and not (tmp_path / "run").exists()


def test_wandb_offline_records_a_run(config: Path, tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    code, _, err = run("train", config, "--output_dir", tmp_path / "run", "--report_to", "wandb", capsys=capsys)
    assert code == 0, err
    wandb.finish()  # as at the end of a process
    (record,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    media = {path.parent.name + "/" + path.name.split("_")[0] for path in tmp_path.glob("wandb/*/files/media/**/*.*")}
    assert {"table/samples", "report/course-by-step", "report/bleu-by-length"} <= media, media
    wanted, end = (b"report-", b"index.html", b"test_bleu", b"eval_chrf"), time.monotonic() + 60
    while not all(words in record_content(record) for words in wanted):  # a process of its own writes it
        assert time.monotonic() < end, [words for words in wanted if words not in record_content(record)]
        time.sleep(0.2)


def write_pairs(folder: Path, name: str, source: bytes, target: bytes) -> str:
    (folder / f"{name}.en").write_bytes(source)
    (folder / f"{name}.de").write_bytes(target)
    return str(folder / name)


def bad_inputs(folder: Path) -> dict[str, tuple[list[str], str]]:
    """Options that cannot work, and a part of the message."""
    tuning = str(folder / "tuning.yaml")
    Path(tuning).write_text(TUNING)
    good = write_pairs(folder, "good", b"a b\nc d\n" * 30, b"e f\ng h\n" * 30)
    text = ["--dataset_name", "None", "--source_lang", "en", "--target_lang", "de", "--train_file"]
    dev = ["--validation_file", good]
    return {
        "a missing file": ([*text, str(folder / "nowhere"), *dev], "nowhere"),
        "different lengths": ([*text, write_pairs(folder, "uneven", b"a\nb\n", b"c\n"), *dev], "2"),
        "empty files": ([*text, write_pairs(folder, "empty", b"", b""), *dev], "empty"),
        "not UTF-8": ([*text, write_pairs(folder, "latin", b"caf\xe9\n", b"x\n"), *dev], "UTF-8"),
        "a language that is not there": ([*text[:-3], "--target_lang", "fr", "--train_file", good, *dev], "fr"),
        "all filtered": ([*text, write_pairs(folder, "tags", b"<url>x</url>\n", b"<url>y</url>\n"), *dev], "filter"),
        "an unknown key": (["--positon_encoding", "rope"], "position_encoding"),
        "a wrong type": (["--learning_rate", "fast"], "learning_rate"),
        "an unknown encoding": (["--position_encoding", "rop"], "rope"),
        "heads that do not divide": (["--d_model", "18", "--encoder_attention_heads", "4"], "d_model"),
        "an odd head": (["--d_model", "18"], "even"),
        "too long for learned": (["--position_encoding", "learned", "--max_position_embeddings", "5"], "5 positions"),
        "a checkpoint without a model": (["--config", tuning, "--model_name_or_path", str(folder)], "No tokenizer"),
        "sizes for a pretrained model": (["--model_name_or_path", str(folder)], "fixed by the pretrained model"),
        "no such YAML": (["--config", str(folder / "nowhere.yaml")], "nowhere.yaml"),
    }


_CASES = """
a missing file; different lengths; empty files; not UTF-8; a language that is not there; all filtered; an unknown key
a wrong type; an unknown encoding; heads that do not divide; an odd head; too long for learned
a checkpoint without a model; sizes for a pretrained model; no such YAML
"""
BAD_INPUTS = [case for line in _CASES.strip().splitlines() for case in line.split("; ")]


@pytest.mark.parametrize("case", BAD_INPUTS)
def test_bad_input_ends_with_a_message_and_exit_code_2(case: str, config: Path, tmp_path: Path, capsys: Any) -> None:
    options, message = bad_inputs(tmp_path)[case]
    path = [] if "--config" in options else [config]
    before = files(tmp_path)
    code, out, err = run("train", *path, "--output_dir", tmp_path / "run", *options, capsys=capsys)
    assert code == 2, (out, err)
    assert message in err and "Traceback" not in err and len(err) < 4000
    assert files(tmp_path) == before


@pytest.mark.parametrize("text", ["a: [", "just words", "", "a: 1\na: 2\n", "seed: &x 1\nmax_steps: *x\n"])
def test_a_yaml_file_that_cannot_be_read_is_refused(text: str, tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    code, _, err = run("train", path, "--output_dir", tmp_path / "run", capsys=capsys)
    assert code == 2 and "broken.yaml" in err and files(tmp_path) == {"broken.yaml"}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_can_be_read_and_built(path: Path) -> None:
    experiment = parse_experiment([str(path)])
    check_architecture(experiment)
    assert experiment.name == path.stem


@pytest.mark.parametrize("path", sorted(ROOT.glob("configs/sweeps/*.yaml")), ids=lambda path: path.stem)
def test_every_trial_of_a_sweep_is_a_command_that_works(path: Path, monkeypatch: Any) -> None:
    sweep = yaml.safe_load(path.read_text())
    monkeypatch.setenv("WANDB_RUN_ID", "abc123")
    command = sweep["command"]
    assert command[:4] == ["${env}", "accelerate", "launch", "${program}"] and command[-1] == "${args}"
    folders = []
    for name, values in ((name, entry["values"]) for name, entry in sweep["parameters"].items()):
        for value in values:
            experiment = parse_experiment([*command[4:-1], f"--{name}={value}"])  # what wandb makes of ${args}
            assert experiment.training.report_to == ["wandb"]
            folders.append(experiment.training.output_dir)
    assert len(set(folders)) == len(folders) and all("abc123" in folder for folder in folders)


def launch(profile: str, *arguments: object, folder: Path) -> None:
    """Trains through `accelerate launch` with one of the profiles that we ship."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "MASTER_PORT": "0"}
    launcher = [Path(sys.executable).with_name("accelerate"), "launch", "--quiet", "--config_file"]
    command = [*launcher, ROOT / "configs/accelerate" / profile, ROOT / "scripts/train.py", *arguments]
    words = [str(word) for word in (*command, "--output_dir", folder)]
    done = subprocess.run(words, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]


def test_two_processes_learn_and_score_what_one_does(config: Path, tmp_path: Path, capsys: Any) -> None:
    launch("ddp_cpu.yaml", config, folder=tmp_path / "two")
    for name, parts in (("one", 2), ("half", 1)):
        options = ("--output_dir", tmp_path / name, "--gradient_accumulation_steps", parts)
        assert run("train", config, *options, capsys=capsys)[0] == 0
    rows = {name: _logged(tmp_path / name, "loss", "smoothed_loss", "grad_norm") for name in ("two", "one", "half")}
    assert rows["two"] == pytest.approx(rows["one"], rel=1e-4)
    assert rows["half"] != pytest.approx(rows["one"], rel=1e-4)
    texts = {name: (tmp_path / name / "generated_predictions.txt").read_text() for name in ("two", "one")}
    results = {name: json.loads((tmp_path / name / "all_results.json").read_text()) for name in ("two", "one")}
    assert texts["two"] == texts["one"] and texts["two"].count("\n") == 11
    for key in ("test_bleu", "test_chrf"):
        assert results["two"][key] == results["one"][key]


def _logged(folder: Path, *names: str) -> list[float]:
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [row[name] for row in history if "smoothed_loss" in row for name in names]
