"""Model cards, written from the files of a run.

- Each section is one function from a `Run` to Markdown, or to nothing where the run has no such file.
- Text of a corpus is escaped: no sentence can become a link, a tag, another table cell or the end of a code block.
- A README.md without the line `MARKER` is somebody's own work and is never overwritten.
"""

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import MISSING
from pathlib import Path
from string import Template
from typing import Any

import yaml
from babel import Locale, UnknownLocaleError
from huggingface_hub import EvalResult, ModelCardData

from hf_mt.arguments import BLEU_OF_TOKENIZER
from hf_mt.environment import package_versions
from hf_mt.experiment import valid_keys
from hf_mt.markdown import Markup, code, escape_markdown, fenced, folded, number, table
from hf_mt.model import POSITION_ENCODINGS
from hf_mt.run_record import CURVES, METRICS, Run, beam_sizes, files_as_written, hub_name, read_run, without_path
from hf_mt.seeds import seeds_section
from hf_mt.text_files import write_whole
from hf_mt.verdict import series


logger = logging.getLogger(__name__)

MARKER = "Written by hf_mt from the files of the run; delete this line to keep changes of your own."
HEADLINES = ("bleu", "bleu_lc_tok", *BLEU_OF_TOKENIZER.values(), "chrf")
LOG_COLUMNS = {
    "loss": "Training loss",
    "eval_loss": "Development loss",
    "eval_perplexity": "Perplexity",
    "eval_accuracy": "Accuracy",
    "eval_bleu": "BLEU",
    **{f"eval_{name}": METRICS[name] for name in BLEU_OF_TOKENIZER.values()},
    "eval_chrf": "chrF",
}
NAMES_OF_RUNS = frozenset({"output_dir", "run_name"})  # which tell paths
DEFAULTS = {key.name: key.default for key in valid_keys().values() if key.default is not MISSING}
PACKAGES = ("hf_mt", "transformers", "torch", "tokenizers", "datasets", "accelerate", "sacrebleu")


def write_model_card(
    run_folder: Path,
    *,
    path: Path | None = None,
    repo_id: str | None = None,
    license: str | None = None,
    show_samples: bool = True,
    seeds: Sequence[Path] = (),
) -> Path:
    """Write the README.md of a run folder, or of a checkpoint folder inside one.

    Args:
        run_folder: Where the files of the run are. In a folder named `checkpoint-*`, those that belong to the whole
            run are taken from the folder above.
        path: The card; by default `README.md` in `run_folder`.
        repo_id: The repository that users will load from; by default the name of the folder stands in its place.
        license: Licence of the weights, by its name on the Hub, such as apache-2.0; by default the run's own.
        show_samples: Whether to show sentences of the development set; choose False where its licence forbids that. A
            run whose `card_samples` is False shows none in any case.
        seeds: Folders of runs of the same recipe with other seeds, for a table of mean and spread.

    Returns:
        The path of the card.

    Raises:
        InputError: `run_folder` does not exist, one of its files cannot be read, or as `seeds_section`.
    """
    path = path or run_folder / "README.md"
    if path.is_file() and MARKER.encode() not in path.read_bytes():
        logger.warning("%s was not written by hf_mt, or was changed by hand, and is left as it is", path)
        return path
    run = read_run(run_folder, name=repo_id or run_folder.resolve().name)
    with files_as_written([run_folder, *seeds]):
        others = [read_run(folder, name=folder.name) for folder in seeds]
        spread = seeds_section([run, *others]) if others else ""
        return write_whole(path, _card(run, path, license, show_samples, spread))


def _card(run: Run, path: Path, license: str | None, show_samples: bool, spread: str) -> str:
    shown = run.samples if show_samples and run.settings.get("card_samples", True) else []
    license = license or run.settings.get("card_license")
    sections = {
        "marker": MARKER,
        "metadata": metadata(run, license).to_yaml(),
        "title": escape_markdown(run.name.rsplit("/", 1)[-1]),
        "summary": _summary(run),
        "usage": _usage(run, shown),
        "results": f"{_results(run)}\n\n{spread}",
        "curves": _curves(run, path),
        "samples": _samples(shown),
        "data": _data(run),
        "architecture": _architecture(run),
        "hyperparameters": _hyperparameters(run),
        "training_log": _training_log(run),
        "reproduction": _reproduction(run),
        "versions": _versions(run),
        "citation": _citation(run),
    }
    template = Path(__file__).with_name("model_card_template.md").read_text(encoding="utf-8")
    return re.sub(r"\n{3,}", "\n\n", Template(template).substitute(sections))


