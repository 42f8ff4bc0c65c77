"""Trains one recipe several times, something changed each time, and compares the scores on the development set.

    python scripts/ablate.py configs/ablations/multi30k.yaml --train_file dataset/data/task1/tok/train.lc.norm.tok \
        --validation_file dataset/data/task1/tok/val.lc.norm.tok

The file names the recipe, settings that all runs share, and what is different in each run; options are for all runs
too. Runs follow each other, so that their minutes can be compared; finished ones are kept, and the same command goes
on. Development scores alone are compared: leave test data out, so that no choice can be made on it.
"""

import argparse
from pathlib import Path
from typing import Any

from hf_mt.ablation import ablation_table, check_translated, read_ablation
from hf_mt.command_line import path_name, run_script
from hf_mt.text_files import write_whole
from hf_mt.trials import add_launcher, check_plan, joined, train_all


TRAIN = Path(__file__).parent / "train.py"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0], allow_abbrev=False)
    parser.add_argument("ablation", type=path_name, help="a .yaml file such as configs/ablations/multi30k.yaml")
    parser.add_argument("--output_dir", type=path_name, help="runs/ablation/NAME by default")
    add_launcher(parser)
    args, more = parser.parse_known_args()
    options = joined(more)
    ablation = read_ablation(args.ablation, options)
    folder = args.output_dir or Path("runs/ablation") / args.ablation.stem
    runs = ablation.planned(folder)
    check_plan(runs.values(), options, folder, args.launcher)
    check_translated(runs.values())
    results: dict[str, Any] = {}
    for name, results[name] in train_all(runs, script=TRAIN, launcher=args.launcher):
        print(f"{name}: development BLEU {results[name]['eval_bleu']:.2f}", flush=True)
        if next(iter(runs)) in results:  # which the others are compared with
            text = ablation_table(ablation, results)
            write_whole(folder / "ablation.md", text)
    print(f"\n{text}\nwritten to {folder / 'ablation.md'}")


if __name__ == "__main__":
    run_script(main)
