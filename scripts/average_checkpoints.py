"""Averages the weights of several checkpoints into a new model folder.

    python scripts/average_checkpoints.py runs/quickstart/checkpoint-750 runs/quickstart/checkpoint-1000 \
        --output_dir runs/quickstart-average
"""

from argparse import ArgumentParser

from hf_mt.averaging import save_average
from hf_mt.command_line import path_name, run_script


def main() -> None:
    parser = ArgumentParser(description=(__doc__ or "").splitlines()[0], allow_abbrev=False)
    parser.add_argument("folders", nargs="+", type=path_name, metavar="CHECKPOINT")
    parser.add_argument("--output_dir", required=True, type=path_name, help="a folder that does not exist yet")
    options = parser.parse_args()
    save_average(options.folders, options.output_dir)
    print(f"the mean of {len(options.folders)} checkpoints is in {options.output_dir}")


if __name__ == "__main__":
    run_script(main)
