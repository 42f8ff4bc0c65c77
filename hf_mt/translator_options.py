"""Options of a command line that choose a model and how it is loaded, the same for every script that takes one."""

import argparse
from typing import Any

from hf_mt.translation import Translator


def add_translator_options(parser: argparse.ArgumentParser) -> None:
    """Adds the model, and the keywords of `Translator`."""
    parser.add_argument("model", help="folder of a run or model, or a name on the Hub")
    group = parser.add_argument_group("the model")
    group.add_argument("--source_prefix", default="", help="text before each sentence (T5)")
    group.add_argument("--source_lang", help="for multilingual models: code of the source language")
    group.add_argument("--target_lang", help="for multilingual models: code of the target language")
    group.add_argument("--device", help="such as cpu or cuda:1; default: an accelerator if there is one")
    group.add_argument("--dtype", choices=["float32", "float16", "bfloat16"], help="default: as saved")
    group.add_argument("--revision", help="branch, tag or commit on the Hub")
    group.add_argument("--trust_remote_code", action="store_true", help="let code that comes with the model run")


def translator_from(args: dict[str, Any]) -> Translator:
    """The translator that the options ask for; they are taken out of `args`."""
    names = ("device", "dtype", "revision", "trust_remote_code", "source_prefix", "source_lang", "target_lang")
    return Translator(args.pop("model"), **{name: args.pop(name) for name in names})
