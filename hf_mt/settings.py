"""
Settings as a user writes them, in one YAML file or as `--key value` options, and the values they stand for.

- Every scalar is read as text and becomes a value only when the type of its key is known, in `convert`, which file and
  command line share. PyYAML alone would read `2e-3` as text and `no`, the code of Norwegian, as False.
- Parsed by hand: argparse takes `--num_b` for `--num_beams`, checks no choices on defaults, reads `--flag=False` as an
  error, and lets a later option silently replace an earlier one.
- Each setting remembers where it stands, so that an error found at any later time can name the line.
"""

import json
import math
import re
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from enum import Enum
from pathlib import Path
from typing import Any, Literal, TypeAlias, Union, get_args, get_origin

import yaml

from hf_mt.errors import InputError, checked_text, nearby, shown


COMMAND_LINE = "command line"
Raw: TypeAlias = "str | bool | list[Raw] | dict[str, Raw]"

MOST_INTEGER = 2**63 - 1
MOST_LEVELS = 20  # of lists and mappings in each other
NOTHING = ("", "~", "null", "none")
BOOLEANS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


class Quoted(str):
    """Text that stood in quotes: `"null"` is a word, null is no value."""


@dataclass(frozen=True)
class Setting:
    """One value as written, and the place to name when it is wrong (`configs/x.yaml:12`, `command line`)."""

    raw: Raw
    where: str


def did_you_mean(word: str, choices: Sequence[str]) -> str:
    """The end of an error message about `word`: the nearest of `choices`, or nothing if none is near."""
    near = get_close_matches(word[:100], choices, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


# The YAML file


def read_yaml(path: Path) -> dict[str, Setting]:
    """
    The settings of a flat YAML file, unconverted.

    Raises:
        InputError: the file is missing or not UTF-8 YAML, is no mapping, repeats a key, uses an alias or a tag, or is
            nested too deeply.
    """
    text = _read_text(path)
    try:
        level = 0
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            _refuse_indirection(event, path)
            level += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if level > MOST_LEVELS:  # the time that PyYAML takes for them grows with their square
                raise InputError(f"{path}:{_line(event)}: nested too deeply; write fewer brackets")
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else str(path)
        raise InputError(f"{place}: not valid YAML: {error.problem or error.context}") from error
    except yaml.reader.ReaderError as error:
        raise InputError(f"{path}: not valid YAML: {error.reason} (character {error.position})") from error
    except InputError:
        raise
    except ValueError as error:  # a number in an escape that is no character
        raise InputError(f"{path}: not valid YAML: {error}") from error
    if root is None:
        raise InputError(f"{path}: the file holds no settings; write one `key: value` on each line")
    if not isinstance(root, yaml.MappingNode):
        raise InputError(f"{path}:{root.start_mark.line + 1}: wanted one `key: value` on each line")
    lines = _unique_keys(root, path)
    return {key.value: Setting(_plain_tree(value, path), f"{path}:{lines[key.value]}") for key, value in root.value}


def _refuse_indirection(event: yaml.Event, path: Path) -> None:
    """What stands in a file is what it says: no `*alias`, and no `!tag` that would make something else of a value."""
    line = _line(event)
    if isinstance(event, yaml.AliasEvent):
        raise InputError(f"{path}:{line}: aliases (*name) are refused; write the value")
    if tag := getattr(event, "tag", None):
        raise InputError(f"{path}:{line}: tags are refused, but found {tag}; write the value alone")


def _line(event: yaml.Event) -> int:
    return event.start_mark.line + 1 if event.start_mark else 0


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise InputError(f"cannot read {path}: {error.strerror}; {nearby(path)}") from error
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text (byte {error.start})") from error
    except ValueError as error:  # NUL in a name
        raise InputError(f"cannot read {str(path)!r}: {error}") from error


def _unique_keys(node: yaml.MappingNode, path: Path) -> dict[str, int]:
    """The line of each key. PyYAML keeps the last of two equal keys and says nothing."""
    lines: dict[str, int] = {}
    for key, _ in node.value:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode):
            raise InputError(f"{path}:{line}: a key must be a word")
        if key.value in lines:
            raise InputError(f"{path}:{line}: {key.value!r} is given a second time; first on line {lines[key.value]}")
        lines[key.value] = line
    return lines


def _plain_tree(node: yaml.Node, path: Path) -> Raw:
    if isinstance(node, yaml.MappingNode):
        _unique_keys(node, path)
        return {key.value: _plain_tree(value, path) for key, value in node.value}
    if isinstance(node, yaml.SequenceNode):
        return [_plain_tree(item, path) for item in node.value]
    return Quoted(node.value) if isinstance(node, yaml.ScalarNode) and node.style else node.value


