"""What a user can cause and cure, and how text of any content is shown in a message."""

import re
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Any


MESSAGE = 4000  # characters that somebody reads
SHOWN = 200  # of them, for a value
NO_TEXT = re.compile("[\0\ud800-\udfff]")  # NUL, and halves of surrogate pairs


class InputError(ValueError):
    """What a user can cause and cure: the message says what was found, what is allowed and what to do.

    A long one is cut in its middle: what was found may be a file without line ends.
    """

    def __init__(self, message: object = ""):
        text = str(message)
        if len(text) > MESSAGE:
            text = f"{text[: MESSAGE * 3 // 4]} ... {text[-MESSAGE // 4 :]}"
        super().__init__(text)


def shown(value: Any) -> str:
    """A value as a message shows it: text in quotes, and not more of it than tells which it is."""
    text = repr(str(value)) if isinstance(value, str) else repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}... ({len(text)} characters)"


def visible(text: str, keep: str = "") -> str:
    """`text` with control characters as pictures (U+2400 and on), which no terminal obeys; those in `keep` stay."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f]", lambda found: found[0] if found[0] in keep else _picture(found[0]), text)


def _picture(control: str) -> str:
    return chr(0x2400 + ord(control)) if ord(control) < 0x20 else "\N{REPLACEMENT CHARACTER}"


def checked_text(text: str) -> str:
    """`text` as a plain string.

    Raises:
        InputError: It holds NUL or half of a surrogate pair, which no file name, and no file, can hold.
    """
    if NO_TEXT.search(text):
        raise InputError(f"found {shown(text)}, wanted text, without NUL and without bytes that are not UTF-8")
    return str(text)


def listing(names: Iterable[object], most: int = 12) -> str:
    """Names as a message shows them, and how many more there are."""
    listed = [str(name) for name in names]
    rest = f" and {len(listed) - most} more" if len(listed) > most else ""
    return ", ".join(listed[:most]) + rest if listed else "nothing"


def nearby(path: Path) -> str:
    """The end of an error message about a missing file: what there is instead."""
    if not path.parent.is_dir():
        return f"there is no folder {path.parent}."
    try:
        names = sorted(entry.name for entry in path.parent.iterdir())
    except OSError as error:
        return f"{path.parent} can't be read: {error.strerror}."
    near = [name for name in names if name.startswith(path.stem)] or get_close_matches(path.name, names, n=5)
    return f"in {path.parent} there is {listing(near or names)}."
