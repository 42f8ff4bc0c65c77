"""Prints the log-probability that a model gives to each of the given translations.

    python scripts/score.py runs/quickstart --source test.en --target test.fr > scores.tsv

A line for each pair, in order: log-probability in nats, tokens, log-probability per token. The negative log-likelihood
per token of all pairs, and the perplexity, go to standard error.
"""

import argparse
import sys

from hf_mt.command_line import limited, path_name, run_script
from hf_mt.pair_files import read_lines
from hf_mt.progress import quiet_libraries
from hf_mt.scoring import corpus_perplexity, score_pairs
from hf_mt.translator_options import add_translator_options, translator_from


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    add_translator_options(parser)
    parser.add_argument("--source", type=path_name, required=True, help="UTF-8 text, a sentence a line")
    parser.add_argument("--target", type=path_name, required=True, help="its translations, as many lines")
    parser.add_argument("--tokens_per_batch", type=limited("tokens_per_batch"), default=16384,
                        help="padded tokens of the longer side")  # fmt: skip
    return parser.parse_args()


def main() -> None:
    quiet_libraries()
    args = vars(parse())
    sources, targets = (read_lines(args[side]) for side in ("source", "target"))
    translator = translator_from(args)
    scores = score_pairs(translator, sources, targets, tokens_per_batch=args["tokens_per_batch"])
    for score in scores:
        print(f"{score.log_probability:.4f}\t{score.num_tokens}\t{score.per_token:.4f}")
    if scores:
        nll, perplexity = corpus_perplexity(scores)
        print(f"{len(scores)} pairs: {nll:.4f} nats per token, perplexity {perplexity:.3f}", file=sys.stderr)


if __name__ == "__main__":
    run_script(main)
