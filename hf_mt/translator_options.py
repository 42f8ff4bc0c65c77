"""Options of a command line that choose a model, its input, and how it translates, the same for every script."""

import argparse
from typing import Any

from hf_mt.command_line import any_text, limited, word
from hf_mt.hardware import join_processes
from hf_mt.translation import LONG_LINES, Translator
from hf_mt.translation_input import Input, open_input


MODEL_OPTIONS = ("device", "dtype", "revision", "trust_remote_code", "source_prefix", "source_lang", "target_lang")
SOURCE_OPTIONS = ("input", "dataset", "column", "split", "dataset_config_name", "dataset_revision")


def add_translator_options(parser: argparse.ArgumentParser) -> None:
    """Adds the model, and the keywords of `Translator`."""
    parser.add_argument("model", type=word, help="folder of a run or model, or a name on the Hub")
    group = parser.add_argument_group("the model")
    group.add_argument(
        "--source_prefix", type=any_text, help="text before each sentence (T5); default: that of the run"
    )
    group.add_argument("--source_lang", type=word, help="for multilingual models: code of the source language")
    group.add_argument("--target_lang", type=word, help="for multilingual models: code of the target language")
    group.add_argument("--device", type=word, help="such as cpu or cuda:1; default: each process its accelerator")
    group.add_argument("--dtype", choices=["float32", "float16", "bfloat16"], help="default: as saved")
    group.add_argument("--revision", type=word, help="branch, tag or commit on the Hub")
    group.add_argument("--trust_remote_code", action="store_true", help="let code that comes with the model run")


def add_input_options(parser: argparse.ArgumentParser) -> None:
    """Adds what to translate."""
    group = parser.add_argument_group("the input, instead of sentences")
    group.add_argument("--input", type=word, help="UTF-8 text, a sentence a line; - (the default): standard input")
    group.add_argument("--dataset", type=word, help="file of JSONL, Parquet or CSV, folder, or name on the Hub")
    group.add_argument("--column", type=word, help="its column of texts; translation.en in one of dictionaries")
    group.add_argument("--split", type=word, help="its split, if it has several")
    group.add_argument("--dataset_config_name", type=word, help="its configuration, on the Hub")
    group.add_argument("--dataset_revision", type=word, help="its branch, tag or commit there")


def add_search_options(parser: argparse.ArgumentParser) -> None:
    """Adds how to translate: keywords of `Translator.translate_stream`."""
    group = parser.add_argument_group("the translations")
    group.add_argument("--num_beams", type=limited("num_beams"), help="beam size; default: that of the model")
    group.add_argument(
        "--length_penalty", type=limited("length_penalty"), help="above 1 favours longer translations in beam search"
    )
    group.add_argument(
        "--max_length_a", type=limited("max_length_a"), default=2.0, help="a translation has at most a * source tokens"
    )
    group.add_argument("--max_length_b", type=limited("max_length_b"), default=20, help="+ b tokens")
    group.add_argument(
        "--long_lines", choices=LONG_LINES, default="refuse", help="refuse too long a line, or split it into sentences"
    )
    group.add_argument("--max_source_tokens", type=limited("max_source_tokens"),
                       help="most tokens of a line; default: as many as the model has positions for")  # fmt: skip
    group.add_argument(
        "--tokens_per_batch", type=limited("tokens_per_batch"), default=16384, help="padded source tokens times beams"
    )


def source_from(args: dict[str, Any]) -> Input:
    """The input that the options ask for; they are taken out of `args`."""
    return open_input(args.pop("sentences"), **{name: args.pop(name) for name in SOURCE_OPTIONS})


def translator_from(args: dict[str, Any]) -> Translator:
    """The translator that the options ask for; they are taken out of `args`."""
    processes = join_processes(args["device"])
    args["device"] = args["device"] or processes.device
    return Translator(args.pop("model"), **{name: args.pop(name) for name in MODEL_OPTIONS})