# ------------------------------------------------------------------------------------------------------ the metadata


def metadata(run: Run, license: str | None = None) -> ModelCardData:
    """What the Hub reads: languages, tags, data set, base model and scores."""
    codes = dict.fromkeys(re.split("[_-]", code)[0].lower() for code in run.languages or ())
    scores = _eval_results(run)
    size = _dataset_size(run)
    tags = ["hf_mt", "translation", *(f"position-encoding:{name}" for name in dict.fromkeys(run.position_encodings))]
    tags += [f"dataset_size:{size}"] if size else []
    dataset = hub_name("dataset_name", run.settings.get("dataset_name"))
    return ModelCardData(
        language=[code for code in codes if re.fullmatch("[a-z]{2,3}", code)] or None,
        license=license,
        library_name="transformers",
        pipeline_tag="translation",
        tags=tags,
        datasets=[dataset] if dataset else None,
        metrics=list(dict.fromkeys(result.metric_type for result in scores)) or None,
        base_model=hub_name("model_name_or_path", run.settings.get("model_name_or_path")),
        model_name=run.name.rsplit("/", 1)[-1],
        eval_results=scores or None,
    )


def _eval_results(run: Run) -> list[EvalResult]:
    """BLEU and chrF of the test set; without its signature a score says nothing."""
    if run.languages is None:
        return []
    name = _dataset_title(run, "test_file")
    source = {} if run.settings.get("test_file") else run.settings  # of the test set
    return [
        EvalResult(
            task_type="translation",
            task_name=f"Translation {run.languages[0]}-{run.languages[1]}",
            dataset_type=hub_name("dataset_name", source.get("dataset_name")) or name,
            dataset_name=name,
            dataset_config=source.get("dataset_config_name"),
            dataset_revision=source.get("dataset_revision"),
            dataset_split="test",
            metric_type="bleu" if "bleu" in metric else metric,
            metric_name=METRICS[metric],
            metric_value=round(run.results[f"test_{metric}"], 2),
            metric_args={"signature": run.results[f"test_{metric}_signature"]},
        )
        for metric in HEADLINES
        if f"test_{metric}" in run.results and f"test_{metric}_signature" in run.results
    ]


def _dataset_title(run: Run, *file_keys: str) -> str:
    """Name and configuration of the data set, unless the first of these files takes the place of its split; without a
    data set, the name of the first of them that was given."""
    dataset = [run.settings.get(key) for key in ("dataset_name", "dataset_config_name")]
    files = [run.settings.get(key) for key in file_keys]
    if dataset[0] and (file_keys[0] == "train_file" or not files[0]):
        return " ".join(str(part) for part in dataset if part)
    return str(next(filter(None, files), "unnamed corpus"))


def _dataset_size(run: Run) -> int | None:
    """Number of training pairs after filtering."""
    train = run.data_table.get("train")
    return train.get("kept") if isinstance(train, Mapping) else None


# ------------------------------------------------------------------------------------------------------ the sections


def _summary(run: Run) -> str:
    pair = f"from {_language(run.languages[0])} into {_language(run.languages[1])}" if run.languages else "text"
    kind = run.config.get("model_type", "encoder-decoder")
    words = f"A model that translates {pair}: "
    words += "an encoder-decoder Transformer" if run.is_ours else f"a {escape_markdown(str(kind))} model"
    parameters = run.results.get("num_parameters")
    words += f" of {parameters / 1e6:.1f} million parameters" if parameters else ""
    encodings = " and ".join(f"`{escape_markdown(name)}`" for name in dict.fromkeys(run.position_encodings))
    words += f" with {encodings} position encoding" if encodings else ""
    base = hub_name("model_name_or_path", run.settings.get("model_name_or_path"))
    words += f", fine-tuned from [{escape_markdown(base)}](https://huggingface.co/{base})" if base else ""
    scores = [f"{METRICS[key]} {run.results[f'test_{key}']:.1f}" for key in HEADLINES if f"test_{key}" in run.results]
    reached = " and ".join(filter(None, (", ".join(scores[:-1]), *scores[-1:])))
    return words + (f". On its test set it reaches **{reached}**." if reached else ".")


def _language(code: str) -> str:
    """Its English name where the CLDR has one, and the code."""
    try:
        name = Locale.parse(code.replace("-", "_")).english_name
    except (ValueError, UnknownLocaleError):
        name = None
    return f"{escape_markdown(name)} ({escape_markdown(code)})" if name else escape_markdown(code)


