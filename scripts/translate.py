"""Translates sentences with a trained model: given ones, a file, a data set, or standard input, line by line.

    python scripts/translate.py runs/quickstart "A dog runs." "Two men talk."
    python scripts/translate.py runs/quickstart --input test.en --output test.de --num_beams 5
    accelerate launch scripts/translate.py runs/quickstart --input big.en --output big.de

Several processes share the input in shards (one makes shards with --shard_size), and a job in shards that was
interrupted goes on when it is started again, with as many processes as you like. Standard output carries translations
alone, progress and warnings go to standard error.
"""

import argparse
import sys
from functools import partial

from accelerate import PartialState

from hf_mt.command_line import any_text, limited, run_script, word
from hf_mt.hardware import prepare_hardware
from hf_mt.progress import quiet_libraries
from hf_mt.shards import translate
from hf_mt.translator_options import (
    add_input_options,
    add_search_options,
    add_translator_options,
    source_from,
    translator_from,
)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    add_translator_options(parser)
    parser.add_argument("sentences", type=any_text, nargs="*", help="sentences to translate, instead of --input")
    add_input_options(parser)
    add_search_options(parser)
    parser.add_argument(
        "--nbest", type=limited("nbest"), default=0, help="hypotheses a line, as: index ||| hypothesis ||| score"
    )
    parser.add_argument("--output", type=word, default="-", help="where to write; - (the default): standard output")
    parser.add_argument(
        "--shard_size", type=limited("shard_size"), help="lines of a shard; default: 20000 for several processes"
    )
    return parser.parse_intermixed_args()  # options may stand before the sentences


def main() -> None:
    prepare_hardware()
    quiet_libraries()
    args = vars(parse())
    source, translator = source_from(args), translator_from(args)
    processes = PartialState()
    say, watched = partial(processes.print, file=sys.stderr), processes.is_main_process and sys.stderr.isatty()
    translate(translator, source, args.pop("output"), say=say, show_progress=watched, **args)


if __name__ == "__main__":
    run_script(main)