# The command line


def read_options(argv: Sequence[str], is_flag: Callable[[str], bool | None]) -> tuple[Path | None, dict[str, Setting]]:
    """
    The YAML file, if one is named (alone or as `--config FILE`), and the options of a command line, unconverted.

    `is_flag(key)` tells which keys may stand without a value and then mean True; None if there is no such key.

    Raises:
        InputError: more than one file, another stray word, a repeated option, or an option without its value.
    """
    paths: list[str] = []
    options: dict[str, Setting] = {}
    words = list(argv)
    while words:
        word = words.pop(0)
        if not word.startswith("--"):
            paths.append(word)
            continue
        name, equals, value = word[2:].partition("=")
        key = name.replace("-", "_")
        if key in options:
            raise InputError(f"command line: --{key} is given twice")
        raw: Raw = value if equals else _next_value(key, words, is_flag(key))
        if key == "config":  # a sweep can only send options
            paths.append(str(raw))
        else:
            options[key] = Setting(raw, COMMAND_LINE)
    return _only_path(paths), options


def _next_value(key: str, words: list[str], flag: bool | None) -> Raw:
    """The value of `--key value`, taken off `words`."""
    if flag and not (words and words[0].lower() in (*BOOLEANS, "none")):
        return True
    if words and not words[0].startswith("--"):
        return words.pop(0)
    if flag is None:  # that the key is unknown is the more useful message, and comes later
        return True
    raise InputError(f"command line: --{key} needs a value (one that starts with -- is written --{key}=VALUE)")


def _only_path(paths: list[str]) -> Path | None:
    strays = [path for path in paths if not path.endswith((".yaml", ".yml"))]
    if strays:
        raise InputError(f"command line: {strays[0]!r} is neither a .yaml file nor an option; options start with --")
    if len(paths) > 1:
        raise InputError(f"command line: one YAML file at most, but found {', '.join(paths)}")
    return Path(paths[0]) if paths else None


# From text to a value


class _Mismatch(Exception):
    """The text is not of this type; another member of a union may fit."""


def convert(raw: Raw, hint: Any) -> Any:
    """
    The value of type `hint` that `raw` stands for. In a union the strictest member that fits wins.

    Raises:
        InputError: it stands for none; the message has what was found and what is wanted, but not where.
    """
    members = list(get_args(hint)) if get_origin(hint) in (Union, types.UnionType) else [hint]
    chosen = any(raw in get_args(member) for member in members if get_origin(member) is Literal)
    optional = type(None) in members and not chosen  # a choice may be called none
    if optional and isinstance(raw, str) and not isinstance(raw, Quoted) and raw.lower() in NOTHING:
        return None
    for member in sorted(_readable(members), key=lambda member: _STRICTNESS.index(_kind(member))):
        try:
            return _READERS[_kind(member)](raw, member, str in members)
        except _Mismatch:
            continue
    raise InputError(f"found {shown(raw)}, wanted {describe(hint)}{_nearest_choice(raw, members)}")


def describe(hint: Any) -> str:
    """A type in words: `a whole number or null`."""
    members = list(get_args(hint)) if get_origin(hint) in (Union, types.UnionType) else [hint]
    names = dict.fromkeys(
        _describe(member) for member in _readable(members) if member is not int or float not in members
    )
    return " or ".join([*names, *["null"] * (type(None) in members)])


def _readable(members: list[Any]) -> list[Any]:
    """The members that text can stand for. Beside an enumeration, `str` only means the names of its members."""
    known = [member for member in members if _kind(member) in _READERS]
    return [member for member in known if member is not str or not any(_kind(other) is Enum for other in known)]


def _kind(member: Any) -> Any:
    origin = get_origin(member) or member
    return Enum if isinstance(origin, type) and issubclass(origin, Enum) else origin


def _read_choice(raw: Raw, member: Any, or_text: bool) -> Any:
    for choice in _choices(member):
        if raw == choice or (isinstance(choice, bool) and isinstance(raw, str) and raw.lower() == str(choice).lower()):
            return choice
    raise _Mismatch


def _choices(member: Any) -> list[Any]:
    return list(get_args(member)) if get_origin(member) is Literal else [item.value for item in member]


def _read_bool(raw: Raw, member: Any, or_text: bool) -> bool:
    if isinstance(raw, bool):
        return raw
    word = raw.lower() if isinstance(raw, str) else ""
    if word not in BOOLEANS or (or_text and word not in ("true", "false")):  # where text fits too, `no` is text
        raise _Mismatch
    return BOOLEANS[word]


