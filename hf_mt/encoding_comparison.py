"""Position encodings against each other, above all on sentences longer than those of training.

- Runs differ in the encoding, in settings that are named with it, and in the seed; no training source is longer than
  `max_source_length` (the cap).
- The test set is cut by the length of the source in tokens, as shares of the cap. A score is the mean over seeds; its
  interval, and whether it differs from the first encoding's, come from resampling sentences, the same for all seeds.
- As many tests as there are encodings are made in each bucket, and corrected for that.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from matplotlib.figure import Figure

from hf_mt.errors import InputError, shown
from hf_mt.experiment import valid_keys
from hf_mt.figures import COLOURS, panels, style
from hf_mt.markdown import code, table
from hf_mt.model import POSITION_ENCODINGS
from hf_mt.scores import SentenceScore, corpus_scores, read_sentence_scores
from hf_mt.settings import did_you_mean
from hf_mt.significance import SIGNIFICANT, compare_means, holm
from hf_mt.tokenization import load_tokenizer


SHARES = (0.5, 1.0, 1.5, 2.0)  # bounds of the buckets, as shares of the cap
MEANING = (
    "Mean BLEU, ± half of its 95 % interval over sentences (in brackets the standard deviation over seeds). * differs "
    "from `{}` (p < 0.05): paired bootstrap over sentences, the same for all seeds, corrected for the number of "
    "encodings in each column (Holm)."
)  # with the first encoding


# What each run has of its own, or no run may have
DECIDED = frozenset({"position_encoding", "seed", "output_dir", "run_name", "dry_run", "push_to_hub"})


def variant_options(entry: str) -> list[str]:
    """Options of a row: of an encoding, as in `rope`, or with settings, as in `rope+randomized_positions=512`.

    Raises:
        InputError: There is no such encoding, a setting is not `key=value`, or its key is the same for all rows.
    """
    name, *settings = entry.split("+")
    if name not in POSITION_ENCODINGS:
        wanted = ", ".join(POSITION_ENCODINGS) + did_you_mean(name, list(POSITION_ENCODINGS))
        raise InputError(f"--encodings {shown(entry)}: found {shown(name)}, wanted one of {wanted}")
    options = [f"--position_encoding={name}"]
    for setting in settings:
        key, _, value = setting.partition("=")
        if not key or not value:
            raise InputError(f"--encodings {shown(entry)}: found {shown(setting)}, wanted key=value after each +")
        key = key.replace("-", "_")
        if key in DECIDED or key in valid_keys() and valid_keys()[key].group == "data":
            raise InputError(f"--encodings {shown(entry)}: {key} can't be another one for each encoding: leave it out")
        options.append(f"--{key}={value}")
    return options


@dataclass(frozen=True)
class LengthScores:
    """Test sentences of a length, and each encoding's BLEU on them."""

    name: str  # in tokens, as in 25-48 or 97+
    sentences: int
    bleu: dict[str, list[float]]  # one for each seed
    interval: dict[str, float]  # half of 95 %
    p_value: dict[str, float | None]  # against the first encoding, corrected for the number of encodings


def scores_by_length(runs: Mapping[str, Sequence[Path]], cap: int) -> list[LengthScores]:
    """Scores by length of the source; buckets without sentences are left out.

    Args:
        runs: Finished runs of each encoding, one for each seed, the same seeds in the same order.
        cap: Longest source in training, in tokens with the end of sentence.

    Raises:
        InputError: Two runs were tested on different sentences.
    """
    tests = {name: [read_sentence_scores(folder / "test_scores.tsv") for folder in runs[name]] for name in runs}
    _check_same_sentences(runs, tests)
    first = next(iter(runs))
    tokenizer = load_tokenizer(str(runs[first][0]))
    lengths = [len(ids) for ids in tokenizer([row.source for row in tests[first][0]], verbose=False)["input_ids"]]
    bounds = [0, *(int(cap * share) for share in SHARES), None]
    found = []
    for before, last in zip(bounds, bounds[1:], strict=False):
        assert before is not None
        rows = [row for row, length in enumerate(lengths) if before < length and (last is None or length <= last)]
        if rows:
            name = f"{before + 1}+" if last is None else f"{before + 1}-{last}"
            picked = {encoding: [[test[row] for row in rows] for test in seeds] for encoding, seeds in tests.items()}
            found.append(_bucket(name, picked))
    return found


