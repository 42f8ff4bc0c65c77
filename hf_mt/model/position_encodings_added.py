"""Position encodings that are added to the embeddings."""

import torch
from torch import Tensor, nn
from transformers import initialization as init

from .configuration_hf_mt import HfMtConfig
from .position_encoding_base import PositionEncoding


class SinusoidalPositionEncoding(PositionEncoding):
    """Fixed sines and cosines of geometrically spaced frequencies, added to the embeddings.

    Source: Vaswani et al. 2017, section 3.5 (https://arxiv.org/abs/1706.03762); sines fill the first half of the
    width and cosines the second, as in tensor2tensor. Checked against transformers' Marian.
    """

    relative = False
    citation = "Vaswani et al. 2017, https://arxiv.org/abs/1706.03762"

    def __init__(self, config: HfMtConfig, *, num_heads: int, bidirectional: bool):
        super().__init__(config, num_heads=num_heads, bidirectional=bidirectional)
        if self.d_model % 2:
            raise ValueError(f"position_encoding 'sinusoidal' needs an even d_model, not {self.d_model}")

    def embed(self, hidden_states: Tensor, positions: Tensor) -> Tensor:
        even = torch.arange(0, self.d_model, 2, device=positions.device, dtype=torch.float32)
        angles = positions[:, None] * 10000.0 ** (-even / self.d_model)  # (Q, D/2)
        table = torch.cat((angles.sin(), angles.cos()), dim=-1)  # (Q, D)
        return hidden_states + table.to(hidden_states.dtype)


class LearnedPositionEncoding(PositionEncoding):
    """A learned vector for each position, added to the embeddings; the model refuses longer sequences.

    Source: Gehring et al. 2017 (https://arxiv.org/abs/1705.03122), as in BART.
    """

    relative = False
    citation = "Gehring et al. 2017, https://arxiv.org/abs/1705.03122"

    def __init__(self, config: HfMtConfig, *, num_heads: int, bidirectional: bool):
        super().__init__(config, num_heads=num_heads, bidirectional=bidirectional)
        self.table = nn.Parameter(torch.empty(config.max_position_embeddings, config.d_model))

    @property
    def max_length(self) -> int | None:
        return self.table.shape[0]

    def reset(self, std: float) -> None:
        init.normal_(self.table, mean=0.0, std=std)

    def embed(self, hidden_states: Tensor, positions: Tensor) -> Tensor:
        return hidden_states + self.table[positions].to(hidden_states.dtype)
