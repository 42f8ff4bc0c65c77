"""The evaluation of a model, or of a file of translations, on a test set: `scripts/evaluate.py`."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

from hf_mt.arguments import DataArguments
from hf_mt.comet import PROGRAM, comet_score, find_program
from hf_mt.corpora import load_corpus
from hf_mt.errors import InputError
from hf_mt.experiment import typed_values
from hf_mt.loading import settings_of_run
from hf_mt.pair_files import read_lines
from hf_mt.run_folder import CONFIG_NAME
from hf_mt.scores import (
    PREFIXES,
    Split,
    check_tokenizer,
    corpus_scores,
    scorers,
    sentences_file,
    write_sentence_scores,
)
from hf_mt.scoring import corpus_perplexity, score_pairs
from hf_mt.search_limits import check_limits, model_setting
from hf_mt.settings import Setting, convert, did_you_mean, read_options
from hf_mt.slices import describe_outputs, slice_metrics, write_analysis
from hf_mt.text_files import check_folder, one_line, open_output
from hf_mt.translation import Translator


LANGUAGES = ("source_lang", "target_lang")
SEARCH = ("num_beams", "length_penalty")
KINDS = ("tokenized_scores", "bleu_tokenize")  # of scores beside those that every run has
FLAVOUR = {"lowercase", "tokenize"}  # of the only scores that are wanted
SOURCES = ("dataset_name", "train_file", "validation_file", "test_file")
LIMITS = ("max_eval_samples", "max_predict_samples")
WITH_A_SOURCE = ("dataset_config_name", "dataset_revision", "source_column", "target_column", *LIMITS)


@dataclass(frozen=True)
class EvaluationArguments:
    """What to evaluate and how, apart from the data.

    Attributes:
        model: A run folder, a checkpoint in it, any model by folder or name; None to score `hypotheses` alone.
        split: Part of the data.
        hypotheses: A file of translations, to be scored as they are.
        num_beams: The model's own setting if None.
        length_penalty: Likewise.
        tokens_per_batch: Padded source tokens times beams.
        lowercase: As in `corpus_scores`.
        tokenize: As in `corpus_scores`.
        tokenized_scores: Whether scores of lower-cased tokens are wanted too, as the key of training that it is.
        bleu_tokenize: A tokenizer whose BLEU is wanted too, likewise.
        more_references: Files of further references, a line each.
        comet: A model of COMET, to score with it too.
        comet_program: See `hf_mt.comet`.
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
    tokenized_scores: bool = False
    bleu_tokenize: str = "13a"
    more_references: None | str | list[str] = None
    comet: str | None = None
    comet_program: str = PROGRAM
    output_dir: str | None = None
    device: str | None = None
    revision: str | None = None
    trust_remote_code: bool = False


def parse_evaluation(argv: Sequence[str]) -> tuple[EvaluationArguments, DataArguments]:
    """What `[MODEL] [--key value ...]` asks for; keys are those of `EvaluationArguments` and `DataArguments`.

    Languages, data, prefix and kinds of scores are those of the run, also for a checkpoint in its folder, as its
    `config_resolved.yaml` has them, unless given; another source of data replaces the run's whole source.

    Raises:
        InputError: Neither model nor hypotheses, an unknown key, a wrong value, or no languages.
    """
    words = list(argv)
    model = words.pop(0) if words and not words[0].startswith("-") else None
    hints, data_hints = get_type_hints(EvaluationArguments), get_type_hints(DataArguments)
    flags = {name: bool in (hint, *get_args(hint)) for name, hint in {**hints, **data_hints}.items()}
    config, options = read_options(words, flags.get)
    if config is not None:
        raise InputError(
            f"{config} is not read here: give the keys of the data as options, or a run folder, which has them"
        )
    for name in options:
        if name not in flags:
            raise InputError(f"unknown option --{name}{did_you_mean(name, list(flags))}")
    if FLAVOUR & options.keys() and options.keys() & set(KINDS):
        raise InputError(f"give {' and '.join(KINDS)}, or lowercase and tokenize, whose scores come instead of theirs")
    run = {} if model is None else settings_of_run(model)
    asked = {name: run[name] for name in KINDS if name in run and not FLAVOUR & options.keys()} | options
    own = {name: _value(name, setting, hints[name]) for name, setting in asked.items() if name in hints}
    if (model or own.get("hypotheses")) is None:
        raise InputError("nothing to evaluate: give a run folder or model first, or --hypotheses FILE")
    check_limits(**{name: own.get(name) for name in (*SEARCH, "tokens_per_batch")})
    given = {name: setting for name, setting in options.items() if name in data_hints}
    values = typed_values({**_data_of_run(run, given), **given})
    missing = [f"--{name}" for name in ("source_lang", "target_lang") if not values.get(name)]
    if missing:
        raise InputError(f"{' and '.join(missing)} needed, since no run folder with {CONFIG_NAME} tells")
    return EvaluationArguments(**{"model": model, **own}), DataArguments(**values)


def _value(name: str, setting: Setting, hint: Any) -> Any:
    try:
        return convert(setting.raw, hint)
    except InputError as error:
        raise InputError(f"{setting.where}: {name}: {error}") from None


def _data_of_run(run: Mapping[str, Setting], given: Mapping[str, Setting]) -> dict[str, Setting]:
    """The run's own settings of data; nothing about its source if another is given."""
    names = {field.name for field in fields(DataArguments)}
    if any(name in given for name in SOURCES):
        names -= {*SOURCES, *WITH_A_SOURCE}
    return {name: setting for name, setting in run.items() if name in names}


