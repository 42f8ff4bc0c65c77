"""One batch of translations, by any encoder-decoder model of transformers.

- Greedy and beam search of our own models are those of `hf_mt.search`, all else is left to `model.generate`; the
  translations are the same.
- Every sentence has its own length limit, so that its translation doesn't depend on which sentences share its batch.
- Scores of `generate` come from a second, teacher-forced pass of the decoder instead of `output_scores=True`, which
  would keep the whole vocabulary for every step and beam. They mean the same for greedy search, beams and sampling.
- The start token may be the end of sentence (BART), and beam search fills rows up with the end of sentence where
  padding is id 0 (ours): `_cut` drops the first column and trusts limits before tokens.

Shapes: B sentences, N = B * num_return_sequences hypotheses (sentence after sentence), S source and T target length.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, StoppingCriteria, StoppingCriteriaList
from transformers.modeling_outputs import BaseModelOutput

from hf_mt.errors import InputError, listing
from hf_mt.model import HfMtForConditionalGeneration
from hf_mt.search import BeamSearch, SearchOptions
from hf_mt.search_limits import check_limits, model_setting


MAX_LOGITS = 2**25  # largest block of (hypotheses, T, vocabulary) scores held at once, in numbers
BEAM_OPTIONS = ("early_stopping", "length_penalty")  # transformers warns if they come with one beam
SEARCH_KERNELS = ("eager", "sdpa")  # those that take the mask of the search
_KNOWN = """
pad_token_id bos_token_id eos_token_id decoder_start_token_id max_length max_new_tokens num_beams num_return_sequences
length_penalty early_stopping use_cache transformers_version _from_model_config
"""
DECIDED = {
    "max_length": "a Translator takes max_new_tokens, or max_length_a and max_length_b",
    "max_new_tokens": "use limits",
    "stopping_criteria": "each sentence ends at its own limit",
    "decoder_input_ids": "a translation begins with the start token, and a language's (set_languages)",
    "forced_eos_token_id": "translations that come to their limit are counted, not ended",
    "return_dict_in_generate": "scores come with nbest",
}  # options of `generate` that are none here, and what to use
KNOWN_SETTINGS = frozenset(_KNOWN.split())  # of a generation configuration, all that the search heeds or may ignore


@contextmanager
def evaluating(model: PreTrainedModel) -> Iterator[None]:
    """In the block, the model leaves out dropout; afterwards it is in the mode that it was in."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


@dataclass(frozen=True)
class GeneratedBatch:
    """What a model wrote for B sentences, as N hypotheses; those of a sentence are together, a search's best first.

    Attributes:
        sequences: Token ids without the start token, up to and with the end of sentence.
        scores: (N,) log-probability / length ** length_penalty, or None if not asked for.
        finished: (N,) True where the end of sentence was reached within the limit.
    """

    sequences: list[list[int]]
    scores: Tensor | None
    finished: Tensor


