"""Pieces of an HTML page: tables, tabs, folds, and text with its differences marked.

A function that takes text escapes it; one that takes cells or bodies takes HTML.
"""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from hf_mt.markdown import number
from hf_mt.slices import UNSPACED


def cell(value: Any) -> str:
    """A number from a file, which may hold anything by now."""
    return escape(number(value))


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of cells that are HTML already; columns of numbers are aligned right."""
    rows = [list(row) for row in rows]
    kinds = [_kind([row[column] for row in rows]) for column in range(len(header))]
    head = "".join(f'<th class="{kind}">{text}</th>' for kind, text in zip(kinds, header, strict=True))
    body = "".join(
        "<tr>" + "".join(f'<td class="{kind}">{text}</td>' for kind, text in zip(kinds, row, strict=True)) + "</tr>"
        for row in rows
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _kind(cells: Sequence[str]) -> str:
    plain = (text.replace("&plusmn;", "").replace("baseline", "") for text in cells)
    return "number" if all(not text.strip("0123456789.,%*+-e ") for text in plain) else "text"


def tabs(name: str, panels: Mapping[str, str]) -> str:
    """Panels of which one is seen at a time; a single one needs no tab."""
    if len(panels) == 1:
        return next(iter(panels.values()))
    buttons, bodies = [], []
    for place, (title, body) in enumerate(panels.items()):
        chosen = "true" if place == 0 else "false"
        target = f"{name}-{place}"
        buttons.append(
            f'<button type="button" role="tab" id="{target}-tab" aria-controls="{target}" aria-selected="{chosen}" '
            f'tabindex="{0 if place == 0 else -1}">{escape(title)}</button>'
        )
        hidden = "" if place == 0 else " hidden"
        bodies.append(
            f'<div role="tabpanel" id="{target}" data-title="{escape(title)}" aria-labelledby="{target}-tab"{hidden}>'
            f"{body}</div>"
        )
    return f'<div class="tabs" role="tablist">{"".join(buttons)}</div>{"".join(bodies)}'


def folded(title: str, body: str) -> str:
    """A body that is seen once its title is clicked."""
    return f"<details><summary>{escape(title)}</summary>{body}</details>"


def marked(text: str, other: str, kind: str) -> str:
    """HTML of `text` with the words marked that are not in `other` at their place.

    Letters instead of words, where a language writes none between spaces.
    """
    space = "" if UNSPACED.search(text + other) else " "
    words, others = (text.split(), other.split()) if space else (list(text), list(other))
    parts = []
    for operation, start, end, *_ in difflib.SequenceMatcher(None, words, others, autojunk=False).get_opcodes():
        piece = escape(space.join(words[start:end]))
        parts.append(piece if operation == "equal" or not piece else f'<mark class="{kind}">{piece}</mark>')
    return space.join(part for part in parts if part)
