"""Text that is read and written line by line.

- A line of text ends at `\\n` or `\\r\\n` and nowhere else, and nothing is held in memory.
- Files appear whole or not at all: they are written beside their place and moved there. Devices and pipes are not
  replaced.
"""

import codecs
import os
import re
import shutil
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

from hf_mt.errors import InputError


def read_stream(file: BinaryIO, name: str, first_line: int = 1) -> Iterator[str]:
    """Lines as they are needed, of UTF-8 text; `\\n` or `\\r\\n` ends one, nothing else does.

    Raises:
        InputError: A line isn't UTF-8 or contains NUL.
    """
    for number, raw in enumerate(file, first_line):
        line = raw.removesuffix(b"\n").removesuffix(b"\r")
        line = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise InputError(
                f"{name}, line {number}, byte {error.start + 1}: 0x{line[error.start]:02x} is not UTF-8; convert it, "
                "for example with `iconv -f latin1 -t utf-8`."
            ) from error
        if "\0" in text:
            raise InputError(f"{name}, line {number}: a NUL character; only text is allowed (is the file damaged?).")
        yield text


def one_line(text: str) -> str:
    """The text with a space for each line break, so that it takes one line of a file."""
    return re.sub(r"\r\n|[\r\n]", " ", text)


@contextmanager
def unfinished(path: Path) -> Iterator[Path]:
    """Where to write a file, which takes its name if the block ends well: a crash never leaves half of one.

    A device or a pipe is written as it is: it would be gone if a file took its name.

    Raises:
        InputError: `path` is no name that a file can have.
    """
    if not path.name or "\0" in str(path):
        raise InputError(f"{str(path)!r} is no name of a file; name one to write")
    if path.is_dir():
        raise InputError(f"{path} is a folder; name a file to write")
    if _is_stream(path):
        yield path
        return
    temporary = path.with_name(f".{path.name}.{uuid4().hex}")  # processes of two machines may have one number
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _is_stream(path: Path) -> bool:
    """Whether it is a device or a pipe, or a link of /dev, such as /dev/stdout; links elsewhere are not followed."""
    try:
        mode = os.lstat(path).st_mode
    except OSError:
        return False
    if stat.S_ISLNK(mode):
        return path.absolute().parts[:2] == ("/", "dev")
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def check_folder(folder: Path) -> None:
    """Looks whether a folder can be made and written, without making it: before the work whose results go there.

    Raises:
        InputError: It, or a folder above it, is a file or may not be written.
    """
    place = folder.absolute()
    try:
        while not os.path.lexists(place):
            place = place.parent
        usable = place.is_dir() and os.access(place, os.W_OK | os.X_OK)
    except (OSError, ValueError) as error:
        raise InputError(f"{str(folder)!r} can't be a folder: {error}") from error
    if not usable:
        reason = "may not be written" if place.is_dir() else "is no folder"
        raise InputError(f"{folder} can't be made a folder with results: {place} {reason}; name another")


@contextmanager
def new_folder(folder: Path) -> Iterator[None]:
    """Makes a folder, and those above it; if the block fails, those that were not there before are gone again.

    Raises:
        InputError: As `check_folder`.
    """
    check_folder(folder)
    above = [place for place in (folder, *folder.parents) if not place.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        for place in above[-1:]:
            shutil.rmtree(place, ignore_errors=True)
        raise


def write_whole(path: Path, text: str) -> Path:
    """Writes UTF-8 text as `unfinished` says, in a folder that is made if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with unfinished(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")
    return path


@contextmanager
def open_output(name: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A file to write bytes to, which takes its name once it is whole; "-" is standard output.

    Raises:
        InputError: The file can't be written.
    """
    if name == "-":
        if sys.stdout is None:
            raise InputError("standard output is closed; name a file to write")
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    try:
        with unfinished(Path(name)) as temporary, temporary.open("wb") as file:
            yield file
    except OSError as error:
        if error.errno is None:  # a library's own, of something else
            raise
        raise InputError(f"{name} can't be written: {error.strerror}") from error
