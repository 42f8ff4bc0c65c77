"""Translations as lines of a file: one for each line of the input, or a list of hypotheses with its number."""

from collections.abc import Iterable, Sequence
from typing import Any, BinaryIO

from hf_mt.hypotheses import Hypothesis, Tally
from hf_mt.text_files import one_line, open_output
from hf_mt.translation import Translator


def write_translations(translator: Translator, lines: Iterable[str], output: str, **options: Any) -> None:
    """Writes a file as `write_lines` does, and logs what there is to say of it.

    Args:
        translator: Translates.
        lines: Sentences.
        output: A file, which appears once it is whole, or "-" for standard output, written block by block.
        **options: Those of `write_lines`.
    """
    with open_output(output) as file:
        tally = write_lines(translator, lines, file, **options)
    tally.warn()


def write_lines(
    translator: Translator,
    lines: Iterable[str],
    file: BinaryIO,
    *,
    nbest: int = 0,
    first_line: int = 1,
    **options: Any,
) -> Tally:
    """Writes one line for each line, or with `nbest` its hypotheses as `index ||| hypothesis ||| score`, from 0.

    A line break that a model writes becomes a space, and is counted.

    Args:
        translator: Translates.
        lines: Sentences.
        file: Where to.
        nbest: Hypotheses for each line; 0: the translation alone.
        first_line: The number of the first line, from 1, in messages; its index is one less.
        **options: Those of `Translator.translate_stream`.
    """
    tally = Tally()
    stream = translator.translate_stream(lines, nbest=nbest, first_line=first_line, tally=tally, **options)
    write_hypotheses(stream, file, tally, nbest=nbest, first_line=first_line)
    return tally


def write_hypotheses(
    stream: Iterable[Sequence[Hypothesis]], file: BinaryIO, tally: Tally, *, nbest: int = 0, first_line: int = 1
) -> None:
    """Writes what `Translator.translate_stream` gives, as `write_lines` does, and counts line breaks in `tally`."""
    for index, hypotheses in enumerate(stream, first_line - 1):
        for hypothesis in hypotheses:
            text = one_line(hypothesis.text)
            tally.line_breaks += text != hypothesis.text
            line = f"{index} ||| {text} ||| {hypothesis.score:.6f}" if nbest else text
            file.write(f"{line}\n".encode())
