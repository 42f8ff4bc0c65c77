"""Scores of translations: BLEU, chrF and TER as sacrebleu computes them, with their signatures.

- References go by sentence: one text, or a list of several, for each hypothesis. A transposed list (one list for each
  set of references, as sacrebleu itself takes them) is refused instead of scored.
- A score of another flavour has another name: `bleu_lc` is never compared with `bleu` by accident.
"""

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sacrebleu.metrics import BLEU, CHRF, TER
from sacrebleu.metrics.base import Metric
from sacrebleu.tokenizers.tokenizer_base import BaseTokenizer
from sacrebleu.tokenizers.tokenizer_spm import SPM_MODELS
from sacrebleu.utils import SACREBLEU_DIR

from hf_mt.errors import InputError
from hf_mt.text_files import open_output


METRICS = ("bleu", "chrf", "chrf_pp", "ter")
ESCAPES = str.maketrans({"\\": r"\\", "\t": r"\t", "\n": r"\n", "\r": r"\r"})

UNESCAPES = {"\\": "\\", "t": "\t", "n": "\n", "r": "\r"}

References = Sequence[str] | Sequence[Sequence[str]]
Split = Literal["test", "validation"]
PREFIXES: dict[Split, str] = {"test": "test", "validation": "eval"}  # of scores, and of files in a run folder
SET_NAMES: dict[Split, str] = {"test": "test set", "validation": "development set"}


def corpus_scores(
    hypotheses: Sequence[str],
    references: References,
    *,
    lowercase: bool = False,
    tokenize: str = "13a",
    metrics: Sequence[str] = METRICS,
    force: bool = False,
) -> dict[str, float | str]:
    """Scores of a whole test set, equal to those of the sacrebleu command.

    Args:
        hypotheses: One detokenised text for each sentence.
        references: One text for each sentence, or a list of them (whose lengths may differ).
        lowercase: Whether case counts in BLEU and chrF; TER ignores it anyway.
        tokenize: sacrebleu's tokenizer for BLEU; "none" for text that is tokenised already; "flores200" for spBLEU,
            whose model must be on disk, since nothing is fetched here.
        metrics: Which of bleu, chrf (chrF2), chrf_pp (chrF2++, which counts words too) and ter to compute.
        force: Whether to keep sacrebleu's warning about text that looks tokenised to itself.

    Returns:
        Each score (0 to 100; TER is an error rate, so that less is better) and its `_signature`; `length_ratio` of
        hypotheses to references in BLEU's tokens; `empty_hypotheses`, how many. Names of other flavours have endings:
        `_lc` for lowercase; in BLEU `_tok` for tokenize "none", `_zh` for "zh" and so on; "flores200" gives `spbleu`.

    Raises:
        InputError: Numbers of hypotheses and references differ, there are none, references are transposed, or there is
            no such metric or tokenizer.
    """
    sets = reference_sets(hypotheses, references)
    scores: dict[str, float | str] = {}
    for name, scorer in scorers(lowercase=lowercase, tokenize=tokenize, metrics=metrics, force=force).items():
        score = scorer.corpus_score(hypotheses, sets)
        scores[name], scores[f"{name}_signature"] = score.score, str(scorer.get_signature())
        if isinstance(scorer, BLEU):
            scores["length_ratio"] = score.ratio
    scores["empty_hypotheses"] = sum(not hypothesis.strip() for hypothesis in hypotheses)
    return scores


def forget_sentences() -> None:
    """Empties the caches of sacrebleu's tokenizers, each of which keeps the last 65,536 lines that it was given."""
    for kind in BaseTokenizer.__subclasses__():
        if hasattr(kind.__call__, "cache_clear"):
            kind.__call__.cache_clear()


