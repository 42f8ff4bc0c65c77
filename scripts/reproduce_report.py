"""Trains the four settings of the report that this project grew out of, and compares them with what cures the fourth.

    python scripts/reproduce_report.py --train_file data/train --validation_file data/dev --test_file data/test
    python scripts/reproduce_report.py --sets 1 --num_train_epochs 9 --train_file data/train ...

The cures are setting 4 with `norm_position: pre`, and with 4,000 steps of warm-up; `--recipe FILE` adds a recipe of
today on the same data. Other options are for all runs: `--max_train_samples 3000` scales them down, everything else
being equal. Finished runs are kept, and the same command goes on. It writes report.md and report.png.
"""

import argparse
from pathlib import Path

from hf_mt.experiment import run_script
from hf_mt.figures import course_figure, save_png
from hf_mt.four_settings import Trial, read_trial, report_card
from hf_mt.option_types import path_name, word
from hf_mt.text_files import write_whole
from hf_mt.trials import check_plan, command_line, joined, merged, train_run


TRAIN = Path(__file__).parent / "train.py"
CURES = {"set 4, pre-norm": ["--norm_position=pre"], "set 4, warm-up": ["--warmup_steps=4000"]}


def planned(sets: list[int], cures: bool, recipe: str | None) -> dict[str, tuple[str, list[str]]]:
    """Configuration and own options of each run, by name."""
    runs: dict[str, tuple[str, list[str]]] = {f"set {one}": (f"configs/report/set{one}.yaml", []) for one in sets}
    if cures:
        runs |= {name: ("configs/report/set4.yaml", changes) for name, changes in CURES.items()}
    return runs | ({"recipe": (recipe, [])} if recipe is not None else {})


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0], allow_abbrev=False)
    parser.add_argument(
        "--sets", nargs="+", type=int, choices=range(1, 5), default=[1, 2, 3, 4], help="which settings"
    )
    parser.add_argument("--no_cures", action="store_true", help="leave out what cures setting 4")
    parser.add_argument("--recipe", type=word, help="a .yaml file to compare with, such as configs/ted_en_fr.yaml")
    parser.add_argument("--output_dir", type=path_name, default=Path("runs/report"))
    parser.add_argument(
        "--launcher", type=word, default="configs/accelerate/cpu.yaml", help="configuration of accelerate launch"
    )
    args, more = parser.parse_known_args()
    options = joined(more)
    trials: dict[str, Trial] = {}
    runs = planned(args.sets, not args.no_cures, args.recipe)
    check_plan([(config, merged(options, own)) for config, own in runs.values()], args.output_dir, args.launcher)
    for name, (config, own) in runs.items():
        folder = args.output_dir / name.replace(",", "").replace(" ", "-")
        found = train_run(config, merged(options, own), folder, script=TRAIN, launcher=args.launcher)
        print(f"{name}: test BLEU {found['test_bleu']:.2f}, {found['train_minutes']:.1f} minutes", flush=True)
        trials[name] = read_trial(folder)
    card = report_card(trials, command=command_line())
    write_whole(args.output_dir / "report.md", card)
    save_png(course_figure({name: trial.run.log_history for name, trial in trials.items()}, "epoch"),
             args.output_dir / "report.png")  # fmt: skip
    print(f"\n{card}\nwritten to {args.output_dir}: report.md, report.png")


if __name__ == "__main__":
    run_script(main)
