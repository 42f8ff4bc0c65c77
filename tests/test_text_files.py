"""Lines and whole files."""

import os
import subprocess
import sys
from io import BytesIO
from pathlib import Path

import pytest

from hf_mt import InputError
from hf_mt.text_files import one_line, open_output, read_stream, write_whole


def test_a_stream_of_lines_ends_at_line_feeds_alone() -> None:
    raw = "\ufeffone\u2028still one\r\ntwo\x85\n\nfour".encode()
    assert list(read_stream(BytesIO(raw), "x")) == ["one\u2028still one", "two\x85", "", "four"]
    assert len(raw.decode().splitlines()) > 4
    for bad, message in ((b"a\nb\xe9\n", "x, line 2, byte 2: 0xe9 is not UTF-8"), (b"a\n\nb\0", "x, line 3: a NUL")):
        with pytest.raises(InputError, match=message):
            list(read_stream(BytesIO(bad), "x"))


def test_a_text_becomes_one_line() -> None:
    text = "a\nb\r\nc\rd e"
    assert one_line(text) == "a b c d e"
    assert len(one_line(text).splitlines()) == 1 < len(text.splitlines())


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "out"
    with open_output(path) as file:
        file.write(b"old")
    with pytest.raises(RuntimeError), open_output(path) as file:
        file.write(b"half of it")
        raise RuntimeError
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]
    with pytest.raises(InputError, match="can't be written"), open_output(tmp_path / "missing" / "out"):
        pass
    with pytest.raises(RuntimeError), path.open("wb") as plain:  # what a plain file would leave
        plain.write(b"half of it")
        raise RuntimeError
    assert path.read_bytes() == b"half of it"


def test_a_folder_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a folder"), open_output(tmp_path):
        raise AssertionError("hours of work")
    assert list(tmp_path.iterdir()) == []


def test_an_error_of_something_else_is_not_one_of_the_file(tmp_path: Path) -> None:
    with pytest.raises(ConnectionError, match="the cluster"), open_output(tmp_path / "out"):
        raise ConnectionError("the cluster is gone")


def test_a_closed_pipe_ends_a_script_without_a_traceback() -> None:
    main = "def main():\n  while True: print('line', flush=True)\n"
    script = f"from hf_mt.command_line import run_script\n{main}run_script(main)"
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == b"" and process.wait() == 141


def test_a_pipe_is_written_and_not_replaced(tmp_path: Path) -> None:
    """As a device is: a root user's `--output /dev/null` must not put a file in its place."""
    pipe, file = tmp_path / "pipe", tmp_path / "file"
    os.mkfifo(pipe)
    file.write_text("old")
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    for path in (pipe, file):
        before = path.stat().st_ino
        with open_output(path) as output:
            output.write(b"text")
        assert (path.stat().st_ino == before) == (path == pipe)  # control: a file is a new one
    assert os.read(reader, 10) == file.read_bytes() == b"text" and pipe.is_fifo()
    os.close(reader)
    assert {path.name for path in tmp_path.iterdir()} == {"pipe", "file"}


def test_a_link_of_a_stranger_is_replaced_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("old")
    (tmp_path / "out").symlink_to(tmp_path / "precious")
    write_whole(tmp_path / "out", "new")
    assert (tmp_path / "precious").read_text() == "old" and not (tmp_path / "out").is_symlink()
