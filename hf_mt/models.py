"""The model of an experiment: new, or pretrained.

- A new model's sizes are checked on the meta device, before any data is read: `check_architecture`.
- Whatever its origin, a model leaves here with a generation configuration that fits the data: transformers' own
  default cuts every translation at 20 tokens.
"""

import logging
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase, set_seed

from hf_mt.data import PreparedData
from hf_mt.errors import InputError
from hf_mt.experiment import Experiment
from hf_mt.generation import position_limit
from hf_mt.hardware import machine, multiplies_bfloat16
from hf_mt.loading import choose_languages
from hf_mt.model import HfMtConfig, HfMtForConditionalGeneration
from hf_mt.pretrained import load_seq2seq


logger = logging.getLogger(__name__)

WIDE = 256  # at less, rounding the factors of a layer costs a processor as much as it saves
SHORT = 64  # tokens: up to here sdpa's kernel for processors spends more time on its blocks than it saves


def check_architecture(experiment: Experiment) -> None:
    """Builds the model without memory for it, so that sizes that don't fit are known before anything else is done.

    Raises:
        InputError: As `load_or_build_model`.
    """
    if experiment.model.model_name_or_path is None:
        with torch.device("meta"):
            _new_model(experiment, HfMtConfig().vocab_size, {})