def _usage(run: Run, samples: Sequence[Mapping[str, Any]]) -> str:
    sentence = str(samples[0]["source"]) if samples else "A sentence to translate."
    prefix = str(run.settings.get("source_prefix") or "")
    beams = run.results.get("num_beams") or run.settings.get("num_beams") or 1
    remote = ", trust_remote_code=True" if run.is_ours else ""
    place = _python(run.name if "/" in run.name else f"path/to/{run.name}")
    plain = f"""from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained({place}{remote})
model = AutoModelForSeq2SeqLM.from_pretrained({place}{remote})

batch = tokenizer([{_python(prefix + sentence)}], return_tensors="pt", padding=True)
output = model.generate(**batch, num_beams={beams:d})
print(tokenizer.batch_decode(output, skip_special_tokens=True))"""
    ours = f"""import hf_mt

translator = hf_mt.Translator({place}{f", source_prefix={_python(prefix)}" if prefix else ""})
print(translator([{_python(sentence)}], num_beams={beams:d}))"""
    why = (
        "The model's own code, which comes with its weights, needs `trust_remote_code=True`.\n\n"
        if run.is_ours
        else ""
    )
    many = "With hf_mt, which sorts and batches any number of sentences and returns them in order:"
    return f"## How to use\n\n{why}{fenced(plain, 'python')}\n\n{many}\n\n{fenced(ours, 'python')}"


def _python(text: str) -> str:
    """Text as Python writes it, in double quotes where formatters want them."""
    written = repr(text)
    return written if '"' in written else f'"{written[1:-1]}"'


def _results(run: Run) -> str:
    prefix = "test_" if any(key.startswith("test_") for key in run.results) else "eval_"
    rows = [
        (name, run.results[prefix + key], _signature(run, prefix + key))
        for key, name in METRICS.items()
        if prefix + key in run.results
    ]
    if not rows:
        return ""
    beams = beam_sizes(run)["test" if prefix == "test_" else "development"]
    facts = {
        "Data": _evaluated_on(run, prefix),
        "Beam size": beams,
        "Length penalty": _as_written(run.settings.get("length_penalty")) if beams != 1 else None,
        "Seed": _as_written(run.results.get("seed", run.settings.get("seed"))),
        "Training": _minutes(run),
        "Machine": run.results.get("machine"),
        "Target tokens per second in training": run.results.get("train_target_tokens_per_second"),
    }
    listed = "\n".join(
        f"- {name}: {escape_markdown(number(value))}" for name, value in facts.items() if value is not None
    )
    return f"## Results\n\n{table(('Metric', 'Value', 'Signature'), rows)}\n\n{listed}"


def _evaluated_on(run: Run, prefix: str) -> str:
    split, key = ("test", "test_file") if prefix == "test_" else ("development", "validation_file")
    return f"{split} set of {_dataset_title(run, key, 'train_file')}"


def _as_written(value: Any) -> str | None:
    return None if value is None else str(value)


def _signature(run: Run, key: str) -> Markup:
    signature = run.results.get(f"{key}_signature")
    return code(str(signature)) if signature else Markup("")


def _minutes(run: Run) -> str | None:
    minutes, epoch = run.results.get("train_minutes"), run.results.get("epoch")
    if minutes is None:
        return None
    return f"{number(float(minutes))} minutes" + (f", {epoch:g} epochs" if epoch else "")


def _curves(run: Run, path: Path) -> str:
    """The picture of the run's course, where the card lies beside it."""
    inside = path.parent.resolve() == run.folder.resolve()
    return f"![curves]({CURVES})" if inside and (run.folder / CURVES).is_file() else ""


def _samples(samples: Sequence[Mapping[str, Any]]) -> str:
    if not samples:
        return ""
    rows = [[row["source"], row["reference"], row["hypothesis"]] for row in samples]
    shown = table(("Source", "Reference", "Output"), rows)
    return f"## Samples\n\nFrom the development set, not chosen by hand.\n\n{shown}"


def _data(run: Run) -> str:
    if not run.data_table and not run.settings:
        return ""
    name = hub_name("dataset_name", run.settings.get("dataset_name"))
    title = escape_markdown(_dataset_title(run, "train_file"))
    title = f"[{escape_markdown(name)}](https://huggingface.co/datasets/{name})" if name else title
    return f"## Training data\n\n{title}\n\n{_filter_table(run)}\n\n{_token_table(run)}"


