"""Position encodings that add to the scores what depends on positions alone: T5, ALiBi, KERPLE, FIRE."""

import math
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus
from transformers import initialization as init

from .configuration_hf_mt import HfMtConfig
from .position_encoding_base import PositionEncoding, distances


class ScoreBias(PositionEncoding):
    """What `prepare` gives, (1, H, Q, K), is added to the scores."""

    uses_bias = True

    def bias(self, q: Tensor, k: Tensor, state: Tensor) -> Tensor:
        return state.to(q.dtype)


class T5PositionEncoding(ScoreBias):
    """A learned score for each head and bucket of distances; buckets grow with distance.

    Source: Raffel et al. 2020, section 2.1 (https://arxiv.org/abs/1910.10683). Checked against transformers' T5.
    """

    citation = "Raffel et al. 2020, https://arxiv.org/abs/1910.10683"

    def __init__(self, config: HfMtConfig, *, num_heads: int, bidirectional: bool):
        super().__init__(config, num_heads=num_heads, bidirectional=bidirectional)
        self.num_buckets = config.relative_attention_num_buckets
        self.max_distance = config.relative_attention_max_distance
        exact = self.num_buckets // (4 if bidirectional else 2)
        if exact < 1 or self.max_distance <= exact:
            raise ValueError(
                f"relative_attention_num_buckets ({self.num_buckets}) must be at least 4, and "
                f"relative_attention_max_distance ({self.max_distance}) larger than half of them"
            )
        self.relative_attention_bias = nn.Parameter(torch.empty(self.num_buckets, num_heads))

    def reset(self, std: float) -> None:
        init.normal_(self.relative_attention_bias, mean=0.0, std=std)

    def buckets(self, ahead: Tensor) -> Tensor:
        """Buckets of key minus query positions, any shape to the same shape."""
        offset, count = 0, self.num_buckets
        if self.bidirectional:
            count //= 2
            offset = (ahead > 0).long() * count
            away = ahead.abs()
        else:
            away = (-ahead).clamp(min=0)
        exact = count // 2
        growth = (away.clamp(min=1).float() / exact).log() / math.log(self.max_distance / exact)
        far = (exact + (growth * (count - exact)).long()).clamp(max=count - 1)
        return offset + torch.where(away < exact, away, far)

    def prepare(self, q_positions: Tensor, k_positions: Tensor) -> Tensor:
        buckets = self.buckets(distances(q_positions, k_positions))  # (Q, K)
        return self.relative_attention_bias[buckets].permute(2, 0, 1)[None]  # (1, H, Q, K)


class AlibiPositionEncoding(ScoreBias):
    """A penalty on scores that grows with distance, at a fixed slope for each head.

    Source: Press et al. 2022, section 3 (https://arxiv.org/abs/2108.12409). The encoder penalises both directions
    alike, as its authors propose in their repository; in the decoder the causal mask leaves the published form.
    """

    citation = "Press et al. 2022, https://arxiv.org/abs/2108.12409"

    def slopes(self) -> list[float]:
        """One slope a head (H,): a geometric sequence, interleaved where H is no power of two, as published."""
        power = 2 ** math.floor(math.log2(self.num_heads))
        slopes = [2.0 ** (-8 * (head + 1) / power) for head in range(power)]
        between = [2.0 ** (-4 * (head + 1) / power) for head in range(0, 2 * power, 2)]
        return slopes + between[: self.num_heads - power]

    def prepare(self, q_positions: Tensor, k_positions: Tensor) -> Tensor:
        # made on the processor and sent: made on a GPU, each stack would wait for all that was asked of it before
        slopes = torch.tensor(self.slopes(), device="cpu").to(q_positions.device, non_blocking=q_positions.is_cuda)
        return -slopes[:, None, None] * distances(q_positions, k_positions).abs()[None, None]  # (1, H, Q, K)


class KerplePositionEncoding(ScoreBias):
    """A penalty on scores that grows with the logarithm of distance; each head learns its height and its width.

    Source: Chi et al. 2022, section 4, logarithmic variant (https://arxiv.org/abs/2205.09921). The encoder penalises
    both directions alike. A softplus keeps both parameters positive, where the authors' code clips them; as in that
    code, the bias is added to scores that are divided already.
    """

    citation = "Chi et al. 2022, https://arxiv.org/abs/2205.09921"

    def __init__(self, config: HfMtConfig, *, num_heads: int, bidirectional: bool):
        super().__init__(config, num_heads=num_heads, bidirectional=bidirectional)
        self.height = nn.Parameter(torch.empty(num_heads))  # softplus of it is r1 of the paper
        self.width = nn.Parameter(torch.empty(num_heads))  # softplus of it is r2

    def reset(self, std: float) -> None:
        init.uniform_(self.height, -1.0, 1.0)
        init.uniform_(self.width, -1.0, 1.0)

    def prepare(self, q_positions: Tensor, k_positions: Tensor) -> Tensor:
        height, width = (softplus(raw.float())[:, None, None] for raw in (self.height, self.width))
        return -height * (width * distances(q_positions, k_positions).abs()).log1p()[None]  # (1, H, Q, K)


class FirePositionEncoding(ScoreBias):
    """A small network maps distance, as a share of the distance back to the start, to a score for each head.

    Source: Li et al. 2023, with log transform and threshold (https://arxiv.org/abs/2310.04418). There a query at i has
    only keys before it, and i bounds their distance. In the encoder the later of query and key takes the part of i, so
    that padding changes nothing, and the share has the sign of the direction.
    """

    relative = False
    citation = "Li et al. 2023, https://arxiv.org/abs/2310.04418"
    hidden: ClassVar[int] = 32  # width of the network, as published

    def __init__(self, config: HfMtConfig, *, num_heads: int, bidirectional: bool):
        super().__init__(config, num_heads=num_heads, bidirectional=bidirectional)
        # up to L tokens from the start distances count as they are
        self.first_threshold = config.max_position_embeddings / 8
        self.extent = nn.Parameter(torch.empty(2))  # c, and L as a multiple of the first one
        self.inner = nn.Parameter(torch.empty(2, self.hidden))  # weights and offsets
        self.outer = nn.Parameter(torch.empty(self.hidden + 1, num_heads))  # weights, and offsets last

    def reset(self, std: float) -> None:
        init.uniform_(self.extent, 0.5, 1.5)
        init.uniform_(self.inner, -1.0, 1.0)
        init.uniform_(self.outer, -(self.hidden**-0.5), self.hidden**-0.5)

    def prepare(self, q_positions: Tensor, k_positions: Tensor) -> Tensor:
        ahead = distances(q_positions, k_positions).float()  # (Q, K)
        later = torch.maximum(k_positions[None, :], q_positions[:, None]).float()
        scale, multiple = self.extent.float().abs()
        farthest = later.maximum(multiple * self.first_threshold)
        share = (scale * ahead.abs()).log1p() / (scale * farthest).log1p()
        weights, offsets = self.inner.float()
        hidden = ((ahead.sign() * share)[..., None] * weights + offsets).relu()  # (Q, K, hidden)
        outer = self.outer.float()
        return (hidden @ outer[:-1] + outer[-1]).permute(2, 0, 1)[None]  # (1, H, Q, K)