def load_or_build_model(
    experiment: Experiment, tokenizer: PreTrainedTokenizerBase, data: PreparedData
) -> PreTrainedModel:
    """The model to train, on the CPU, its initial weights decided by the seed.

    Args:
        experiment: A pretrained model's name, or the architecture of a new one.
        tokenizer: Gives the vocabulary size and the special tokens.
        data: Its longest sentences must fit the model; generation may take twice the longest training target.

    Raises:
        InputError: Sizes that don't fit together, a folder or name without a model, or a sentence with more tokens
            than the model has positions.
    """
    set_seed(experiment.training.seed)
    kernel = _kernel(experiment, data)
    if experiment.model.model_name_or_path is not None:
        model = _pretrained_model(experiment, tokenizer, kernel)
    else:
        ids = {name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
        first = [ids[name] for name in ("bos_token_id", "pad_token_id") if ids[name] is not None]
        ids["decoder_start_token_id"] = first[0]  # padding, where no token begins a sentence, as in T5 and Marian
        model = _new_model(experiment, len(tokenizer), ids, kernel=kernel)
    _check_lengths(model, data)
    round_products(model, experiment.training.float32_matmul_precision, experiment.training.device)
    if isinstance(model, HfMtForConditionalGeneration):
        _check_random_positions(model, max(tokens.max for tokens in data.tokens["train"].values()))
    _set_generation(model, experiment, data.tokens["train"]["target"].max)
    if hasattr(tokenizer, "set_src_lang_special_tokens"):  # translations begin with the token of their language
        languages = experiment.data.source_lang, experiment.data.target_lang
        model.generation_config.update(**choose_languages(model, tokenizer, *languages))
    return model


def _check_lengths(model: PreTrainedModel, data: PreparedData) -> None:
    """Every sentence that will be read has positions; test targets are only written, and may end early."""
    for side, stack in (("source", model.get_encoder()), ("target", model.get_decoder())):
        limit = position_limit(stack)
        for split, tokens in data.tokens.items():
            if limit is not None and tokens[side].max > limit:
                raise InputError(
                    f"a {side} sentence of the {split} set has up to {tokens[side].max} tokens, but the model has "
                    f"{limit} positions: raise max_position_embeddings, choose a position_encoding without a limit, "
                    f"or {_shorter(split, side, limit)}"
                )


def _check_random_positions(model: HfMtForConditionalGeneration, longest: int) -> None:
    """Positions that are moved or spread in training still have to be enough, and within the limit."""
    spread, limit = model.config.randomized_positions, model.max_length
    if 0 < spread < longest:
        raise InputError(f"randomized_positions is {spread}, but a training sentence has {longest} tokens; raise it")
    reach = max(longest, spread) + model.config.position_shift
    if limit is not None and reach > limit:
        raise InputError(
            f"position_shift or randomized_positions reach position {reach:,}, but the model has {limit} positions: "
            "raise max_position_embeddings, or lower them"
        )


def _shorter(split: str, side: str, limit: int) -> str:
    if split == "train":
        return f"set max_{side}_length to {limit} to drop longer pairs"
    return f"shorten the longest sentences of the {split} set"


def _kernel(experiment: Experiment, data: PreparedData) -> str | None:
    """The attention kernel asked for; on a processor plain products for short sentences, which are faster there."""
    lengths = [tokens.percentile_95 for tokens in data.tokens["train"].values()]
    if experiment.model.attn_implementation is None and experiment.training.device.type == "cpu":
        return "eager" if max(lengths) <= SHORT else None
    return experiment.model.attn_implementation


def _new_model(
    experiment: Experiment, vocab_size: int, ids: dict[str, Any], *, kernel: str | None = None
) -> HfMtForConditionalGeneration:
    try:
        config = HfMtConfig(**{**experiment.architecture, **ids, "vocab_size": vocab_size})
        kernel = kernel or experiment.model.attn_implementation
        return HfMtForConditionalGeneration._from_config(config, attn_implementation=kernel)
    except (ValueError, KeyError, ImportError, StrictDataclassError) as error:
        raise InputError(_plain(error)) from error


def _plain(error: Exception) -> str:
    """The reason without the wrapping of transformers' validators."""
    return str(error.__cause__ or error)


def _pretrained_model(
    experiment: Experiment, tokenizer: PreTrainedTokenizerBase, kernel: str | None
) -> PreTrainedModel:
    name = str(experiment.model.model_name_or_path)
    settings = dict(experiment.architecture)
    losses = {key: settings.pop(key) for key in ("label_smoothing", "r_drop") if key in settings}
    model = load_seq2seq(
        name,
        revision=experiment.model.model_revision,
        token=experiment.model.token,
        trust_remote_code=experiment.model.trust_remote_code,
        attn_implementation=kernel,
        dtype=torch.float32,  # the optimizer's; mixed precision is Accelerate's to apply
        **settings,
    )
    if isinstance(model, HfMtForConditionalGeneration):
        model.config.update(losses)
        model.r_drop = model.config.r_drop
    elif losses.get("r_drop"):
        raise InputError(f"r_drop: {name} is a {type(model).__name__}, whose loss has none; leave it out")
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        logger.warning("The vocabulary grows from %d to %d tokens.", model.config.vocab_size, len(tokenizer))
        model.resize_token_embeddings(len(tokenizer))
    return model


def round_products(model: PreTrainedModel, precision: str, device: torch.device) -> None:
    """`float32_matmul_precision`: torch's on a GPU, our own models' on a processor; says so where it has no effect.

    For a processor torch would round every product, also those whose shapes never return, each with a new kernel.
    """
    if precision == "highest":
        return
    if device.type != "cpu":
        return torch.set_float32_matmul_precision(precision)
    ours = isinstance(model, HfMtForConditionalGeneration)
    if ours and precision == "medium" and multiplies_bfloat16(device):
        return model.round_products(layers=model.config.d_model >= WIDE)
    logger.warning(
        "float32_matmul_precision: %s has no effect on a %s on %s; a processor takes medium, for models of hf_mt, if "
        "it has AMX or AVX-512 BF16",
        precision,
        type(model).__name__,
        machine(),
    )


def _set_generation(model: PreTrainedModel, experiment: Experiment, longest_target: int) -> None:
    """What `generate` does unless told otherwise: the beams of the final test, and no cut at 20 tokens."""
    settings: GenerationConfig = model.generation_config
    limit = position_limit(model.get_decoder())
    longest = 2 * longest_target
    settings.update(
        max_length=longest if limit is None else min(longest, limit),  # a caller's max_new_tokens overrides it
        max_new_tokens=None,
        num_beams=experiment.training.num_beams,
        length_penalty=experiment.training.length_penalty if experiment.training.num_beams > 1 else None,
        early_stopping=experiment.training.num_beams > 1 or None,
    )
