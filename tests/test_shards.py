"""Large translations in shards: the same file as at once, whoever does them and however often they are interrupted."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from random_models import MODELS, SENTENCES, build, logged, word_tokenizer

from hf_mt import InputError, Translator, shards
from hf_mt.hypotheses import Tally
from hf_mt.shards import translate
from hf_mt.translation_input import Sentences, TextColumn, TextFile, open_input
from hf_mt.translation_output import write_translations


ROOT = Path(__file__).parents[1]
LINES = [f"w{4 + number % 30} {SENTENCES[number % 6]}" if number % 5 else "" for number in range(22)]
OPTIONS: dict[str, Any] = {"num_beams": 2, "max_length_a": 1.0, "max_length_b": 2}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(1)
    MODELS["rope"][-1]().double().save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def translator(saved: Path) -> Translator:
    return Translator(saved, device="cpu")


@pytest.fixture
def source(tmp_path: Path) -> TextFile:
    path = tmp_path / "source"
    path.write_text("\n".join(LINES), "utf-8")
    return TextFile(str(path))


@pytest.fixture
def said() -> list[str]:
    return []


def at_once(translator: Translator, lines: Any, folder: Path, **options: Any) -> bytes:
    write_translations(translator, lines, str(folder / "at_once"), **OPTIONS | options)
    return (folder / "at_once").read_bytes()


TEXTS = st.sampled_from([*SENTENCES, "", "  ", "\u2028", "w4\u2028w5", "w8\x85w9 ", "\ufeffw7", "w5\r"])


@given(
    lines=st.lists(TEXTS, max_size=9),
    end=st.sampled_from(["\n", "\r\n"]),
    last=st.booleans(),
    size=st.integers(1, 4),
    nbest=st.sampled_from([0, 2]),
)
@settings(max_examples=15)
def test_shards_make_the_file_that_is_made_at_once(
    translator: Translator,
    tmp_path_factory: pytest.TempPathFactory,
    lines: list[str],
    end: str,
    last: bool,
    size: int,
    nbest: int,
) -> None:
    folder = tmp_path_factory.mktemp("any")
    (folder / "source").write_bytes((end.join(lines) + (end if last and lines else "")).encode())
    source, output = TextFile(str(folder / "source")), folder / "output"
    content = source.path.read_bytes()
    count = content.count(b"\n") + (content != b"" and not content.endswith(b"\n"))
    translate(translator, source, str(output), shard_size=size, say=print, nbest=nbest, **OPTIONS)
    assert output.read_bytes() == at_once(translator, source, folder, nbest=nbest)
    if not nbest:
        assert output.read_bytes().count(b"\n") == count
    assert sorted(path.name for path in folder.iterdir()) == ["at_once", "output", "source"]


def stop_after(monkeypatch: pytest.MonkeyPatch, number: int) -> list[int]:
    """Lets so many shards be written, and fails in the middle of the next; the first lines of those begun."""
    begun: list[int] = []

    def write(*args: Any, first_line: int, **options: Any) -> Any:
        begun.append(first_line)
        if len(begun) > number:
            args[2].write(b"half a shard\n")
            raise KeyboardInterrupt
        return write_lines(*args, first_line=first_line, **options)

    write_lines = shards.write_lines
    monkeypatch.setattr(shards, "write_lines", write)
    return begun


def test_an_interrupted_job_does_only_the_missing_shards(
    translator: Translator, source: TextFile, tmp_path: Path, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "output"
    options = {"shard_size": 4, "say": said.append, **OPTIONS}
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        assert stop_after(patch, 2) == []
        translate(translator, source, str(output), **options)
    assert not output.exists() and "0 of 6 shards are done, 6 to do" in said[0]

    said.clear()
    with monkeypatch.context() as patch:
        begun = stop_after(patch, 9)
        translate(translator, source, str(output), tokens_per_batch=64, **options)
    assert begun == [9, 13, 17, 21] and "2 of 6 shards are done, 4 to do" in said[0]
    assert output.read_bytes() == at_once(translator, source, tmp_path)
    assert said[-1].endswith("translations of 22 lines") and not (tmp_path / "output.shards").exists()


def test_one_process_goes_on_with_a_job_that_several_began(
    translator: Translator, source: TextFile, tmp_path: Path, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "SHARD_SIZE", 4)  # what several processes take
    output = tmp_path / "output"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_after(patch, 2)
        translate(translator, source, str(output), shard_size=4, say=print, **OPTIONS)
    with monkeypatch.context() as patch:
        begun = stop_after(patch, 9)
        translate(translator, source, str(output), say=said.append, **OPTIONS)
    assert begun == [9, 13, 17, 21] and "2 of 6 shards are done" in said[0]
    assert output.read_bytes() == at_once(translator, source, tmp_path)


def test_shards_without_a_manifest_are_of_nobody(translator: Translator, source: TextFile, tmp_path: Path) -> None:
    """What a job leaves that is killed while it removes its folder must not become part of the next."""
    folder = tmp_path / "output.shards"
    folder.mkdir()
    (folder / "000000.txt").write_text("old\n" * 4)
    (folder / "000000.json").write_text(json.dumps(asdict(Tally(lines=4))))
    translate(translator, source, str(tmp_path / "output"), shard_size=4, say=print, **OPTIONS)
    assert (tmp_path / "output").read_bytes() == at_once(translator, source, tmp_path)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"num_beams": 3}, "num_beams: 2 -> 3"),
        ({"long_lines": "split"}, "long_lines: None -> split"),
        ({"shard_size": 5}, "shard_size: 4 -> 5"),
        ("input", "input sha256: .* -> "),
        ("model", "model model.safetensors: .* -> "),
    ],
)
def test_shards_of_another_job_are_refused(
    translator: Translator,
    source: TextFile,
    tmp_path: Path,
    saved: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: Any,
    message: str,
) -> None:
    output, options = tmp_path / "output", {"shard_size": 4, "say": print, **OPTIONS}
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_after(patch, 2)
        translate(translator, source, str(output), **options)
    before = {path.name: path.read_bytes() for path in (tmp_path / "output.shards").glob("*.*")}
    if change == "input":
        source.path.write_text("\n".join([*LINES[:-1], "w9"]), "utf-8")
    other = translator
    if change == "model":
        build("rope").save_pretrained(tmp_path / "model")
        word_tokenizer().save_pretrained(tmp_path / "model")
        other = Translator(tmp_path / "model", device="cpu")
    changed = options | change if isinstance(change, dict) else options
    with pytest.raises(InputError, match=message) as error:
        translate(other, source, str(output), **changed)
    assert "remove the folder" in str(error.value) and error.value.args[0].count("->") == 1
    assert {path.name: path.read_bytes() for path in (tmp_path / "output.shards").glob("*.*")} == before


def test_a_model_made_in_memory_has_no_shards(source: TextFile, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="made in memory"):
        translate(Translator(build("rope"), word_tokenizer()), source, str(tmp_path / "out"), shard_size=4, say=print)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_model_that_was_moved_is_the_same(
    translator: Translator, source: TextFile, tmp_path: Path, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_after(patch, 2)
        translate(translator, source, str(tmp_path / "output"), shard_size=4, say=print, **OPTIONS)
    (tmp_path / "moved").symlink_to(saved)
    translate(
        Translator(tmp_path / "moved", device="cpu"),
        source,
        str(tmp_path / "output"),
        shard_size=4,
        say=print,
        **OPTIONS,
    )
    assert (tmp_path / "output").read_bytes() == at_once(translator, source, tmp_path)


def test_a_shard_that_lost_lines_is_not_joined(
    translator: Translator, source: TextFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, options = tmp_path / "output", {"shard_size": 4, "say": print, **OPTIONS}
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_after(patch, 2)
        translate(translator, source, str(output), **options)
    shard = tmp_path / "output.shards" / "000001.txt"
    shard.write_bytes(b"one line\n")
    with pytest.raises(InputError, match="000001.txt has 1 lines, not 4: remove it"):
        translate(translator, source, str(output), **options)
    assert not output.exists()
    shard.unlink()
    translate(translator, source, str(output), **options)
    assert output.read_bytes() == at_once(translator, source, tmp_path)


@pytest.mark.parametrize("name", ["manifest.json", "000000.json"])
def test_a_cut_file_of_a_job_is_named(
    name: str, translator: Translator, source: TextFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, options = tmp_path / "output", {"shard_size": 4, "say": print, **OPTIONS}
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_after(patch, 2)
        translate(translator, source, str(output), **options)
    (tmp_path / "output.shards" / name).write_text("{")
    with pytest.raises(InputError, match=f"{name} can't be read .*remove .*output.shards to translate anew"):
        translate(translator, source, str(output), **options)
    assert not output.exists()


def test_an_input_that_changes_meanwhile_is_not_joined(
    translator: Translator, source: TextFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, options = tmp_path / "output", {"shard_size": 4, "say": print, **OPTIONS}
    work = shards.write_lines

    def changing(*args: Any, **more: Any) -> Tally:
        (tmp_path / "source").write_text("\n".join(LINES[::-1]), "utf-8")
        return work(*args, **more)

    with monkeypatch.context() as patch, pytest.raises(InputError, match="source changed while it was translated"):
        patch.setattr(shards, "write_lines", changing)
        translate(translator, source, str(output), **options)
    assert not output.exists()


def test_counts_are_those_of_all_shards_also_of_those_done_before(
    translator: Translator, source: TextFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"max_source_tokens": 7, "long_lines": "split", **OPTIONS}
    source.path.write_text("w4 w4 w4. W5 w5 w5. W6 w6.\nw4\n" * 6, "utf-8")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_after(patch, 2)
        translate(translator, source, str(tmp_path / "output"), shard_size=4, say=print, **options)
    with logged() as messages:
        translate(translator, source, str(tmp_path / "output"), shard_size=4, say=print, **options)
    assert "6 of 12 lines were too long and were split into sentences" in messages
    with logged() as at_once_messages:
        at_once(translator, source, tmp_path, **options)
    assert messages == at_once_messages


@pytest.mark.parametrize("text, message", [("w4\n" * 8 + "w5 " * 9, "line 9 has"), ("w4\nw5\0", "line 2: a NUL")])
def test_a_line_that_is_refused_is_found_before_any_work(
    translator: Translator, source: TextFile, tmp_path: Path, text: str, message: str
) -> None:
    source.path.write_text(text, "utf-8")
    with pytest.raises(InputError, match=message):
        translate(translator, source, str(tmp_path / "out"), shard_size=2, say=print, max_source_tokens=7)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_what_cannot_be_entered_anywhere_has_no_shards(
    translator: Translator, source: TextFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"shard_size": 2, "say": print}
    with pytest.raises(InputError, match="standard input as input"):
        translate(translator, Sentences(LINES, "standard input"), str(tmp_path / "out"), **options)
    with pytest.raises(InputError, match="- as output"):
        translate(translator, source, "-", **options)
    with pytest.raises(InputError, match="shard_size is 0"):
        translate(translator, source, str(tmp_path / "out"), shard_size=0, say=print)
    with pytest.raises(InputError, match="can't be written"):
        translate(translator, source, str(tmp_path / "no" / "out"), **options)
    translate(translator, Sentences([], "standard input"), str(tmp_path / "out"), say=print)  # one process, no shards
    monkeypatch.setattr(shards, "PartialState", lambda: SimpleNamespace(num_processes=2, is_main_process=True))
    with pytest.raises(InputError, match="standard input as input"):
        translate(translator, Sentences(LINES, "standard input"), str(tmp_path / "out"), say=print)


def test_a_job_that_is_running_is_left_alone(
    translator: Translator, source: TextFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, options = tmp_path / "output", {"shard_size": 4, "say": print, **OPTIONS}
    refused = []

    def write(*args: Any, **given: Any) -> Any:
        monkeypatch.setattr(shards, "write_lines", write_lines)
        with pytest.raises(InputError, match="in use by a translation that is running now"):
            translate(translator, source, str(output), **options)
        refused.append(True)
        return write_lines(*args, **given)

    write_lines = shards.write_lines
    monkeypatch.setattr(shards, "write_lines", write)
    translate(translator, source, str(output), **options)
    assert refused and output.read_bytes() == at_once(translator, source, tmp_path)


@pytest.fixture
def hub_cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


@pytest.mark.parametrize("suffix", ["jsonl", "parquet", "csv"])
def test_a_column_is_translated_as_lines_are(
    translator: Translator, tmp_path: Path, hub_cache: None, suffix: str
) -> None:
    texts = [*LINES[:7], "NA", "w4\nw5"]
    path = tmp_path / f"set.{suffix}"
    data = Dataset.from_dict({"id": list(range(len(texts))), "text": texts})
    getattr(data, {"jsonl": "to_json"}.get(suffix, f"to_{suffix}"))(path)
    source = open_input(dataset=str(path), column="text")
    assert list(source) == texts
    translate(translator, source, str(tmp_path / "out"), shard_size=2, say=print, **OPTIONS)
    assert (tmp_path / "out").read_bytes() == at_once(translator, texts, tmp_path)
    with pytest.raises(InputError, match="no column 'txt'; it has id, text"):
        TextColumn(str(path), "txt")
    with pytest.raises(InputError, match="'test' is not there; choose one with --split: train"):
        TextColumn(str(path), "text", "test")
    with pytest.raises(InputError, match="row 1: 'id' is a int"):
        list(TextColumn(str(path), "id"))


def test_a_column_of_dictionaries_has_columns(tmp_path: Path, hub_cache: None) -> None:
    pairs = [{"en": f"w{number}", "de": "w9"} for number in range(4, 8)]
    Dataset.from_dict({"translation": pairs}).to_json(tmp_path / "set.jsonl")
    source = open_input(dataset=str(tmp_path / "set.jsonl"), column="translation.en")
    assert list(source) == ["w4", "w5", "w6", "w7"]
    with pytest.raises(InputError, match="no column 'translation'"):
        open_input(dataset=str(tmp_path / "set.jsonl"), column="translation")


def test_a_row_without_text_is_refused(tmp_path: Path, hub_cache: None) -> None:
    path = tmp_path / "set.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in ("w4", None)))
    with pytest.raises(InputError, match="row 2: 'text' is a NoneType"):
        list(TextColumn(str(path), "text"))


@pytest.mark.parametrize(
    "given_options, message",
    [
        ({"sentences": ["w4"], "input": "x"}, "sentences and --input are both given"),
        ({"input": "x", "dataset": "y", "column": "z"}, "--input and --dataset are both given"),
        ({"dataset": "y"}, "--dataset and --column go together"),
        ({"column": "y"}, "--dataset and --column go together"),
        ({"input": "x", "split": "test"}, "go together"),
        ({"input": "x", "dataset_config_name": "de-en"}, "go together"),
        ({"input": "x", "dataset_revision": "abc"}, "go together"),
        ({"dataset": __file__, "column": "text", "dataset_revision": "abc"}, "is here, and has no revision"),
        ({"dataset": "someone/something", "column": "text"}, "can't be loaded"),
        ({"dataset": __file__, "column": "text"}, "is none of .jsonl"),
    ],
)
def test_half_an_input_or_two_are_refused(given_options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        open_input(**given_options)


def write_program(folder: Path, patch: str) -> tuple[Path, dict[str, str]]:
    """scripts/translate.py after some lines that change it, and its environment."""
    program = folder / "program.py"
    program.write_text(f"import os, runpy, signal\nfrom hf_mt import shards\n{patch}\n{RUN}")
    return program, {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}


def launch(folder: Path, *words: object, patch: str) -> subprocess.CompletedProcess[str]:
    """Two processes, by the launcher."""
    program, environment = write_program(folder, patch)
    launcher = [Path(sys.executable).with_name("accelerate"), "launch", "--quiet", "--config_file"]
    command = [*launcher, ROOT / "configs/accelerate/ddp_cpu.yaml", program, *words]
    return subprocess.run(
        list(map(str, command)), env=environment, cwd=ROOT, capture_output=True, text=True, timeout=240
    )


RUN = f"runpy.run_path({str(ROOT / 'scripts/translate.py')!r}, run_name='__main__')"
# process 1 ends in the middle of its second shard
KILL = """
import time
write, begun = shards.write_lines, []
def kill(translator, lines, file, **options):
    begun.append(1)
    if len(begun) > 1 and os.environ["RANK"] == "1":
        file.write(b"half a shard")
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(WAIT if len(begun) > 1 else 0)
    return write(translator, lines, file, **options)
