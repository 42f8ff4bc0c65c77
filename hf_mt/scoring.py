"""What a model thinks of given translations: the log-probability of each target, for ranking and filtering.

Scores are sums over the tokens of a target, its end of sentence included, in nats, without label smoothing. A language
token at its beginning, which is given in translating, is given here, too, and one behind its end does not count.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from hf_mt.batching import TokenBatchSampler, TranslationCollator
from hf_mt.data import encode_pairs
from hf_mt.errors import InputError
from hf_mt.generation import end_tokens, evaluating, position_limit, sequence_log_probs
from hf_mt.losses import decoder_inputs
from hf_mt.search_limits import check_limits
from hf_mt.translation import Translator


@dataclass(frozen=True)
class PairScore:
    """Log-probability of a target given its source, in nats, and how many tokens it has."""

    log_probability: float
    num_tokens: int

    @property
    def per_token(self) -> float:
        return self.log_probability / self.num_tokens


@torch.no_grad()
def score_pairs(
    translator: Translator, sources: Sequence[str], targets: Sequence[str], *, tokens_per_batch: int = 16384
) -> list[PairScore]:
    """Scores of targets, in input order, whatever the batches.

    Args:
        translator: The model, with its tokenizer and prefix.
        sources, targets: One text each a pair.
        tokens_per_batch: Padded tokens of the longer side.

    Raises:
        InputError: The numbers of sources and targets differ, or a sentence is longer than the model has positions.
    """
    check_limits(tokens_per_batch=tokens_per_batch)
    if len(sources) != len(targets):
        raise InputError(f"{len(sources)} sources, but {len(targets)} targets: a pair needs both")
    if not sources:
        return []
    model, tokenizer = translator.model, translator.tokenizer
    if hasattr(tokenizer, "src_lang") and getattr(tokenizer, "tgt_lang", None) is None:
        raise InputError(f"{type(tokenizer).__name__} marks the language of a target: give --target_lang")
    given = _is_given(translator)
    rows = encode_pairs(sources, targets, tokenizer, source_prefix=translator.source_prefix)
    lengths = np.array([list(map(len, pair)) for pair in zip(*rows.values(), strict=True)])
    for side, stack in enumerate((model.get_encoder(), model.get_decoder())):
        _check_lengths(lengths[:, side], position_limit(stack))
    sampler = TokenBatchSampler(lengths, tokens_per_batch=max(tokens_per_batch, int(lengths.max())), shuffle=False)
    collate = TranslationCollator(tokenizer)
    found: dict[int, PairScore] = {}
    with evaluating(model):
        for indices in sampler:
            batch = collate([{side: all_ids[index] for side, all_ids in rows.items()} for index in indices])
            source = {name: batch[name].to(model.device) for name in ("input_ids", "attention_mask")}
            ids = [_ended(rows["labels"][index], end_tokens(model)) for index in indices]
            sums = sequence_log_probs(
                model,
                ids,
                model.get_encoder()(**source, return_dict=True),
                source["attention_mask"],
                start=int(decoder_inputs(model, batch["labels"])[0, 0]),
                first_is_given=bool(given),
            )
            for index, total, tokens in zip(indices, sums.tolist(), ids, strict=True):
                found[index] = PairScore(total, len(tokens) - given)
    return [found[index] for index in range(len(sources))]


def _ended(tokens: list[int], ends: Sequence[int]) -> list[int]:
    """Tokens up to their last end of sentence, behind which mBART names the language."""
    return tokens[: max((place + 1 for place, token in enumerate(tokens) if token in ends), default=len(tokens))]


def _is_given(translator: Translator) -> int:
    """Tokens at the beginning of a target that are no choice of the model's: that of its language, or none."""
    option = "forced_bos_token_id"
    forced = translator.language_options.get(option, getattr(translator.model.generation_config, option, None))
    return int(forced is not None)


def _check_lengths(lengths: np.ndarray, limit: int | None) -> None:
    if limit is not None and lengths.max() > limit:
        line = int(lengths.argmax())
        raise InputError(
            f"line {line + 1}: {lengths[line]} tokens, but the model has positions for {limit}; shorten it, or take a "
            "model with an encoding that has no limit"
        )


def corpus_perplexity(scores: Sequence[PairScore]) -> tuple[float, float]:
    """Negative log-likelihood in nats per token of a corpus, and its perplexity."""
    nll = -sum(score.log_probability for score in scores) / sum(score.num_tokens for score in scores)
    return nll, math.exp(min(nll, 700))
