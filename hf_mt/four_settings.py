"""The four settings of the report that this project grew out of, side by side: what they reach, and seemed to.

Everything is read from finished runs. Scores are those of sacrebleu; what the report's way of counting makes of the
same translations stands beside them under its own name.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_mt.markdown import Markup, table
from hf_mt.padded_counting import PaddedCounting, count_padding
from hf_mt.run_record import Run, read_run
from hf_mt.scores import SentenceScore, read_sentence_scores
from hf_mt.significance import compare_systems
from hf_mt.verdict import finite, series, verdict


SETTINGS = {
    "encoder_layers": "layers",
    "encoder_attention_heads": "heads",
    "d_model": "width",
    "dropout": "dropout",
    "norm_position": "norm",
    "warmup_steps": "warm-up",
}


@dataclass(frozen=True)
class Trial:
    """A finished run with its translations."""

    run: Run
    sentences: list[SentenceScore]

    @property
    def counted(self) -> PaddedCounting:
        """Its translations counted with their padding, in batches of 16 as the report had them."""
        return count_padding(
            [row.hypothesis.split() for row in self.sentences], [row.references[0].split() for row in self.sentences]
        )


def read_trial(folder: Path) -> Trial:
    return Trial(read_run(folder, name=folder.name), read_sentence_scores(folder / "test_scores.tsv"))


def settings_table(trials: Mapping[str, Trial]) -> str:
    """What sets the runs apart, and how long they trained."""
    rows = []
    for name, trial in trials.items():
        found = trial.run
        values = [found.settings.get(key, found.config.get(key)) for key in SETTINGS]
        cost = [f"{found.results['epoch']:.1f}", f"{found.results['train_minutes']:.0f}"]
        rows.append([name, *values, f"{found.results['num_parameters']:,}", *cost])
    return table(["Run", *SETTINGS.values(), "parameters", "epochs", "minutes"], rows)


def scores_table(trials: Mapping[str, Trial]) -> str:
    """Losses at the end of training, honest scores, and what counting padding makes of them."""
    header = ["Run", "training loss", "training accuracy", "development loss", "development accuracy", "perplexity"]
    header += ["BLEU", "chrF", "accuracy with padding", '"BLEU" with padding']
    return table(header, [[name, *_scores(trial)] for name, trial in trials.items()])


def _scores(trial: Trial) -> list[str]:
    log, results, counted = trial.run.log_history, trial.run.results, trial.counted
    losses = [_last(log, key) for key in ("loss", "accuracy", "eval_loss", "eval_accuracy")]
    shown = [f"{losses[0]:.3f}", f"{100 * losses[1]:.1f}", f"{losses[2]:.3f}", f"{100 * losses[3]:.1f}"]
    shown += [f"{results['test_perplexity']:.1f}", f"{results['test_bleu']:.2f}", f"{results['test_chrf']:.2f}"]
    return [*shown, f"{100 * counted.accuracy_with_padding:.1f}", f"{counted.bleu_with_padding:.4f}"]


def _last(log_history: Sequence[Mapping[str, Any]], key: str) -> float:
    points = finite(series(log_history, key))
    return points[-1].value if points else float("nan")


def padding_of_nothing(trial: Trial) -> str:
    """What a model that has learnt nothing, and says nothing, gets on the same sentences."""
    counted = count_padding([[] for _ in trial.sentences], [row.references[0].split() for row in trial.sentences])
    return (
        f"Translations that say nothing at all, counted with their padding: accuracy "
        f'{100 * counted.accuracy_with_padding:.1f} %, "BLEU" {counted.bleu_with_padding:.4f}; '
        f"{100 * counted.padding:.0f} % of the references' cells are padding. Their BLEU is 0."
    )


def neighbours_table(trials: Mapping[str, Trial]) -> str:
    """Whether each run differs from the one before it: paired bootstrap."""
    names, rows = list(trials), []
    for before, name in zip(names, names[1:], strict=False):
        systems = {one: [row.hypothesis for row in trials[one].sentences] for one in (before, name)}
        references = [row.references for row in trials[name].sentences]
        for metric in ("bleu", "chrf"):
            first, second = compare_systems(systems, references, metrics=(metric,))
            values = [f"{row.mean:.2f} ± {row.interval:.2f}" for row in (first, second)]
            rows.append([f"{before}, {name}", metric, *values, f"{second.p_value:.4f}"])
    return table(["Runs", "score", "first", "second", "p"], rows)


def report_card(trials: Mapping[str, Trial], *, command: str) -> str:
    """The whole comparison as Markdown.

    Args:
        trials: By the name that readers see; the settings in order, then what is compared with them.
        command: What made it.
    """
    first = next(iter(trials.values()))
    facts = {key: first.run.results.get(key) for key in ("test_bleu_signature", "test_chrf_signature", "machine")}
    verdicts = [f"- {name}: {verdict(trial.run.log_history, max_steps=trial.run.max_steps)}"
                for name, trial in trials.items()]  # fmt: skip
    parts = [
        settings_table(trials),
        scores_table(trials),
        padding_of_nothing(first),
        "How training went:\n\n" + "\n".join(verdicts),
        "Differences between neighbours, paired bootstrap of 1,000 samples:\n\n" + neighbours_table(trials),
        "\n".join(f"- {key}: {value}" for key, value in facts.items()) + f"\n- command: {Markup('`' + command + '`')}",
    ]
    return "\n\n".join(parts) + "\n"
