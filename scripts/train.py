"""Trains or fine-tunes a translation model, evaluates and tests it, writes a report and, if asked to, publishes it.

accelerate launch scripts/train.py configs/quickstart.yaml
accelerate launch scripts/train.py configs/quickstart.yaml --position_encoding alibi --learning_rate 1e-3
"""

from functools import partial
from pathlib import Path
from typing import Any

from accelerate import PartialState
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_mt.checkpoints import last_checkpoint
from hf_mt.command_line import run_script
from hf_mt.data import PreparedData, format_table
from hf_mt.data_table import save_data_table, text_digests
from hf_mt.dry_run import dry_run
from hf_mt.errors import InputError
from hf_mt.evaluation_loop import with_texts
from hf_mt.experiment import Experiment, parse_experiment
from hf_mt.hardware import prepare_hardware
from hf_mt.hub import publisher_for
from hf_mt.interruption import EXIT_CODE, end_with_launcher
from hf_mt.load_data import load_data
from hf_mt.models import check_architecture, load_or_build_model
from hf_mt.non_finite import FOLDER as NON_FINITE
from hf_mt.progress import quiet_libraries
from hf_mt.results import finish
from hf_mt.run_folder import open_run_folder
from hf_mt.scores import check_tokenizer
from hf_mt.sharding import check_sharding
from hf_mt.slices import describe_outputs, metrics_while_training
from hf_mt.summary import summarise
from hf_mt.tokenization import check_same_tokens
from hf_mt.tracking import log_results
from hf_mt.training import TranslationTrainer


STOPPED = (
    "training stopped at step {}, before one whose gradient is NaN or infinite; its batch is in {}. Go on from the"
    " last checkpoint without such steps by --non_finite_steps skip, or begin anew in another output_dir with a lower"
    " learning_rate"
)


def main() -> None:
    experiment = parse_experiment()
    end_with_launcher()
    prepare_hardware(experiment.training.cpu_threads, experiment.training.device)
    quiet_libraries()
    check_architecture(experiment)
    check_sharding(experiment.training)
    check_tokenizer(experiment.training.bleu_tokenize)
    args, say = experiment.training, PartialState().print
    with args.main_process_first(local=False, desc="data"):  # the others find it in the cache
        corpus, tokenizer, data = load_data(experiment)
    model = load_or_build_model(experiment, tokenizer, data)
    build = partial(build_trainer, experiment, model, tokenizer, data)
    if args.dry_run:
        say(format_table(data.counts))
        return say(dry_run(build()))
    folder = Path(args.output_dir)
    digests = text_digests(corpus) if args.should_save else {}
    with open_run_folder(experiment, digests) as status:
        if status == "finished":
            return say(f"{folder} is a finished run of this experiment; see {folder}/all_results.json")
        say(format_table(data.counts))
        if args.should_save:
            save_data_table(folder, data, digests)
        publish = publisher_for(experiment)
        run(build(publish=publish), experiment, with_texts(data, "test"))
        address = publish(folder) if args.should_save and publish is not None else None
        if address is not None:
            say(f"Published at {address}")


def build_trainer(
    experiment: Experiment, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, data: PreparedData, **more: Any
) -> TranslationTrainer:
    args = experiment.training
    metrics = metrics_while_training(args.metric_for_best_model)
    return TranslationTrainer(
        model,
        args,
        tokenizer,
        train_dataset=data.train,
        eval_dataset=with_texts(data, "validation"),
        score=partial(describe_outputs, tokenized=args.tokenized_scores, tokenize=args.bleu_tokenize, metrics=metrics),
        label_smoothing=experiment.architecture.get("label_smoothing", 0.0),
        **more,
    )


def run(trainer: TranslationTrainer, experiment: Experiment, test_dataset: Dataset | None) -> None:
    args, folder, say = experiment.training, Path(experiment.training.output_dir), PartialState().print
    checkpoint = last_checkpoint(folder)
    if checkpoint:
        check_same_tokens(checkpoint, trainer.tokenizer)
    say(f"{'Resuming from ' + checkpoint if checkpoint else 'Training from the start'}, in {folder}")
    trainer.train(resume_from_checkpoint=checkpoint)
    if trainer.interruption.happened:
        say(f"Stopped at step {trainer.state.global_step}; the same command goes on from there")
        raise SystemExit(EXIT_CODE)
    if trainer.non_finite.stopped:
        raise InputError(STOPPED.format(trainer.state.global_step - 1, folder / NON_FINITE))
    results = finish(trainer, experiment, test_dataset)
    if args.should_save:
        say(summarise(folder, license=args.card_license, show_samples=args.card_samples))
        if "wandb" in (args.report_to or ()):
            log_results(folder, results)


if __name__ == "__main__":
    run_script(main)
