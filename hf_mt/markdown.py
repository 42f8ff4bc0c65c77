"""Markdown that shows text of a corpus and never obeys it.

- Character references take the place of characters with a meaning: a sentence can become no link, tag, formula or
  table cell, and the reader sees it as it is.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Any


class Markup(str):
    """Text that is Markdown already and goes into a table as it is."""


def escape_markdown(text: str) -> str:
    """`text` as Markdown that shows it and does nothing else, on one line.

    Every ASCII character with a meaning in Markdown, HTML or formulas becomes a character reference, which can form
    no structure (CommonMark 0.31, 2.5). An underscore inside a word has no meaning and stays.
    """
    line = re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]", " ", text)
    meaning = r"[#$&*:<>@\[\\\]^`{|}~]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])"
    marked = re.sub(meaning, lambda found: f"&#{ord(found.group())};", line)
    return re.sub(r"www\.", "www&#46;", marked, flags=re.IGNORECASE)


def code(text: str) -> Markup:
    """Text of one line as code in a table; as plain text if it holds what would end the code or a line."""
    if re.search(r"[`\x00-\x1f\x7f-\x9f\u2028\u2029]", text):
        return Markup(escape_markdown(text))
    return Markup("`" + text.replace("|", r"\|") + "`")


def fenced(text: str, language: str) -> str:
    """A code block with a fence longer than any run of backticks inside."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def folded(title: str, body: str) -> str:
    return f"<details>\n<summary>{escape_markdown(title)}</summary>\n\n{body}\n\n</details>"


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table; columns of numbers are aligned right, and every cell but `Markup` is escaped."""
    rows = [[_cell(value) for value in row] for row in rows]
    numeric = [all(re.fullmatch(r"[*\d.,%e+-]*", row[column]) for row in rows) for column in range(len(header))]
    lines = [[escape_markdown(name) for name in header], ["---:" if right else "---" for right in numeric], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: Any) -> str:
    return value if isinstance(value, Markup) else escape_markdown(number(value))


def number(value: Any) -> str:
    """A value as people write it: thousands apart, two decimals, four digits below one."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "" if value is None else str(value)
    if isinstance(value, int) or value.is_integer() and abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.2f}" if abs(value) >= 1 else f"{value:.4g}"
