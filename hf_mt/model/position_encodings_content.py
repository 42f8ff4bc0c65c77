"""Position encodings whose scores depend on what the words are: Shaw, DeBERTa, CoPE."""

import torch
from torch import Tensor, nn
from transformers import initialization as init

from .configuration_hf_mt import HfMtConfig
from .position_encoding_base import PositionEncoding, distances


class ClippedDistances(PositionEncoding):
    """Its state is the distance of each pair, clipped at `max_relative_position` and moved to start at 0."""

    uses_bias = True

    def __init__(self, config: HfMtConfig, *, num_heads: int, bidirectional: bool):
        super().__init__(config, num_heads=num_heads, bidirectional=bidirectional)
        self.max_relative_position = _clipping_distance(config)
        self.num_distances = self.max_relative_position * (2 if bidirectional else 1) + 1  # R

    def prepare(self, q_positions: Tensor, k_positions: Tensor) -> Tensor:
        farthest = self.max_relative_position
        ahead = distances(q_positions, k_positions)  # (Q, K)
        return ahead.clamp(-farthest, farthest if self.bidirectional else 0) + farthest


class ShawPositionEncoding(ClippedDistances):
    """A learned vector for each clipped distance, added to keys and to values.

    Source: Shaw et al. 2018, equations 3 to 5 (https://arxiv.org/abs/1803.02155); heads share the tables and
    scores follow the efficient form, as in section 3.3, and here layers share the tables, too. Checked against the
    direct form of the equations.
    """

    uses_weights = True
    citation = "Shaw et al. 2018, https://arxiv.org/abs/1803.02155"

    def __init__(self, config: HfMtConfig, *, num_heads: int, bidirectional: bool):
        super().__init__(config, num_heads=num_heads, bidirectional=bidirectional)
        self.relative_keys = nn.Parameter(torch.empty(self.num_distances, self.head_dim))  # (R, E)
        self.relative_values = nn.Parameter(torch.empty(self.num_distances, self.head_dim))  # (R, E)

    def reset(self, std: float) -> None:
        init.xavier_uniform_(self.relative_keys)
        init.xavier_uniform_(self.relative_values)

    def bias(self, q: Tensor, k: Tensor, state: Tensor) -> Tensor:
        scores = q @ (self.relative_keys * self.head_dim**-0.5).to(q.dtype).T  # (B, H, Q, R)
        return scores.gather(-1, state.expand(*q.shape[:2], -1, -1))  # (B, H, Q, K)

    def add_values(self, attn_output: Tensor, attn_weights: Tensor | None, state: Tensor) -> Tensor:
        assert attn_weights is not None, "eager attention returns weights"
        index = state.expand_as(attn_weights)
        by_distance = attn_weights.new_zeros(*attn_weights.shape[:3], len(self.relative_values))
        by_distance = by_distance.scatter_add(-1, index, attn_weights)  # (B, H, Q, R)
        return attn_output + (by_distance @ self.relative_values.to(attn_weights.dtype)).transpose(1, 2)


class DebertaPositionEncoding(ClippedDistances):
    """Words look for distances and distances for words: two learned tables, one read by queries and one by keys.

    Source: He et al. 2020, equation 4 (https://arxiv.org/abs/2006.03654): content to position and position to content,
    over distances clipped at `max_relative_position`; the tables are shared by the layers. All three parts of the
    score are divided by sqrt(E), where the paper has sqrt(3E). Checked against transformers' DeBERTa.
    """

    citation = "He et al. 2020, https://arxiv.org/abs/2006.03654"

    def __init__(self, config: HfMtConfig, *, num_heads: int, bidirectional: bool):
        super().__init__(config, num_heads=num_heads, bidirectional=bidirectional)
        self.relative_keys = nn.Parameter(torch.empty(num_heads, self.num_distances, self.head_dim))  # (H, R, E)
        self.relative_queries = nn.Parameter(torch.empty(num_heads, self.num_distances, self.head_dim))  # (H, R, E)

    def reset(self, std: float) -> None:
        init.normal_(self.relative_keys, mean=0.0, std=self.head_dim**-0.5)
        init.normal_(self.relative_queries, mean=0.0, std=self.head_dim**-0.5)

    def bias(self, q: Tensor, k: Tensor, state: Tensor) -> Tensor:
        scale = self.head_dim**-0.5  # of the tables, which are smaller than the scores
        of_queries = q @ (self.relative_keys * scale).to(q.dtype).mT  # (B, H, Q, R)
        of_keys = k @ (self.relative_queries * scale).to(q.dtype).mT  # (B, H, K, R)
        to_position = of_queries.gather(-1, state.expand(*q.shape[:2], -1, -1))  # (B, H, Q, K)
        to_content = of_keys.gather(-1, state.T.expand(*q.shape[:2], -1, -1)).mT  # (B, H, Q, K)
        return to_position + to_content


