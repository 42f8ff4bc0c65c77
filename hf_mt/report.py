"""A run, or several side by side, as one page: `report/index.html`, which needs nothing but itself.

- Everything is read from run folders, so a report can be made again at any time; what a folder lacks is left out.
- Text that comes from data or settings is escaped: it is shown and never obeyed.
- The same pictures are written beside the page as PNG.
"""

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from matplotlib.figure import Figure

from hf_mt.arguments import BLEU_OF_TOKENIZER
from hf_mt.attention import cross_attention
from hf_mt.data import HISTOGRAM_WIDTH
from hf_mt.errors import InputError
from hf_mt.figures import (
    BY_LENGTH,
    Unit,
    attention_figure,
    course_figure,
    histogram_figure,
    inline_svg,
    length_figure,
    save_png,
)
from hf_mt.page import cell, folded, marked, table, tabs
from hf_mt.report_scores import scores_part
from hf_mt.run_record import METRICS, Run, files_as_written, read_mapping, read_run
from hf_mt.scores import PREFIXES, SET_NAMES, Split, read_sentence_scores, sentences_file
from hf_mt.significance import common_split
from hf_mt.text_files import new_folder, write_whole
from hf_mt.translation import Translator
from hf_mt.verdict import has_minutes, verdict


TEMPLATE = Path(__file__).with_name("report_template.html")
HEADLINES = {
    "test_bleu": "test BLEU",
    "test_bleu_lc_tok": "test BLEU, lower-cased tokens",
    **{f"test_{name}": f"test {METRICS[name]}" for name in BLEU_OF_TOKENIZER.values()},
    "test_chrf": "test chrF",
    "eval_bleu": "development BLEU",
    "test_perplexity": "test perplexity",
    "num_parameters": "parameters",
    "train_minutes": "minutes of training",
}
LONGEST_NAME = 100  # of a folder that nobody named
ATTENTION_SENTENCES, ATTENTION_CHARACTERS = 2, 160  # longer ones fill a page with their heat map


@dataclass(frozen=True)
class Report:
    """The page while it is made: runs by name, where pictures go, and sentences for heat maps, from 1."""

    runs: dict[str, Run]
    folder: Path
    sentences: Sequence[int] = ()

    def picture(self, figure: Figure, name: str, *, wide: bool = False) -> str:
        """A figure as part of the page, and as a PNG beside it; a wide one keeps its size, and the page scrolls it."""
        save_png(figure, self.folder / f"{name}.png")
        kind = f'picture wide" style="--width: {figure.get_figwidth():.1f}in' if wide else "picture"
        return f'<div class="{kind}">{inline_svg(figure, name)}</div>'

    def found(self, name: str) -> dict[str, dict[str, Any]]:
        """A JSON file of each run that has it, by the run's name."""
        files = {title: read_mapping(run.folder / name) for title, run in self.runs.items()}
        return {title: content for title, content in files.items() if content}

    def analyses(self) -> dict[str, tuple[Split, dict[str, Any]]]:
        """What `write_analysis` told of the test set of each run, or of its development set if it has no other."""
        found: dict[str, tuple[Split, dict[str, Any]]] = {}
        for split in SET_NAMES:
            for name, content in self.found(f"{PREFIXES[split]}_analysis.json").items():
                found.setdefault(name, (split, content))
        return {name: found[name] for name in self.runs if name in found}


