"""What a training step sends between GPUs, and what is left of their speed.

- Bytes: a ring over n GPUs sends (n - 1) / n of what it gathers or scatters from each of them, twice that where it
  reduces for all (NVIDIA, https://github.com/NVIDIA/nccl-tests/blob/master/doc/PERFORMANCE.md). DDP averages float32
  gradients; ZeRO-2 scatters gradients and gathers new weights (Rajbhandari et al. 2020,
  https://arxiv.org/abs/1910.02054, section 7); FSDP2 gathers the weights of a layer in forward and again in backward,
  all others once, and scatters gradients. In bfloat16 the last two send two bytes a number.
- Arithmetic: a weight costs 6 operations a token, forward and backward (Kaplan et al. 2020,
  https://arxiv.org/abs/2001.08361, section 2.1). Products of attention are left out.
- Time: a step as it was measured (`hf_mt/step_time.py`), or arithmetic at a share of the peak; bytes at a share of the
  bandwidth, and a delay for each hop of each message.
  Messages wait for the end of backward, or go on beside it, which is two thirds of the arithmetic. DDP is between the
  two; FSDP2 also gathers beside forward and can be better, ZeRO-2 gathers weights after the optimizer's step.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from hf_mt.model import HfMtConfig, HfMtForConditionalGeneration


BUCKET, FIRST_BUCKET = 25 * 2**20, 2**20  # bytes of gradients that DDP averages at a time; torch's defaults
BACKWARD = 2 / 3  # of the arithmetic of a step


@dataclass(frozen=True)
class Size:
    """A model as far as its cost goes.

    Args:
        name: What tables call it.
        in_layers: Weights in the layers of encoder and decoder.
        elsewhere: All other weights; embeddings that are tied count once.
        output: Weights of the product with the vocabulary, tied or not.
        layers: Of encoder and decoder together.
    """

    name: str
    in_layers: int
    elsewhere: int
    output: int
    layers: int

    @property
    def weights(self) -> int:
        return self.in_layers + self.elsewhere

    def operations(self, tokens: int) -> float:
        """Floating-point operations of a step with so many source tokens and as many target tokens on each GPU."""
        return 6.0 * tokens * (self.in_layers + self.output)


@dataclass(frozen=True)
class Cluster:
    """Machines of several GPUs each. Bandwidths are of one direction, in bytes a second.

    Args:
        name: What tables call it.
        per_machine: GPUs of a machine.
        inside: Bandwidth of each GPU within its machine.
        between: Bandwidth of a machine, all its adapters together.
        hop: Seconds that a message takes from one GPU to the next, whatever its size.
        bandwidth_share: Of the bandwidth, that is reached.
    """

    name: str
    per_machine: int
    inside: float
    between: float
    hop: float = 5e-6
    bandwidth_share: float = 0.8

    def bandwidth(self, gpus: int) -> float:
        """Of a ring, for each GPU: that of its slowest link, where the adapters of a machine share the work."""
        slowest = self.inside if gpus <= self.per_machine else min(self.inside, self.between)
        return slowest * self.bandwidth_share


@dataclass(frozen=True)
class Strategy:
    """How weights and gradients are spread.

    Args:
        name: What tables call it.
        sent: Bytes of a model that pass through a ring; a GPU sends (n - 1) / n of them.
        messages: How many rings a step has; each takes n - 1 hops.
    """

    name: str
    sent: Callable[[Size], float]
    messages: Callable[[Size], int]

    def bytes_sent(self, size: Size, gpus: int) -> float:
        """Bytes that each GPU sends in a step."""
        return self.sent(size) * (gpus - 1) / gpus

    def seconds(self, size: Size, gpus: int, cluster: Cluster) -> float:
        """Seconds of a step that a GPU spends sending, if nothing else is done."""
        if gpus == 1:
            return 0.0
        delay = self.messages(size) * (gpus - 1) * cluster.hop
        return self.bytes_sent(size, gpus) / cluster.bandwidth(gpus) + delay


def ddp_buckets(size: Size) -> int:
    """Into how many messages DDP puts the gradients, at least."""
    return 1 + math.ceil(max(0, 4 * size.weights - FIRST_BUCKET) / BUCKET)


STRATEGIES = (
    Strategy("DDP", lambda size: 2 * 4.0 * size.weights, lambda size: 2 * ddp_buckets(size)),
    Strategy("ZeRO-2", lambda size: 2 * 2.0 * size.weights, lambda size: 2 * ddp_buckets(size)),
    Strategy(
        "FSDP2",
        lambda size: 2.0 * (3 * size.in_layers + 2 * size.elsewhere),
        lambda size: 3 * size.layers + 2,
    ),
)


def efficiency(size: Size, strategy: Strategy, gpus: int, cluster: Cluster, step: float) -> tuple[float, float]:
    """Share of the speed of so many single GPUs that is left: without, and with, sending beside backward.

    Args:
        size: The model.
        strategy: How it is spread.
        gpus: How many.
        cluster: On what.
        step: Seconds of a step on one GPU.
    """
    sending = strategy.seconds(size, gpus, cluster)
    waiting = max(0.0, sending - BACKWARD * step)
    return step / (step + sending), step / (step + waiting)


def size_of(name: str, config: HfMtConfig) -> Size:
    """The size of one of our models, counted in it."""
    with torch.device("meta"):
        model = HfMtForConditionalGeneration(config)
    stacks = model.get_encoder().layers, model.get_decoder().layers
    in_layers = sum(weight.numel() for layers in stacks for weight in layers.parameters())
    weights = sum(weight.numel() for weight in model.parameters())
    layers = config.encoder_layers + config.decoder_layers
    return Size(name, in_layers, weights - in_layers, model.get_output_embeddings().weight.numel(), layers)


def volume_table(sizes: Sequence[Size], gpus: Sequence[int]) -> Iterator[str]:
    """Markdown: megabytes that each GPU sends in a step."""
    columns = [(strategy, count) for strategy in STRATEGIES for count in gpus if count > 1]
    yield "| model | weights | " + " | ".join(f"{strategy.name}, {count} GPUs" for strategy, count in columns) + " |"
    yield "|---|---:|" + "---:|" * len(columns)
    for size in sizes:
        sent = (f"{strategy.bytes_sent(size, count) / 1e6:,.1f}" for strategy, count in columns)
        yield f"| {size.name} | {size.weights / 1e6:,.1f} M | " + " | ".join(sent) + " |"


def step_table(sizes: Sequence[Size], steps: Sequence[float], tokens: int, peak: float) -> Iterator[str]:
    """Markdown: what a step of each model takes on one GPU, and which share of a peak its arithmetic reaches."""
    yield "| model | ms a step | thousand target tokens a second | TFLOP/s | of the peak |"
    yield "|---|---:|---:|---:|---:|"
    for size, step in zip(sizes, steps, strict=True):
        reached = size.operations(tokens) / step
        yield (
            f"| {size.name} | {1000 * step:.2f} | {tokens / step / 1000:,.1f} | {reached / 1e12:.1f} "
            f"| {100 * reached / peak:.1f} % |"
        )


def efficiency_table(
    sizes: Sequence[Size], steps: Sequence[float], clusters: Sequence[Cluster], gpus: Sequence[int]
) -> Iterator[str]:
    """Markdown: percent of the speed of single GPUs, sending after backward and beside it."""
    yield "| model | machines | strategy | " + " | ".join(f"{count} GPU{'s' * (count > 1)}" for count in gpus) + " |"
    yield "|---|---|---|" + "---:|" * len(gpus)
    for size, step in zip(sizes, steps, strict=True):
        for cluster in clusters:
            for strategy in STRATEGIES:
                shares = [efficiency(size, strategy, count, cluster, step) for count in gpus]
                cells = ("100 %" if after == 1 else f"{100 * after:.0f}-{100 * beside:.0f} %"
                         for after, beside in shares)  # fmt: skip
                yield f"| {size.name} | {cluster.name} | {strategy.name} | " + " | ".join(cells) + " |"