class CopePositionEncoding(PositionEncoding):
    """Positions count only the words that matter to the query, each by a gate between 0 and 1.

    Source: Golovneva et al. 2024 (https://arxiv.org/abs/2405.18719): the gate of a pair is the sigmoid of its score, a
    key's position the sum of the gates from it to the query, its score the product of the query with a vector
    interpolated between whole positions, at most `max_relative_position`. Gates take the scores as attention does,
    divided by sqrt(E), which is how the authors' code (facebookresearch/RAM) does it. In the encoder keys that follow
    count onwards from the query, with vectors of their own. Slow: it needs every score before any bias.
    """

    uses_bias = True
    counts_words = True
    citation = "Golovneva et al. 2024, https://arxiv.org/abs/2405.18719"

    def __init__(self, config: HfMtConfig, *, num_heads: int, bidirectional: bool):
        super().__init__(config, num_heads=num_heads, bidirectional=bidirectional)
        self.max_position = _clipping_distance(config)
        self.table = nn.Parameter(torch.empty(2 if bidirectional else 1, self.max_position + 1, self.head_dim))

    def reset(self, std: float) -> None:
        init.normal_(self.table, mean=0.0, std=self.head_dim**-0.5)

    def prepare(self, q_positions: Tensor, k_positions: Tensor) -> Tensor:
        return distances(q_positions, k_positions)  # (Q, K)

    def bias(self, q: Tensor, k: Tensor, state: Tensor) -> Tensor:
        gates = (q * self.head_dim**-0.5 @ k.mT).float().sigmoid()  # (B, H, Q, K)
        counted = gates.cumsum(-1)  # one sum for both sides: what lies between two keys is a difference
        itself = (state == 0).int().argmax(-1, keepdim=True).expand(*q.shape[:3], 1)  # the query's own key
        beyond = counted - counted.gather(-1, itself)  # gates behind the query, up to the key; below 0 before it
        positions, ahead = gates - beyond, state > 0
        if self.bidirectional:
            positions = torch.where(ahead, beyond + gates.gather(-1, itself), positions)
        return self._scores(q, positions, ahead)

    def _scores(self, q: Tensor, positions: Tensor, ahead: Tensor) -> Tensor:
        """Scores (B, H, Q, K) at fractional positions of that shape, by the table of keys before or ahead (Q, K)."""
        positions = positions.clamp(0, self.max_position)
        below = positions.detach().floor()
        index = below.long() + ahead * ((len(self.table) - 1) * (self.max_position + 1))
        steps = nn.functional.pad(self.table.diff(dim=1), (0, 0, 0, 1))  # what one position more adds
        whole, slopes = self._products(q, self.table, index), self._products(q, steps, index)
        return torch.addcmul(whole, slopes, (positions - below).to(q.dtype))

    def _products(self, q: Tensor, vectors: Tensor, index: Tensor) -> Tensor:
        """Scaled products (B, H, Q, K) of queries with vectors (tables, R, E), each pair's chosen by its index."""
        scaled = (vectors * self.head_dim**-0.5).to(q.dtype)
        return (q @ scaled.flatten(0, 1).T).gather(-1, index)


def _clipping_distance(config: HfMtConfig) -> int:
    if config.max_relative_position < 1:
        raise ValueError(f"max_relative_position is {config.max_relative_position}, but must be at least 1")
    return config.max_relative_position
