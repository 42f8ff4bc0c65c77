"""The scores of a report: a table for each set, how translations were searched, and what may be luck."""

from collections.abc import Collection, Mapping, Sequence
from html import escape
from typing import Any

from hf_mt.errors import InputError
from hf_mt.page import cell, table, tabs
from hf_mt.run_record import METRICS, Run, beam_sizes
from hf_mt.scores import PREFIXES, SET_NAMES, Split
from hf_mt.significance import FLAVOURS, SIGNIFICANT, Comparison, compare_systems, read_systems


Scores = Mapping[str, Any]  # by metric, with signatures
BETTER = (
    "better is more of BLEU, chrF and accuracy, and less of TER, loss, perplexity, empty outputs and shares; a length "
    "ratio is best at 1"
)


def scores_part(runs: Mapping[str, Run]) -> str:
    """HTML of the scores of all runs, by name; of several, the first one is what others are compared with."""
    columns: dict[Split, dict[str, Scores]] = {}
    for split, prefix in PREFIXES.items():
        for name, run in runs.items():
            start = f"{prefix}_"
            found = {key.removeprefix(start): run.results[key] for key in run.results if key.startswith(start)}
            if found:
                columns.setdefault(split, {})[name] = found
    if not columns:
        return ""
    if len(runs) == 1:
        shown = _score_table({SET_NAMES[split]: found for split, each in columns.items() for found in each.values()})
    else:
        shown = _side_by_side(runs, columns)
    signatures = _signatures([found for each in columns.values() for found in each.values()])
    return f'{shown}<p class="soft">{BETTER}</p>{_decoding(runs)}{signatures}'


def _side_by_side(runs: Mapping[str, Run], columns: Mapping[Split, Mapping[str, Scores]]) -> str:
    """A panel for each set, with tests of significance where all runs have their translations of it."""
    panels, problems = {}, []
    for split, each in columns.items():
        tests: list[Comparison] = []
        try:
            tests = _paired_tests(runs, split)
        except InputError as error:
            problems.append(_without_folders(str(error), runs))
        marked = {(row.metric, row.system) for row in tests if _is_significant(row)}
        shown = f"<p>{SET_NAMES[split]}</p>{_score_table(each, marked)}"
        panels[SET_NAMES[split]] = shown + (_significance(tests, SET_NAMES[split]) if tests else "")
    shown = tabs("scores", panels)
    if len(problems) == len(panels):
        shown += f'<p class="soft">No test of significance: {escape(problems[0])}</p>'
    return shown


def _without_folders(problem: str, runs: Mapping[str, Run]) -> str:
    """The page may be shown to others, who know runs by name."""
    for name, run in runs.items():
        problem = problem.replace(str(run.folder), name)
    return problem


def _score_table(columns: Mapping[str, Scores], marked: Collection[tuple[str, str]] = ()) -> str:
    """A row for each score; those that are `marked`, as (metric, column), get a star."""
    keys = [key for key in METRICS if any(key in values for values in columns.values())]
    rows = [
        [
            METRICS[key],
            *(cell(values.get(key)) + (" *" if (key, name) in marked else "") for name, values in columns.items()),
        ]
        for key in keys
    ]
    return table(["score", *map(escape, columns)], rows)


def _paired_tests(runs: Mapping[str, Run], split: Split) -> list[Comparison]:
    """Of the scores that papers compare; of BLEU of lower-cased tokens where all runs have it."""
    systems, references = read_systems([str(run.folder) for run in runs.values()], split=split)
    named = dict(zip(runs, systems.values(), strict=True))
    found = compare_systems(named, references)
    for name, options in FLAVOURS.items():
        if options and all(f"{PREFIXES[split]}_{name}" in run.results for run in runs.values()):
            found += compare_systems(named, references, metrics=("bleu",), **options)
    return found


def _is_significant(row: Comparison) -> bool:
    return row.p_value is not None and row.p_value < SIGNIFICANT


def _significance(rows: Sequence[Comparison], name: str) -> str:
    title = (
        f"<p>Paired bootstrap on the {name}, its sentences resampled 1,000 times, against the first run. p: how "
        f"likely so large a difference is by luck; * marks p &lt; {SIGNIFICANT}, not corrected for the number of "
        "runs.</p>"
    )
    return title + table(["score", "run", "value", "95 % interval", "p"], map(_significance_row, rows))


def _significance_row(row: Comparison) -> list[str]:
    luck = "baseline" if row.p_value is None else f"{row.p_value:.3f}"
    interval = f"{row.mean:.2f} &plusmn; {row.interval:.2f}"
    score = f"{row.score:.2f}{' *' if _is_significant(row) else ''}"
    return [METRICS[row.metric], escape(row.system), score, interval, luck]


def _decoding(runs: Mapping[str, Run]) -> str:
    """How translations were searched, which scores of one table may differ in."""
    lines = []
    for name, run in runs.items():
        beams, penalty = beam_sizes(run), run.settings.get("length_penalty")
        if beams["test"] is not None:
            whose = f"{name}: " if len(runs) > 1 else ""
            lines.append(
                f"{whose}test {beams['test']} beams, development {beams['development']}, length penalty {penalty}"
            )
    note = ["perplexities compare between runs with the same subwords only"] if len(runs) > 1 else []
    return "".join(f'<p class="soft">{escape(line)}</p>' for line in lines + note)


def _signatures(columns: Sequence[Scores]) -> str:
    keys = [(key, f"{key}_signature") for key in METRICS]
    lines = {f"{METRICS[key]}: {values[name]}" for values in columns for key, name in keys if name in values}
    return "".join(f"<p><code>{escape(line)}</code></p>" for line in sorted(lines))
