"""A translation on a local Ray cluster is what Translator makes, in order."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from random_models import MODELS, SENTENCES, logged, word_tokenizer

from hf_mt import InputError, Translator, ray_job
from hf_mt.ray_job import translate_with_ray
from hf_mt.translation_output import write_translations


LINES = [f"w{4 + number % 30} {SENTENCES[number % 6]}" if number % 5 < 4 else "" for number in range(23)]
LINES[7] = "w4\u2028w5"
OPTIONS: dict[str, Any] = {"num_beams": 2, "max_length_a": 1.0, "max_length_b": 2}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(1)
    MODELS["rope"][-1]().double().save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """Ray on this machine, with room for two actors."""
    ray = pytest.importorskip("ray")
    pytest.importorskip("ray.data")
    root = Path(__file__).parents[1]
    path = os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])
    environment = {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    options = {"include_dashboard": False, "log_to_driver": False, "object_store_memory": 100 * 2**20}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
        for name, value in environment.items():
            patch.setenv(name, value)
        ray.init(num_cpus=2, **options)
        ray.data.DataContext.get_current().enable_progress_bars = False
        yield
        ray.shutdown()


def test_ray_writes_what_a_translator_does(
    cluster: None, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "source").write_text("\n".join(LINES), "utf-8")
    write_translations(Translator(saved, device="cpu"), LINES, str(tmp_path / "expected"), **OPTIONS)
    monkeypatch.chdir(tmp_path)
    model = {"model": str(saved), "device": "cpu"}
    options = {"shard_size": 4, "actors": 2, "num_cpus": 0.5, **OPTIONS}

    tally = translate_with_ray(model, {"input": "source"}, "output", **options)
    assert (tmp_path / "output").read_bytes() == (tmp_path / "expected").read_bytes()
    assert tally.lines == len(LINES) and tally.split == 0

    lines = (tmp_path / "output").read_text("utf-8").split("\n")
    assert lines != [*lines[-2::-1], ""], "control: another order is another file"

    with pytest.raises(InputError, match="line 1 has 5 tokens, but the limit is 4"):
        translate_with_ray(model, {"input": "source"}, "refused", max_source_tokens=4, **options | {"actors": 1})
    assert not (tmp_path / "refused").exists()


def test_rows_out_of_turn_are_an_error(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without Ray: what it gives is played."""
    (tmp_path / "source").write_text("w4\nw5\nw6\n", "utf-8")

    def play(numbers: list[int]) -> None:
        rows = [
            {"line": number, "text": f"{number}\n!", "finished": number > 1, "parts": number, "refused": False}
            for number in numbers
        ]
        monkeypatch.setattr(ray_job, "_run", lambda *args, **options: iter(rows))

    play([1, 2, 3])
    tally = translate_with_ray({"model": "m"}, {"input": str(tmp_path / "source")}, str(tmp_path / "out"))
    assert (tmp_path / "out").read_text() == "1 !\n2 !\n3 !\n"
    assert (tally.lines, tally.unfinished, tally.split, tally.line_breaks) == (3, 1, 2, 3)
    with logged() as messages:
        tally.warn()
    assert len(messages) == 3
    for wrong, message in (([1, 3, 2], "line 3, where line 2"), ([1, 2], "2 lines, where the input has 3")):
        play(wrong)
        with pytest.raises(RuntimeError, match=message):
            translate_with_ray({"model": "m"}, {"input": str(tmp_path / "source")}, str(tmp_path / "wrong"))
        assert not (tmp_path / "wrong").exists()


@pytest.mark.parametrize(
    ("resources", "num_cpus", "num_gpus", "room"),
    [
        ({"CPU": 8.0}, 1, 0, 8),
        ({"CPU": 8.0}, 3, 0, 2),
        ({"CPU": 8.0}, 0, 0, 8),
        ({"CPU": 8.0, "GPU": 2.0}, 1, 0.5, 4),
        ({"CPU": 8.0}, 1, 1, 1),
        ({}, 1, 0, 1),
    ],
)
def test_actors_are_as_many_as_there_is_room_for(
    resources: dict[str, float], num_cpus: float, num_gpus: float, room: int
) -> None:
    assert ray_job._room(resources, num_cpus, num_gpus) == room


def test_what_ray_cannot_do_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "source").write_text("w4\n", "utf-8")
    source = {"input": str(tmp_path / "source")}
    with pytest.raises(InputError, match="needs --input with a file"):
        translate_with_ray({"model": "m"}, {"input": "-"}, str(tmp_path / "out"))
    with pytest.raises(InputError, match="needs --input with a file"):
        translate_with_ray({"model": "m"}, source, "-")
    with pytest.raises(InputError, match="shard_size is 0"):
        translate_with_ray({"model": "m"}, source, str(tmp_path / "out"), shard_size=0)
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(InputError, match=r"Ray isn't installed.*pip install 'hf_mt\[ray\]'"):
        translate_with_ray({"model": "m"}, source, str(tmp_path / "out"))
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
