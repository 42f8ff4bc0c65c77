"""Scores of translations: BLEU, chrF and TER as sacrebleu computes them, with their signatures.

- References go by sentence: one text, or a list of several, for each hypothesis. A transposed list (one list for each
  set of references, as sacrebleu itself takes them) is refused instead of scored.
- A score of another flavour has another name: `bleu_lc` is never compared with `bleu` by accident.
- The metric for `evaluate` works offline and keeps its data in memory: no locks, and no files that processes share.
"""

import json
import os
import sys
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

import datasets
from sacrebleu.metrics import BLEU, CHRF, TER

from hf_mt.arguments import DataArguments, InputError, typed_values
from hf_mt.corpora import load_corpus, read_lines
from hf_mt.run_folder import CONFIG_NAME
from hf_mt.settings import Setting, convert, did_you_mean, read_options, read_yaml
from hf_mt.text_files import one_line, open_output
from hf_mt.translation import Hypothesis, Translator


@contextmanager
def _packages_only() -> Iterator[None]:
    """Hides scripts/evaluate.py, which scripts beside it would import in place of the package of that name."""
    saved = sys.path.copy()
    sys.path[:] = [folder for folder in saved if not Path(folder, "evaluate.py").is_file()]
    try:
        yield
    finally:
        sys.path[:] = saved


with _packages_only():
    import evaluate

METRICS = ("bleu", "chrf", "ter")
ESCAPES = str.maketrans({"\\": r"\\", "\t": r"\t", "\n": r"\n", "\r": r"\r"})

LANGUAGES = ("source_lang", "target_lang")
SOURCES = ("dataset_name", "train_file", "validation_file", "test_file")
WITH_A_SOURCE = ("dataset_config_name", "dataset_revision", "source_column", "target_column", "max_predict_samples")

