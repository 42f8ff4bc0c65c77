"""Pretrained models, from folders and from the Hub: weights as safetensors alone, and all of them.

- A pickle (`pytorch_model.bin`, `*.pt`) can hold a program, so none is ever read. For a repository that has nothing
  else, transformers looks for the conversion that the Hub itself offers.
- transformers gives weights that a file lacks random values, and warns; such a model would write nonsense.
- Code beside a model runs only where `trust_remote_code` says so.
- A checkpoint of a run with `ema_decay` holds plain weights and their moving average; the average was scored.
"""

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import AutoModelForSeq2SeqLM, PreTrainedModel

from hf_mt.errors import InputError, listing, shown, visible


logger = logging.getLogger(__name__)

REPORT = "transformers.modeling_utils"  # the logger that tells which weights were found
COLOUR = re.compile(r"\x1b\[[0-9;]*m")
PICKLE = re.compile(r"\.(bin|pt|pth|pkl|ckpt)$")
OF_TRAINING = re.compile("optimizer|scheduler|rng_state|scaler|training_args")  # no weights
MOVING_AVERAGE_NAME = "moving_average.safetensors"  # beside the plain weights of a checkpoint
CONVERSION = (
    'On a machine where a pickle may do no harm, AutoModelForSeq2SeqLM.from_pretrained("{name}", '
    'use_safetensors=False).save_pretrained("converted") writes safetensors; copy the tokenizer to it'
)


def load_seq2seq(name: str, *, trust_remote_code: bool = False, **options: Any) -> PreTrainedModel:
    """A model of transformers, ours or not, with its weights; a local folder is read without the network.

    A checkpoint with a moving average gives the model that average, as every evaluation had it.

    Args:
        name: A folder, or a name on the Hub.
        trust_remote_code: Whether code that comes with the model may run.
        **options: Of `from_pretrained`, such as `revision`, `token` and `dtype`.

    Raises:
        InputError: There is no such model, its weights are a pickle, broken, incomplete or of other shapes, its
            configuration can't be read, or a translation would begin or end with a token that it doesn't have.
    """
    is_here = os.path.exists(name)  # False for names that no file can have
    if is_here:
        _check_folder(Path(name))
    try:
        with _harmless_report():
            model, info = AutoModelForSeq2SeqLM.from_pretrained(
                name,
                local_files_only=is_here,
                use_safetensors=True,
                output_loading_info=True,
                trust_remote_code=trust_remote_code,
                **options,
            )
        _check_tokens(model)
    except Exception as error:  # a damaged file makes transformers and safetensors raise whatever comes
        where = "can't be loaded" if is_here else "is no folder here, and can't be loaded from the Hub"
        raise InputError(f"model {name!r} {where}: {_reason(error)}{_hint(name, error)}") from error
    if info["missing_keys"]:
        raise InputError(
            f"model {name!r} lacks weights: {listing(sorted(info['missing_keys']), 5)}; the folder is not whole"
        )
    if info["unexpected_keys"]:
        unused = visible(listing(sorted(info["unexpected_keys"]), 5))
        logger.warning("model %r has weights that are not used: %s", name, unused)
    average = Path(name) / MOVING_AVERAGE_NAME
    if is_here and average.is_file():
        _take_average(model, average)
    return model


def _take_average(model: PreTrainedModel, path: Path) -> None:
    """Overwrites the plain weights of a checkpoint with those that were scored."""
    cure = "delete it to have the plain weights beside it, or take another checkpoint"
    try:
        unexpected = model.load_state_dict(load_file(path), strict=False).unexpected_keys
    except Exception as error:  # as above, or weights of other shapes
        raise InputError(f"{path} can't be loaded: {_reason(error)}; {cure}") from error
    if unexpected:
        raise InputError(f"{path} has weights that the model lacks: {listing(sorted(unexpected), 5)}; {cure}")


@contextmanager
def _harmless_report() -> Iterator[None]:
    """In the block, what transformers tells of weights has no colours, and their names, a stranger's text, are shown
    as messages show text."""

    def plain(record: logging.LogRecord) -> bool:
        record.msg, record.args = visible(COLOUR.sub("", record.getMessage()), keep="\n\t"), ()
        return True

    report = logging.getLogger(REPORT)
    report.addFilter(plain)
    try:
        yield
    finally:
        report.removeFilter(plain)


def placed(model: PreTrainedModel, device: str | torch.device | None, dtype: torch.dtype | None) -> PreTrainedModel:
    """The model on a device and in a type of numbers; None leaves it as it is.

    Raises:
        InputError: There is no such device here, or the model does not fit on it.
    """
    try:
        return model.to(**{name: value for name, value in (("device", device), ("dtype", dtype)) if value is not None})
    except (RuntimeError, AssertionError, ValueError, NotImplementedError) as error:
        here = torch.accelerator.current_accelerator(check_available=True) or "none"
        told = str(error).splitlines()[0][:300]
        raise InputError(
            f"device {str(device)[:50]!r} can't be used: {told}; this machine's accelerator: {here}"
        ) from error


def _check_tokens(model: PreTrainedModel) -> None:
    """A translation begins and ends with tokens that the model has; `generation_config.json` is a file like any."""
    settings, head = model.generation_config, getattr(model.get_output_embeddings(), "weight", None)
    settings.to_diff_dict()  # fails where the file has given one of its methods another meaning
    vocabulary = range(2**31 if head is None else head.shape[0])
    anything = range(-1, 2**31)  # they fill what is thrown away, or are not used
    allowed = dict.fromkeys(("eos_token_id", "decoder_start_token_id", "forced_bos_token_id"), vocabulary)
    for name, numbers in {**allowed, "pad_token_id": anything, "bos_token_id": anything}.items():
        found = getattr(settings, name)
        tokens = found if name == "eos_token_id" and isinstance(found, list) else [found]
        if found is not None and not all(type(token) is int and token in numbers for token in tokens):
            raise InputError(
                f"{name} of generation_config.json is {shown(found)}; it must be a whole number from "
                f"{numbers.start} to {numbers.stop - 1:,}"
            )


def _check_folder(folder: Path) -> None:
    present = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    missing = [] if "config.json" in present else ["config.json"]
    if not any(name.startswith("model") and ".safetensors" in name for name in present):
        missing.append("weights (model.safetensors)")
    if missing:
        inside = ", ".join(present) or "nothing"
        pickles = [name for name in present if PICKLE.search(name) and not OF_TRAINING.match(name)]
        told = f". {pickles[0]} is a pickle, which is never read. {CONVERSION.format(name=folder)}" if pickles else ""
        raise InputError(
            f"{folder} lacks {' and '.join(missing)}; in it: {inside}. Name a folder with a saved model{told}"
        )


def _reason(error: Exception) -> str:
    """What is wrong, without the wrapping of transformers' validators."""
    told = str(error.__cause__ or error) or str(error)
    return told if isinstance(error, (OSError, ValueError)) else f"{type(error).__name__}: {told}"


def _hint(name: str, error: Exception) -> str:
    return f"\n{CONVERSION.format(name=name)}" if "use_safetensors" in str(error) else ""
