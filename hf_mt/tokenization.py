"""The subword tokenizer: trained on both languages together, or loaded from the Hub or a folder.

- Lossless: decoding gives back every space, case, accent and digit of the text. There is no normalisation; the space
  before a word is a part of its first token, so tokens hold real spaces and none of the usual stand-ins for them.
- One space is put before each text and taken off again, so a word is the same token first in a sentence and inside it.
- Letters, digits and other signs never share a token (but for an apostrophe inside a word). The full stop stays off
  the word; and no text can ever become a special token, since a written `</s>` is three pieces.
- A trained tokenizer is saved as a plain `tokenizer.json`, which `AutoTokenizer` loads without this package.
"""

from __future__ import annotations

import json
import logging
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from difflib import get_close_matches
from itertools import chain, cycle
from typing import Any, Literal

from datasets import DatasetDict
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from hf_mt.arguments import DataArguments, ModelArguments
from hf_mt.errors import InputError, listing


logger = logging.getLogger(__name__)

TokenizerType = Literal["bpe", "unigram", "byte_bpe"]
PAD, BOS, EOS, UNK = SPECIAL_TOKENS = ("<pad>", "<s>", "</s>", "<unk>")  # their places are their ids
WORD = r" ?[\p{L}\p{M}]+(?:['’][\p{L}\p{M}]+)*"  # with inner apostrophes: l'eau, don't
NUMBER = {True: r" ?\p{N}", False: r" ?\p{N}+"}  # by split_digits
SIGNS = r"[ \u00a0\u202f]?[^\s\p{L}\p{M}\p{N}]+"  # with the no-break spaces that French puts before them
SPACES = r"\s+(?!\S)|\s+"  # all but the last, which belongs to what follows
MIN_PAIR_COUNT = 2  # a merge seen once would give a token that training sees once
MIN_WORD_COUNT = 5  # rarer words aren't worth a unigram token of their own


def train_tokenizer(
    texts: Iterable[str], *, vocab_size: int, tokenizer_type: TokenizerType = "bpe", split_digits: bool = True
) -> PreTrainedTokenizerFast:
    """Train a joint tokenizer on the texts of both sides.

    Ids: `<pad>` 0, `<s>` 1, `</s>` 2, `<unk>` 3. Encoding appends `</s>` and adds nothing in front. Every character of
    `texts` is in the vocabulary; others become `<unk>`, save with "byte_bpe", which has none. The same texts give the
    same tokenizer, whatever the threads. The real size, `len(tokenizer)`, may be under `vocab_size` (logged) when the
    texts have no more to give.

    Methods: BPE, Sennrich et al. 2016 (arXiv:1508.07909); unigram, Kudo 2018 (arXiv:1804.10959); byte-level BPE,
    Radford et al. 2019. All from the `tokenizers` package.

    Raises:
        InputError: no text, or `vocab_size` has no room for the characters (bytes) and the special tokens.
    """
    texts = list(texts)
    _check_size(texts, vocab_size, tokenizer_type)
    backend = _untrained(tokenizer_type, split_digits)
    seeds = _glued_words(backend, texts) if tokenizer_type == "unigram" else []
    backend.train_from_iterator([*texts, *seeds], _trainer(tokenizer_type, vocab_size))
    if tokenizer_type == "unigram":
        backend.model = _reproducible_unigram(backend)
    backend.post_processor = processors.TemplateProcessing(
        single=f"$A {EOS}", pair=f"$A {EOS} $B {EOS}", special_tokens=[(EOS, SPECIAL_TOKENS.index(EOS))]
    )
    if backend.get_vocab_size() != vocab_size:
        logger.warning(
            "The tokenizer has %d tokens, not the %d asked for: the training text gives no other size.",
            backend.get_vocab_size(),
            vocab_size,
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNK,
        padding_side="right",
        split_special_tokens=True,  # saved with the tokenizer: special tokens are never looked for in texts
        model_input_names=["input_ids", "attention_mask"],
    )


