"""Measures training and decoding beside other systems, on this machine, with the same text, subwords and sizes.

    python scripts/benchmark.py --train_file data/train --source_lang en --target_lang de
    python scripts/benchmark.py --train_file data/train --source_lang en --target_lang de --sizes base --repeats 2 \
        --suites training --systems "hf_mt rope" OpenNMT-py

Peers are installed into .cache/benchmark when they are first measured. Programs take turns, one at a time; what was
measured is kept in OUTPUT_DIR, and the same command goes on. Nothing else should run beside it.
"""

import argparse
from pathlib import Path

from benchmarks import suites, tables
from benchmarks.jobs import SIZES, TRAINING, prepare_text

from hf_mt.command_line import limited, number, path_name, run_script, whole_number, word
from hf_mt.hardware import available_cores
from hf_mt.text_files import write_whole


SUITES = ("training", "profile", "decoding", "encodings", "length")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0], allow_abbrev=False)
    parser.add_argument("--train_file", type=word, required=True, help="sentence pairs, as in training")
    parser.add_argument("--source_lang", type=word, required=True)
    parser.add_argument("--target_lang", type=word, required=True)
    parser.add_argument("--suites", nargs="+", choices=SUITES, default=SUITES)
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=["tiny"])
    parser.add_argument("--systems", nargs="+", choices=list(TRAINING), default=list(TRAINING))
    parser.add_argument("--repeats", type=whole_number(1, 1000), default=3, help="turns; the tables show medians")
    parser.add_argument("--seconds", type=number(0.1, 10**6), default=20, help="of training that count in each turn")
    parser.add_argument("--tokens_per_batch", type=limited("tokens_per_batch"), default=4096)
    parser.add_argument("--threads", type=whole_number(1, 4096), default=available_cores())
    parser.add_argument("--output_dir", type=path_name, default=Path("runs/benchmark"))
    return parser.parse_args()


def main() -> None:
    args = parse()
    folder = args.output_dir.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    kept = ("train_file", "source_lang", "target_lang", "seconds", "tokens_per_batch", "threads")
    suites.check_settings(folder, {name: getattr(args, name) for name in kept})
    results = suites.Results(folder / "results.json")
    text = prepare_text(folder / "text", args.train_file, args.source_lang, args.target_lang)
    job = {"threads": args.threads, "seconds": args.seconds, "tokens_per_batch": args.tokens_per_batch}
    opennmt = folder / "training-tiny-OpenNMT-py" / "model_step_1.pt"
    plans = {
        "training": lambda: suites.training_plan(text, job, args.sizes, args.systems),
        "peak": lambda: suites.peak_plan(results, job, args.sizes),
        "profile": lambda: suites.profile_plan(text, job, args.sizes),
        "decoding": lambda: suites.decoding_plan(text, job, opennmt),
        "encodings": lambda: suites.encodings_plan(job),
        "length": lambda: suites.length_plan(job),
    }
    chosen = {*args.suites, "peak"} if "training" in args.suites else set(args.suites)
    for suite in (name for name in plans if name in chosen):
        if suite == "decoding" and not opennmt.is_file():
            print("CTranslate2 is left out: its model is that of OpenNMT-py, whose tiny size was not trained here")
        for line in suites.measure_all(results, plans[suite](), args.repeats):
            print(line, flush=True)
    print(f"\n{tables.report(results)}\n")
    print(write_whole(folder / "benchmark.md", tables.report(results) + "\n"))
    print(tables.plot(results, folder / "benchmark.png"))


if __name__ == "__main__":
    run_script(main)
