"""What a translator gives for a line, and what a person should know about many of them."""

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from hf_mt.sentences import join


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Hypothesis:
    """A translation, its score (log-probability / length ** length_penalty; None if not asked for), and its ending.

    `finished` is False for a translation that was cut at its length limit. `parts` is above 1 where a line was split
    and its parts were translated one by one.
    """

    text: str
    score: float | None
    finished: bool
    parts: int = 1


def join_parts(parts: Sequence[Hypothesis]) -> Hypothesis:
    """The translation of a line from those of its parts."""
    return Hypothesis(join([part.text for part in parts]), None, all(part.finished for part in parts), len(parts))


@dataclass
class Tally:
    """Counts of lines that a person should know of.

    Attributes:
        lines: All of them.
        unfinished: Those whose best translation was stopped at its length limit.
        split: Those that were split into sentences.
        line_breaks: Translations with line breaks in them, which became spaces in a file.
    """

    lines: int = 0
    unfinished: int = 0
    split: int = 0
    line_breaks: int = 0

    def add(self, hypotheses: Sequence[Hypothesis]) -> None:
        """Counts one line."""
        self.lines += 1
        self.unfinished += not hypotheses[0].finished
        self.split += hypotheses[0].parts > 1

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(**{name: count + getattr(other, name) for name, count in asdict(self).items()})

    def warn(self) -> None:
        """Logs what there is to say."""
        if self.split:
            logger.warning("%d of %d lines were too long and were split into sentences", self.split, self.lines)
        if self.unfinished:
            logger.warning(
                "%d of %d translations were stopped at their length limit before an end of sentence: the model "
                "repeats itself or is hardly trained; if they are good, raise max_length_a or max_length_b",
                self.unfinished,
                self.lines,
            )
        if self.line_breaks:
            logger.warning("%d translations had line breaks in them, which became spaces", self.line_breaks)