shards.write_lines = kill
"""


def words(saved: Path, source: TextFile, output: Path) -> Iterator[object]:
    yield from (saved, "--input", source.name, "--output", output, "--shard_size", 2)
    for name, value in OPTIONS.items():
        yield from (f"--{name}", value)


def test_two_processes_one_of_them_killed_and_one_afterwards_make_one_file(
    translator: Translator, saved: Path, source: TextFile, tmp_path: Path, said: list[str]
) -> None:
    output, folder = tmp_path / "output", tmp_path / "output.shards"
    expected = at_once(translator, source, tmp_path)
    done = launch(tmp_path, *words(saved, source, output), patch=f"WAIT = 60  # for the launcher\n{KILL}")
    assert done.returncode != 0 and str(signal.SIGKILL.value) in done.stderr
    finished = sorted(folder.glob("*.txt"))
    assert 1 <= len(finished) < 11 and not output.exists()
    finished[0].write_text(finished[0].read_text().upper())  # to be told from one that is done again

    options = json.loads((folder / "manifest.json").read_text())
    again = {name: options[name] for name in ("nbest", "length_penalty", "max_source_tokens", "long_lines")}
    translate(translator, source, str(output), shard_size=2, say=said.append, **again, **OPTIONS)
    assert f"{len(finished)} of 11 shards are done, {11 - len(finished)} to do" in said[0]
    number = 2 * int(finished[0].stem)
    lines = [line.upper() if at in (number, number + 1) else line for at, line in enumerate(expected.split(b"\n"))]
    assert output.read_bytes() == b"\n".join(lines)


def test_a_process_that_died_is_not_waited_for(
    translator: Translator, saved: Path, source: TextFile, tmp_path: Path
) -> None:
    """Without a launcher, which would end the others."""
    output = tmp_path / "output"
    program, environment = write_program(tmp_path, f"WAIT = 0.5\n{KILL}")
    command = [sys.executable, program, *words(saved, source, output)]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    processes = [
        subprocess.Popen(
            list(map(str, command)),
            env={**environment, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "RANK": rank, "LOCAL_RANK": rank},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in ("0", "1")
    ]
    errors = [process.communicate(timeout=240)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, -signal.SIGKILL], errors
    assert output.read_bytes() == at_once(translator, source, tmp_path) and not list(tmp_path.glob("*.shards"))


def test_two_processes_end_what_one_began(
    translator: Translator, saved: Path, source: TextFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "output"
    parsed = {"nbest": 0, "length_penalty": None, "max_source_tokens": None, "long_lines": "refuse"}
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_after(patch, 2)
        translate(translator, source, str(output), shard_size=2, say=print, **parsed, **OPTIONS)
    done = launch(tmp_path, *words(saved, source, output), patch=MARK)
    assert done.returncode == 0, done.stderr[-3000:]
    assert output.read_bytes() == at_once(translator, source, tmp_path)
    assert done.stdout == "" and done.stderr.count("2 of 11 shards are done, 9 to do") == 1
    assert done.stderr.count("translations of 22 lines") == 1
    assert {path.name for path in tmp_path.glob("rank*")} == {"rank0", "rank1"}, "both worked"


MARK = """
import pathlib, time
write = shards.write_lines
def mark(translator, lines, file, **options):
    pathlib.Path(__file__).with_name("rank" + os.environ["RANK"]).touch()
    time.sleep(0.3)
    return write(translator, lines, file, **options)
shards.write_lines = mark
"""
