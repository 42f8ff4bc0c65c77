"""What all scripts do alike: options that make sense, exit codes that tell what happened, no secret in a file.

argparse takes `nan`, 10 ** 9 beams and an empty name of a file; here is its `type=` for values that make sense.
"""

import argparse
import errno
import os
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from hf_mt.errors import InputError, checked_text, visible
from hf_mt.key_rules import SECRET_KEYS
from hf_mt.process_group import close_process_group, keep_out_of_defaults
from hf_mt.search_limits import LIMITS
from hf_mt.settings import convert


# Of the system's errors: the disk, and names of files that the user gave
CURABLE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS})
WRONG_NAMES = frozenset({
    errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP
})  # fmt: skip
CLOSED_PIPE = 141  # as a shell reports SIGPIPE
OUT_OF_MEMORY = (
    "{}\nlower tokens_per_batch, and in training raise gradient_accumulation_steps by the same factor, so that a step "
    "sees as much as before. Where an evaluation was at work, lower eval_tokens_per_batch"
)
NO_MEMORY_LEFT = (
    "this machine's memory is full{}. Training reads a corpus of any size with streaming: true; where the model or "
    "its batches are too large, lower its sizes or tokens_per_batch"
)


def run_script(main: Callable[[], None]) -> None:
    """Runs a script's `main`. What the user can cure ends as one message on stderr and exit code 2, an interrupt as
    one line and 130, a closed pipe as 141; any other exception keeps its traceback.
    """
    keep_out_of_defaults()
    try:
        status = _status(main)
        close_process_group()
        if status is not None:
            raise SystemExit(status)
    except InputError as error:
        _end(error)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(130) from None
    except BrokenPipeError:  # who read the output has enough, as `head` has; Python would write the rest at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(CLOSED_PIPE) from None
    except MemoryError as error:  # pyarrow's is one too
        _end(NO_MEMORY_LEFT.format(f": {error}" if str(error) else ""))
    except RuntimeError as error:  # torch is not imported here to name its class
        if type(error).__name__ != "OutOfMemoryError":
            raise
        _end(OUT_OF_MEMORY.format(str(error).split("\n")[0]))
    except OSError as error:
        if error.errno in WRONG_NAMES and error.filename is not None:
            _end(f"{error.filename!s}: {error.strerror}; name another file or folder")
        if error.errno not in CURABLE:
            raise
        _end(f"{error.filename or 'a file'} can't be written: {error.strerror}; make room, or write somewhere else")


def _status(main: Callable[[], None]) -> object:
    """What `main` exits with, after its frames, and what they hold, are gone."""
    try:
        main()
    except SystemExit as leaving:
        return leaving.code
    return None


def _end(message: object) -> NoReturn:
    rank, whose = os.environ.get("RANK", "0"), ""
    if rank != "0":
        time.sleep(2)  # the launcher ends this process by then, if the first one has failed and told why
        whose = f"process {rank}: "
    text = visible(str(message), keep=chr(10))
    print(f"error: {whose}{text}\nfor help: python {sys.argv[0]} --help", file=sys.stderr)
    raise SystemExit(2) from None


def without_secrets(words: Sequence[str]) -> list[str]:
    """Words of a command line as they may be written to a file: *** stands for a secret."""
    shown, is_value = [], False
    for word in words:
        name, equals, _ = word.partition("=")
        is_secret = name.startswith("--") and name[2:].replace("-", "_") in SECRET_KEYS
        shown.append("***" if is_value else f"{name}=***" if is_secret and equals else word)
        is_value = is_secret and not equals
    return shown


def this_command() -> str:
    """The command that this process was started with, without secrets."""
    return shlex.join(("python", f"scripts/{Path(sys.argv[0]).name}", *without_secrets(sys.argv[1:])))


def whole_number(least: int, most: int) -> Callable[[str], int]:
    """A whole number from `least` to `most`."""
    return _within(int, least, most)


def number(least: float, most: float) -> Callable[[str], float]:
    """A finite number from `least` to `most`."""
    return _within(float, least, most)


def limited(name: str) -> Callable[[str], float]:
    """A setting of the search, within its `LIMITS`."""
    least, most = LIMITS[name]
    return _within(float if isinstance(least, float) else int, least, most)


def _within(kind: type[int] | type[float], least: float, most: float) -> Callable[[str], int]:
    def read(text: str) -> int:
        try:
            value = convert(text, kind)
        except InputError as error:
            raise argparse.ArgumentTypeError(str(error)) from error
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"found {value}, wanted {least:,} to {most:,}")
        return value

    return read


def path_name(text: str) -> Path:
    """The name of a file or folder, there or not."""
    found = Path(word(text))
    try:
        found.resolve()
    except (OSError, RuntimeError) as error:  # a circle of links
        raise argparse.ArgumentTypeError(f"no file or folder can be there: {error}") from error
    return found


def word(text: str) -> str:
    """Text that is not empty."""
    if not any_text(text).strip():
        raise argparse.ArgumentTypeError("found nothing; leave the option out, or give it a value")
    return text


def any_text(text: str) -> str:
    """Text, perhaps none, of whole characters."""
    try:
        return checked_text(text)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