def scorers(
    *, lowercase: bool = False, tokenize: str = "13a", metrics: Sequence[str] = METRICS, force: bool = False
) -> dict[str, Metric]:
    """sacrebleu's metrics by the names that `corpus_scores` gives their scores; arguments and errors as there."""
    check_tokenizer(tokenize)
    case = "_lc" if lowercase else ""
    bleu = {"13a": "bleu", "none": "bleu_tok", "flores200": "spbleu"}.get(tokenize, f"bleu_{tokenize}")
    bleu = bleu.replace("bleu", f"bleu{case}")
    force = force or tokenize == "none"
    build: dict[str, tuple[str, Callable[[], Metric]]] = {
        "bleu": (bleu, lambda: BLEU(lowercase=lowercase, tokenize=tokenize, force=force)),
        "chrf": (f"chrf{case}", lambda: CHRF(lowercase=lowercase)),
        "chrf_pp": (f"chrf_pp{case}", lambda: CHRF(lowercase=lowercase, word_order=2)),
        "ter": ("ter", TER),
    }
    unknown = set(metrics) - set(build)
    if unknown:
        raise InputError(f"there is no metric {', '.join(sorted(unknown))}; there are {', '.join(build)}")
    return {build[metric][0]: build[metric][1]() for metric in metrics}


def check_tokenizer(tokenize: str) -> None:
    """Whether BLEU can be computed with a tokenizer of sacrebleu's.

    sacrebleu would fetch the model of a subword tokenizer that it does not have, and hang where it can't.

    Raises:
        InputError: There is no such tokenizer, or its package or model is not on this machine.
    """
    if tokenize not in BLEU.TOKENIZERS:
        raise InputError(f"tokenize is {tokenize!r}; sacrebleu has {', '.join(BLEU.TOKENIZERS)}")
    if tokenize in SPM_MODELS:
        path = Path(SACREBLEU_DIR, "models", Path(SPM_MODELS[tokenize]["url"]).name)
        if not path.is_file():
            raise InputError(
                f"tokenize is {tokenize!r}, whose model is not on this machine: put {SPM_MODELS[tokenize]['url']} at "
                f"{path}"
            )
    try:
        BLEU(tokenize=tokenize)
    except ImportError as error:
        raise InputError(f"tokenize is {tokenize!r}, which needs more: {' '.join(str(error).split())}") from None


def scores_of_tokenized(
    hypotheses: Sequence[str], references: References, *, metrics: Sequence[str] = METRICS
) -> dict[str, float | str]:
    """`corpus_scores`, and `bleu_lc_tok`: BLEU of lower-cased tokens as they stand, which papers on such text report.

    Raises:
        InputError: As `corpus_scores`.
    """
    tokens = corpus_scores(hypotheses, references, lowercase=True, tokenize="none", metrics=("bleu",))
    scores = corpus_scores(hypotheses, references, metrics=metrics, force=True)
    return {**scores, **{k: v for k, v in tokens.items() if "bleu" in k}}


def reference_sets(
    hypotheses: Sequence[str], references: References, *, sources: Sequence[str] | None = None
) -> list[list[str | None]]:
    """References as sacrebleu takes them: sets of one reference a sentence, None where a sentence has fewer.

    Raises:
        InputError: As `corpus_scores`, or the number of sources, if they are given, is another one.
    """
    if sources is not None and len(sources) != len(hypotheses):
        raise InputError(f"{len(sources)} sources, but {len(hypotheses)} hypotheses")
    if isinstance(hypotheses, str) or isinstance(references, str):
        raise InputError("one text was given where a list of sentences is needed: [text]")
    by_sentence = [[item] if isinstance(item, str) else list(item) for item in references]
    if len(hypotheses) != len(by_sentence):
        if by_sentence and all(len(items) == len(hypotheses) for items in by_sentence):
            raise InputError(
                f"references are transposed: {len(by_sentence)} lists of {len(hypotheses)} texts; give each of the "
                f"{len(hypotheses)} sentences its own list of references: list(zip(*references))"
            )
        raise InputError(f"{len(hypotheses)} hypotheses, but references for {len(by_sentence)} sentences")
    if not hypotheses or not all(by_sentence):
        raise InputError("nothing to score: each of one or more sentences needs a hypothesis and a reference")
    for text in (*hypotheses, *(text for items in by_sentence for text in items)):
        if not isinstance(text, str):
            raise InputError(f"hypotheses and references are texts, but one is {text!r}")
    most = max(map(len, by_sentence))
    return [[items[i] if i < len(items) else None for items in by_sentence] for i in range(most)]


