"""Four settings of a post-norm Transformer, side by side: what they reach, and what they seemed to reach.

Everything is read from finished runs. Scores are those of sacrebleu; what counting padding as words makes of the same
translations stands beside them under its own name.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from hf_mt.data import encode_pairs
from hf_mt.errors import InputError
from hf_mt.markdown import Markup, table
from hf_mt.padded_counting import PaddedCounting, accuracy_counting_padding, count_padding, padding_share
from hf_mt.run_record import Run, read_run
from hf_mt.scores import SentenceScore, read_sentence_scores, sentences_file
from hf_mt.significance import compare_systems
from hf_mt.tokenization import load_tokenizer
from hf_mt.verdict import finite, series, verdict


SETTINGS = {
    "encoder_layers": "layers",
    "encoder_attention_heads": "heads",
    "d_model": "width",
    "vocab_size": "vocabulary",
    "dropout": "dropout",
    "norm_position": "norm",
    "lr_scheduler_type": "learning rate",
    "warmup_steps": "warm-up",
    "num_beams": "beams",
}
SENTENCES_PER_BATCH = 16  # of the report
MEANING = """\
Losses are those at the end of training, in nats per subword, and the development accuracy is that of the next subword
given the reference so far; they compare between runs of one vocabulary only. "Padding counted" is what that accuracy
becomes in batches of {0} development sentences in their order if each cell of padding counts as a subword got right.
Perplexity, BLEU and chrF are those of the kept checkpoint on the test set. The last four columns count the same
translations word by word, in batches of {0} sentences in their order: accuracy is the share of places with the
reference's word, "BLEU" the mean over sentences without smoothing, first without and then with the padding of the
batch."""


@dataclass(frozen=True)
class FinishedRun:
    """What a run's files say, its translations of the test set, and subwords of the development references."""

    run: Run
    sentences: list[SentenceScore]
    development_lengths: list[int]  # with the end of sentence; empty where the run didn't keep its sentences

    @property
    def counted(self) -> PaddedCounting:
        """Its translations counted with their padding, in batches as the report had them."""
        hypotheses = [row.hypothesis.split() for row in self.sentences]
        return count_padding(hypotheses, _words(self), sentences_per_batch=SENTENCES_PER_BATCH)


def read_finished(folder: Path) -> FinishedRun:
    run, sentences = read_run(folder, name=folder.name), read_sentence_scores(folder / "test_scores.tsv")
    return FinishedRun(run, sentences, _development_lengths(folder))


def _development_lengths(folder: Path) -> list[int]:
    path = sentences_file(folder, "validation")
    if not path.is_file():
        return []
    rows = read_sentence_scores(path)
    pairs = [row.source for row in rows], [row.references[0] for row in rows]
    return [len(ids) for ids in encode_pairs(*pairs, load_tokenizer(str(folder)))["labels"]]


def _words(finished: FinishedRun) -> list[list[str]]:
    """Words of the references."""
    return [row.references[0].split() for row in finished.sentences]


def settings_table(runs: Mapping[str, FinishedRun]) -> str:
    """What sets the runs apart, and how long they trained."""
    rows = []
    for name, finished in runs.items():
        run = finished.run
        values = [run.settings.get(key, run.config.get(key)) for key in SETTINGS]
        cost = [f"{run.results['epoch']:.1f}", f"{run.results['train_minutes']:.0f}"]
        pairs = run.data_table.get("train", {}).get("kept", "")
        rows.append([name, *values, f"{run.results['num_parameters']:,}", pairs, *cost])
    return table(["Run", *SETTINGS.values(), "parameters", "training pairs", "epochs", "minutes"], rows)


def scores_table(runs: Mapping[str, FinishedRun]) -> str:
    """Losses at the end of training, honest scores, and what counting padding makes of them."""
    header = ["Run", "training loss", "training accuracy", "development loss", "development accuracy"]
    header += ["development accuracy, padding counted", "perplexity", "BLEU", "chrF"]
    header += ["accuracy by place", "with padding", '"BLEU" by sentence', "with padding"]
    return table(header, [[name, *_scores(finished)] for name, finished in runs.items()])


