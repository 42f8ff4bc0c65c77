"""Values of the options of scripts that use argparse, checked before anything else happens.

argparse takes `nan`, 10 ** 9 beams and an empty name of a file; these are its `type=` for values that make sense.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

from hf_mt.errors import InputError, checked_text
from hf_mt.search_limits import LIMITS
from hf_mt.settings import convert


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