References = Sequence[str] | Sequence[Sequence[str]]


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
        tokenize: sacrebleu's tokenizer for BLEU; "none" for text that is tokenised already.
        metrics: Which of bleu, chrf (chrF2) and ter to compute.
        force: Whether to keep sacrebleu's warning about text that looks tokenised to itself.

    Returns:
        Each score (0 to 100; TER is an error rate, so that less is better) and its `_signature`; `length_ratio` of
        hypotheses to references in BLEU's tokens; `empty_hypotheses`, how many. Names of other flavours have endings:
        `_lc` for lowercase; `_tok` for tokenize "none", `_zh` for "zh" and so on, in BLEU.

    Raises:
        InputError: Numbers of hypotheses and references differ, there are none, references are transposed, or there is
            no such tokenizer.
    """
    if tokenize not in BLEU.TOKENIZERS:
        raise InputError(f"tokenize is {tokenize!r}; sacrebleu has {', '.join(BLEU.TOKENIZERS)}")
    sets = _reference_sets(hypotheses, references)
    case = "_lc" if lowercase else ""
    tokens = "" if tokenize == "13a" else "_tok" if tokenize == "none" else f"_{tokenize}"
    scorers = {
        "bleu": (
            f"bleu{case}{tokens}",
            lambda: BLEU(lowercase=lowercase, tokenize=tokenize, force=force or tokenize == "none"),
        ),
        "chrf": (f"chrf{case}", lambda: CHRF(lowercase=lowercase)),
        "ter": ("ter", TER),
    }
    scores: dict[str, float | str] = {}
    for metric in metrics:
        name, build = scorers[metric]
        scorer = build()
        score = scorer.corpus_score(hypotheses, sets)
        scores[name], scores[f"{name}_signature"] = score.score, str(scorer.get_signature())
        if metric == "bleu":
            scores["length_ratio"] = score.ratio
    scores["empty_hypotheses"] = sum(not hypothesis.strip() for hypothesis in hypotheses)
    return scores


def scores_of_tokenized(hypotheses: Sequence[str], references: References) -> dict[str, float | str]:
    """`corpus_scores`, and `bleu_lc_tok`: BLEU of lower-cased tokens as they stand, which papers on such text report.

    Raises:
        InputError: As `corpus_scores`.
    """
    tokens = corpus_scores(hypotheses, references, lowercase=True, tokenize="none", metrics=("bleu",))
    return {**corpus_scores(hypotheses, references, force=True), **{k: v for k, v in tokens.items() if "bleu" in k}}


def _reference_sets(hypotheses: Sequence[str], references: References) -> list[list[str | None]]:
    """References as sacrebleu takes them: sets of one reference a sentence, None where a sentence has fewer."""
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


class TranslationMetric(evaluate.Metric):
    """`corpus_scores` behind the interface of `evaluate`: `compute(predictions=..., references=...)`.

    It never touches the network, nor files of other processes. In distributed runs let one process compute it.
    """

    def __init__(self, **options: Any):
        super().__init__(experiment_id=uuid.uuid4().hex, keep_in_memory=True, **options)

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description="BLEU, chrF and TER with signatures, computed by sacrebleu.",
            citation="Post 2018, A Call for Clarity in Reporting BLEU Scores, https://aclanthology.org/W18-6319",
            inputs_description=(
                "predictions: list of texts; references: a text, or a list of texts, for each prediction; "
                "lowercase, tokenize, metrics: as hf_mt.evaluation.corpus_scores"
            ),
            features=[
                datasets.Features({"predictions": text, "references": text}),
                datasets.Features({"predictions": text, "references": datasets.List(text)}),
            ],
            reference_urls=["https://github.com/mjpost/sacrebleu"],
        )

    def compute(
        self, *, predictions: Sequence[str] | None = None, references: References | None = None, **options: Any
    ) -> dict[str, float | str]:
        """Scores what is given here, or what was added before; `evaluate` alone would score the letters of a text."""
        if predictions is not None and references is not None:
            _reference_sets(predictions, references)
        return super().compute(predictions=predictions, references=references, **options)

    def _compute(self, predictions: Sequence[str], references: References, **options: Any) -> dict[str, float | str]:
        return corpus_scores(predictions, references, **options)


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
    sets = _reference_sets(hypotheses, references)
    if len(sources) != len(hypotheses):
        raise InputError(f"{len(sources)} sources, but {len(hypotheses)} hypotheses")
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


@dataclass(frozen=True)
class EvaluationArguments:
    """What to evaluate and how, apart from the data.

    Attributes:
        model: A run folder, a model's folder or its name on the Hub; None to score `hypotheses` alone.
        split: Part of the data.
        hypotheses: A file of translations, to be scored as they are.
        num_beams: The model's own setting if None.
        length_penalty: Likewise.
        tokens_per_batch: Padded source tokens times beams.
        lowercase: As in `corpus_scores`.
        tokenize: As in `corpus_scores`.
        output_dir: Where to write; `evaluation/<split or name of the test file>` in a run folder if None.
        device: An accelerator, if there is one, if None.
        revision: Branch, tag or commit on the Hub.
        trust_remote_code: Whether code that comes with the model may run.
    """

    model: str | None = None
    split: Literal["validation", "test"] = "test"
    hypotheses: str | None = None
    num_beams: int | None = None
    length_penalty: float | None = None
    tokens_per_batch: int = 16384
    lowercase: bool = False
    tokenize: str = "13a"
    output_dir: str | None = None
    device: str | None = None
    revision: str | None = None
    trust_remote_code: bool = False


def parse_evaluation(argv: Sequence[str]) -> tuple[EvaluationArguments, DataArguments]:
    """What `[MODEL] [--key value ...]` asks for; keys are those of `EvaluationArguments` and `DataArguments`.

    Languages, data and prefix are those of the run, as its `config_resolved.yaml` has them, unless given; another
    source of data replaces the run's whole source.

    Raises:
        InputError: Neither model nor hypotheses, an unknown key, a wrong value, or no languages.
    """
    words = list(argv)
    model = words.pop(0) if words and not words[0].startswith("-") else None
    hints, data_hints = get_type_hints(EvaluationArguments), get_type_hints(DataArguments)
    flags = {name: bool in (hint, *get_args(hint)) for name, hint in {**hints, **data_hints}.items()}
    _, options = read_options(words, flags.get)
    for name in options:
        if name not in flags:
            raise InputError(f"unknown option --{name}{did_you_mean(name, list(flags))}")
    own = {name: _value(name, setting, hints[name]) for name, setting in options.items() if name in hints}
    if (model or own.get("hypotheses")) is None:
        raise InputError("nothing to evaluate: give a run folder or model first, or --hypotheses FILE")
    given = {name: setting for name, setting in options.items() if name in data_hints}
    values = typed_values({**_data_of_run(model, given), **given})
    missing = [f"--{name}" for name in ("source_lang", "target_lang") if not values.get(name)]
    if missing:
        raise InputError(f"{' and '.join(missing)} needed, since no run folder with {CONFIG_NAME} tells")
    return EvaluationArguments(**{"model": model, **own}), DataArguments(**values)


def _value(name: str, setting: Setting, hint: Any) -> Any:
    try:
        return convert(setting.raw, hint)
    except InputError as error:
        raise InputError(f"{setting.where}: {name}: {error}") from None


def _data_of_run(model: str | None, given: Mapping[str, Setting]) -> dict[str, Setting]:
    """The run's own settings of data; nothing about its source if another is given."""
    config = Path(model or "") / CONFIG_NAME
    if not config.is_file():
        return {}
    names = {field.name for field in fields(DataArguments)}
    if any(name in given for name in SOURCES):
        names -= {*SOURCES, *WITH_A_SOURCE}
    return {name: setting for name, setting in read_yaml(config).items() if name in names}


