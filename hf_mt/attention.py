"""Which words of the source the decoder looks at: cross-attention of a translation, for a picture."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_mt.data import encode_pairs
from hf_mt.generation import evaluating, position_limit
from hf_mt.losses import decoder_inputs
from hf_mt.translation import Translator


@dataclass(frozen=True)
class CrossAttention:
    """Attention of one sentence pair: rows are the target tokens to be predicted, columns the source tokens."""

    source_tokens: list[str]
    target_tokens: list[str]
    weights: Tensor  # (layers, T, S), mean over heads; each row sums to 1


@torch.no_grad()
def cross_attention(
    translator: Translator, sources: Sequence[str], targets: Sequence[str]
) -> list[CrossAttention | None]:
    """Attention of each pair, by a forward pass over the given targets; None where the model lacks positions for it.

    It takes the eager kernel and leaves out dropout; the model is as it was afterwards.
    """
    model, tokenizer = translator.model, translator.tokenizer
    rows = encode_pairs(sources, targets, tokenizer, source_prefix=translator.source_prefix)
    limits = [position_limit(stack) or math.inf for stack in (model.get_encoder(), model.get_decoder())]
    found = []
    with evaluating(model), _eager(model):
        for pair in zip(*rows.values(), strict=True):
            fits = all(len(side) <= limit for side, limit in zip(pair, limits, strict=True))
            found.append(_one(model, tokenizer, *pair) if fits else None)
    return found


@contextmanager
def _eager(model: PreTrainedModel) -> Iterator[None]:
    """In the block, the model has the only kernel that gives its weights."""
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def _one(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, source: list[int], target: list[int]
) -> CrossAttention:
    ids, labels = (torch.tensor([row], device=model.device) for row in (source, target))
    output = model(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        decoder_input_ids=decoder_inputs(model, labels),
        output_attentions=True,
        use_cache=False,
    )
    weights = torch.stack([layer[0].float().mean(0) for layer in output.cross_attentions])  # (layers, T, S)
    names = ([_shown(token) for token in tokenizer.convert_ids_to_tokens(row)] for row in (source, target))
    return CrossAttention(next(names), next(names), weights.cpu())


def _shown(token: str) -> str:
    """A subword without the mark of a word's beginning, which a picture has no room for."""
    return token.replace("▁", " ").strip() or "▁"
