"""What every position encoding is: the interface, and the scheme `none`.

- The base class is a working scheme; the others override the hooks they need. Hooks are the only places where
  positions enter, so the model never asks which scheme it has.
- A scheme holds parameters only. Angles, slopes and buckets are computed from positions once in a stack's forward, in
  float32: nothing to refill after loading on the meta device, nothing to lose when a model is cast to bfloat16.
- Encoder and decoder own one instance each, shared by their layers; cross-attention has none.

Shapes, here and in the schemes: B batch, H heads, Q query length, K key length, D d_model, E head size, R relative
distances.
"""

from typing import Any, ClassVar

from torch import Tensor, nn

from .configuration_hf_mt import HfMtConfig


def distances(q_positions: Tensor, k_positions: Tensor) -> Tensor:
    """Key minus query positions: (Q,) and (K,) to (Q, K)."""
    return k_positions[None, :] - q_positions[:, None]


class PositionEncoding(nn.Module):
    """The scheme `none`: the encoder sees a set of words, the decoder knows order by its causal mask alone.

    Source: for decoders, Haviv et al. 2022 (https://arxiv.org/abs/2203.16634).

    Args:
        config: Sizes, and the fields of the schemes.
        num_heads: Attention heads of the stack (H).
        bidirectional: Whether keys may follow the query (encoder) or never do (decoder).
    """

    uses_bias: ClassVar[bool] = False  # adds to attention scores
    uses_weights: ClassVar[bool] = False  # needs attention weights: eager attention only
    widens: ClassVar[bool] = False  # makes queries and keys wider than values
    counts_words: ClassVar[bool] = False  # sees the order of words alone, and needs every one that the query sees
    relative: ClassVar[bool] = True  # sees distances alone, so that moving a sentence changes nothing
    citation: ClassVar[str] = "Haviv et al. 2022, https://arxiv.org/abs/2203.16634"

    def __init__(self, config: HfMtConfig, *, num_heads: int, bidirectional: bool):
        super().__init__()
        self.d_model = config.d_model
        self.num_heads = num_heads
        self.head_dim = config.d_model // num_heads
        self.bidirectional = bidirectional

    @property
    def max_length(self) -> int | None:
        """Longest sequence this scheme can take; None if it has no limit."""
        return None

    def reset(self, std: float) -> None:
        """Draws the initial values of the scheme's parameters.

        Args:
            std: Standard deviation of the model's embeddings.
        """

    def embed(self, hidden_states: Tensor, positions: Tensor) -> Tensor:
        """Adds positions to embeddings: (B, Q, D) and (Q,) to (B, Q, D)."""
        return hidden_states

    def prepare(self, q_positions: Tensor, k_positions: Tensor) -> Any:
        """Whatever depends on positions alone, once in a stack's forward: (Q,) and (K,) to a state for the hooks."""
        return None

    def rotate(self, q: Tensor, k: Tensor, state: Any) -> tuple[Tensor, Tensor]:
        """Changes queries and new keys before keys are cached: two (B, H, Q, E) to two (B, H, Q, any width)."""
        return q, k

    def bias(self, q: Tensor, k: Tensor, state: Any) -> Tensor | None:
        """What to add to the scaled scores of queries (B, H, Q, E) and all keys (B, H, K, E): None, or (1 or B, H, Q,
        K) in the dtype of `q`."""
        return None

    def add_values(self, attn_output: Tensor, attn_weights: Tensor | None, state: Any) -> Tensor:
        """Adds positions to what attention read: (B, Q, H, E) and (B, H, Q, K) to (B, Q, H, E)."""
        return attn_output
