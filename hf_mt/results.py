"""The end of a run: the kept model tested once, and everything that is told about it, as files of the run folder.

- `all_results.json` is written last of all that the run cannot do without: it marks the run as finished.
- Files are written whole, by the first process; every process takes part in testing.
"""

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from datasets import Dataset

from hf_mt import __version__
from hf_mt.checkpoints import told_if_unwritable
from hf_mt.environment import environment
from hf_mt.experiment import Experiment
from hf_mt.hardware import machine
from hf_mt.scores import PREFIXES, Split, sentences_file, write_sentence_scores
from hf_mt.slices import describe_outputs, write_analysis
from hf_mt.text_files import one_line, write_whole
from hf_mt.training import TranslationTrainer


def finish(trainer: TranslationTrainer, experiment: Experiment, test_dataset: Dataset | None) -> dict[str, Any]:
    """Evaluates the kept weights by every score, translates the test set with beams, and saves model, results, and the
    translations of both sets, sentence by sentence.

    Returns:
        What `all_results.json` holds.
    """
    args = experiment.training
    trainer.score = partial(describe_outputs, tokenized=args.tokenized_scores, tokenize=args.bleu_tokenize)
    folder = Path(args.output_dir)
    metrics: dict[str, Any] = {}
    if trainer.eval_dataset is not None:
        metrics |= trainer.evaluate(num_beams=args.generation_num_beams)
        metrics |= _with_prefix("eval", trainer.signatures)
        if args.should_save and trainer.lines.translations:  # none without predict_with_generate
            _write_sentences(folder, "validation", trainer.eval_dataset, trainer.lines.translations)
    with told_if_unwritable(folder, folder):
        trainer.save_model(str(folder), _internal_call=True)  # pushed later, with its card
        trainer.save_state()
    if test_dataset is not None:
        args.predict_with_generate = True  # False spares evaluations while training, not the test
        beams = {"num_beams": args.num_beams, "length_penalty": args.length_penalty, "early_stopping": True}
        output = trainer.predict(test_dataset, **beams)
        metrics |= {**(output.metrics or {}), **_with_prefix("test", trainer.signatures)}
        if args.should_save:
            write_whole(
                folder / "generated_predictions.txt", "".join(f"{one_line(text)}\n" for text in output.predictions)
            )
            _write_sentences(folder, "test", test_dataset, output.predictions)
    results = {**metrics, **_about(trainer, experiment)}
    if args.should_save:
        write_whole(folder / "environment.json", json.dumps(environment(), indent=2) + "\n")
        write_whole(folder / "all_results.json", json.dumps(results, indent=2, ensure_ascii=False) + "\n")
    return results


def _write_sentences(folder: Path, split: Split, dataset: Dataset, translations: Sequence[str]) -> None:
    """Each sentence with its translation and scores, and what they show together."""
    texts = dataset["source"], translations, dataset["target"]
    analysed = write_analysis(folder / f"{PREFIXES[split]}_analysis.json", *texts)
    write_sentence_scores(sentences_file(folder, split), analysed)


def _with_prefix(prefix: str, values: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{prefix}_{name}": value for name, value in values.items()}


def _about(trainer: TranslationTrainer, experiment: Experiment) -> dict[str, Any]:
    """How the model came about: what a reader needs to believe a score, or to get it again."""
    history = trainer.state.log_history  # of all sessions, where the run was interrupted
    speeds = [row["target_tokens_per_second"] for row in history if "target_tokens_per_second" in row]
    training, evaluation = (sum(row.get(key, 0) for row in history) for key in ("train_seconds", "eval_runtime"))
    return {
        "epoch": trainer.state.epoch,
        "global_step": trainer.state.global_step,
        "train_runtime": round(training, 1),
        "train_minutes": round(training / 60, 2),
        "evaluation_minutes": round(evaluation / 60, 2),
        "train_target_tokens_per_second": sorted(speeds)[len(speeds) // 2] if speeds else None,
        "num_parameters": sum(weight.numel() for weight in trainer.model.parameters()),
        "num_beams": experiment.training.num_beams,
        "length_penalty": experiment.training.length_penalty,
        "seed": experiment.training.seed,
        "num_processes": trainer.args.world_size,
        "machine": machine(),
        "hf_mt_version": __version__,
    }