def _scores(finished: FinishedRun) -> list[str]:
    log, results, counted = finished.run.log_history, finished.run.results, finished.counted
    losses = [_last(log, key) for key in ("loss", "accuracy", "eval_loss", "eval_accuracy")]
    shown = [f"{losses[0]:.3f}", f"{100 * losses[1]:.1f}", f"{losses[2]:.3f}", f"{100 * losses[3]:.1f}"]
    shown += [_with_padding(losses[3], finished.development_lengths)]
    shown += [f"{results['test_perplexity']:.1f}", f"{results['test_bleu']:.2f}", f"{results['test_chrf']:.2f}"]
    shown += [f"{100 * share:.1f}" for share in (counted.accuracy, counted.accuracy_with_padding)]
    return [*shown, f"{counted.bleu:.4f}", f"{counted.bleu_with_padding:.4f}"]


def _with_padding(accuracy: float, lengths: Sequence[int]) -> str:
    """A development accuracy as it was counted in the report; nothing where lengths are not known."""
    if not lengths:
        return ""
    padding = padding_share(lengths, sentences_per_batch=SENTENCES_PER_BATCH)
    return f"{100 * accuracy_counting_padding(accuracy, padding):.1f}"


def _last(log_history: Sequence[Mapping[str, Any]], key: str) -> float:
    points = finite(series(log_history, key))
    return points[-1].value if points else float("nan")


def nothing_table(finished: FinishedRun) -> str:
    """What a model that has learnt nothing, and says nothing, gets on the same sentences, by how many are padded."""
    rows = []
    for size in (1, 2, 3, 4, 8, SENTENCES_PER_BATCH, 32):
        counted = count_padding([[] for _ in finished.sentences], _words(finished), sentences_per_batch=size)
        shares = (counted.padding, counted.accuracy_with_padding)
        rows.append([size, *(f"{100 * share:.1f}" for share in shares), f"{counted.bleu_with_padding:.4f}"])
    return table(["Sentences in a batch", "padding, %", "accuracy with padding, %", '"BLEU" with padding'], rows)


def compared_pairs(names: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Settings with the one before, a cure ("set 4, pre-norm") with what it cures, and others with the first run."""
    settings = [name for name in names if name.startswith("set ") and "," not in name]
    yield from pairwise(settings)
    for name in names:
        if name not in settings and name != names[0]:
            cured = name.partition(",")[0]
            yield (cured if cured in settings else names[0]), name


def differences_table(runs: Mapping[str, FinishedRun]) -> str:
    """Whether runs differ: paired bootstrap.

    Raises:
        InputError: They were tested on different sentences.
    """
    rows = []
    for before, name in compared_pairs(list(runs)):
        references = [row.references for row in runs[name].sentences]
        if [row.references for row in runs[before].sentences] != references:
            raise InputError(f"{before} and {name} were tested on different sentences; train one of them anew")
        systems = {one: [row.hypothesis for row in runs[one].sentences] for one in (before, name)}
        for metric in ("bleu", "chrf"):
            first, second = compare_systems(systems, references, metrics=(metric,))
            values = [f"{row.mean:.2f} ± {row.interval:.2f}" for row in (first, second)]
            rows.append([f"{before} / {name}", metric, *values, f"{second.p_value:.4f}"])
    return table(["Runs", "score", "first", "second", "p"], rows)


def report_card(runs: Mapping[str, FinishedRun], *, command: str, picture: str) -> str:
    """The whole comparison as Markdown.

    Args:
        runs: By the name that readers see; the settings in order, then what is compared with them.
        command: What made it.
        picture: File of the courses of training, as seen from the card.
    """
    first = next(iter(runs.values()))
    facts = {key: first.run.results.get(key) for key in ("test_bleu_signature", "test_chrf_signature", "machine")}
    verdicts = [f"- {name}: {verdict(finished.run.log_history, max_steps=finished.run.max_steps)}"
                for name, finished in runs.items()]  # fmt: skip
    parts = [
        "# Four settings of a Transformer, and what cures the fourth",
        settings_table(runs),
        f"## Scores\n\n{scores_table(runs)}",
        MEANING.format(SENTENCES_PER_BATCH),
        f"A model that says nothing at all, whose BLEU is 0, on the same sentences:\n\n{nothing_table(first)}",
        f"## How training went\n\n![courses of training]({picture})\n\n" + "\n".join(verdicts),
        f"## Differences\n\nPaired bootstrap of 1,000 samples, ± half of 95 %.\n\n{differences_table(runs)}",
        "\n".join(f"- {key}: {value}" for key, value in facts.items()) + f"\n- command: {Markup('`' + command + '`')}",
    ]
    return "\n\n".join(parts) + "\n"
