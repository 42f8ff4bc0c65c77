"""A search for input that ends in anything but a result or a refusal, guided by the lines that it reaches.

    pip install atheris && python tests/fuzz/guided.py yaml -max_total_time=60 -rss_limit_mb=8192

Targets: text, tsv, jsonl, yaml, values, words, options. What follows them is libFuzzer's. Nothing found: it ends by
itself with exit code 0; otherwise with a traceback, and the input in a file crash-*.
"""

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import atheris


with atheris.instrument_imports(include=["hf_mt", "yaml"]):
    from hf_mt.arguments import DataArguments
    from hf_mt.errors import InputError
    from hf_mt.experiment import parse_experiment, typed_values, valid_keys
    from hf_mt.pair_files import file_pairs, read_lines
    from hf_mt.settings import COMMAND_LINE, Setting, read_options, read_yaml


FOLDER = Path(tempfile.mkdtemp())
DATA = DataArguments(source_lang="en", target_lang="de")
KEYS = sorted(valid_keys())


def file(name: str, content: bytes) -> Path:
    path = FOLDER / name
    path.write_bytes(content)
    return path


def words(content: bytes) -> list[str]:
    return content.decode("utf-8", "surrogateescape").split("\n")


def one_value(content: bytes) -> object:
    key, _, value = content.partition(b"\n")
    name = KEYS[sum(key) % len(KEYS)]
    return typed_values({name: Setting(value.decode("utf-8", "replace"), COMMAND_LINE)})


TARGETS: dict[str, Callable[[bytes], object]] = {
    "text": lambda content: read_lines(file("x", content)),
    "tsv": lambda content: list(file_pairs(file("x.tsv", content), DATA)),
    "jsonl": lambda content: list(file_pairs(file("x.jsonl", content), DATA)),
    "yaml": lambda content: read_yaml(file("x.yaml", content)),
    "values": one_value,
    "words": lambda content: read_options(words(content), {"a": True, "b": False}.get),
    "options": lambda content: parse_experiment(
        ["--source_lang=en", "--target_lang=de", *(word for word in words(content) if word not in ("-h", "--help"))]
    ),
}


def main() -> None:
    target = TARGETS[sys.argv.pop(1)]

    def one_input(content: bytes) -> None:
        try:
            target(content)
        except InputError as error:
            assert str(error)

    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
