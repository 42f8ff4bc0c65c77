"""Translation of text with any encoder-decoder model of transformers, ours or not.

- Sentences are sorted by length and batched by tokens; results come in input order and don't depend on the batches.
- Nothing is cut: a sentence that the model has no positions for is refused with its line number.
- A local folder is read without the network.
"""

import logging
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, SpinnerColumn, TimeElapsedColumn
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from hf_mt.arguments import InputError
from hf_mt.generation import GeneratedBatch, generate_batch, is_search, length_limits, position_limit
from hf_mt.hardware import side_by_side
from hf_mt.text_files import one_line, open_output


__all__ = ["GeneratedBatch", "Hypothesis", "Translator", "generate_batch", "length_limits", "position_limit"]

logger = logging.getLogger(__name__)

WEIGHTS = re.compile(r"(pytorch_)?model.*\.(safetensors|bin|index\.json)")


@dataclass(frozen=True)
class Hypothesis:
    """A translation, its score (log-probability / length ** length_penalty; None if not asked for), and its ending.

    `finished` is False for a translation that was cut at its length limit.
    """

    text: str
    score: float | None
    finished: bool


class Translator:
    """Translates sentences with any encoder-decoder model: batched by length, returned in order, nothing cut.

    Args:
        model: A folder, a name on the Hub, or a model, which stays on its device.
        tokenizer: Needed with a model object; otherwise read from where the model is.
        device: Where to compute; an accelerator if there is one.
        dtype: Of the weights, such as "bfloat16"; as they were saved if None.
        revision: Branch, tag or commit on the Hub.
        trust_remote_code: Whether code that comes with the model may run.
        source_prefix: Text before each sentence (T5's `translate English to German: `, Marian's `>>fra<< `).
        source_lang: For multilingual models only; see `set_languages`.
        target_lang: The language to translate into, likewise.

    Raises:
        InputError: There is no such model, the folder lacks its files, or the tokenizer lacks a language.
    """

    def __init__(
        self,
        model: str | PathLike[str] | PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        revision: str | None = None,
        trust_remote_code: bool = False,
        source_prefix: str = "",
        source_lang: str | None = None,
        target_lang: str | None = None,
    ):
        if isinstance(model, (str, PathLike)):
            model, loaded = _load(str(model), dtype=dtype, revision=revision, trust_remote_code=trust_remote_code)
            tokenizer = tokenizer or loaded
            device = device or torch.accelerator.current_accelerator() or "cpu"
        if tokenizer is None:
            raise InputError("a model object comes without its tokenizer: Translator(model, tokenizer)")
        asked = {"device": device, "dtype": _dtype(dtype)}
        self.model = model.to(**{name: value for name, value in asked.items() if value is not None})
        self.tokenizer = tokenizer
        self.source_prefix = source_prefix
        self.language_options: dict[str, int] = {}
        if source_lang is not None or target_lang is not None:
            self.set_languages(source_lang, target_lang)

    def set_languages(self, source_lang: str | None, target_lang: str | None) -> None:
        """Chooses the languages of a multilingual model; None leaves one as it is.

        Args:
            source_lang: A code that the tokenizer knows (`en_XX`, `eng_Latn`), or the beginning of exactly one (`en`).
            target_lang: Likewise.

        Raises:
            InputError: The tokenizer knows no languages, or not this one.
        """
        if not hasattr(self.tokenizer, "src_lang"):
            raise InputError(
                f"{type(self.tokenizer).__name__} knows no languages (found source_lang={source_lang!r}, "
                f"target_lang={target_lang!r}): leave them out, or choose the language by source_prefix"
            )
        if source_lang is not None:
            self.tokenizer.src_lang = _language_token(self.tokenizer, source_lang)[0]
        if target_lang is not None:
            start = self.model.generation_config.decoder_start_token_id
            specials = (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id, self.tokenizer.pad_token_id)
            # mBART's first version starts with the language itself, all others with a token of no language
            option = "forced_bos_token_id" if start in specials else "decoder_start_token_id"
            self.language_options = {option: _language_token(self.tokenizer, target_lang)[1]}

    def __call__(
        self,
        sentences: str | Sequence[str],
        *,
        num_beams: int | None = None,
        num_return_sequences: int = 1,
        show_progress: bool = False,
        **options: Any,
    ) -> str | list[str] | list[list[str]]:
        """Translates one sentence or many; an empty or blank one gives an empty one.

        Args:
            sentences: Text; line breaks in it are text like any other.
            num_beams: The model's own setting if None.
            num_return_sequences: With more than one, each sentence gives a list of translations.
            show_progress: Whether to show a bar on stderr.
            **options: Those of `translate_stream`.

        Raises:
            InputError: A sentence has more tokens than the model has positions.
        """
        texts = [sentences] if isinstance(sentences, str) else sentences
        with _progress(show_progress, len(texts)) as advance:
            hypotheses = self._translate(
                texts, num_beams=num_beams, num_return_sequences=num_return_sequences, advance=advance, **options
            )
        if num_return_sequences > 1:
            several = [[hypothesis.text for hypothesis in best] for best in hypotheses]
            return several[0] if isinstance(sentences, str) else several
        translations = [best[0].text for best in hypotheses]
        return translations[0] if isinstance(sentences, str) else translations

    def nbest(
        self,
        sentences: Sequence[str],
        n: int,
        *,
        num_beams: int | None = None,
        show_progress: bool = False,
        **options: Any,
    ) -> list[list[Hypothesis]]:
        """The n best translations of each sentence with their scores, best first; one empty one for a blank sentence.

        Args:
            sentences: As for a call.
            n: Hypotheses a sentence; beams are at least as many.
            num_beams: The model's own setting if None.
            show_progress: Whether to show a bar on stderr.
            **options: Those of `translate_stream`.
        """
        with _progress(show_progress, len(sentences)) as advance:
            return self._translate(
                sentences, num_beams=num_beams, num_return_sequences=n, return_scores=True, advance=advance, **options
            )

    def translate_stream(
        self,
        lines: Iterable[str],
        *,
        nbest: int = 0,
        block_size: int = 2000,
        show_progress: bool = False,
        **options: Any,
    ) -> Iterator[list[Hypothesis]]:
        """Translates lines that needn't fit into memory: the hypotheses of each, in order.

        Args:
            lines: Any number of sentences.
            nbest: Hypotheses a line, with scores; 0: one without.
            block_size: Lines read ahead and sorted by length together.
            show_progress: Whether to count lines on stderr.
            **options: `num_beams`, `length_penalty`, `tokens_per_batch` (padded source tokens times beams, 16384),
                `max_length_a` and `max_length_b` (limits of `length_limits`), `max_new_tokens` (one limit for all),
                and options of `generate`.
        """
        lines, first = iter(lines), 1
        with _progress(show_progress, None) as advance:
            while block := list(islice(lines, block_size)):
                yield from self._translate(
                    block,
                    num_return_sequences=nbest or 1,
                    return_scores=nbest != 0,
                    first_line=first,
                    advance=advance,
                    **options,
                )
                first += len(block)

    def _translate(
        self,
        sentences: Sequence[str],
        *,
        advance: Callable[[int], None],
        num_beams: int | None = None,
        num_return_sequences: int = 1,
        return_scores: bool = False,
        first_line: int = 1,
        tokens_per_batch: int = 16384,
        max_length_a: float = 2.0,
        max_length_b: int = 20,
        max_new_tokens: int | None = None,
        **generation: Any,
    ) -> list[list[Hypothesis]]:
        _check_counts(num_beams=num_beams, num_return_sequences=num_return_sequences, max_new_tokens=max_new_tokens)
        if max_new_tokens is not None:
            max_length_a, max_length_b = 0.0, max_new_tokens
        beams = num_beams or self.model.generation_config.num_beams or 1
        if not generation.get("do_sample"):
            beams = max(beams, num_return_sequences)
        encoded = self._encode(sentences, first_line)
        results = [[Hypothesis("", 0.0, True)] for _ in sentences]
        advance(len(sentences) - len(encoded))
        was_training = self.model.training
        self.model.eval()
        try:
            batches = list(_token_batches(encoded, tokens_per_batch // max(beams, num_return_sequences)))
            options = {"num_beams": beams, "num_return_sequences": num_return_sequences, **generation}
            lengths = (max_length_a, max_length_b)

            def translate(numbers: list[int]) -> GeneratedBatch:
                return self._generate([encoded[number] for number in numbers], lengths, return_scores, options)

            run = side_by_side if self._may_share(generation) else map
            for numbers, batch in zip(batches, run(translate, batches), strict=True):
                for number, best in zip(numbers, self._hypotheses(batch, num_return_sequences), strict=True):
                    results[number] = best
                advance(len(numbers))
        finally:
            self.model.train(was_training)
        _warn_of_unfinished(results)
        return results

    @torch.inference_mode()
    def _generate(
        self, rows: Sequence[list[int]], lengths: tuple[float, int], return_scores: bool, options: Mapping[str, Any]
    ) -> GeneratedBatch:
        """One batch of source tokens, whatever thread this is."""
        input_ids, attention_mask = self._pad(rows)
        limits = length_limits(attention_mask, *lengths)
        options = {**self.language_options, **options}
        return generate_batch(
            self.model, input_ids, attention_mask, limits=limits, return_scores=return_scores, **options
        )

    def _may_share(self, generation: Mapping[str, Any]) -> bool:
        """Whether batches may run in threads: on a processor, and by our own search, which shares nothing."""
        return self.model.device.type == "cpu" and is_search(self.model, {**self.language_options, **generation})

    def _encode(self, sentences: Sequence[str], first_line: int) -> dict[int, list[int]]:
        """Tokens of the sentences that aren't blank, by position in the list."""
        numbers = [number for number, sentence in enumerate(sentences) if sentence.strip()]
        if not numbers:
            return {}
        texts = [self.source_prefix + sentences[number] for number in numbers]
        encoded = dict(zip(numbers, self.tokenizer(texts, verbose=False)["input_ids"], strict=True))
        limit = position_limit(self.model.get_encoder())
        for number, tokens in encoded.items():
            if limit is not None and len(tokens) > limit:
                raise InputError(
                    f"line {first_line + number} has {len(tokens)} tokens, but the model has positions for {limit}: "
                    "split it into sentences, or use a model without that limit"
                )
        return encoded

    def _pad(self, rows: Sequence[list[int]]) -> tuple[Tensor, Tensor]:
        """(B, S) tokens and mask on the model's device."""
        tokens = [torch.tensor(row) for row in rows]
        input_ids = pad_sequence(tokens, batch_first=True, padding_value=self.tokenizer.pad_token_id)
        mask = pad_sequence([torch.ones_like(row) for row in tokens], batch_first=True)
        return input_ids.to(self.model.device), mask.to(self.model.device)

    def _hypotheses(self, batch: GeneratedBatch, n: int) -> list[list[Hypothesis]]:
        texts = self.tokenizer.batch_decode(batch.sequences, skip_special_tokens=True)
        scores = [None] * len(texts) if batch.scores is None else batch.scores.tolist()
        flat = [Hypothesis(*parts) for parts in zip(texts, scores, batch.finished.tolist(), strict=True)]
        return [flat[start : start + n] for start in range(0, len(flat), n)]


def _check_counts(**counts: int | None) -> None:
    for name, count in counts.items():
        if count is not None and count < 1:
            raise InputError(f"{name} is {count}; it must be 1 or more")


def _token_batches(encoded: dict[int, list[int]], budget: int) -> Iterator[list[int]]:
    """Batches of at most `budget` padded tokens, longest sentences first; a longer sentence has a batch of its own."""
    numbers = sorted(encoded, key=lambda number: len(encoded[number]), reverse=True)
    while numbers:
        size = max(1, budget // len(encoded[numbers[0]]))
        yield numbers[:size]
        numbers = numbers[size:]


def _warn_of_unfinished(results: Sequence[Sequence[Hypothesis]]) -> None:
    cut = sum(not best[0].finished for best in results)
    if cut:
        logger.warning(
            "%d of %d translations were stopped at their length limit before an end of sentence: the model repeats "
            "itself or is hardly trained; if they are good, raise max_length_a or max_length_b",
            cut,
            len(results),
        )


@contextmanager
def _progress(show: bool, total: int | None) -> Iterator[Callable[[int], None]]:
    columns = (SpinnerColumn(), *Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(file=sys.stderr), disable=not show) as progress:
        task = progress.add_task("translating", total=total)
        yield lambda count: progress.advance(task, count)


def _dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    return getattr(torch, dtype) if isinstance(dtype, str) else dtype


def _load(name: str, **options: Any) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Model and tokenizer of a local folder, without the network, or of the Hub."""
    folder = Path(name)
    if folder.exists():
        _check_folder(folder)
    dtype = _dtype(options.pop("dtype"))
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, local_files_only=folder.exists(), **options)
        model = AutoModelForSeq2SeqLM.from_pretrained(
            name, local_files_only=folder.exists(), dtype=dtype or "auto", **options
        )
    except (OSError, ValueError) as error:
        where = "can't be loaded" if folder.exists() else "is no folder here, and can't be loaded from the Hub"
        raise InputError(f"model {name!r} {where}: {error}") from error
    return model, tokenizer


def _check_folder(folder: Path) -> None:
    present = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    missing = [] if "config.json" in present else ["config.json"]
    if not any(WEIGHTS.fullmatch(name) for name in present):
        missing.append("weights (model.safetensors)")
    if missing:
        inside = ", ".join(present) or "nothing"
        raise InputError(f"{folder} lacks {' and '.join(missing)}; in it: {inside}. Name a folder with a saved model")


def _language_token(tokenizer: PreTrainedTokenizerBase, language: str) -> tuple[str, int]:
    """Code and token id of a language: `fra_Latn`, or the beginning of exactly one code (`fr` for `fr_XX`).

    M2M100 writes the token of `fr` as `__fr__`.
    """
    vocabulary, specials = tokenizer.get_vocab(), tokenizer.all_special_tokens
    named = [token for token in (language, f"__{language}__") if token in specials]
    named = named or [token for token in specials if token.split("_")[0] == language]
    if len(named) != 1:
        known = ", ".join(token.strip("_") for token in specials if "_" in token)
        raise InputError(f"{type(tokenizer).__name__} has no language {language!r}, or several; it has {known}")
    return named[0].strip("_"), vocabulary[named[0]]


def write_translations(
    translator: Translator, lines: Iterable[str], output: str, *, nbest: int = 0, **options: Any
) -> None:
    """Writes one line for each line, or with `nbest` its hypotheses as `index ||| hypothesis ||| score`, from 0.

    A line break that a model writes becomes a space, and is reported.

    Args:
        translator: Translates.
        lines: Sentences.
        output: A file, which appears once it is whole, or "-" for standard output, written block by block.
        nbest: Hypotheses for each line; 0: the translation alone.
        **options: Those of `Translator.translate_stream`.
    """
    breaks = 0
    with open_output(output) as file:
        for index, hypotheses in enumerate(translator.translate_stream(lines, nbest=nbest, **options)):
            for hypothesis in hypotheses:
                text = one_line(hypothesis.text)
                breaks += text != hypothesis.text
                line = f"{index} ||| {text} ||| {hypothesis.score:.6f}" if nbest else text
                file.write(f"{line}\n".encode())
    if breaks:
        logger.warning("%d translations had line breaks in them, which became spaces", breaks)
