"""Trains a recipe with each position encoding and several seeds, and compares them by length of the source.

    python scripts/compare_position_encodings.py configs/position_encodings.yaml
    python scripts/compare_position_encodings.py configs/multi30k_en_fr.yaml --encodings sinusoidal rope alibi \
        --seeds 1 --max_source_length 14 --load_best_model_at_end false \
        --train_file data/train --validation_file data/val --test_file data/test
    python scripts/compare_position_encodings.py configs/position_encodings.yaml \
        --encodings sinusoidal sinusoidal+position_shift=100 rope+randomized_positions=512

`max_source_length` of the recipe, or of the command line, is the cap: longer sources are left out of training, and the
test set is cut into lengths by halves of the cap, up to twice the cap, and beyond. The development set keeps its
longer sentences, which must not choose a checkpoint: `load_best_model_at_end false` tests the last one. An encoding
may carry settings, NAME+key=value+key=value, as a row of its own; other options are for all runs. Runs are launched on
a GPU where there is one, or else on the processor (`--launcher`). Finished ones are kept, and the same command goes
on. It writes comparison.md and comparison.png, anew with each encoding that is finished.
"""

import argparse
from pathlib import Path

from hf_mt.command_line import path_name, run_script, this_command, whole_number, word
from hf_mt.encoding_comparison import (
    MEANING,
    comparison_figure,
    comparison_table,
    scores_by_length,
    settings_of,
    variant_options,
)
from hf_mt.experiment import parse_experiment
from hf_mt.figures import save_png
from hf_mt.model import POSITION_ENCODINGS
from hf_mt.text_files import write_whole
from hf_mt.trials import (
    PlannedRun,
    add_launcher,
    check_plan,
    check_test_sets,
    folder_name,
    joined,
    merged,
    train_all,
)


TRAIN = Path(__file__).parent / "train.py"


def write_comparison(runs: dict[str, list[Path]], cap: int, folder: Path) -> str:
    """Table and picture of finished runs, those of each encoding in the order of their seeds."""
    buckets = scores_by_length(runs, cap)
    first = next(iter(runs))
    facts = {"sources in training": f"at most {cap} tokens", **settings_of(runs[first][0])}
    lines = [comparison_table(buckets, runs), "", MEANING.format(first), ""]
    lines += [f"- {key}: {value}" for key, value in facts.items()]
    lines += [f"- command: `{this_command()}`"]
    write_whole(folder / "comparison.md", "\n".join(lines) + "\n")
    save_png(comparison_figure(buckets, cap), folder / "comparison.png")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0], allow_abbrev=False)
    parser.add_argument("recipe", type=word, help="a .yaml file such as configs/position_encodings.yaml")
    parser.add_argument("--encodings", nargs="+", type=word, default=list(POSITION_ENCODINGS), metavar="ENCODING",
                        help="names, perhaps with settings; the first is what others are compared with")  # fmt: skip
    parser.add_argument("--seeds", nargs="+", type=whole_number(0, 2**32 - 1), default=[1, 2, 3])
    parser.add_argument("--output_dir", type=path_name, help="runs/position_encodings/NAME by default")
    add_launcher(parser)
    args, more = parser.parse_known_args()
    options = joined(more)
    folder = args.output_dir or Path("runs/position_encodings") / Path(args.recipe).stem
    runs: dict[str, PlannedRun] = {}
    entry_of: dict[str, str] = {}
    for entry, own in {entry: variant_options(entry) for entry in args.encodings}.items():
        for seed in dict.fromkeys(args.seeds):
            name, place = f"{entry}, seed {seed}", folder / folder_name(f"{entry}-{seed}")
            runs[name] = PlannedRun(args.recipe, merged(options, own, [f"--seed={seed}"]), place)
            entry_of[name] = entry
    check_plan(runs.values(), options, folder, args.launcher, decided=("position_encoding", "seed"))
    check_test_sets(runs.values())
    cap = parse_experiment([args.recipe, *options]).data.max_source_length
    finished: dict[str, list[Path]] = {}
    text = ""
    for name, results in train_all(runs, script=TRAIN, launcher=args.launcher):
        print(f"{name}: test BLEU {results['test_bleu']:.2f}", flush=True)
        finished.setdefault(entry_of[name], []).append(runs[name].folder)
        complete = {one: folders for one, folders in finished.items() if len(folders) == len(set(args.seeds))}
        if {entry_of[name], args.encodings[0]} <= complete.keys():
            text = write_comparison(complete, cap, folder)
    print(f"\n{text}\nwritten to {folder}: comparison.md, comparison.png")


if __name__ == "__main__":
    run_script(main)
