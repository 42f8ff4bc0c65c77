"""What training on many GPUs would send, and how much of their speed would be left; see model_cards/scaling.md.

python scripts/scaling.py configs/report/set4.yaml --measure

What a step takes on one GPU is measured here with `--measure`, told with `--step_milliseconds`, one number for each
row of the first table, or else taken from the peak of an H100 and `--peak_share`.
"""

import argparse
from collections.abc import Sequence

import torch

from hf_mt.command_line import number, run_script, whole_number, word
from hf_mt.errors import InputError
from hf_mt.experiment import parse_experiment
from hf_mt.hardware import machine, prepare_hardware
from hf_mt.model import HfMtConfig
from hf_mt.scaling import Cluster, Size, efficiency_table, size_of, step_table, volume_table
from hf_mt.step_time import measured_step


# one direction; NVIDIA H100 SXM, 8 a machine; model_cards/scaling.md says where each number is from
CLUSTERS = (
    Cluster("NVLink, 8 x NDR", per_machine=8, inside=450e9, between=8 * 50e9),
    Cluster("NVLink, 1 x NDR", per_machine=8, inside=450e9, between=50e9),
    Cluster("PCIe 5, 1 x NDR", per_machine=8, inside=64e9, between=50e9),
)
PEAK = 989e12  # of the same GPU, bfloat16


def symmetric(d_model: int, ffn_dim: int, heads: int, layers: int, vocab_size: int) -> HfMtConfig:
    """Encoder and decoder of one size."""
    widths = {"ffn_dim": ffn_dim, "attention_heads": heads, "layers": layers}
    sides = {f"{side}_{name}": value for side in ("encoder", "decoder") for name, value in widths.items()}
    return HfMtConfig(d_model=d_model, vocab_size=vocab_size, **sides)


PUBLISHED = {  # Wu et al. 2021 (https://arxiv.org/abs/2105.14462), with fewer subwords; Vaswani et al. 2017, table 3
    "Transformer tiny": symmetric(128, 256, heads=4, layers=4, vocab_size=6000),
    "Transformer base": symmetric(512, 2048, heads=8, layers=6, vocab_size=37000),
    "Transformer big": symmetric(1024, 4096, heads=8, layers=6, vocab_size=37000),
}


def step_seconds(args: argparse.Namespace, sizes: Sequence[Size], configs: Sequence[HfMtConfig]) -> list[float]:
    """What a step of each model takes on one GPU: measured, told or assumed."""
    if args.measure:
        prepare_hardware()
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        print(f"measured on {machine()}, torch {torch.__version__}\n")
        return [measured_step(config, args.tokens, device) for config in configs]
    if args.step_milliseconds is None:
        return [size.operations(args.tokens) / (PEAK * args.peak_share) for size in sizes]
    if len(args.step_milliseconds) != len(sizes):
        raise InputError(
            f"--step_milliseconds has {len(args.step_milliseconds)} numbers for {len(sizes)} models, "
            f"{', '.join(size.name for size in sizes)}: give one for each"
        )
    return [milliseconds / 1000 for milliseconds in args.step_milliseconds]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0], allow_abbrev=False)
    parser.add_argument("configs", type=word, nargs="*",
                        help="beside Transformer tiny, base and big; those that name vocab_size")  # fmt: skip
    parser.add_argument("--gpus", nargs="+", type=whole_number(1, 10**6), default=[1, 8, 64])
    parser.add_argument("--tokens", type=whole_number(1, 10**9), default=25000,
                        help="source, and as many target tokens a GPU and step")  # fmt: skip
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--measure", action="store_true", help="time a step of each model on this machine")
    how.add_argument("--step_milliseconds", nargs="+", type=number(1e-6, 1e9), help="of each model, told")
    how.add_argument("--peak_share", type=number(0.001, 1), default=0.4,
                     help="of the peak, that arithmetic reaches")  # fmt: skip
    args = parser.parse_args()
    experiments = [parse_experiment([path]) for path in args.configs]
    models = [(experiment.name, HfMtConfig(**experiment.architecture)) for experiment in experiments]
    models += PUBLISHED.items()
    sizes = [size_of(name, config) for name, config in models]
    print(*volume_table(sizes, args.gpus), sep="\n", end="\n\n")
    steps = step_seconds(args, sizes, [config for _, config in models])
    print(*step_table(sizes, steps, args.tokens, PEAK), sep="\n", end="\n\n")
    print(*efficiency_table(sizes, steps, CLUSTERS, args.gpus), sep="\n")


if __name__ == "__main__":
    run_script(main)