def _check_size(texts: list[str], vocab_size: int, tokenizer_type: TokenizerType) -> None:
    characters = set().union(*texts)
    if not characters:
        raise InputError("There is no text to train a tokenizer on: every sentence is empty.")
    if tokenizer_type == "byte_bpe":
        symbols, kind = 256, "bytes"
    else:
        symbols, kind = len(characters | {" "}), "different characters"
    if vocab_size < symbols + len(SPECIAL_TOKENS):
        raise InputError(
            f"vocab_size is {vocab_size}, but the {symbols} {kind} and {len(SPECIAL_TOKENS)} special tokens need "
            f"{symbols + len(SPECIAL_TOKENS)} at least. Raise vocab_size"
            + ("." if tokenizer_type == "byte_bpe" else ", or choose tokenizer_type byte_bpe, which needs 260.")
        )


def _untrained(tokenizer_type: TokenizerType, split_digits: bool) -> Tokenizer:
    backend = Tokenizer(models.Unigram() if tokenizer_type == "unigram" else models.BPE(unk_token=UNK))
    pieces = pre_tokenizers.Split(Regex("|".join((WORD, NUMBER[split_digits], SIGNS, SPACES))), "isolated")
    join: Any = decoders.Fuse()
    if tokenizer_type == "byte_bpe":
        pieces = pre_tokenizers.Sequence([pieces, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
        join = decoders.ByteLevel()
    backend.normalizer = normalizers.Prepend(" ")
    backend.pre_tokenizer = pieces
    backend.decoder = decoders.Sequence([join, decoders.Strip(" ", 1, 0)])
    return backend


def _trainer(tokenizer_type: TokenizerType, vocab_size: int) -> Any:
    common: dict[str, Any] = {
        "vocab_size": vocab_size,
        "special_tokens": list(SPECIAL_TOKENS),
        "show_progress": False,
    }
    if tokenizer_type == "unigram":
        return trainers.UnigramTrainer(unk_token=UNK, **common)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet()) if tokenizer_type == "byte_bpe" else []
    return trainers.BpeTrainer(min_frequency=MIN_PAIR_COUNT, initial_alphabet=alphabet, **common)


def _glued_words(backend: Tokenizer, texts: list[str]) -> list[str]:
    """Each frequent word once more, with a letter glued to its end.

    The trainer's candidates are the strings that it sees with two different continuations. It looks at a list of
    distinct words, so a whole word has one, its end, and could never become a token.
    """
    spaced = (backend.pre_tokenizer.pre_tokenize_str(" " + text) for text in texts)
    words = Counter(word for split in spaced for word, _ in split if word[0] == " " and word[1:2].isalpha())
    letters = sorted({letter for word in words for letter in word if letter.isalpha()})
    frequent = sorted(word for word, count in words.items() if count >= MIN_WORD_COUNT)
    return [word[1:] + letter for word, letter in zip(frequent, cycle(letters), strict=False)]


def _reproducible_unigram(backend: Tokenizer) -> models.Unigram:
    """The trained model without what a hash order put in: the last digits of its scores, and the order of ties.

    The trainer also gives rare characters scores just above the lowest one, in hash order; here they share the lowest.
    """
    vocabulary = json.loads(backend.to_str())["model"]["vocab"]
    pieces = [(piece, score) for piece, score in vocabulary if piece not in SPECIAL_TOKENS]
    lowest = min(score for _, score in pieces)
    rare = lowest + 1e-4 * sum(len(piece) == 1 for piece, _ in pieces)  # 1e-4 is the trainer's step
    rounded = {p: round(lowest if len(p) == 1 and score <= rare else score, 6) for p, score in pieces}
    ordered = sorted(rounded.items(), key=lambda item: (-item[1], item[0]))
    return models.Unigram([(token, 0.0) for token in SPECIAL_TOKENS] + ordered, SPECIAL_TOKENS.index(UNK), False)


def check_same_tokens(folder: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """That a checkpoint's tokens have the ids that they have now.

    Raises:
        InputError: They don't: text or files that the tokenizer is made of have changed since.
    """
    before, now = load_tokenizer(folder).get_vocab(), tokenizer.get_vocab()
    if before != now:
        raise InputError(
            f"{folder} was trained with another vocabulary ({len(before):,} tokens, of which "
            f"{len(before.items() - now.items()):,} are others now): the training text, or what tokenizer_name names, "
            "has changed; restore it to go on, or choose another output_dir"
        )


def load_tokenizer(
    name_or_path: str,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
    token: str | None = None,
    source_lang: str | None = None,
    target_lang: str | None = None,
) -> PreTrainedTokenizerBase:
    """Load any tokenizer that `AutoTokenizer` knows, and set the languages of a multilingual one (mBART, NLLB).

    A language may be the tokenizer's own code (`de_DE`) or the beginning of exactly one (`de`).

    Raises:
        InputError: there is no tokenizer, it can't pad or end a sentence, or it doesn't know a language.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            name_or_path,
            revision=revision,
            trust_remote_code=trust_remote_code,
            token=token,
            local_files_only=os.path.exists(name_or_path),
        )
    except BaseException as error:  # a damaged file makes transformers raise whatever comes; Rust panics, too
        if isinstance(error, (KeyboardInterrupt, SystemExit, GeneratorExit)):
            raise
        raise InputError(
            f"No tokenizer could be loaded from {name_or_path!r} (revision {revision or 'main'!r}): {error}\nGive a "
            "folder with a saved tokenizer or the name of a repository on the Hub."
        ) from error
    for role in ("pad", "eos"):
        if getattr(tokenizer, f"{role}_token_id", None) is None:
            raise InputError(
                f"The tokenizer of {name_or_path!r} has no {role} token, which translation needs. Choose one made for "
                "an encoder-decoder model, or set one and save the tokenizer first."
            )
    for attribute, language in (("src_lang", source_lang), ("tgt_lang", target_lang)):
        if language is not None and hasattr(tokenizer, attribute):
            setattr(tokenizer, attribute, _language_code(tokenizer, language))
    return tokenizer


def _language_code(tokenizer: PreTrainedTokenizerBase, language: str) -> str:
    codes = list(getattr(tokenizer, "lang_code_to_id", None) or tokenizer.extra_special_tokens)
    matches = [language] if language in codes else [code for code in codes if code.split("_")[0] == language]
    if len(matches) != 1:
        near = near_codes(language, codes)
        raise InputError(
            f"The tokenizer has no language {language!r}, or several; of its {len(codes)} codes these are near: "
            f"{listing(near)}. Give one as source_lang or target_lang; the files of text pairs end in the same code, "
            f"such as train.{near[0] if near else 'de'}."
        )
    return matches[0]


def near_codes(language: str, codes: Sequence[str]) -> list[str]:
    """Ten codes of languages at most that may be meant: those that begin alike, else those that look alike."""
    alike = [code for code in codes if code.strip("_")[:2].lower() == language[:2].lower()]
    return (alike or get_close_matches(language, codes, n=10, cutoff=0.3) or list(codes))[:10]


def get_tokenizer(
    corpus: DatasetDict, data: DataArguments, model: ModelArguments, vocab_size: int
) -> PreTrainedTokenizerBase:
    """Load the tokenizer that `model` names (`tokenizer_name`, else `model_name_or_path`), else train one.

    Training reads both sides of the `train` split as it is, so filter the corpus first. `vocab_size` counts only then.

    Raises:
        InputError: as `load_tokenizer` and `train_tokenizer`.
    """
    if name := model.tokenizer_name or model.model_name_or_path:
        return load_tokenizer(
            name,
            # model_revision is that of model_name_or_path, which a tokenizer from elsewhere doesn't share
            revision=model.tokenizer_revision if model.tokenizer_name else model.model_revision,
            trust_remote_code=model.trust_remote_code,
            token=model.token,
            source_lang=data.source_lang,
            target_lang=data.target_lang,
        )
    return train_tokenizer(
        _both_sides(corpus, data),
        vocab_size=vocab_size,
        tokenizer_type=data.tokenizer_type,
        split_digits=data.split_digits,
    )


def _both_sides(corpus: DatasetDict, data: DataArguments) -> Iterator[str]:
    pairs = (batch["translation"] for batch in corpus["train"].iter(batch_size=1000))
    return (pair[side] for pair in chain.from_iterable(pairs) for side in (data.source_lang, data.target_lang))