def write_report(run_folders: Sequence[Path], *, folder: Path | None = None, sentences: Sequence[int] = ()) -> Path:
    """Writes `index.html` and its pictures.

    Args:
        run_folders: Finished runs, or unfinished ones that have been evaluated; the first is the baseline.
        folder: Where to; `report` in the run folder, or `report-NAME-NAME` beside the first one, if None.
        sentences: Numbers, from 1, of the sentences whose cross-attention is drawn, in the test set, or in the
            development set where a run has no other; sample sentences if none.

    Returns:
        The page.

    Raises:
        InputError: There is no run, two have one name, a folder can't be read, their names are too long for that of a
            folder, or a set has no such sentence.
    """
    runs = {run.name: run for run in (read_run(path, name=path.resolve().name) for path in run_folders)}
    if not runs or len(runs) < len(run_folders):
        raise InputError(f"{len(run_folders)} folders, but {len(runs)} names of runs; a report needs each once")
    report = Report(runs, folder if folder is not None else _default_folder(run_folders, runs), sentences)
    with new_folder(report.folder), files_as_written(run_folders):
        return write_whole(report.folder / "index.html", _page(report))


def _default_folder(run_folders: Sequence[Path], names: Iterable[str]) -> Path:
    if len(run_folders) == 1:
        return run_folders[0] / "report"
    name = "-".join(("report", *names))
    if len(name) > LONGEST_NAME:
        raise InputError(
            f"the folder of the report would be called {name}: {len(name)} characters, and {LONGEST_NAME} at most are "
            "taken; give --output DIR"
        )
    return Path(os.path.abspath(run_folders[0])).parent / name


def _page(report: Report) -> str:
    runs = report.runs
    bodies = {title: part(report) for title, part in PARTS.items()}
    parts = {title: body for title, body in bodies.items() if body}
    return Template(TEMPLATE.read_text("utf-8")).substitute(
        title=escape(" against ".join(runs)),
        summary=_summary(report),
        tiles="".join(_tiles(report)),
        links="".join(f'<a href="#{_anchor(title)}">{title}</a>' for title in parts),
        sections="\n".join(
            f'<section id="{_anchor(title)}"><h2>{title}</h2>{body}</section>' for title, body in parts.items()
        ),
    )


def _anchor(title: str) -> str:
    return title.lower().replace(" ", "-")


def _summary(report: Report) -> str:
    lines = []
    for name, run in report.runs.items():
        pair = " to ".join(run.languages) if run.languages else ""
        encoding = " and ".join(dict.fromkeys(run.position_encodings)) or str(run.config.get("model_type", ""))
        words = verdict(run.log_history, max_steps=run.max_steps) if run.log_history else "nothing was logged"
        title = f"<b>{escape(name)}</b>: " if len(report.runs) > 1 else ""
        about = ", ".join(escape(part) for part in (pair, encoding) if part)
        lines.append(f'<p>{title}{about}</p><p class="soft">{escape(words)}</p>')
    return "".join(lines)


def _tiles(report: Report) -> Iterable[str]:
    """Numbers at the head of a page about one run."""
    if len(report.runs) == 1:
        (run,) = report.runs.values()
        for key, name in HEADLINES.items():
            if key in run.results:
                yield f'<div class="tile"><b>{cell(run.results[key])}</b><span>{name}</span></div>'


# ---------------------------------------------------------------------------------------------------------- the parts


def _course(report: Report) -> str:
    histories = {name: run.log_history for name, run in report.runs.items() if run.log_history}
    if not histories:
        return ""
    # a stream counts whole epochs only
    in_epochs = any(row.get("epoch") for history in histories.values() for row in history)
    kept = next(iter(report.runs.values())).best_step if len(report.runs) == 1 else None
    units: list[Unit] = ["step", "epoch"] if in_epochs else ["step"]
    units += ["minute"] if all(map(has_minutes, histories.values())) else []
    pictures = {
        f"by {unit}": report.picture(course_figure(histories, unit, kept=kept), f"course-by-{unit}") for unit in units
    }
    note = "loss and accuracy: dotted in training, with dropout; solid in development"
    return tabs("course", pictures) + f'<p class="soft">{note}</p>'


def _scores(report: Report) -> str:
    return scores_part(report.runs)