def evaluate_model(args: EvaluationArguments, data: DataArguments, *, show_progress: bool = False) -> dict[str, Any]:
    """Translates a test set, scores it, and writes `results.json`, `predictions.txt` and `test_scores.tsv`.

    Returns:
        The content of `results.json`: scores as `test_bleu` (`eval_bleu` for the validation split), what made them,
        and `output_dir`, None if nothing was written since neither it nor a run folder was given.

    Raises:
        InputError: Data or model can't be read, or the numbers of hypotheses and references differ.
    """
    pairs = load_corpus(data, splits=(args.split,))[args.split]["translation"]
    sources = [pair[data.source_lang] for pair in pairs]
    references = [pair[data.target_lang] for pair in pairs]
    prefix = "test" if args.split == "test" else "eval"
    results: dict[str, Any] = {"model": args.model, "hypotheses": args.hypotheses, "sentences": len(sources)}
    if args.hypotheses is None:
        best, search = _translate(args, data, sources, show_progress)
        hypotheses = [hypothesis.text for hypothesis in best]
        results |= {f"{prefix}_cut_off": sum(not hypothesis.finished for hypothesis in best) / len(best), **search}
    else:
        hypotheses = read_lines(Path(args.hypotheses))
    scores = corpus_scores(hypotheses, references, lowercase=args.lowercase, tokenize=args.tokenize)
    results |= {f"{prefix}_{name}": value for name, value in scores.items()}
    results |= {name: value for name, value in asdict(data).items() if name in (*SOURCES, *LANGUAGES) and value}
    folder = _output_folder(args, data)
    results["output_dir"] = None if folder is None else str(folder)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        write_sentence_scores(folder / "test_scores.tsv", sentence_scores(sources, hypotheses, references))
        with open_output(folder / "predictions.txt") as file:
            file.writelines(f"{one_line(text)}\n".encode() for text in hypotheses)
        with open_output(folder / "results.json") as file:
            file.write(json.dumps(results, indent=2, ensure_ascii=False).encode() + b"\n")
    return results


def _translate(
    args: EvaluationArguments, data: DataArguments, sources: Sequence[str], show_progress: bool
) -> tuple[list[Hypothesis], dict[str, Any]]:
    """The best hypotheses, and how they were searched."""
    translator = Translator(
        str(args.model),
        device=args.device,
        revision=args.revision,
        trust_remote_code=args.trust_remote_code,
        source_prefix=data.source_prefix,
    )
    if hasattr(translator.tokenizer, "src_lang"):
        translator.set_languages(data.source_lang, data.target_lang)
    defaults = translator.model.generation_config
    search: dict[str, Any] = {"num_beams": args.num_beams if args.num_beams is not None else defaults.num_beams or 1}
    if search["num_beams"] > 1:
        penalties = (args.length_penalty, defaults.length_penalty, 1.0)
        search["length_penalty"] = next(penalty for penalty in penalties if penalty is not None)
    budget = args.tokens_per_batch
    stream = translator.translate_stream(sources, tokens_per_batch=budget, show_progress=show_progress, **search)
    return [hypotheses[0] for hypotheses in stream], search


def _output_folder(args: EvaluationArguments, data: DataArguments) -> Path | None:
    if args.output_dir is not None:
        return Path(args.output_dir)
    if args.model is None or not Path(args.model).is_dir():
        return None
    file = data.test_file if args.split == "test" else data.validation_file
    return Path(args.model) / "evaluation" / (Path(file).stem if file else args.split)
