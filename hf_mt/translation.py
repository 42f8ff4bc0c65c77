"""Translation of text with any encoder-decoder model of transformers, ours or not.

- Sentences are sorted by length and batched by tokens; results come in input order and don't depend on the batches.
- Nothing is cut: a line that the model has no positions for is refused with its number, or split at the ends of its
  sentences (`hf_mt.sentences`), which are translated together as far as they fit.
"""

import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from operator import attrgetter
from os import PathLike
from typing import Any, Literal

import torch
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, SpinnerColumn, TimeElapsedColumn
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_mt.data import ended
from hf_mt.errors import InputError
from hf_mt.generation import GeneratedBatch, evaluating, generate_batch, length_limits, position_limit, uses_own_search
from hf_mt.hardware import map_in_threads
from hf_mt.hypotheses import Hypothesis, Tally, join_parts
from hf_mt.loading import choose_languages, dtype_of, load_model, prefix_of_run
from hf_mt.pretrained import placed
from hf_mt.search_limits import check_limits, model_setting
from hf_mt.sentences import pack


LONG_LINES = ("refuse", "split")


class Translator:
    """Translates sentences with any encoder-decoder model: batched by length, returned in order, nothing cut.

    Args:
        model: A folder, a name on the Hub, or a model, which stays on its device.
        tokenizer: Needed with a model object; otherwise read from where the model is.
        device: Where to compute; an accelerator if there is one.
        dtype: Of the weights, such as "bfloat16"; as they were saved if None.
        revision: Branch, tag or commit on the Hub.
        trust_remote_code: Whether code that comes with the model may run.
        source_prefix: Text before each sentence (T5's `translate English to German: `, Marian's `>>fra<< `); if
            None that of the run, where `model` is a run folder.
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
        source_prefix: str | None = None,
        source_lang: str | None = None,
        target_lang: str | None = None,
    ):
        if isinstance(model, (str, PathLike)):
            source_prefix = prefix_of_run(str(model)) if source_prefix is None else source_prefix
            model, loaded = load_model(str(model), dtype=dtype, revision=revision, trust_remote_code=trust_remote_code)
            tokenizer = tokenizer or loaded
            device = device or torch.accelerator.current_accelerator(check_available=True) or "cpu"
        if tokenizer is None:
            raise InputError("a model object comes without its tokenizer: Translator(model, tokenizer)")
        self.model = placed(model, device, dtype_of(dtype))
        self.tokenizer = tokenizer
        self.source_prefix = source_prefix or ""
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
        chosen = choose_languages(self.model, self.tokenizer, source_lang, target_lang)
        self.language_options = chosen or self.language_options

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
            InputError: A line, or with `long_lines="split"` a sentence of it, has more tokens than may be.
        """
        texts = [sentences] if isinstance(sentences, str) else sentences
        with _progress(show_progress, len(texts)) as advance:
            hypotheses = self._translate(
                texts, num_beams=num_beams, num_return_sequences=num_return_sequences, advance=advance, **options
            )
        _warn_of(hypotheses)
        if num_return_sequences > 1:
            several = [[hypothesis.text for hypothesis in best] for best in hypotheses]
            return several[0] if isinstance(sentences, str) else several
        translations = [best[0].text for best in hypotheses]
        return translations[0] if isinstance(sentences, str) else translations

    def nbest(
        self,
        sentences: str | Sequence[str],
        n: int,
        *,
        num_beams: int | None = None,
        show_progress: bool = False,
        **options: Any,
    ) -> list[Hypothesis] | list[list[Hypothesis]]:
        """The n best translations of each sentence with their scores, best first; one empty one for a blank sentence.

        Args:
            sentences: As for a call.
            n: Hypotheses a sentence; beams are at least as many.
            num_beams: The model's own setting if None.
            show_progress: Whether to show a bar on stderr.
            **options: Those of `translate_stream`, but for `long_lines="split"`: lists of parts don't make a list.
        """
        texts = [sentences] if isinstance(sentences, str) else sentences
        with _progress(show_progress, len(texts)) as advance:
            hypotheses = self._translate(
                texts, num_beams=num_beams, num_return_sequences=n, return_scores=True, advance=advance, **options
            )
        _warn_of(hypotheses)
        return hypotheses[0] if isinstance(sentences, str) else hypotheses

    def translate_stream(
        self,
        lines: Iterable[str],
        *,
        nbest: int = 0,
        block_size: int = 2000,
        first_line: int = 1,
        tally: Tally | None = None,
        show_progress: bool = False,
        **options: Any,
    ) -> Iterator[list[Hypothesis]]:
        """Translates lines that needn't fit into memory: the hypotheses of each, in order.

        Args:
            lines: Any number of sentences.
            nbest: Hypotheses a line, with scores; 0: one without.
            block_size: Lines read ahead and sorted by length together.
            first_line: Number of the first line in messages.
            tally: Counts the lines; without one, what it would say is logged at the end.
            show_progress: Whether to count lines on stderr.
            **options: `num_beams`, `length_penalty`, `tokens_per_batch` (padded source tokens times beams, 16384),
                `max_length_a` and `max_length_b` (limits of `length_limits`), `max_new_tokens` (one limit for all),
                `max_source_tokens` (the most tokens of a line; by default the positions of the encoder, if it has a
                table of them), `long_lines` ("refuse", the default, or "split"), and options of `generate`.
        """
        check_limits(nbest=nbest, block_size=block_size)
        lines, counted = iter(lines), Tally() if tally is None else tally
        with _progress(show_progress, None) as advance:
            while block := list(islice(lines, block_size)):
                for hypotheses in self._translate(
                    block,
                    num_return_sequences=nbest or 1,
                    return_scores=nbest != 0,
                    first_line=first_line,
                    advance=advance,
                    **options,
                ):
                    counted.add(hypotheses)
                    yield hypotheses
                first_line += len(block)
        if tally is None:
            counted.warn()

    def check_lines(
        self,
        lines: Iterable[str],
        *,
        max_source_tokens: int | None = None,
        long_lines: Literal["refuse", "split"] = "refuse",
    ) -> None:
        """Reads all lines and looks for those that would be refused; arguments as for `translate_stream`.

        Raises:
            InputError: There is one.
        """
        limit, lines, first = self._limit(max_source_tokens), iter(lines), 1
        while block := list(islice(lines, 2000)):
            if limit is not None:
                self._encode(block, first, limit, long_lines == "split")
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
        max_source_tokens: int | None = None,
        long_lines: Literal["refuse", "split"] = "refuse",
        **generation: Any,
    ) -> list[list[Hypothesis]]:
        check_limits(
            num_beams=num_beams,
            num_return_sequences=num_return_sequences,
            tokens_per_batch=tokens_per_batch,
            max_length_a=max_length_a,
            max_length_b=max_length_b,
            max_new_tokens=max_new_tokens,
            max_source_tokens=max_source_tokens,
            length_penalty=generation.get("length_penalty"),
        )
        _check_long_lines(long_lines, several=num_return_sequences > 1 or return_scores)
        if max_new_tokens is not None:
            max_length_a, max_length_b = 0.0, max_new_tokens
        sampled = generation.get("do_sample")  # from the distribution itself, unless beams are asked for, too
        beams = num_beams or (1 if sampled else model_setting(self.model.generation_config, "num_beams", 1))
        if not sampled or beams > 1:
            beams = max(beams, num_return_sequences)
        lines, rows = self._encode(sentences, first_line, self._limit(max_source_tokens), long_lines == "split")
        parts: list[list[Hypothesis]] = [[]] * len(rows)
        waiting = Counter(lines)
        advance(len(sentences) - len(waiting))
        batches = list(_token_batches(rows, tokens_per_batch // max(beams, num_return_sequences)))
        options = {"num_beams": beams, "num_return_sequences": num_return_sequences, **generation}

        def translate(numbers: list[int]) -> GeneratedBatch:
            some = [rows[number] for number in numbers]
            return self._generate(some, (max_length_a, max_length_b), return_scores, options)

        with evaluating(self.model):
            run = map_in_threads if self._may_share(generation) else map
            for numbers, batch in zip(batches, run(translate, batches), strict=True):
                for number, best in zip(numbers, self._hypotheses(batch, num_return_sequences), strict=True):
                    parts[number] = best
                waiting.subtract(lines[number] for number in numbers)
                advance(sum(not waiting[line] for line in {lines[number] for number in numbers}))
        return _by_line(len(sentences), lines, parts)

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
        return self.model.device.type == "cpu" and uses_own_search(self.model, {**self.language_options, **generation})

    def _limit(self, max_source_tokens: int | None) -> int | None:
        """The most tokens of a row: what is asked for, which is no more than the model has positions for."""
        positions = position_limit(self.model.get_encoder())
        if max_source_tokens is None:
            return positions
        least = len(self._tokenize([""])[0]) + 1
        if max_source_tokens < least or (positions is not None and max_source_tokens > positions):
            most = "" if positions is None else f" and at most {positions}, for which the model has positions"
            raise InputError(f"max_source_tokens is {max_source_tokens}; it must be at least {least}{most}")
        return max_source_tokens

    def _encode(
        self, sentences: Sequence[str], first_line: int, limit: int | None, split: bool
    ) -> tuple[list[int], list[list[int]]]:
        """Places of the lines that aren't blank, and their tokens; a line in parts is there several times."""
        numbers = [number for number, sentence in enumerate(sentences) if sentence.strip()]
        lines, rows = [], []
        for number, tokens in zip(numbers, self._tokenize([sentences[number] for number in numbers]), strict=True):
            parts = [tokens]
            if limit is not None and len(tokens) > limit:
                parts = self._split(sentences[number], limit) if split else parts
                _check_fit(f"line {first_line + number}", parts, limit, split)
            lines += [number] * len(parts)
            rows += parts
        return lines, rows

    def _tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        prefixed = [self.source_prefix + text for text in texts]
        rows = self.tokenizer(prefixed, verbose=False)["input_ids"] if prefixed else []
        return [ended(row, self.tokenizer.eos_token_id) for row in rows]

    def _split(self, text: str, limit: int) -> list[list[int]]:
        """Tokens of the pieces of a long line."""
        return self._tokenize(pack(text, limit, lambda piece: len(self._tokenize([piece])[0])))

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
        groups = [flat[start : start + n] for start in range(0, len(flat), n)]
        if batch.scores is not None:  # samples come in the order in which they were drawn
            groups = [sorted(group, key=attrgetter("score"), reverse=True) for group in groups]
        return groups


def _check_long_lines(long_lines: str, several: bool) -> None:
    if long_lines not in LONG_LINES:
        raise InputError(f"long_lines is {long_lines!r}; it must be {' or '.join(LONG_LINES)}")
    if long_lines == "split" and several:
        raise InputError(
            "long_lines is 'split' and several translations or scores are asked for: those of parts can't be put "
            "together; leave out one of the two"
        )


def _check_fit(line: str, parts: Sequence[Sequence[int]], limit: int, split: bool) -> None:
    longest = max(map(len, parts))
    if longest <= limit:
        return
    if split:
        raise InputError(
            f"{line} has a sentence of {longest} tokens, but the limit is {limit}: shorten it, or use a model without "
            "that limit"
        )
    raise InputError(
        f"{line} has {longest} tokens, but the limit is {limit}: split it into sentences, as long_lines 'split' "
        "does, or use a model without that limit"
    )


def _token_batches(rows: Sequence[Sequence[int]], budget: int) -> Iterator[list[int]]:
    """Batches of at most `budget` padded tokens, longest sentences first; a longer sentence has a batch of its own."""
    numbers = sorted(range(len(rows)), key=lambda number: len(rows[number]), reverse=True)
    while numbers:
        size = max(1, budget // len(rows[numbers[0]]))
        yield numbers[:size]
        numbers = numbers[size:]


def _by_line(count: int, lines: Sequence[int], parts: Sequence[list[Hypothesis]]) -> list[list[Hypothesis]]:
    """Hypotheses of each line, from those of its parts, which follow each other; an empty one for a blank line."""
    found: dict[int, list[list[Hypothesis]]] = {}
    for line, best in zip(lines, parts, strict=True):
        found.setdefault(line, []).append(best)
    several = (found.get(line, [[Hypothesis("", 0.0, True)]]) for line in range(count))
    return [best[0] if len(best) == 1 else [join_parts([part[0] for part in best])] for best in several]


def _warn_of(results: Iterable[Sequence[Hypothesis]]) -> None:
    tally = Tally()
    for hypotheses in results:
        tally.add(hypotheses)
    tally.warn()


@contextmanager
def _progress(show: bool, total: int | None) -> Iterator[Callable[[int], None]]:
    columns = (SpinnerColumn(), *Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(file=sys.stderr), disable=not show) as progress:
        task = progress.add_task("translating", total=total)
        yield lambda count: progress.advance(task, count)
