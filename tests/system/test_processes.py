"""Training and evaluation in two processes are those in one; weights that are sharded learn what whole ones do."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from safetensors.torch import load_file
from transformers import AutoModelForSeq2SeqLM

from hf_mt import HfMtForConditionalGeneration
from hf_mt.averaging import checkpoint_weights
from hf_mt.model import POSITION_ENCODINGS
from system import processes


ROOT = Path(__file__).parents[2]
ENCODINGS = sorted(POSITION_ENCODINGS)
LAUNCH = ("-m", "accelerate.commands.launch", "--quiet", "--config_file", ROOT / "configs/accelerate/ddp_cpu.yaml")
Curve = list[list[float]]


def launch(folder: Path, cases: str) -> None:
    """Runs `processes.py` in two processes, which writes `found.json`."""
    folder.mkdir()
    words = [str(word) for word in (sys.executable, *LAUNCH, processes.__file__, folder, cases)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with (folder / "log.txt").open("w") as log:
        code = subprocess.run(words, cwd=ROOT, env=environment, stdout=log, stderr=log, timeout=900).returncode
    assert code == 0, (folder / "log.txt").read_text()[-4000:]


@pytest.fixture(scope="module", params=["some", pytest.param("all", marks=pytest.mark.slow)])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Holds what one process and two found; computed once, also where several workers share the tests."""
    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / f"processes-{request.param}"
    with FileLock(f"{shared}.lock"):
        if not (shared / "one" / "found.json").is_file():
            shared.mkdir()
            launch(shared / "two", request.param)
            found = processes.alone(shared / "one", request.param)
            (shared / "one" / "found.json").write_text(json.dumps(found))
    yield shared


@pytest.fixture(scope="module")
def one(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "one" / "found.json").read_text())


@pytest.fixture(scope="module")
def two(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "two" / "found.json").read_text())


def gap(curve: Curve, other: Curve) -> float:
    """The largest relative difference between two curves of the same steps."""
    assert len(curve) == len(other) > 0
    first, second = (torch.tensor(numbers, dtype=torch.float64) for numbers in (curve, other))
    return float(((first - second).abs() / second).max())


def test_a_step_is_the_same_in_two_processes_by_accumulation_and_in_one_batch(one: Any, two: Any) -> None:
    cases = two["curves"]
    assert {case.split()[0] for case in cases} >= {*ENCODINGS, "marian", "t5_of_transformers"}
    for case, curve in cases.items():
        assert len(curve) == 20
        assert gap(curve, one["doubled"][case]) < 1e-5, case
    assert one["accumulated"].keys() >= {"rope 0.0", "rope 0.1", "marian 0.0", "marian 0.1"}
    for case, curve in one["accumulated"].items():
        assert gap(curve, cases[case]) < 1e-5, case


def test_other_settings_and_the_stock_trainer_do_differ(one: Any, two: Any) -> None:
    curves = two["curves"]
    assert gap(curves["rope 0.0"], curves["rope 0.1"]) > 1e-3
    assert gap(curves["rope 0.1"], curves["alibi 0.1"]) > 1e-3
    assert two["stock"] > 1.5 * one["stock"], "Seq2SeqTrainer multiplies the gradient of Marian by the processes"


def test_an_epoch_reads_each_pair_once_and_gives_the_processes_equal_work(two: Any) -> None:
    for epoch in two["batches"]:
        read = [index for process in epoch for indices, _ in process for index in indices]
        assert len(epoch) == 2 and sorted(read) == list(range(6001))
        work = [sum(cells for _, cells in process) for process in epoch]
        assert max(work) < 1.05 * sum(work) / len(work)
        assert len({len(process) for process in epoch}) == 1
    first, second = ([sorted(indices) for indices, _ in epoch[0]] for epoch in two["batches"])
    assert first != second, "epochs differ"


def test_thirteen_sentences_are_thirteen_translations_and_the_scores_of_one_process(one: Any, two: Any) -> None:
    assert two["evaluation"]["predictions"] == one["evaluation"]["predictions"]
    assert len(two["evaluation"]["predictions"]) == 13 and len(set(two["evaluation"]["predictions"])) > 5
    scores, expected = two["evaluation"]["scores"], one["evaluation"]["scores"]
    assert scores["eval_bleu"] == expected["eval_bleu"] and 20 < scores["eval_bleu"] < 90
    assert scores == pytest.approx(expected, rel=1e-6)


