"""Translates a file or a data set on a Ray cluster, that of RAY_ADDRESS or this machine, in order.

    python scripts/translate_ray.py runs/quickstart --input big.en --output big.de --num_gpus 1
    python scripts/translate_ray.py runs/quickstart --dataset big.parquet --column text --output big.de

Model, input and output are on a file system that all machines of the cluster share.
"""

import argparse
import sys

from hf_mt.command_line import limited, number, run_script, whole_number, word
from hf_mt.progress import quiet_libraries
from hf_mt.ray_job import translate_with_ray
from hf_mt.shards import SHARD_SIZE
from hf_mt.translator_options import (
    MODEL_OPTIONS,
    SOURCE_OPTIONS,
    add_input_options,
    add_search_options,
    add_translator_options,
)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    add_translator_options(parser)
    add_input_options(parser)
    add_search_options(parser)
    parser.add_argument("--output", type=word, required=True, help="where to write")
    parser.add_argument("--shard_size", type=limited("shard_size"), default=SHARD_SIZE,
                        help="lines that an actor translates at a time")  # fmt: skip
    parser.add_argument("--actors", type=whole_number(1, 10**6),
                        help="how many; default: as many as there is room for")  # fmt: skip
    parser.add_argument("--num_cpus", type=number(0, 10**6), default=1, help="processors of an actor")
    parser.add_argument("--num_gpus", type=number(0, 10**6),
                        help="GPUs of an actor; default: 1, if the cluster has any")  # fmt: skip
    return parser.parse_args()


def main() -> None:
    quiet_libraries()
    args = vars(parse())
    model = {name: args.pop(name) for name in ("model", *MODEL_OPTIONS)}
    source = {name: args.pop(name) for name in SOURCE_OPTIONS}
    output = args.pop("output")
    tally = translate_with_ray(model, source, output, **args)
    tally.warn()
    print(f"{output}: translations of {tally.lines} lines", file=sys.stderr)


if __name__ == "__main__":
    run_script(main)