class SentenceLimits(StoppingCriteria):
    """Ends each sentence at its own number of new tokens; its beams, candidates or samples are neighbouring rows.

    Args:
        limits: (B,) new tokens, with the end of sentence.
    """

    def __init__(self, limits: Tensor):
        self.limits = limits

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        limits = self.limits.repeat_interleave(input_ids.shape[0] // self.limits.shape[0])
        return input_ids.shape[1] - 1 >= limits


def length_limits(attention_mask: Tensor, max_length_a: float = 2.0, max_length_b: int = 20) -> Tensor:
    """The most tokens a translation may have: ceil(a * source tokens) + b, (B, S) to (B,); fairseq's names."""
    return (max_length_a * attention_mask.sum(-1)).ceil().long() + max_length_b


def position_limit(stack: nn.Module) -> int | None:
    """The most tokens that an encoder or decoder has positions for; None if its scheme goes on for ever."""
    limits = []
    for name, module in stack.named_modules():
        if isinstance(getattr(module, "max_length", None), int):  # ours
            limits.append(module.max_length)
        elif (
            name.endswith("embed_positions")
            and isinstance(module, nn.Embedding)
            and not hasattr(module, "make_weight")
        ):
            limits.append(module.num_embeddings - getattr(module, "offset", 0))  # make_weight: FSMT's table grows
    return min(limits, default=None)


def generate_batch(
    model: PreTrainedModel,
    input_ids: Tensor,
    attention_mask: Tensor,
    *,
    encoder_outputs: BaseModelOutput | None = None,
    limits: Tensor | None = None,
    num_beams: int | None = None,
    num_return_sequences: int = 1,
    length_penalty: float | None = None,
    return_scores: bool = False,
    **generation: Any,
) -> GeneratedBatch:
    """Translates one padded batch with `model.generate`.

    Args:
        model: Encoder-decoder model; the caller chooses train or eval mode.
        input_ids: (B, S) source tokens.
        attention_mask: (B, S) ones for tokens, zeros for padding.
        encoder_outputs: What the encoder made of them, if it has run; left as it is.
        limits: (B,) most new tokens of each sentence; `length_limits(attention_mask)` if None. Positions that the
            decoder doesn't have lower it, and such outputs count as not finished.
        num_beams: 1 is greedy search, or sampling with `do_sample=True`; the model's own setting if None.
        num_return_sequences: Hypotheses a sentence.
        length_penalty: Exponent of the length in scores; the model's own setting if None.
        return_scores: Whether to compute scores.
        **generation: Further options of `generate`, such as `early_stopping`, or `do_sample`. Samples, unlike other
            outputs, depend on the batch: its sentences share one random stream.

    Raises:
        InputError: An option is decided here, or asks for another form of output; or the model's own settings, which
            may be anybody's, let no search begin.
    """
    decided = sorted(generation.keys() & DECIDED.keys())
    if decided:
        raise InputError(f"{decided[0]} can't be given here: {DECIDED[decided[0]]}")
    defaults, eos = model.generation_config, end_tokens(model)
    num_beams = num_beams or model_setting(defaults, "num_beams", 1)
    penalty = model_setting(defaults, "length_penalty", 1.0) if length_penalty is None else length_penalty
    limits = _limits(model, attention_mask, limits)
    plain = num_return_sequences <= num_beams and uses_own_search(model, generation)
    if encoder_outputs is None and (plain or return_scores):
        encoder_outputs = model.get_encoder()(input_ids=input_ids, attention_mask=attention_mask, return_dict=True)
    if plain and encoder_outputs is not None:
        stopping = generation.get("early_stopping", defaults.early_stopping)
        options = SearchOptions(num_beams, penalty, bool(stopping) or num_beams == 1)
        search = BeamSearch(model, encoder_outputs.last_hidden_state, attention_mask, limits, options)
        return _best(search, num_return_sequences, return_scores=return_scores)
    generation |= {"num_beams": num_beams, "num_return_sequences": num_return_sequences, "length_penalty": penalty}
    rows = _generate(model, input_ids, attention_mask, encoder_outputs, limits, generation)
    sequences = _cut(rows, limits.repeat_interleave(num_return_sequences).tolist(), eos)
    finished = torch.tensor([sequence[-1] in eos for sequence in sequences])
    if not return_scores:
        return GeneratedBatch(sequences, None, finished)
    start = int(rows[0, 0])
    given = generation.get("forced_bos_token_id", defaults.forced_bos_token_id) is not None
    sums = sequence_log_probs(model, sequences, encoder_outputs, attention_mask, start=start, first_is_given=given)
    return GeneratedBatch(sequences, sums / torch.tensor([len(row) for row in sequences]) ** penalty, finished)


def _generate(
    model: PreTrainedModel,
    input_ids: Tensor,
    attention_mask: Tensor,
    encoder_outputs: BaseModelOutput | None,
    limits: Tensor,
    generation: Mapping[str, Any],
) -> Tensor:
    """What `model.generate` writes, (N, 1 + T), without clashes between its settings and what is asked for."""
    options = dict(generation)
    if options["num_beams"] == 1:
        options = {key: value for key, value in options.items() if key not in BEAM_OPTIONS}
    if encoder_outputs is not None:
        options["encoder_outputs"] = type(encoder_outputs)(**encoder_outputs)  # generate repeats its rows in place
    check_limits(**generation)
    model_setting(model.generation_config, "encoder_no_repeat_ngram_size", 0)
    with _odd_settings_named(model, generation):
        return model.generate(
            input_ids=input_ids,
            attention_mask=attention_mask,
            max_length=1 + int(limits.max()),
            max_new_tokens=None,  # a model's own setting would clash with max_length
            return_dict_in_generate=False,
            forced_eos_token_id=None,  # BART's and Marian's would end only the longest sentences of a batch
            stopping_criteria=StoppingCriteriaList([SentenceLimits(limits)]),
            **options,
        )


@contextmanager
def _odd_settings_named(model: PreTrainedModel, generation: Mapping[str, Any]) -> Iterator[None]:
    """What `generate` makes of settings in the block, a model's own and those asked for, fails with their names.

    Raises:
        InputError: There are some that are unknown here, and they or the model are at fault.
    """
    own = {name for name, value in model.generation_config.to_diff_dict().items() if value is not None}
    odd = sorted((own | generation.keys()) - KNOWN_SETTINGS)
    try:
        yield
    except Exception as error:  # those settings come from anybody; memory and devices fail with classes of their own
        if not odd or (isinstance(error, RuntimeError) and type(error) not in (RuntimeError, NotImplementedError)):
            raise
        raise InputError(
            f"the settings {listing(odd)} of generate, the model's own (generation_config.json) and those asked for, "
            f"let it make no translation: {type(error).__name__}: {error}"
        ) from error


def end_tokens(model: PreTrainedModel) -> list[int]:
    """The tokens that end a sentence."""
    eos = model.generation_config.eos_token_id
    tokens = [] if eos is None else torch.tensor(eos).reshape(-1).tolist()
    if not tokens:
        raise InputError("generation_config.json of the model names no eos_token_id, so that no translation would end")
    return tokens


def uses_own_search(model: PreTrainedModel, generation: Mapping[str, Any]) -> bool:
    """Whether `hf_mt.search` knows all options of `generate` that were asked for, and the model."""
    settings = {name for name, value in model.generation_config.to_diff_dict().items() if value}
    return (
        isinstance(model, HfMtForConditionalGeneration)
        and model.can_search_beams
        and model.config._attn_implementation in SEARCH_KERNELS
        and generation.keys() <= {"num_beams", *BEAM_OPTIONS}
        and settings <= KNOWN_SETTINGS
        and "never" not in (generation.get("early_stopping"), model.generation_config.early_stopping)
    )


def _best(search: BeamSearch, number: int, *, return_scores: bool) -> GeneratedBatch:
    """The best few hypotheses of each sentence."""
    eos = search.eos.tolist()
    best = [hypothesis for hypotheses in search.run() for hypothesis in hypotheses[:number]]
    if search.not_a_number:
        raise InputError(
            "the model's scores are NaN: its training diverged, or its numbers are too large for its dtype"
        )
    if not all(tokens for tokens, _ in best):
        raise InputError(
            f"a sentence has fewer than {number} translations of the length that it may have: lower num_beams or nbest"
        )
    sequences = [tokens for tokens, _ in best]
    finished = torch.tensor([tokens[-1] in eos for tokens in sequences])
    return GeneratedBatch(sequences, torch.tensor([score for _, score in best]) if return_scores else None, finished)


def _limits(model: PreTrainedModel, attention_mask: Tensor, limits: Tensor | None) -> Tensor:
    """(B,) limits no higher than the decoder's positions, on the device of the mask."""
    limits = length_limits(attention_mask) if limits is None else limits.to(attention_mask.device)
    positions = position_limit(model.get_decoder())
    return limits if positions is None else limits.clamp(max=positions)


def _cut(rows: Tensor, limits: Sequence[int], eos: Sequence[int]) -> list[list[int]]:
    """Rows without start token and whatever fills them up, (N, 1 + T) to N lists."""
    sequences = []
    for row, limit in zip(rows[:, 1:].tolist(), limits, strict=True):
        end = next((i for i, token in enumerate(row[:limit]) if token in eos), limit - 1)
        sequences.append(row[: end + 1])
    return sequences


@torch.no_grad()
def sequence_log_probs(
    model: PreTrainedModel,
    sequences: Sequence[Sequence[int]],
    encoder_outputs: BaseModelOutput,
    attention_mask: Tensor,
    *,
    start: int,
    first_is_given: bool = False,
) -> Tensor:
    """The model's log-probability of each of N token sequences, natural logarithm, (N,) float32 on the CPU.

    Args:
        model: Encoder-decoder model.
        sequences: N token sequences without start token; N / B of them for each sentence, in order.
        encoder_outputs: Its `last_hidden_state` is (B, S, D).
        attention_mask: (B, S).
        start: The decoder's first token.
        first_is_given: Whether the token after it was forced (`forced_bos_token_id`) and counts as certain.
    """
    device, states = attention_mask.device, encoder_outputs.last_hidden_state
    per_sentence = len(sequences) // len(states)
    targets = pad_sequence([torch.tensor(row) for row in sequences], batch_first=True, padding_value=-100).to(device)
    inputs = torch.cat((torch.full_like(targets[:, :1], start), targets[:, :-1].clamp(min=0)), dim=1)  # (N, T)
    if first_is_given:
        targets[:, 0] = -100
    size = max(1, MAX_LOGITS // (targets.shape[1] * model.get_output_embeddings().weight.shape[0]))
    sums = []
    for rows in torch.arange(len(sequences), device=device).split(size):
        sources = rows // per_sentence
        logits = model(
            encoder_outputs=BaseModelOutput(last_hidden_state=states[sources]),
            attention_mask=attention_mask[sources],
            decoder_input_ids=inputs[rows],
            use_cache=False,
        ).logits  # (n, T, V)
        losses = nn.functional.cross_entropy(logits.float().transpose(1, 2), targets[rows], reduction="none")  # (n, T)
        sums.append(-losses.sum(-1))
    return torch.cat(sums).cpu()