def _read_int(raw: Raw, member: Any, or_text: bool) -> int:
    try:
        return int(_text(raw))
    except ValueError:
        raise _Mismatch from None


def _read_bounded_int(raw: Raw, member: Any, or_text: bool) -> int:
    value = _read_int(raw, member, or_text)
    if abs(value) > MOST_INTEGER:
        raise InputError(f"found {shown(raw)}, wanted a whole number below 2 ** 63")
    return value


def _read_float(raw: Raw, member: Any, or_text: bool) -> float:
    try:
        value = float(_text(raw))
    except ValueError:
        raise _Mismatch from None
    if not math.isfinite(value):
        raise InputError(f"found {shown(raw)}, wanted a finite number")
    return value


def _read_str(raw: Raw, member: Any, or_text: bool) -> str:
    return checked_text(_text(raw))


def _read_list(raw: Raw, member: Any, or_text: bool) -> list[Any]:
    items = _json(raw) if isinstance(raw, str) and raw.startswith("[") else raw
    if not isinstance(items, list):
        raise _Mismatch
    (item_hint,) = get_args(member) or (Any,)
    return [untyped(item) if item_hint is Any else convert(item, item_hint) for item in items]


def _read_dict(raw: Raw, member: Any, or_text: bool) -> dict[str, Any]:
    items = _json(raw) if isinstance(raw, str) and raw.startswith("{") else raw
    if not isinstance(items, dict):
        raise _Mismatch
    return {key: untyped(value) for key, value in items.items()}


def _text(raw: Raw) -> str:
    if not isinstance(raw, str):
        raise _Mismatch
    return raw


def _json(text: str) -> Any:
    """JSON with its strings marked as quoted, so that the word "1" stays a word."""
    try:
        return _mark_strings(json.loads(text, parse_constant=_finite, parse_float=_finite))
    except (ValueError, RecursionError) as error:
        told = str(error) if isinstance(error, ValueError) else "nested too deeply"
        raise InputError(f"found {shown(text)}, which is not valid JSON: {told}") from error


def _finite(number: str) -> float:
    if not math.isfinite(float(number)):
        raise ValueError(f"{number} is not a finite number")
    return float(number)


def _mark_strings(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _mark_strings(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_mark_strings(item) for item in value]
    return Quoted(value) if isinstance(value, str) else value


def untyped(raw: Any) -> Any:
    """A value inside a list or mapping, where no type is declared: what JSON would make of it."""
    if isinstance(raw, dict):
        return {key: untyped(value) for key, value in raw.items()}
    if isinstance(raw, list):
        return [untyped(value) for value in raw]
    if not isinstance(raw, str) or isinstance(raw, Quoted):
        return str(raw) if isinstance(raw, str) else raw
    if raw.lower() in NOTHING:
        return None
    if raw.lower() in ("true", "false"):
        return raw.lower() == "true"
    for read in (_read_int, _read_float):
        try:
            return read(raw, None, False)
        except _Mismatch:
            continue
    return raw


_READERS: dict[Any, Callable[[Any, Any, bool], Any]] = {
    Literal: _read_choice,
    Enum: _read_choice,
    bool: _read_bool,
    int: _read_bounded_int,
    float: _read_float,
    list: _read_list,
    dict: _read_dict,
    str: _read_str,
}
_STRICTNESS = list(_READERS)
_NAMES = {bool: "true or false", int: "a whole number", float: "a number", list: "a list", dict: "a mapping"}


def _describe(member: Any) -> str:
    kind = _kind(member)
    if kind in (Literal, Enum):
        return f"one of {', '.join(map(str, _choices(member)))}"
    return _NAMES.get(kind, "text")


def _nearest_choice(raw: Raw, members: list[Any]) -> str:
    choices = [str(choice) for member in members if _kind(member) in (Literal, Enum) for choice in _choices(member)]
    return did_you_mean(raw, choices) if isinstance(raw, str) else ""


# From a value to text

# JSON leaves these characters bare, YAML refuses or folds them; and PyYAML takes 1e-08 for text, 1.0e-08 for a number.
_UNPRINTABLE = re.compile("[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]")
_STRING_OR_EXPONENT = re.compile(r'"(?:[^"\\]|\\.)*"|(?<![\d.])\d+(?=e)')


def yaml_value(value: Any) -> str:
    """`value` on one line of JSON that is also YAML, such that `read_yaml` and `convert`, or PyYAML, give it back."""
    text = json.dumps(value, ensure_ascii=False)
    text = _STRING_OR_EXPONENT.sub(lambda match: match[0] if match[0][0] == '"' else f"{match[0]}.0", text)
    return _UNPRINTABLE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)
