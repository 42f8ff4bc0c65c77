"""Beam search for our own models: the translations of transformers' `generate`, in a fraction of its time.

- The beams of a sentence are queries of one sentence. Their keys and values lie side by side in the cache, and a mask
  shows each beam its own past: when beams change places only the mask moves, where `generate` copies the cache.
- The keys of the source are held once a sentence, not once a beam.
- Sentences whose search has ended leave the batch as soon as they are many enough to be worth a copy.
- Greedy search is beam search with one beam.

The rules of the search (what may finish, when a sentence ends) are those of `GenerationMixin._beam_search` in
transformers 5.23, which the tests compare with.

Shapes: A sentences still searched, K beams, C = 2K candidates, t tokens so far, V vocabulary size, S source length.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, EncoderDecoderCache

from hf_mt.model import HfMtForConditionalGeneration


IMPOSSIBLE = -1e9  # a sum of log-probabilities that no running hypothesis has; finite, since it is added to others
NONE = -math.inf  # the score of a finished hypothesis that is not there
_OF_SENTENCES = """
numbers done states limits source_mask tokens scores past finished_tokens finished_scores
"""
OF_SENTENCES = tuple(_OF_SENTENCES.split())  # attributes of a search that have a row for each sentence
WORTH_A_COPY = 0.75  # of the sentences at most are still searched before the others' rows are given up


class GrowingLayer(DynamicLayer):
    """Keys and values in room that doubles, so that a step copies only what is new."""

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        super().lazy_initialization(key_states, value_states)
        self.room = [states.new_empty(*states.shape[:2], 0, states.shape[3]) for states in (key_states, value_states)]
        self.length = 0

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Appends (A, H, K, E) keys and values; returns all so far, (A, H, K * t, E)."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start, self.length = self.length, self.length + key_states.shape[2]
        for index, states in enumerate((key_states, value_states)):
            if self.length > self.room[index].shape[2]:
                larger = states.new_empty(*states.shape[:2], 2 * self.length, states.shape[3])
                larger[:, :, :start] = self.room[index][:, :, :start]
                self.room[index] = larger
            self.room[index][:, :, start : self.length] = states
        self.keys, self.values = (room[:, :, : self.length] for room in self.room)
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        self.room = [room[indices] for room in self.room]
        self.keys, self.values = (room[:, :, : self.length] for room in self.room)


@dataclass(frozen=True)
class SearchOptions:
    """What decides a search besides the model.

    Attributes:
        num_beams: K; 1 is greedy search.
        length_penalty: Exponent of the length by which the score of a finished hypothesis is divided.
        early_stopping: Whether a sentence ends once it has K finished hypotheses, or only when none that still runs
            could replace one.
    """

    num_beams: int = 1
    length_penalty: float = 1.0
    early_stopping: bool = True


class BeamSearch:
    """One batch on its way from source states to translations.

    Args:
        model: One of ours, in evaluation mode.
        states: (B, S, D) what the encoder made of the source.
        attention_mask: (B, S), 1 for tokens and 0 for padding.
        limits: (B,) most new tokens of each sentence, end of sentence included.
        options: Beams and scores.
    """

    def __init__(
        self,
        model: HfMtForConditionalGeneration,
        states: Tensor,
        attention_mask: Tensor,
        limits: Tensor,
        options: SearchOptions,
    ):
        size, beams, device = len(states), options.num_beams, states.device
        self.model, self.options = model, options
        self.eos = torch.tensor(model.generation_config.eos_token_id, device=device).reshape(-1)
        self.candidates = (1 + len(self.eos)) * beams  # so that K are left where each end of sentence is among them
        self.cache = EncoderDecoderCache(Cache(layer_class_to_replicate=GrowingLayer), DynamicCache())
        self.length = 0
        # of each sentence that is still searched
        self.numbers = torch.arange(size, device=device)
        self.done = torch.zeros(size, dtype=torch.bool, device=device)
        self.states, self.limits = states, limits.to(device)
        self.source_mask = _additive(attention_mask[:, None, None] != 0, states.dtype)  # (A, 1, 1, S)
        # of each of its running hypotheses
        asked = model.generation_config.decoder_start_token_id
        start = model.config.decoder_start_token_id if asked is None else asked
        self.tokens = torch.full((size, beams, 1), start, device=device)  # (A, K, t + 1)
        self.scores = torch.full((size, beams), IMPOSSIBLE, device=device)
        self.scores[:, 0] = 0.0  # all begin alike: only one of them counts
        self.past = torch.zeros(size, beams, 0, dtype=torch.bool, device=device)  # (A, K, K * t) its own keys
        # of each of its finished hypotheses, best first
        self.finished_tokens = self.tokens.clone()
        self.finished_scores = torch.full_like(self.scores, NONE)
        self.not_a_number = False  # whether a search ended since the model's scores are NaN
        # of the batch
        self.results: list[list[tuple[list[int], float]]] = [[] for _ in range(size)]

    @torch.no_grad()
    def run(self) -> list[list[tuple[list[int], float]]]:
        """K hypotheses of each sentence, best first: tokens without the start and with what ended them, and score."""
        while len(self.numbers):
            scores, parents, tokens = self._best_candidates()
            self.length += 1
            stopped = torch.isin(tokens, self.eos) | (self.limits <= self.length)[:, None]
            self._finish(scores, parents, tokens, stopped)
            self._go_on(scores, parents, tokens, stopped)
            self._leave(stopped)
        return self.results

    def _best_candidates(self) -> tuple[Tensor, Tensor, Tensor]:
        """Scores, beams that they continue, and tokens of the C best continuations, each (A, C), best first."""
        log_probs = self._next_logits().float().log_softmax(-1)  # (A, K, V)
        width = min(self.candidates, log_probs.shape[-1])
        best, tokens = largest(log_probs, width)  # (A, K, C)
        log_probs = best + self.scores[:, :, None]
        scores, places = log_probs.flatten(1).topk(self.candidates)
        return scores, places // width, tokens.flatten(1).gather(1, places)

    def _next_logits(self) -> Tensor:
        """Logits (A, K, V) after the last tokens, each of which sees itself and the past of its beam."""
        size, beams, _ = self.past.shape
        itself = torch.eye(beams, dtype=torch.bool, device=self.past.device).expand(size, -1, -1)
        self.past = torch.cat((self.past, itself), dim=-1)
        step = torch.arange(self.length + 1, device=self.past.device)
        return self.model(
            encoder_outputs=(self.states,),
            attention_mask=self.source_mask,
            decoder_input_ids=self.tokens[:, :, -1],
            decoder_attention_mask=_additive(self.past[:, None], self.states.dtype),  # (A, 1, K, K * (t + 1))
            past_key_values=self.cache,
            use_cache=True,
            positions=step[-1:].expand(beams),
            key_positions=step.repeat_interleave(beams),
        ).logits

    def _finish(self, scores: Tensor, parents: Tensor, tokens: Tensor, stopped: Tensor) -> None:
        """Takes candidates that stopped, if they are among the K best, to the finished hypotheses."""
        beams = self.options.num_beams
        ended = stopped[:, :beams]
        if not ended.any():
            return
        new_scores = torch.where(ended, scores[:, :beams] / self.length**self.options.length_penalty, NONE)
        new_tokens = self._continued(parents[:, :beams], tokens[:, :beams])
        old_tokens = torch.nn.functional.pad(
            self.finished_tokens, (0, new_tokens.shape[-1] - self.finished_tokens.shape[-1]), value=-1
        )
        self.finished_scores, order = torch.cat((self.finished_scores, new_scores), dim=1).topk(beams)
        self.finished_tokens = _gather(torch.cat((old_tokens, new_tokens), dim=1), order)

    def _go_on(self, scores: Tensor, parents: Tensor, tokens: Tensor, stopped: Tensor) -> None:
        """Makes the K best of the other candidates the running hypotheses."""
        self.scores, order = (scores + stopped * IMPOSSIBLE).topk(self.options.num_beams)
        parents, tokens = parents.gather(1, order), tokens.gather(1, order)
        self.tokens, self.past = self._continued(parents, tokens), _gather(self.past, parents)

    def _continued(self, parents: Tensor, tokens: Tensor) -> Tensor:
        """Running hypotheses (A, n, t + 1) with one more token each."""
        return torch.cat((_gather(self.tokens, parents), tokens[:, :, None]), dim=-1)

    def _leave(self, stopped: Tensor) -> None:
        """Keeps the results of sentences that are done, and gives up their rows once they are many."""
        worst = self.finished_scores[:, -1]
        can_improve = self.scores[:, 0] / self.length**self.options.length_penalty > worst
        if self.options.early_stopping:
            can_improve &= worst == NONE
        ends = ~self.done & (stopped.all(1) | ~can_improve)
        if not ends.any():
            return
        self.not_a_number |= bool(self.scores[ends].isnan().any())
        self._keep_results(ends)
        self.done |= ends
        left = (~self.done).nonzero()[:, 0]
        if len(left) <= WORTH_A_COPY * len(self.done):
            self._select(left)

    def _keep_results(self, ends: Tensor) -> None:
        rows = (self.numbers[ends], self.finished_tokens[ends, :, 1:], self.finished_scores[ends])
        for number, beams, scores in zip(*(values.tolist() for values in rows), strict=True):
            texts = ([token for token in beam if token >= 0] for beam in beams)
            self.results[number] = list(zip(texts, scores, strict=True))

    def _select(self, left: Tensor) -> None:
        """Goes on with some of the sentences."""
        for name in OF_SENTENCES:
            setattr(self, name, getattr(self, name)[left])
        for cache in (self.cache.self_attention_cache, self.cache.cross_attention_cache):
            cache.batch_select_indices(left)


def largest(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """`values.topk(count)` of a long last dimension: the largest lie in the columns that have the largest maxima."""
    size = values.shape[-1]
    height = max(1, math.isqrt(size // count))
    width = size // height  # columns, at least `count`
    maxima = values[..., : height * width].unflatten(-1, (height, width)).amax(-2)  # (..., width)
    steps = width * torch.arange(height, device=values.device)
    places = (maxima.topk(count).indices[..., None] + steps).flatten(-2)  # (..., count * height)
    rest = torch.arange(height * width, size, device=values.device).expand(*places.shape[:-1], -1)
    places = torch.cat((places, rest), dim=-1)
    best, order = values.gather(-1, places).topk(count)
    return best, places.gather(-1, order)


def _additive(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask to add to scores, from one that is True where attention may look."""
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, torch.finfo(dtype).min)


def _gather(values: Tensor, beams: Tensor) -> Tensor:
    """Values (A, n, ...) of the beams (A, m)."""
    return values.gather(1, beams[:, :, None].expand(-1, -1, values.shape[-1]))
