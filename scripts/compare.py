"""Tells whether systems differ, or only their luck with the test set: paired tests against the first one.

    python scripts/compare.py runs/baseline runs/rope runs/alibi
    python scripts/compare.py base.txt other.txt --references test.de

A system is a run folder or a file of translations. Runs are compared on their test set, or on their development set
where one of them has no other, or with `--split validation`. The tests are sacrebleu's.
"""

import argparse

from hf_mt.command_line import run_script, whole_number, word
from hf_mt.errors import InputError
from hf_mt.progress import quiet_libraries
from hf_mt.scores import PREFIXES, SET_NAMES
from hf_mt.significance import METHODS, MOST_SAMPLES, SEED, common_split, compare_systems, read_systems
from hf_mt.tables import print_comparisons


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument(
        "systems", type=word, nargs="+", help="two or more: run folders, or files of translations, a line each"
    )
    parser.add_argument(
        "--references", type=word, nargs="+", default=[], help="files of references, a line each, for files"
    )
    parser.add_argument(
        "--split", choices=list(SET_NAMES), help="of runs; by default the test set, or validation where one has none"
    )
    parser.add_argument("--method", choices=list(METHODS), default="bootstrap", help="which paired test")
    parser.add_argument(
        "--metrics", nargs="+", type=word, default=["bleu", "chrf"], help="of bleu, chrf, chrf_pp, ter"
    )
    parser.add_argument(
        "--samples", type=whole_number(0, MOST_SAMPLES), default=0, help="default: 1,000 resamplings or 10,000 trials"
    )
    parser.add_argument("--seed", type=whole_number(1, 2**32 - 1), default=SEED, help="of the resampling")
    parser.add_argument("--lowercase", action="store_true", help="case does not count; scores get other names")
    parser.add_argument(
        "--tokenize", type=word, default="13a", help="BLEU's tokenizer; none for text that is tokenised"
    )
    return parser.parse_args()


def main() -> None:
    quiet_libraries()
    args = vars(parse())
    paths, wanted = args.pop("systems"), args.pop("split")
    split = common_split(paths, wanted)
    if wanted is not None and split is None:
        raise InputError(f"--split {wanted} is a set of run folders, and none is given; leave it out")
    systems, references = read_systems(paths, args.pop("references"), split=split)
    if split is not None:
        print(f"on the {SET_NAMES[split]}, {PREFIXES[split]}_scores.tsv")
    print_comparisons(compare_systems(systems, references, **args))


if __name__ == "__main__":
    run_script(main)