def _by_length(report: Report) -> str:
    """BLEU and chrF, in one picture for all runs that were scored on the same sentences, counted in the same unit."""
    alike: dict[tuple[Split, str], dict[str, Mapping[str, Any]]] = {}
    for name, (split, content) in report.analyses().items():
        sizes = [(bucket["first"], bucket["sentences"]) for bucket in content["buckets"]]
        alike.setdefault((split, str((content["unit"], sizes))), {})[name] = content
    shown = ""
    for order, ((split, _), runs) in enumerate(alike.items()):
        pictures = {
            name: report.picture(
                length_figure(runs, SET_NAMES[split], metric), f"{metric}-by-length{f'-{order}' if order else ''}"
            )
            for metric, name in BY_LENGTH.items()
        }
        shown += tabs(f"length-{order}", pictures)
    return shown


def _translations(report: Report) -> str:
    """The same sentences of all runs; and of one run the best and the worst."""
    shared: dict[tuple[str, str], dict[str, str]] = {}
    for name, run in report.runs.items():
        label = name if len(report.runs) > 1 else "output"
        for row in run.samples:
            shared.setdefault((str(row["source"]), str(row["reference"])), {})[label] = str(row["hypothesis"])
    groups = {"samples": "".join(_sentence(source, ref, outputs) for (source, ref), outputs in shared.items())}
    for name, (split, content) in report.analyses().items():
        for end in ("best", "worst"):
            title = f"{end} of the {SET_NAMES[split]}" + (f", {name}" if len(report.runs) > 1 else "")
            groups[title] = "".join(
                _sentence(
                    row["source"],
                    row["references"][0],
                    {f"output, {row['chrf']:.0f} chrF": row["hypothesis"]},
                    number=row.get("line"),
                )
                for row in content[end]
            )
    groups = {title: body for title, body in groups.items() if body}
    note = (
        '<p class="soft"><mark class="extra">not in the reference</mark> '
        '<mark class="missing">only in the reference</mark></p>'
    )
    return note + tabs("translations", groups) if groups else ""


def _sentence(source: str, reference: str, outputs: Mapping[str, str], *, number: int | None = None) -> str:
    """One below another; with its number in the set, by which `--sentences` draws its attention, where it is known."""
    cells = [("source" if number is None else f"source, sentence {escape(str(number))}", escape(source))]
    first = next(iter(outputs.values()))
    cells.append(("reference", marked(reference, first, "missing")))
    for name, output in outputs.items():
        cells.append((escape(name), marked(output, reference, "extra")))
    shown = "".join(f'<div>{name}</div><div dir="auto">{text}</div>' for name, text in cells)
    return f'<div class="sentence">{shown}</div>'


def _attention(report: Report) -> str:
    """Heat maps by a forward pass of each run's model."""
    pictures: dict[str, str] = {}
    split = _split_of_sentences(report)
    for order, (name, run) in enumerate(report.runs.items()):
        pairs = _chosen_pairs(run, split, report.sentences) if report.sentences else _sample_pairs(run)
        if not pairs or not (run.folder / "model.safetensors").is_file():
            continue
        try:
            translator = Translator(run.folder, device="cpu")
        except InputError:
            if report.sentences:
                raise
            continue  # a model whose code nobody allowed to run here: the page has its other parts
        places = report.sentences or range(1, len(pairs) + 1)
        for place, one in zip(places, cross_attention(translator, *zip(*pairs, strict=True)), strict=True):
            if one is None and report.sentences:
                raise InputError(f"sentence {place} has more tokens than the model has positions: choose another")
            if one is None:
                continue
            title = f"sentence {place}" + (f", {name}" if len(report.runs) > 1 else "")
            pictures[title] = report.picture(attention_figure(one), f"attention-{order + 1}-{place}", wide=True)
    note = "rows: the translation; columns: the source; the darker, the more attention; mean over heads"
    note += f"; sentences by their number in the {SET_NAMES[split]}" if report.sentences else ""
    return tabs("attention", pictures) + f'<p class="soft">{note}</p>' if pictures else ""


