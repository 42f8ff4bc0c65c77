"""Text files of any content are read line by line or refused."""

import io
from collections.abc import Callable
from pathlib import Path

import pytest
from fuzzing import EXAMPLES, accepted, broken, files, fuzz
from hypothesis import strategies as st

from hf_mt.arguments import DataArguments
from hf_mt.corpora import load_corpus
from hf_mt.errors import InputError
from hf_mt.pair_files import read_lines
from hf_mt.text_files import open_output, read_stream, write_whole


WORDS = [
    b"\xff",
    b"\xc3",
    b"\xed\xa0\x80",
    b"\xf4\x90\x80\x80",
    b"\0",
    b"\xef\xbb\xbf",
    b"\r\n",
    b"\r",
    b"\n",
    b"\n\n",
]
WORDS += [word.encode() for word in ("\u2028", "\u2029", "\x85", "\x0b\x0c\x1c", "שלום \u202e")]
WORDS += [word.encode() for word in ("👩‍👩‍👧‍👦🏳️‍🌈", "e\u0301" * 40)]
WORDS += [b" " * 70, b"\t", b"a" * 5000, b"\xff\xfe", b"\x1b[31m"]
WHOLE = [
    "A dog runs.\nTwo men talk.\n\nÉtat « libre »\u202f!\n".encode(),
    b"",
    b"one",
    b"\n" * 50,
    "日本語\r\n".encode(),
]


def test_there_are_twenty_thousand_inputs() -> None:
    assert sum(EXAMPLES.values()) > 20_000


def test_lines_are_those_of_the_file_or_refused(tmp_path: Path) -> None:
    path = tmp_path / "text"
    taken = 0
    for content in broken("lines", WHOLE, WORDS):
        path.write_bytes(content)
        if accepted(lambda: read_lines(path)):
            taken += 1
            lines = read_lines(path)
            whole = content.decode("utf-8-sig").replace("\r\n", "\n").removesuffix("\n")
            assert "\n".join(lines) == whole.removesuffix("\r") or whole.endswith("\r")
    assert EXAMPLES["lines"] / 5 < taken < EXAMPLES["lines"] * 4 / 5, "both happen"


def test_streams_give_the_lines_of_files(tmp_path: Path) -> None:
    path = tmp_path / "text"
    for content in broken("stream", WHOLE, WORDS):
        path.write_bytes(content)
        streamed = accepted(lambda: list(read_stream(io.BytesIO(content), "x")))  # noqa: B023
        if content.removeprefix(b"\xef\xbb\xbf"):
            assert streamed == accepted(lambda: read_lines(path))
        if streamed and content.removeprefix(b"\xef\xbb\xbf"):
            assert list(read_stream(io.BytesIO(content), "standard input")) == read_lines(path)


@pytest.mark.parametrize(
    ("content", "lines"),
    [
        (b"x" * 20_000_000, 1),
        (b"a\n" * 1_000_000, 1_000_000),
        (b" " * 1000 + b"\n", 1),
        ("🏳️‍🌈\u2028\u202e\n".encode(), 1),
    ],
    ids=["one giant line", "a million lines", "spaces", "no other line ends"],
)
def test_sizes_are_no_matter(content: bytes, lines: int, tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_bytes(content)
    assert len(read_lines(path)) == lines == sum(1 for _ in read_stream(io.BytesIO(content), "x"))


def places(folder: Path) -> dict[str, str]:
    """Names of files that are none, and how they come about."""
    (folder / "folder").mkdir()
    (folder / "empty").touch()
    (folder / "loop").symlink_to(folder / "loop")
    (folder / "dangling").symlink_to(folder / "nothing")
    (folder / "file").write_text("a\n")
    names = {name: str(folder / name) for name in ("folder", "empty", "loop", "dangling", "absent", "file/below")}
    return names | {"null": "/dev/null", "long": "x" * 5000, "nul": "a\0b", "home": "~nobody_of_this_name/x", "": ""}


def test_files_that_are_none_are_refused_by_name(tmp_path: Path) -> None:
    for name in places(tmp_path).values():
        with pytest.raises(InputError):
            read_lines(Path(name))
        for ending in ("", ".tsv", ".jsonl", ".parquet"):
            data = DataArguments(source_lang="en", target_lang="de", train_file=name + ending or None)
            with pytest.raises(InputError):
                load_corpus(data, splits=("train",))


@pytest.mark.parametrize(
    "write", [lambda name: open_output(name).__enter__(), lambda name: write_whole(Path(name), "x")]
)
def test_files_that_cannot_be_written_are_refused(write: Callable[[str], object], tmp_path: Path) -> None:
    named = places(tmp_path)
    before = files(tmp_path)
    for name in ("nul", ""):
        with pytest.raises(InputError, match="no name of a file"):
            write(named[name])
    for name in ("folder", "long", "file/below"):
        with pytest.raises((InputError, OSError)), open_output(named[name]) as file:
            file.write(b"x")
    assert files(tmp_path) == before


def test_what_is_written_comes_back(tmp_path: Path) -> None:
    """A control of the refusals: text without the forbidden characters is never refused."""
    texts = st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r\n")), min_size=1)
    path = tmp_path / "x"

    def check(lines: list[str]) -> None:
        write_whole(path, "".join(f"{line}\n" for line in lines))
        lines[0] = lines[0].removeprefix("\ufeff")
        assert read_lines(path) == lines

    fuzz("written", texts, check)
