"""Where a text may be cut: at the ends of its sentences, and nowhere else.

- `. ! ? …` end a sentence, with the closing quotes and brackets after them, where white space follows and then no
  lower-case letter. A full stop ends none after one letter alone (`J.`, `e.g.`, `z. B.`), after one or two digits
  (`2. Mai`), and after one of `ABBREVIATIONS`.
- `。！？｡` (Chinese, Japanese), `؟ ۔` (Arabic, Urdu), `। ॥` (Devanagari and its neighbours), `։ ። ။ ។` (Armenian,
  Ethiopic, Burmese, Khmer) end a sentence always, with the closing quotes and brackets after them.
- A line break is white space. A script without marks at its ends of sentences, such as Thai, is never cut.

A mark may be missed, which makes a piece longer; what is cut, when put together, is the text, character for character.
"""

import re
from collections.abc import Callable, Iterator, Sequence


_ABBREVIATIONS = """
Mr Mrs Ms Dr Prof St Mt No Nr Nos vs cf Art Abs bzw Mme Mlle Sr Sra Gen Sen Rep
"""
ABBREVIATIONS = frozenset(_ABBREVIATIONS.split())
_CLOSING = r"[\"'”’»›)\]}」』）】》〉〕｣]*"
_END = re.compile(rf"[.!?…]+{_CLOSING}(?=\s)|[。！？｡؟۔।॥։።။។][。！？｡؟۔।॥։።။។!?…]*{_CLOSING}")
_LAST_WORD = re.compile(r"[\w.]*\Z")
_CJK = re.compile(r"[\u3000-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff00-\uffef\U00020000-\U0003ffff]")


def split_sentences(text: str) -> list[str]:
    """The sentences of a text, each with the white space after it; joined, they are the text."""
    cuts = [0, *_cuts(text), len(text)]
    return [text[start:end] for start, end in zip(cuts, cuts[1:], strict=False) if start < end]


def _cuts(text: str) -> Iterator[int]:
    for match in _END.finditer(text):
        end = match.end()
        while end < len(text) and text[end].isspace():
            end += 1
        goes_on = match[0][0] in ".!?…" and text[end : end + 1].islower()
        if not goes_on and (match[0] != "." or _ends_sentence(text[max(0, match.start() - 40) : match.start()])):
            yield end


def _ends_sentence(before: str) -> bool:
    """Whether a full stop does, after this."""
    word = _LAST_WORD.search(before)[0].rsplit(".", 1)[-1]  # type: ignore[index]
    ordinal, initial = word.isdigit() and len(word) <= 2, word.isalpha() and len(word) == 1
    return not (ordinal or initial or word in ABBREVIATIONS)


def pack(text: str, limit: int, count: Callable[[str], int]) -> list[str]:
    """Neighbouring sentences of a text together, as many as fit, without the white space around them.

    Args:
        text: One or more sentences.
        limit: The most tokens of a piece; a single sentence may have more.
        count: The tokens of a piece.
    """
    packed: list[str] = []
    for sentence in split_sentences(text):
        longer = (packed[-1] if packed else "") + sentence
        if packed and count(longer.strip()) <= limit:
            packed[-1] = longer
        else:
            packed.append(sentence)
    return [piece.strip() for piece in packed if piece.strip()]


def join(texts: Sequence[str]) -> str:
    """Translated pieces in one line: a space between, but none beside Chinese or Japanese characters and marks."""
    joined = ""
    for text in filter(None, texts):
        tight = not joined or _CJK.match(joined[-1]) or _CJK.match(text[0])
        joined += text if tight else f" {text}"
    return joined
