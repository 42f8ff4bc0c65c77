"""Inputs by the thousand, the same each time: a count for each target, and how to break what is whole."""

import random
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis.strategies import SearchStrategy

from hf_mt.errors import InputError


# inputs of each target; every test counts its own
EXAMPLES = {
    "lines": 2000,
    "stream": 2000,
    "written": 500,
    "tsv": 1000,
    "jsonl": 1500,
    "parquet": 150,
    "columns": 150,
    "scores": 1500,
    "yaml": 1000,
    "yaml settings": 200,
    "odd values": 9000,
    "values": 1000,
    "command lines": 400,
    "words": 1000,
    "tokenizer": 120,
    "config": 60,
    "generation": 120,
    "safetensors": 150,
    "run folders": 100,
    "search": 250,
}
SECONDS = 60  # an input that takes longer hangs: most take less than a thousandth of a second


@contextmanager
def no_hang() -> Iterator[None]:
    def late(number: int, frame: FrameType | None) -> None:
        raise AssertionError(f"an input took more than {SECONDS} seconds")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def accepted(call: Callable[[], object]) -> bool:
    """Whether it took the input; a refusal is an `InputError` that says something, and nothing else."""
    with no_hang():
        try:
            call()
        except InputError as error:
            assert len(str(error)) > 10
            assert len(str(error)) < 5000, "a message that nobody reads"
            return False
    return True


def fuzz(target: str, inputs: SearchStrategy[Any], check: Callable[[Any], object]) -> None:
    """Runs `check` on as many inputs as the table says."""
    seen = 0

    @settings(
        max_examples=EXAMPLES[target],
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(value=inputs)
    def run(value: Any) -> None:
        nonlocal seen
        seen += 1
        check(value)

    run()
    assert seen >= EXAMPLES[target]


def broken(target: str, wholes: Sequence[bytes], words: Sequence[bytes]) -> Iterator[bytes]:
    """As many damaged copies of `wholes` as the table says: cut, doubled, overwritten, with `words` put in."""
    for number in range(EXAMPLES[target]):
        chance = random.Random(number)
        content = chance.choice(wholes)
        for _ in range(chance.choice((1, 1, 2, 4, 8))):
            content = _edit(content, words, chance)
        yield content


def _edit(content: bytes, words: Sequence[bytes], chance: random.Random) -> bytes:
    start = chance.randint(0, len(content))
    end = min(len(content), start + chance.choice((0, 0, 1, 2, 4, 16, 64, len(content))))
    kind = chance.randrange(6)
    if kind == 0:
        return content[:start] + content[end:]
    if kind == 1:
        return content[:end] + content[start:end] + content[end:]
    if kind == 2:
        return content[:start] + bytes(chance.randrange(256) for _ in range(min(8, end - start))) + content[end:]
    return content[:start] + chance.choice(words) + content[end if kind == 5 else start :]


def files(folder: Path) -> dict[str, int]:
    """Everything in a folder, with sizes: what a refusal must leave as it was."""
    return {str(path.relative_to(folder)): path.lstat().st_size for path in folder.rglob("*")}
