"""What the benchmark counts, in which order it measures, and what it makes of it; its programs run on a toy corpus."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
from scripts_on_path import load_script
from torch import nn


load_script("benchmarks")

from benchmarks import jobs, suites, tables  # noqa: E402
from benchmarks.meter import EnoughMeasured, Meter, leave_out_dropout  # noqa: E402

from hf_mt import InputError  # noqa: E402
from hf_mt.model.position_encodings import POSITION_ENCODINGS  # noqa: E402


SIZE = {**jobs.TINY, "encoder_layers": 1, "decoder_layers": 1, "d_model": 16, "ffn_dim": 16, "vocab_size": 6000}
DECODED = [  # system, tokens of each translation, sentences a second
    ("hf_mt", 15, 30.0),
    ("Marian, generate", 15, 20.0),
    ("hf_mt", None, 25.0),
    ("Marian, generate", None, 10.0),
]


def test_warm_up_is_not_counted_and_the_rest_is_counted_once(tmp_path: Path) -> None:
    meter = Meter({"warmup_steps": 2, "seconds": 0.03, "result": str(tmp_path / "r.json")})
    counts = {"target_tokens": 60, "target_cells": 80, "source_tokens": 50, "source_cells": 50}
    steps = 0
    with pytest.raises(EnoughMeasured):
        for steps in range(1, 1000):  # noqa: B007
            time.sleep(0.01)
            meter.step(**{name: 1000 if steps <= 2 else count for name, count in counts.items()})
    meter.write(parameters=7)
    result = json.loads((tmp_path / "r.json").read_text())
    assert result["steps"] == steps - 2 >= 3
    assert result["target_tokens_per_second"] == pytest.approx(60 * result["steps"] / result["seconds"])
    assert (result["target_padding"], result["source_padding"], result["parameters"]) == (0.25, 0.0, 7)
    assert result["peak_mib"] > 10


def test_dropout_inside_of_blocks_is_taken_away_and_no_other() -> None:
    model = nn.Transformer(8, 2, 1, 1, 8, 0.3)
    leave_out_dropout(model, ".dropout")
    rates = {name.rpartition(".")[2]: module.p for name, module in model.named_modules() if "dropout" in name}
    assert rates == {"dropout": 0.0, "dropout1": 0.3, "dropout2": 0.3, "dropout3": 0.3}
    with pytest.raises(RuntimeError, match=r"no module is called \.\.\.feed_forward\.dropout_1"):
        leave_out_dropout(model, "feed_forward.dropout_1")


def plan(names: str) -> list[tuple[dict[str, Any], str, dict[str, Any]]]:
    return [({"suite": "training", "size": "tiny", "system": name}, f"{name}.py", {"n": name}) for name in names]


def test_measurements_of_other_settings_are_not_mixed(tmp_path: Path) -> None:
    suites.check_settings(tmp_path, {"threads": 2})
    suites.check_settings(tmp_path, {"threads": 2})
    with pytest.raises(InputError, match="threads: 2 -> 1"):
        suites.check_settings(tmp_path, {"threads": 1})


def test_programs_take_turns_and_a_run_that_was_cut_off_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[str] = []

    def measure(program: str, system: str, job: dict[str, Any], folder: Path) -> dict[str, Any]:
        if len(ran) == 4:
            raise InputError("cut off")
        ran.append(system)
        return {"target_tokens_per_second": float(len(ran))}

    monkeypatch.setattr(suites, "measure", measure)
    path = tmp_path / "results.json"
    with pytest.raises(InputError):
        list(suites.measure_all(suites.Results(path), plan("abc"), repeats=2))
    assert ran == ["a", "b", "c", "a"]
    monkeypatch.setattr(suites, "measure", lambda *args: ran.append(args[1]) or {"target_tokens_per_second": 0.0})
    list(suites.measure_all(suites.Results(path), plan("abc"), repeats=2))
    assert ran == ["a", "b", "c", "a", "b", "c"]
    assert [row["system"] for row in suites.Results(path).rows] == ran


def results(tmp_path: Path) -> suites.Results:
    found = suites.Results(tmp_path / "results.json")
    common = {"source_padding": 0.01, "target_padding": 0.3, "peak_mib": 900.0, "steps": 4, "seconds": 2.0}
    for system, speeds in (("hf_mt rope", (100.0, 300.0, 200.0)), ("Other", (50.0, 40.0, 9000.0))):
        for speed in speeds:
            row = {"suite": "training", "size": "tiny", "system": system, **common}
            found.add({**row, "target_tokens_per_second": speed, "source_tokens_per_second": speed})
    peak = {"square_gflops": 8.0, "shapes_gflops": 5.0, "gflop_per_target_token": 0.02}
    found.add({"suite": "peak", "size": "tiny", "system": "matrix products", **peak})
    for system, length, speed in DECODED:
        row = {"suite": "decoding", "num_beams": 5, "batch_size": 64, "length": length, "system": system}
        found.add({**row, "sentences_per_second": speed})
    for length in suites.LENGTHS:
        row = {"suite": "length", "length": length, "system": "hf_mt rope", "step_mib": 1.0 * length}
        found.add({**row, "microseconds_per_token": 2.0 * length})
    for microseconds in (9.0, 6.0, 8.0):
        costs = {"rope": microseconds, "cope": 12.0, "none": 0.5 * microseconds}
        found.add({"suite": "encodings", "length": 32, "system": "hf_mt", "microseconds_per_token": costs})
    for products in (60.0, 80.0):
        shares = {"products": products, "between operations": 100 - products}
        found.add({"suite": "profile", "size": "tiny", "system": "hf_mt rope", "shares": shares})
    return found


def test_tables_have_medians_and_ratios(tmp_path: Path) -> None:
    text = tables.report(results(tmp_path))
    assert "| hf_mt rope | 200 | 1.00 | 1.0 % | 30.0 % | 900 | 80 % (50 % of square) | 3 |" in text
    assert "| Other | 50 | 4.00 |" in text and "9,000" not in text
    assert "| Marian, generate | 5 | 64 | 15 | 20 | 1.50 | 1 |" in text
    assert "| Marian, generate | 5 | 64 | as the reference | 10 | 2.50 | 1 |" in text
    assert "| products | 70.0 % |" in text and "| between operations | 30.0 % |" in text
    assert "| hf_mt rope | 8 | 2.00 |" in text and "| hf_mt cope | 12 | 3.00 |" in text
    assert "| hf_mt rope | 64 | 128 | 256 | 512 | 1,024 | 2,048 |" in text
    assert "torch 2" in text


def test_the_picture_is_drawn_with_and_without_a_suite(tmp_path: Path) -> None:
    whole = tables.plot(results(tmp_path), tmp_path / "whole.png").read_bytes()
    part = suites.Results(tmp_path / "part.json")
    part.rows = results(tmp_path / "again").of(suite="training")
    assert whole[:4] == b"\x89PNG" and tables.plot(part, tmp_path / "part.png").read_bytes() != whole


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("text")
    lines = [" ".join("abcdefgh"[: 2 + number % 6]) + f" {number}\n" for number in range(400)]
    for side in ("en", "de"):
        (folder / f"train.{side}").write_text("".join(lines), encoding="utf-8")
    return jobs.prepare_text(folder / "text", str(folder / "train"), "en", "de")


def test_the_text_is_the_same_in_ids_and_in_words(text: dict[str, Any]) -> None:
    lines = Path(text["text"], "train.source").read_text("utf-8").split("\n")[:-1]
    assert len(lines) == 400 and lines[1].replace(" ", "").replace("\u2581", " ") == " a b c 1"
    words = set(Path(text["text"], "words").read_text("utf-8").split("\n")[:-1])
    assert {word for line in lines for word in line.split(" ")} <= words
    assert text["mean_source_tokens"] == pytest.approx(sum(len(line.split(" ")) + 1 for line in lines) / 400)


@pytest.mark.parametrize(
    "system",
    ["hf_mt t5", "hf_mt rope, medium", "Marian, Seq2SeqTrainer, by length", "torch.nn.Transformer loop"],
    ids=lambda name: name[:10],
)
def test_a_program_trains_and_tells_what_it_saw(system: str, text: dict[str, Any], tmp_path: Path) -> None:
    job = {**text, "size": SIZE, "threads": 1, "seconds": 1.0, "tokens_per_batch": 400, "sentences_per_batch": 30}
    found = jobs.measure(jobs.TRAINING[system], system, {**job, "warmup_steps": 1}, tmp_path)
    assert found["steps"] > 1 and found["target_tokens_per_second"] > 100
    assert 0 <= found["target_padding"] < 0.6 and found["parameters"] > 6000 * 16


@pytest.mark.parametrize("system", ["hf_mt", "hf_mt, in threads", "Marian, generate"])
@pytest.mark.parametrize("length", [5, None], ids=str)
def test_a_program_translates_to_the_length_asked_for(
    length: int | None, system: str, text: dict[str, Any], tmp_path: Path
) -> None:
    job = {**text, "size": SIZE, "threads": 1, "sentences": 20, "batch_size": 8, "num_beams": 2, "length": length}
    assert jobs.measure("decode_transformers.py", system, job, tmp_path)["sentences_per_second"] > 0


def test_every_encoding_is_timed_beside_the_others(tmp_path: Path) -> None:
    job = {"size": SIZE, "threads": 1, "length": 8, "tokens": 64, "repeats": 1}
    costs = jobs.measure("encodings_in_turn.py", "hf_mt", job, tmp_path)["microseconds_per_token"]
    assert list(costs) == list(POSITION_ENCODINGS) and min(costs.values()) > 0


def test_a_step_of_one_encoding_is_timed_and_weighed(tmp_path: Path) -> None:
    job = {"size": SIZE, "threads": 1, "length": 80, "tokens": 160, "repeats": 1}
    cost = jobs.measure("length_cost.py", "hf_mt cope", job, tmp_path)
    assert cost["microseconds_per_token"] > 0 and cost["step_mib"] > 0


def test_the_profile_tells_where_all_the_time_went(text: dict[str, Any], tmp_path: Path) -> None:
    job = {**text, "size": SIZE, "threads": 1, "tokens_per_batch": 400, "warmup_steps": 1}
    shares = jobs.measure("profile_step.py", "hf_mt rope", job, tmp_path)["shares"]
    assert sum(shares.values()) == pytest.approx(100) and min(shares.values()) > 0
    assert {"products of attention", "dropout and residual sums", "norms", "optimizer"} <= shares.keys()
    assert shares["other operations"] < 40


def test_a_program_that_fails_says_why(text: dict[str, Any], tmp_path: Path) -> None:
    job = {**text, "size": {**SIZE, "heads": 5}, "threads": 1, "seconds": 0.1, "tokens_per_batch": 400}
    with pytest.raises(InputError, match="hf_mt rope failed"):
        jobs.measure(jobs.TRAINING["hf_mt rope"], "hf_mt rope", {**job, "warmup_steps": 1}, tmp_path)
