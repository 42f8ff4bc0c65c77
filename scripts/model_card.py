"""Writes the model card of a run, from the files of the run alone.

    python scripts/model_card.py runs/multi30k_en_de --output model_cards/multi30k_en_de.md --no_samples
    python scripts/model_card.py runs/quickstart --repo_id user/name
    python scripts/model_card.py runs/seed1 --seeds runs/seed2 runs/seed3

Without --output the card is README.md in the folder of the run. With --seeds its results have the scores of further
runs of the same recipe, with mean and standard deviation.
"""

import argparse

from hf_mt.command_line import path_name, run_script, word
from hf_mt.model_card import write_model_card


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0], allow_abbrev=False)
    parser.add_argument("run", type=path_name, help="folder of the run")
    parser.add_argument("--output", type=path_name, help="where to write the card")
    parser.add_argument("--repo_id", type=word, help="user/name from which its readers will load the model")
    parser.add_argument("--license", type=word, help="licence of the weights, such as apache-2.0")
    parser.add_argument("--no_samples", action="store_true", help="show no sentences of the data")
    parser.add_argument("--seeds", nargs="+", type=path_name, default=[], help="runs of the same recipe, other seeds")
    args = parser.parse_args()
    shown = {"repo_id": args.repo_id, "license": args.license, "show_samples": not args.no_samples}
    shown["seeds"] = args.seeds
    print(write_model_card(args.run, path=args.output, **shown))


if __name__ == "__main__":
    run_script(main)
