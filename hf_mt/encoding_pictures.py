"""What each position encoding looks like, drawn from its own class.

The left panel is what the scheme does itself: the table it adds to embeddings, the turn it gives to queries, or the
bias it adds to scores, by distance. The others are scores of a sentence of sixty equal words, in the encoder and in
the decoder: whatever is seen there comes from position alone.
"""

import math

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from hf_mt.figures import SOFT, panels, style
from hf_mt.model import POSITION_ENCODINGS, HfMtConfig, PositionEncoding


LENGTH, HEADS, WIDTH = 60, 4, 64
ROUNDING = 1e-4
POSITIONS = torch.arange(LENGTH)


def encoding_figure(name: str) -> Figure:
    """The picture of a key of `POSITION_ENCODINGS`, with the parameters that it starts training with."""
    torch.manual_seed(0)
    encoder, decoder = (_scheme(name, bidirectional=side == 0) for side in range(2))
    word = torch.randn(WIDTH)
    figure, (left, middle, right) = panels(1, 3, (12.0, 3.6), dpi=90)
    _draw_own(left, encoder, word)
    for axes, encoding, title in ((middle, encoder, "scores, encoder"), (right, decoder, "scores, decoder")):
        values = _scores(encoding, word)
        if not encoding.bidirectional:
            values = values.masked_fill(torch.ones(LENGTH, LENGTH).triu(1).bool(), math.nan)
        _heat_map(axes, values, title)
        axes.set_xlabel("key", color=SOFT, fontsize=9)
        axes.set_ylabel("query", color=SOFT, fontsize=9)
    return figure


def _scheme(name: str, *, bidirectional: bool) -> PositionEncoding:
    config = HfMtConfig(d_model=WIDTH, encoder_attention_heads=HEADS, decoder_attention_heads=HEADS)
    encoding = POSITION_ENCODINGS[name](config, num_heads=HEADS, bidirectional=bidirectional)
    encoding.reset(WIDTH**-0.5)
    return encoding


def _heads(hidden_states: Tensor) -> Tensor:
    """(1, Q, D) to (1, H, Q, E)."""
    return hidden_states.view(1, -1, HEADS, WIDTH // HEADS).transpose(1, 2)


@torch.no_grad()
def _scores(encoding: PositionEncoding, word: Tensor) -> Tensor:
    """Scores (Q, K) of the first head where each place has the same word, queries and keys being the embeddings."""
    hidden_states = encoding.embed(word.expand(1, LENGTH, WIDTH), POSITIONS)
    state = encoding.prepare(POSITIONS, POSITIONS)
    q, k = encoding.rotate(_heads(hidden_states), _heads(hidden_states), state)
    scores = q @ k.mT * encoding.head_dim**-0.5
    bias = encoding.bias(q, k, state)
    return (scores if bias is None else scores + bias)[0, 0]


@torch.no_grad()
def _draw_own(axes: Axes, encoding: PositionEncoding, word: Tensor) -> None:
    zeros = torch.zeros(1, LENGTH, WIDTH)
    table = encoding.embed(zeros, POSITIONS)[0]  # (Q, D)
    state = encoding.prepare(POSITIONS, POSITIONS)
    q = _heads(word.expand(1, LENGTH, WIDTH))
    turned, keys = encoding.rotate(q, q, state)
    bias = encoding.bias(turned, keys, state)
    if table.any():
        _heat_map(axes, table.T, "added to the embedding")
        axes.set_xlabel("position", color=SOFT, fontsize=9)
        axes.set_ylabel("dimension", color=SOFT, fontsize=9)
    elif bias is not None:
        style(axes, "added to the scores of the middle query")
        middle = LENGTH // 2
        for head in range(HEADS):
            axes.plot(POSITIONS - middle, bias[0, head, middle], linewidth=1.5, label=f"head {head + 1}")
        axes.set_xlabel("distance of the key", color=SOFT, fontsize=9)
        axes.legend(frameon=False, fontsize=8)
    elif turned.shape != q.shape or not torch.equal(turned, q):
        _heat_map(axes, turned[0, 0].T, "the query of one word, first head")
        axes.set_xlabel("position", color=SOFT, fontsize=9)
        axes.set_ylabel("dimension", color=SOFT, fontsize=9)
    else:
        style(axes, "nothing is added or turned")
        axes.set(xticks=[], yticks=[])


def _heat_map(axes: Axes, values: Tensor, title: str) -> None:
    style(axes, title)
    axes.grid(visible=False)
    middle = float(values.nanmean())
    farthest = float((values - middle).abs().nan_to_num().max())
    farthest = farthest if farthest > ROUNDING else 1.0
    shown = axes.imshow(values.numpy(), cmap="RdBu_r", vmin=middle - farthest, vmax=middle + farthest, aspect="auto")
    bar = axes.figure.colorbar(shown, ax=axes, fraction=0.05, pad=0.02)  # type: ignore[union-attr]
    bar.outline.set_visible(False)  # type: ignore[operator]
    bar.ax.tick_params(length=0, labelsize=8, labelcolor=SOFT)