def _check_same_sentences(
    runs: Mapping[str, Sequence[Path]], tests: Mapping[str, Sequence[Sequence[SentenceScore]]]
) -> None:
    pairs = {
        folder: [(row.source, row.references) for row in test]
        for name, folders in runs.items()
        for folder, test in zip(folders, tests[name], strict=True)
    }
    first = next(iter(pairs))
    for folder, found in pairs.items():
        if found != pairs[first]:
            raise InputError(f"{first} and {folder} were tested on different sentences; train one of them anew")


def _bucket(name: str, tests: Mapping[str, Sequence[Sequence[SentenceScore]]]) -> LengthScores:
    bleu = {
        encoding: [float(corpus_scores(_outputs(test), _references(test), metrics=("bleu",), force=True)["bleu"])
                   for test in seeds]
        for encoding, seeds in tests.items()
    }  # fmt: skip
    references = _references(next(iter(tests.values()))[0])
    found = compare_means({encoding: [*map(_outputs, seeds)] for encoding, seeds in tests.items()}, references)
    intervals = {row.system: row.interval for row in found}
    return LengthScores(name, len(references), bleu, intervals, holm({row.system: row.p_value for row in found}))


def _outputs(test: Sequence[SentenceScore]) -> list[str]:
    return [score.hypothesis for score in test]


def _references(test: Sequence[SentenceScore]) -> list[str]:
    return [score.references[0] for score in test]


def comparison_table(buckets: Sequence[LengthScores], runs: Mapping[str, Sequence[Path]]) -> str:
    """A row for each encoding: BLEU in each bucket (see `MEANING`), and what its training cost."""
    lengths = [f"{bucket.name} tokens" for bucket in buckets]
    header = ["Encoding", *lengths, "target tokens/s", "minutes", "parameters"]
    rows = []
    for name, folders in runs.items():
        results = [json.loads((folder / "all_results.json").read_text("utf-8")) for folder in folders]
        speeds = [found["train_target_tokens_per_second"] for found in results]
        speed = f"{mean(speeds):,.0f}" if all(speeds) else ""  # none was logged in a short run
        minutes = mean(found["train_minutes"] for found in results)
        cost = speed, f"{minutes:.1f}", f"{results[0]['num_parameters']:,}"
        rows.append([code(name), *(_cell(bucket, name) for bucket in buckets), *cost])
    sizes = ["sentences", *(f"{bucket.sentences:,}" for bucket in buckets), "", "", ""]
    return table(header, [*rows, sizes])


def _cell(bucket: LengthScores, name: str) -> str:
    values, p_value = bucket.bleu[name], bucket.p_value.get(name)
    spread = f" ({stdev(values):.1f})" if len(values) > 1 else ""
    mark = " *" if p_value is not None and p_value < SIGNIFICANT else ""
    return f"{mean(values):.1f} ± {bucket.interval[name]:.1f}{spread}{mark}"


def comparison_figure(buckets: Sequence[LengthScores], cap: int) -> Figure:
    """BLEU over the buckets, a line for each encoding, with 95 % intervals."""
    figure, (axes,) = panels(1, 1, (10.5, 5.2))
    names = list(buckets[0].bleu)
    columns = max(1, min(4, 110 // (max(map(len, names)) + 5)))  # of a figure 10 inches wide
    for number, name in enumerate(names):
        x = [place + (number - len(names) / 2) * 0.02 for place in range(len(buckets))]
        y = [mean(bucket.bleu[name]) for bucket in buckets]
        errors = [bucket.interval[name] for bucket in buckets]
        marker = "osD^vP*X"[number // 8 % 8]
        axes.errorbar(x, y, errors, color=COLOURS[number % len(COLOURS)], label=name.replace("$", r"\$"),
                      marker=marker, markersize=4, linewidth=1.5, capsize=2)  # fmt: skip
    style(axes, f"BLEU by source tokens; longest of training: {cap}")
    axes.set_xticks(range(len(buckets)), [f"{bucket.name}\n{bucket.sentences:,} sentences" for bucket in buckets])
    axes.legend(ncols=columns, frameon=False, fontsize=9)
    return figure


def settings_of(folder: Path) -> dict[str, Any]:
    """What a table says of how its runs were made."""
    results = json.loads((folder / "all_results.json").read_text("utf-8"))
    return {key: results[key] for key in ("test_bleu_signature", "machine") if key in results}
