"""What training on many GPUs would send, and how much of their speed would be left; see model_cards/scaling.md.

python scripts/scaling.py configs/multi30k_en_de.yaml configs/report/set4.yaml --tokens 25000 --peak_share 0.4
"""

import argparse

from hf_mt.command_line import number, run_script, whole_number, word
from hf_mt.experiment import parse_experiment
from hf_mt.model import HfMtConfig
from hf_mt.scaling import Cluster, efficiency_table, size_of, volume_table


# one direction; NVIDIA H100 SXM, 8 a machine; model_cards/scaling.md says where each number is from
CLUSTERS = (
    Cluster("NVLink, 8 x NDR", per_machine=8, inside=450e9, between=8 * 50e9, peak=989e12),
    Cluster("NVLink, 1 x NDR", per_machine=8, inside=450e9, between=50e9, peak=989e12),
    Cluster("PCIe 5, 1 x NDR", per_machine=8, inside=64e9, between=50e9, peak=989e12),
)
BASE = {"d_model": 512, "encoder_ffn_dim": 2048, "decoder_ffn_dim": 2048, "vocab_size": 37000}
BIG = {"d_model": 1024, "encoder_ffn_dim": 4096, "decoder_ffn_dim": 4096, "vocab_size": 37000}
PUBLISHED = {"Transformer base": BASE, "Transformer big": BIG}  # Vaswani et al. 2017, table 3
HEADS = {"encoder_attention_heads": 8, "decoder_attention_heads": 8, "encoder_layers": 6, "decoder_layers": 6}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0], allow_abbrev=False)
    parser.add_argument("configs", type=word, nargs="*",
                        help="beside Transformer base and big; those that name vocab_size")  # fmt: skip
    parser.add_argument("--gpus", nargs="+", type=whole_number(1, 10**6), default=[1, 8, 64])
    parser.add_argument("--tokens", type=whole_number(1, 10**9), default=25000,
                        help="source, and as many target tokens a GPU and step")  # fmt: skip
    parser.add_argument("--peak_share", type=number(0.001, 1), default=0.4,
                        help="of the peak, that arithmetic reaches")  # fmt: skip
    args = parser.parse_args()
    experiments = [parse_experiment([path]) for path in args.configs]
    sizes = [size_of(experiment.name, HfMtConfig(**experiment.architecture)) for experiment in experiments]
    sizes += [size_of(name, HfMtConfig(**HEADS, **size)) for name, size in PUBLISHED.items()]
    print(*volume_table(sizes, args.gpus), sep="\n", end="\n\n")
    options = {"tokens": args.tokens, "peak_share": args.peak_share}
    print(*efficiency_table(sizes, CLUSTERS, args.gpus, **options), sep="\n")


if __name__ == "__main__":
    run_script(main)
