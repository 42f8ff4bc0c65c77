"""Trains four settings of a post-norm Transformer, of which the largest does not learn, and compares them.

    python scripts/reproduce_report.py --train_file data/train --validation_file data/dev --test_file data/test
    python scripts/reproduce_report.py --sets 1 --num_train_epochs 9 --train_file data/train ...
    python scripts/reproduce_report.py --recipe configs/ted_en_fr.yaml \
        --recipe_options="--max_steps=3000 --eval_steps=500" --train_file data/train ...

With setting 4 come two cures of it: `norm_position: pre`, and a warm-up over a fifth of training; `--recipe FILE` adds
a recipe of today on the same data, and `--recipe_options` are for it alone, such as a length of training that costs as
much as a setting. Other options are for all runs: `--max_train_samples 3000` scales them down, everything else being
equal. Finished runs are kept, and the same command goes on. It writes the card and, beside it, a picture of how
training went, after each run anew. Runs are launched on a GPU where there is one, in bfloat16, or else on the
processor; `--launcher FILE` decides otherwise.
"""

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path

from hf_mt.command_line import path_name, run_script, this_command, word
from hf_mt.errors import InputError
from hf_mt.figures import course_figure, save_png
from hf_mt.four_settings import FinishedRun, read_finished, report_card
from hf_mt.text_files import check_folder, write_whole
from hf_mt.trials import (
    PlannedRun,
    add_launcher,
    check_plan,
    check_test_sets,
    joined,
    merged,
    train_all,
)


TRAIN = Path(__file__).parent / "train.py"
CURES = {
    "set 4, pre-norm": ["--norm_position=pre"],
    "set 4, warm-up": ["--lr_scheduler_type=constant_with_warmup", "--warmup_steps=0.2"],  # as 4,000 steps of 18,750
}


def words_of(text: str) -> list[str]:
    """Options that were given as one text, as a shell would read them."""
    try:
        return joined(shlex.split(word(text)))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"found {text!r}, wanted options: {error}") from error


def planned(
    sets: list[int], cures: bool, recipe: str | None, recipe_options: Sequence[str] = ()
) -> dict[str, tuple[str, list[str]]]:
    """Configuration and own options of each run, by name."""
    runs: dict[str, tuple[str, list[str]]] = {f"set {one}": (f"configs/report/set{one}.yaml", []) for one in sets}
    if cures and 4 in sets:
        runs |= {name: ("configs/report/set4.yaml", changes) for name, changes in CURES.items()}
    return runs | ({"recipe": (recipe, [*recipe_options])} if recipe is not None else {})


def write_card(runs: dict[str, FinishedRun], path: Path) -> str:
    picture = path.with_suffix(".png")
    card = report_card(runs, command=this_command(), picture=picture.name)
    write_whole(path, card)
    save_png(course_figure({name: finished.run.log_history for name, finished in runs.items()}, "epoch"), picture)
    return card


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0], allow_abbrev=False)
    parser.add_argument(
        "--sets", nargs="+", type=int, choices=range(1, 5), default=[1, 2, 3, 4], help="which settings"
    )
    parser.add_argument("--no_cures", action="store_true", help="leave out what cures setting 4")
    parser.add_argument("--recipe", type=word, help="a .yaml file to compare with, such as configs/ted_en_fr.yaml")
    parser.add_argument("--recipe_options", type=words_of, default=[], metavar="OPTIONS",
                        help="for that recipe alone, as one text: '--key=value --key=value'")  # fmt: skip
    parser.add_argument("--output_dir", type=path_name, default=Path("runs/report"))
    parser.add_argument("--card", type=path_name, help="OUTPUT_DIR/report.md by default")
    add_launcher(parser)
    args, more = parser.parse_known_args()
    if args.recipe_options and args.recipe is None:
        raise InputError(
            "--recipe_options are for the recipe of --recipe alone, and none is given: add it, or leave them out"
        )
    options, card = joined(more), args.card or args.output_dir / "report.md"
    runs = {
        name: PlannedRun(config, merged(options, own), args.output_dir / name.replace(",", "").replace(" ", "-"))
        for name, (config, own) in planned(args.sets, not args.no_cures, args.recipe, args.recipe_options).items()
    }
    check_folder(card.parent)
    check_plan(
        runs.values(), [*options, *args.recipe_options], args.output_dir, args.launcher, decided=("output_dir",)
    )
    check_test_sets(runs.values())
    finished: dict[str, FinishedRun] = {}
    for name, results in train_all(runs, script=TRAIN, launcher=args.launcher):
        print(f"{name}: test BLEU {results['test_bleu']:.2f}, {results['train_minutes']:.1f} minutes", flush=True)
        finished[name] = read_finished(runs[name].folder)
        text = write_card(finished, card)
    print(f"\n{text}\nwritten to {card}")


if __name__ == "__main__":
    run_script(main)