def _filter_table(run: Run) -> str:
    """Pairs of each split before, found by, and after the filters."""
    found = dict.fromkeys(reason for split in run.data_table.values() for reason in split.get("found", {}))
    rows = [
        [name, split.get("read"), *(split.get("found", {}).get(reason) for reason in found), split.get("kept")]
        for name, split in run.data_table.items()
    ]
    if not rows:
        return ""
    why = "Pairs that a filter found were dropped from the training split; in the other splits they are only counted."
    return f"{why}\n\n{table(('Pairs', 'read', *found, 'kept'), rows)}"


def _token_table(run: Run) -> str:
    """Lengths of both sides of each split in tokens."""
    sides = {
        f"{name}, {side}": split[f"{side}_tokens"]
        for name, split in run.data_table.items()
        for side in ("source", "target")
        if f"{side}_tokens" in split
    }
    columns = dict.fromkeys(column for counts in sides.values() for column in counts if column != "histogram")
    rows = [[side, *(counts.get(column) for column in columns)] for side, counts in sides.items()]
    return table(("Tokens a sentence", *(column.replace("_", " ") for column in columns)), rows) if rows else ""


def _architecture(run: Run) -> str:
    hidden = {"architectures", "auto_map", "transformers_version", "_name_or_path"}
    kept = {key: value for key, value in run.config.items() if key not in hidden and value is not None}
    if not kept:
        return ""
    rows = [(key, without_path(key, value)) for key, value in kept.items()]
    return f"## Architecture\n\n{folded('config.json', table(('Field', 'Value'), rows))}"


def _hyperparameters(run: Run) -> str:
    if not run.settings:
        return ""
    known = {key: value for key, value in run.settings.items() if key in DEFAULTS and key not in NAMES_OF_RUNS}
    chosen = [(key, _whole(value)) for key, value in known.items() if value != DEFAULTS[key]]
    text = "## Hyperparameters\n\n"
    text += f"Other than default:\n\n{table(('Setting', 'Value'), chosen)}\n\n" if chosen else ""
    settings = {key: value for key, value in run.settings.items() if key not in NAMES_OF_RUNS}
    whole = yaml.safe_dump(settings, sort_keys=True, allow_unicode=True)
    return text + folded("All settings", fenced(whole, "yaml"))


def _whole(value: Any) -> Any:
    """Numbers of steps, which transformers keeps as 800.0, as 800."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _training_log(run: Run) -> str:
    columns = {key: {point.step: point for point in series(run.log_history, key)} for key in LOG_COLUMNS}
    steps = sorted(set().union(*(columns[key] for key in LOG_COLUMNS if key.startswith("eval_"))))
    used = [key for key in LOG_COLUMNS if columns[key]]
    if not steps:
        return ""
    rows = []
    for step in steps:
        points = [_latest(columns[key], step) if key == "loss" else columns[key].get(step) for key in used]
        epoch = next((point.epoch for point in points if point and point.step == step), None)
        cells = [f"{step:,}", number(epoch), *("" if point is None else number(point.value) for point in points)]
        rows.append([Markup(f"**{cell}**") if step == run.best_step and cell else cell for cell in cells])
    body = table(("Step", "Epoch", *(LOG_COLUMNS[key] for key in used)), rows)
    return f"## Training log\n\n{folded(f'{len(rows)} evaluations; the kept checkpoint is bold', body)}"


def _latest(points: Mapping[int, Any], step: int) -> Any:
    """The last value logged up to `step`."""
    return points[max(earlier)] if (earlier := [one for one in points if one <= step]) else None


def _reproduction(run: Run) -> str:
    if not run.settings:
        return ""
    command = "accelerate launch scripts/train.py config.yaml"
    words = "With all settings above as `config.yaml`, and the paths of your own files in it:"
    return f"## Reproduce\n\n{words}\n\n{fenced(command, 'bash')}"


def _versions(run: Run) -> str:
    """Those that the run recorded; while it is going on, those that it has."""
    is_over = "train_minutes" in run.results
    found = {"hf_mt": run.results.get("hf_mt_version")} if is_over else package_versions()
    found |= run.environment
    rows = [(name, str(found[name])) for name in PACKAGES if found.get(name)]
    return f"## Framework versions\n\n{table(('Package', 'Version'), rows)}" if rows else ""


def _citation(run: Run) -> str:
    known = [POSITION_ENCODINGS[name] for name in dict.fromkeys(run.position_encodings) if name in POSITION_ENCODINGS]
    return "".join(f"Position encoding: {encoding.citation}\n" for encoding in known)
