"""Trains a recipe with each position encoding and several seeds, and compares them by length of the source.

    python scripts/compare_position_encodings.py configs/position_encodings.yaml
    python scripts/compare_position_encodings.py configs/multi30k_en_fr.yaml --encodings sinusoidal rope alibi \
        --seeds 1 --max_source_length 14 --train_file data/train --validation_file data/val --test_file data/test

`max_source_length` of the recipe, or of the command line, is the cap: longer sources are left out of training, and the
test set is cut into lengths by halves of the cap, up to twice the cap, and beyond. Other options are for all runs.
Finished runs are kept, and the same command goes on. It writes comparison.md and comparison.png.
"""

import argparse
from pathlib import Path

from hf_mt.encoding_comparison import comparison_figure, comparison_table, length_buckets, settings_of
from hf_mt.experiment import parse_experiment, run_script
from hf_mt.figures import save_png
from hf_mt.model import POSITION_ENCODINGS
from hf_mt.option_types import path_name, whole_number, word
from hf_mt.text_files import write_whole
from hf_mt.trials import check_plan, command_line, joined, merged, train_run


TRAIN = Path(__file__).parent / "train.py"
MEANING = (
    "Mean BLEU, ± the standard deviation over seeds. * differs from `{}` (p < 0.05): paired bootstrap over sentences, "
    "the same for all seeds, corrected for the number of encodings in each column (Holm); what seeds change is in ±."
)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0], allow_abbrev=False)
    parser.add_argument("recipe", type=word, help="a .yaml file such as configs/position_encodings.yaml")
    parser.add_argument("--encodings", nargs="+", choices=list(POSITION_ENCODINGS), default=list(POSITION_ENCODINGS),
                        help="which; the first is what others are compared with")  # fmt: skip
    parser.add_argument("--seeds", nargs="+", type=whole_number(0, 2**32 - 1), default=[1, 2, 3])
    parser.add_argument("--output_dir", type=path_name, help="runs/position_encodings/NAME by default")
    parser.add_argument(
        "--launcher", type=word, default="configs/accelerate/cpu.yaml", help="configuration of accelerate launch"
    )
    args, more = parser.parse_known_args()
    options = joined(more)
    folder = args.output_dir or Path("runs/position_encodings") / Path(args.recipe).stem
    check_plan([(args.recipe, options)], folder, args.launcher)
    runs: dict[str, list[Path]] = {}
    for name in args.encodings:
        for seed in args.seeds:
            own = [f"--position_encoding={name}", f"--seed={seed}"]
            run = folder / f"{name}-{seed}"
            results = train_run(args.recipe, merged(options, own), run, script=TRAIN, launcher=args.launcher)
            print(f"{name}, seed {seed}: test BLEU {results['test_bleu']:.2f}", flush=True)
            runs.setdefault(name, []).append(run)
    cap = parse_experiment([args.recipe, *options]).data.max_source_length
    buckets = length_buckets(runs, cap)
    facts = {"sources in training": f"at most {cap} tokens", **settings_of(run)}
    lines = [comparison_table(buckets, runs), "", MEANING.format(args.encodings[0]), ""]
    lines += [f"- {key}: {value}" for key, value in facts.items()]
    lines += [f"- command: `{command_line()}`"]
    write_whole(folder / "comparison.md", "\n".join(lines) + "\n")
    save_png(comparison_figure(buckets, cap), folder / "comparison.png")
    print("\n".join(["", *lines, f"written to {folder}: comparison.md, comparison.png"]))


if __name__ == "__main__":
    run_script(main)