def _sample_pairs(run: Run) -> list[tuple[str, str]]:
    """Source and translation of the first sample sentences that are short enough for a picture."""
    pairs = [(str(row["source"]), str(row["hypothesis"])) for row in run.samples]
    return [pair for pair in pairs if max(map(len, pair)) <= ATTENTION_CHARACTERS][:ATTENTION_SENTENCES]


def _split_of_sentences(report: Report) -> Split:
    """The set that numbers of sentences are of: one of which all runs have translations."""
    try:
        return common_split([str(run.folder) for run in report.runs.values()]) or "test"
    except InputError:
        return "test"


def _chosen_pairs(run: Run, split: Split, sentences: Sequence[int]) -> list[tuple[str, str]]:
    path = sentences_file(run.folder, split)
    rows = read_sentence_scores(path) if path.is_file() else []
    missing = [str(number) for number in sentences if not 1 <= number <= len(rows)]
    if missing:
        name = SET_NAMES[split].removesuffix(" set")
        raise InputError(f"{run.folder} has {len(rows)} {name} sentences, and no sentence {', '.join(missing)}")
    return [(rows[number - 1].source, rows[number - 1].hypothesis) for number in sentences]


def _settings(report: Report) -> str:
    """All settings; where several runs differ, those first."""
    keys = dict.fromkeys(key for run in report.runs.values() for key in run.settings)
    values = {key: [_plain(run.settings.get(key)) for run in report.runs.values()] for key in keys}
    different = {key: row for key, row in values.items() if len(set(row)) > 1}
    rows = [[f"<code>{escape(key)}</code>", *row] for key, row in {**different, **values}.items()]
    names = list(map(escape, report.runs))
    if not rows:
        return ""
    head = table(["differs", *names], [[f"<code>{escape(key)}</code>", *row] for key, row in different.items()])
    return (head if different else "") + folded(f"all {len(values)} keys", table(["key", *names], rows))


def _plain(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return f"<code>{escape(text)}</code>"


def _data(report: Report) -> str:
    bodies = []
    for order, (name, run) in enumerate(report.runs.items()):
        rows = []
        for split, counts in run.data_table.items():
            dropped = ", ".join(f"{words} {count:,}" for words, count in counts["found"].items() if count) or "nothing"
            means = [cell(counts[f"{side}_tokens"]["mean"]) for side in ("source", "target")]
            rows.append([escape(split), f"{counts['read']:,}", escape(dropped), f"{counts['kept']:,}", *means])
        if rows:
            title = f"<p><b>{escape(name)}</b></p>" if len(report.runs) > 1 else ""
            columns = table(["split", "read", "found", "kept", "mean source tokens", "mean target tokens"], rows)
            bodies.append(title + columns + _histogram(report, run, order))
    return "".join(bodies)


def _histogram(report: Report, run: Run, order: int) -> str:
    train = run.data_table.get("train", {})
    counts = {side: train.get(f"{side}_tokens", {}).get("histogram") for side in ("source", "target")}
    if not all(counts.values()):
        return ""
    return report.picture(histogram_figure(counts, HISTOGRAM_WIDTH), f"lengths-{order + 1}")  # type: ignore[arg-type]


def _environment(report: Report) -> str:
    found = {name: run.environment for name, run in report.runs.items() if run.environment}
    keys = dict.fromkeys(key for values in found.values() for key in values)
    rows = [[escape(key), *(escape(str(values.get(key, ""))) for values in found.values())] for key in keys]
    return table(["", *map(escape, found)], rows) if rows else ""


PARTS: dict[str, Callable[[Report], str]] = {
    "Course": _course,
    "Scores": _scores,
    "By length": _by_length,
    "Translations": _translations,
    "Attention": _attention,
    "Settings": _settings,
    "Data": _data,
    "Environment": _environment,
}