@dataclass(frozen=True)
class SentenceScore:
    """One sentence with its BLEU (effective order, exponential smoothing) and chrF2, both 0 to 100."""

    source: str
    hypothesis: str
    references: tuple[str, ...]
    bleu: float
    chrf: float


def sentence_scores(sources: Sequence[str], hypotheses: Sequence[str], references: References) -> list[SentenceScore]:
    """Scores of each sentence, in order; they say where a system fails, and don't average to the corpus scores.

    Raises:
        InputError: As `corpus_scores`, or the number of sources differs.
    """
    sets = reference_sets(hypotheses, references, sources=sources)
    bleu, chrf = BLEU(effective_order=True), CHRF()
    scores = []
    for source, hypothesis, some in zip(sources, hypotheses, zip(*sets, strict=True), strict=True):
        texts = tuple(text for text in some if text is not None)
        values = (metric.sentence_score(hypothesis, texts).score for metric in (bleu, chrf))
        scores.append(SentenceScore(source, hypothesis, texts, *values))
    return scores


def write_sentence_scores(path: str | os.PathLike[str], scores: Sequence[SentenceScore]) -> Path:
    r"""Writes a table with a line for each sentence: source, hypothesis, reference (reference_2, ...), bleu, chrf.

    Columns are separated by tabs. Backslash, tab, line feed and carriage return in a text are written `\\`, `\t`,
    `\n` and `\r`, so that it can be read back whole.
    """
    most = max((len(score.references) for score in scores), default=1)
    names = ["reference", *(f"reference_{number}" for number in range(2, most + 1))]
    lines = [["source", "hypothesis", *names, "bleu", "chrf"]]
    for score in scores:
        references = score.references + ("",) * (most - len(score.references))
        texts = [text.translate(ESCAPES) for text in (score.source, score.hypothesis, *references)]
        lines.append([*texts, f"{score.bleu:.4f}", f"{score.chrf:.4f}"])
    with open_output(path) as file:
        file.writelines(("\t".join(line) + "\n").encode() for line in lines)
    return Path(path)


def sentences_file(folder: Path, split: Split) -> Path:
    """Where a run keeps the sentences of a split with their translations and scores."""
    return folder / f"{PREFIXES[split]}_scores.tsv"


def read_sentence_scores(path: str | os.PathLike[str]) -> list[SentenceScore]:
    """What `write_sentence_scores` wrote.

    Raises:
        InputError: The file is no such table.
    """
    try:
        head, *lines = Path(path).read_text("utf-8").removesuffix("\n").split("\n")
    except (OSError, ValueError) as error:
        raise InputError(f"{path} can't be read as a table of sentence scores: {error}") from error
    names = head.split("\t")
    if names[:3] != ["source", "hypothesis", "reference"] or names[-2:] != ["bleu", "chrf"]:
        raise InputError(f"{path} is no table of sentence scores: its columns are {', '.join(names)}")
    scores = []
    for number, line in enumerate(lines, start=2):
        cells = line.split("\t")
        if len(cells) != len(names):
            raise InputError(f"{path}:{number}: {len(cells)} columns, but {len(names)} names")
        source, hypothesis, reference, *more = (_unescaped(cell) for cell in cells[:-2])
        references = (reference, *(text for text in more if text))  # an empty one fills up a sentence that has fewer
        try:
            scores.append(SentenceScore(source, hypothesis, references, float(cells[-2]), float(cells[-1])))
        except ValueError as error:
            raise InputError(f"{path}:{number}: the last two columns must be numbers: {error}") from error
    return scores


def _unescaped(text: str) -> str:
    return re.sub(r"\\(.)", lambda match: UNESCAPES.get(match[1], match[0]), text)