def evaluate_model(args: EvaluationArguments, data: DataArguments, *, show_progress: bool = False) -> dict[str, Any]:
    """Translates a test set, scores it, and writes `results.json`, `predictions.txt`, `test_scores.tsv` and
    `test_analysis.json`, for the validation split `eval_scores.tsv` and `eval_analysis.json`.

    Returns:
        The content of `results.json`: scores as `test_bleu` (`eval_bleu` for the validation split), what made them,
        and `output_dir`, None if nothing was written since neither it nor a run folder was given.

    Raises:
        InputError: Data or model can't be read, or the numbers of hypotheses and references differ.
    """
    folder = _output_folder(args, data)
    if folder is not None:
        check_folder(folder)
    scorers(lowercase=args.lowercase, tokenize=args.tokenize)
    check_tokenizer(args.bleu_tokenize)
    if args.comet is not None:
        find_program(args.comet_program)
    pairs = load_corpus(data, splits=(args.split,))[args.split]["translation"]
    sources = [pair[data.source_lang] for pair in pairs]
    targets = [pair[data.target_lang] for pair in pairs]
    references = _all_references(args, targets)
    results: dict[str, Any] = {"model": args.model, "hypotheses": args.hypotheses, "sentences": len(sources)}
    if args.hypotheses is None:
        hypotheses, found = _translate(args, data, sources, targets, show_progress)
    else:
        hypotheses, found = read_lines(Path(args.hypotheses)), {}
    found |= _scores(args, sources, hypotheses, references)
    if args.comet is not None:
        found["comet"] = comet_score(sources, hypotheses, targets, model=args.comet, program=args.comet_program)
        found["comet_signature"] = f"model:{args.comet}"
    prefix = PREFIXES[args.split]
    results |= {name if name in SEARCH else f"{prefix}_{name}": value for name, value in found.items()}
    results |= {name: value for name, value in asdict(data).items() if name in (*SOURCES, *LANGUAGES) and value}
    results["output_dir"] = None if folder is None else str(folder)
    if folder is not None:
        _write(folder, args.split, results, sources, hypotheses, references)
    return results


def _scores(
    args: EvaluationArguments, sources: Sequence[str], hypotheses: Sequence[str], references: Sequence[Sequence[str]]
) -> dict[str, float | str]:
    if not args.lowercase and args.tokenize == "13a":
        tokenized, tokenize = args.tokenized_scores, args.bleu_tokenize
        return describe_outputs(sources, hypotheses, references, tokenized=tokenized, tokenize=tokenize)
    scores = corpus_scores(hypotheses, references, lowercase=args.lowercase, tokenize=args.tokenize)
    return scores | slice_metrics(sources, hypotheses, references)


def _all_references(args: EvaluationArguments, targets: Sequence[str]) -> list[list[str]]:
    """The references of each sentence: that of the data, and those of further files."""
    files = args.more_references or []
    sets = [list(targets), *(read_lines(Path(file)) for file in ([files] if isinstance(files, str) else files))]
    for file, lines in zip(files if isinstance(files, list) else [files], sets[1:], strict=False):
        if len(lines) != len(targets):
            raise InputError(f"{file} has {len(lines)} lines, but the test set {len(targets)} sentences")
    return [list(row) for row in zip(*sets, strict=True)]


def _write(
    folder: Path,
    split: Split,
    results: Mapping[str, Any],
    sources: Sequence[str],
    hypotheses: Sequence[str],
    references: Sequence[Sequence[str]],
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    analysed = write_analysis(folder / f"{PREFIXES[split]}_analysis.json", sources, hypotheses, references)
    write_sentence_scores(sentences_file(folder, split), analysed)
    with open_output(folder / "predictions.txt") as file:
        file.writelines(f"{one_line(text)}\n".encode() for text in hypotheses)
    with open_output(folder / "results.json") as file:
        file.write(json.dumps(results, indent=2, ensure_ascii=False).encode() + b"\n")


def _translate(
    args: EvaluationArguments, data: DataArguments, sources: Sequence[str], targets: Sequence[str], show_progress: bool
) -> tuple[list[str], dict[str, Any]]:
    """The best hypotheses; the share of those that were cut, how they were searched, and the loss on the targets."""
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
    search: dict[str, Any] = {"num_beams": args.num_beams or model_setting(defaults, "num_beams", 1)}
    if search["num_beams"] > 1:
        given = args.length_penalty
        search["length_penalty"] = model_setting(defaults, "length_penalty", 1.0) if given is None else given
    budget = args.tokens_per_batch
    stream = translator.translate_stream(sources, tokens_per_batch=budget, show_progress=show_progress, **search)
    best = [hypotheses[0] for hypotheses in stream]
    loss, perplexity = corpus_perplexity(score_pairs(translator, sources, targets, tokens_per_batch=budget))
    cut_off = sum(not hypothesis.finished for hypothesis in best) / len(best)
    found = {"loss": loss, "perplexity": perplexity, "cut_off": cut_off, **search}
    return [hypothesis.text for hypothesis in best], found


def _output_folder(args: EvaluationArguments, data: DataArguments) -> Path | None:
    if args.output_dir is not None:
        return Path(args.output_dir)
    if args.model is None or not Path(args.model).is_dir():
        return None
    file = data.test_file if args.split == "test" else data.validation_file
    return Path(args.model) / "evaluation" / (Path(file).stem if file else args.split)
