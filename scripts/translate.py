"""Translates sentences with a trained model: from the command line, a file, or standard input, line by line.

    python scripts/translate.py runs/quickstart "A dog runs." "Two men talk."
    python scripts/translate.py runs/quickstart --input test.en --output test.de --num_beams 5

Standard output carries translations alone, progress and warnings go to standard error.
"""

import argparse
import sys
from collections.abc import Iterable

from hf_mt.arguments import InputError
from hf_mt.experiment import run_script
from hf_mt.progress import quiet_libraries
from hf_mt.text_files import read_stream
from hf_mt.translation import write_translations
from hf_mt.translator_options import add_translator_options, translator_from


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    add_translator_options(parser)
    parser.add_argument("sentences", nargs="*", help="sentences to translate, instead of --input")
    parser.add_argument("--input", default="-", help="UTF-8 text, a sentence a line; - (the default): standard input")
    parser.add_argument("--output", default="-", help="where to write; - (the default): standard output")
    parser.add_argument("--num_beams", type=int, help="beam size; default: that of the model")
    parser.add_argument("--length_penalty", type=float, help="above 1 favours longer translations in beam search")
    parser.add_argument("--nbest", type=int, default=0, help="hypotheses a line, as: index ||| hypothesis ||| score")
    parser.add_argument("--max_length_a", type=float, default=2.0, help="a translation has at most a * source tokens")
    parser.add_argument("--max_length_b", type=int, default=20, help="+ b tokens")
    parser.add_argument("--tokens_per_batch", type=int, default=16384, help="padded source tokens times beams")
    return parser.parse_intermixed_args()  # options may stand before the sentences


def read_input(name: str) -> Iterable[str]:
    try:
        return read_stream(sys.stdin.buffer, "standard input") if name == "-" else read_stream(open(name, "rb"), name)
    except OSError as error:
        raise InputError(f"{name} can't be read: {error.strerror}") from error


def main() -> None:
    quiet_libraries()
    args = vars(parse())
    lines = args.pop("sentences") or read_input(args["input"])
    del args["input"]
    translator = translator_from(args)
    write_translations(translator, lines, args.pop("output"), show_progress=sys.stderr.isatty(), **args)


if __name__ == "__main__":
    run_script(main)