# ---- sharded weights


def test_sharded_weights_learn_what_whole_ones_do(two: Any) -> None:
    shards = two["shards"]
    for name, curve in shards["sharded"].items():
        assert len(curve) == 20
        assert gap(curve, shards["whole"][name]) < 1e-4, name
    first, second = list(shards["whole"].values())[:2]
    assert gap(first, second) > 1e-3
    assert all(share <= 0.6 for share in shards["kept"]["shares"]), "each process holds about half of each weight"
    assert set(shards["kept whole"]["shares"]) == {1.0}


def test_sharded_bfloat16_stays_close_and_its_loss_is_not_rounded(two: Any) -> None:
    curves = two["shards"]["in bfloat16"], two["shards"]["whole"]["fire"]
    half, full = ([row[1] for row in curve] for curve in curves)
    assert half != full and half == pytest.approx(full, rel=1e-3)
    assert half != pytest.approx(torch.tensor(half).bfloat16().tolist(), rel=1e-4)


def test_what_is_kept_of_a_sharded_run_is_that_of_a_whole_one(folder: Path, two: Any) -> None:
    kept, expected = two["shards"]["kept"], two["shards"]["kept whole"]
    assert gap(kept["curve"], expected["curve"]) < 1e-4
    assert kept["evaluated"] == pytest.approx(expected["evaluated"], rel=1e-4)  # with moving average, best, mean
    assert len(set(expected["evaluated"])) > 3
    assert kept["texts"] == expected["texts"] and len(kept["texts"]) == 13
    runs = [folder / "two" / "shards" / name for name in ("sharded", "whole")]
    for step in (6, 9):
        ours, theirs = (checkpoint_weights(run / f"checkpoint-{step}") for run in runs)
        assert ours.keys() == theirs.keys()
        assert max((ours[name] - theirs[name]).abs().max() for name in ours) < 2e-3  # noise of gradients that are 0


def test_a_sharded_run_is_saved_as_a_plain_model(folder: Path, two: Any) -> None:
    saved = folder / "two" / "shards" / "sharded" / "model"
    model = AutoModelForSeq2SeqLM.from_pretrained(saved)
    assert type(model) is HfMtForConditionalGeneration
    assert json.loads((saved / "config.json").read_text())["architectures"] == ["HfMtForConditionalGeneration"]
    assert (saved / "modeling_hf_mt.py").is_file() and not list(saved.glob("_fsdp*"))
    weights, own = load_file(saved / "model.safetensors"), model.state_dict()
    whole = load_file(folder / "two" / "shards" / "whole" / "model" / "model.safetensors")
    assert weights.keys() == whole.keys()
    assert all(torch.equal(own[name], weights[name]) for name in weights)


def test_a_sharded_run_that_is_resumed_becomes_the_uninterrupted_one(two: Any) -> None:
    kept, resumed = two["shards"]["kept"], two["shards"]["resumed"]
    assert resumed["curve"][-3:] == kept["curve"][-3:]
    assert kept["curve"][-3:] != kept["curve"][-6:-3]


def test_processes_exchange_what_the_page_on_scaling_counts(two: Any) -> None:
    for name, exchanged in (("whole traffic", [0]), ("traffic", [1, 2])):  # gradients; weights and gradients, messages
        counted, computed = (two["shards"][name][key] for key in ("counted", "computed"))
        assert [counted[place] for place in exchanged] == [computed[place] for place in exchanged]
        assert counted != computed, "of the other strategy there is nothing"


def test_what_cannot_be_sharded_is_refused(two: Any) -> None:
    shards = two["shards"]
    assert "set muon to false" in shards["muon"] and shards["muon with whole weights"] == ""
    assert "fsdp_state_dict_type to FULL_STATE_DICT" in shards["shards in checkpoints"]
    assert "fsdp_version to 2" in shards["version 1"]
    assert "ddp_cpu.yaml" in shards["left out"]
