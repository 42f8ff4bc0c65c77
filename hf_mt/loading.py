"""A saved model with its tokenizer, which model that is, and the languages that a multilingual one knows.

- A local folder is read without the network.
- The identity of a model is that of its files, or of its commit on the Hub; where the folder lies doesn't matter.
"""

import hashlib
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import CONFIG_NAME as CONFIG_FILE
from transformers.utils import cached_file
from transformers.utils.hub import extract_commit_hash

from hf_mt.errors import InputError, listing
from hf_mt.experiment import typed_values
from hf_mt.pretrained import MOVING_AVERAGE_NAME, load_seq2seq
from hf_mt.run_folder import CONFIG_NAME
from hf_mt.settings import Setting, read_yaml
from hf_mt.tokenization import load_tokenizer, near_codes


WEIGHTS = re.compile(r"model.*\.(safetensors|index\.json)")
# what a translation depends on, of all that a run folder holds
READ = re.compile(
    rf"{WEIGHTS.pattern}|(config|generation_config|tokenizer.*|special_tokens_map|added_tokens|(target_)?vocab.*|merges)\.\w+"
    rf"|.*\.(py|spm|model)|{re.escape(MOVING_AVERAGE_NAME)}"
)


def load_model(
    name: str, *, dtype: str | torch.dtype | None, revision: str | None, trust_remote_code: bool
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Model and tokenizer of a local folder, without the network, or of the Hub.

    Raises:
        InputError: There is no such model, or the folder lacks its files.
    """
    options: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    model = load_seq2seq(name, dtype=dtype_of(dtype) or "auto", **options)
    if not Path(name).is_dir():  # transformers no longer notes which commit a model is of
        with suppress(OSError):
            model.config._commit_hash = extract_commit_hash(cached_file(name, CONFIG_FILE, revision=revision), None)
    return model, load_tokenizer(name, **options)


def settings_of_run(name: str) -> dict[str, Setting]:
    """What a run was trained with, by its folder or that of a checkpoint in it; nothing elsewhere."""
    folder = Path(name)
    config = (folder.parent if folder.name.startswith("checkpoint-") else folder) / CONFIG_NAME
    return read_yaml(config) if folder.is_dir() and config.is_file() else {}


def prefix_of_run(name: str) -> str:
    """The `source_prefix` that a run was trained with; "" elsewhere."""
    settings = settings_of_run(name)
    return typed_values({key: settings[key] for key in settings if key == "source_prefix"}).get("source_prefix", "")


def dtype_of(dtype: str | torch.dtype | None) -> torch.dtype | None:
    """The dtype that has this name."""
    return getattr(torch, dtype) if isinstance(dtype, str) else dtype


def model_identity(name: str, model: PreTrainedModel) -> dict[str, str]:
    """SHA-256 of each file of a local model that translations depend on, or name and commit of one on the Hub.

    Raises:
        InputError: It was made in memory, and has neither.
    """
    if not name:
        raise InputError("a model that was made in memory can't be told from others: save it, and load it from there")
    folder = Path(name)
    if not folder.is_dir():
        return {"name": name, "commit": str(getattr(model.config, "_commit_hash", None))}
    files = sorted(path for path in folder.iterdir() if READ.fullmatch(path.name) and path.is_file())
    return {path.name: _sha256(path) for path in files}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def choose_languages(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, source_lang: str | None, target_lang: str | None
) -> dict[str, int]:
    """Sets the source language of a tokenizer, and gives the options of `generate` for the target; None changes none.

    Raises:
        InputError: The tokenizer knows no languages, or not this one.
    """
    if not hasattr(tokenizer, "src_lang"):
        raise InputError(
            f"{type(tokenizer).__name__} knows no languages (found source_lang={source_lang!r}, "
            f"target_lang={target_lang!r}): leave them out, or choose the language by source_prefix"
        )
    if source_lang is not None:
        tokenizer.src_lang = _language_token(tokenizer, source_lang)[0]
    if target_lang is None:
        return {}
    tokenizer.tgt_lang = _language_token(tokenizer, target_lang)[0]  # of targets that are scored
    start = model.generation_config.decoder_start_token_id
    specials = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    # mBART's first version starts with the language itself, all others with a token of no language
    option = "forced_bos_token_id" if start in specials else "decoder_start_token_id"
    return {option: _language_token(tokenizer, target_lang)[1]}


def _language_token(tokenizer: PreTrainedTokenizerBase, language: str) -> tuple[str, int]:
    """Code and token id of a language: `fra_Latn`, or the beginning of exactly one code (`fr` for `fr_XX`).

    M2M100 writes the token of `fr` as `__fr__`.
    """
    vocabulary, specials = tokenizer.get_vocab(), tokenizer.all_special_tokens
    named = [token for token in (language, f"__{language}__") if token in specials]
    named = named or [token for token in specials if token.split("_")[0] == language]
    if len(named) != 1:
        known = [token.strip("_") for token in specials if "_" in token]
        near = listing(near_codes(language, known))
        name = type(tokenizer).__name__
        raise InputError(
            f"{name} has no language {language!r}, or several; of its {len(known)} these are near: {near}"
        )
    return named[0].strip("_"), vocabulary[named[0]]
