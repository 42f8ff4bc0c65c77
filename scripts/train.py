"""Trains or fine-tunes a translation model, evaluates and tests it, writes a report and, if asked to, publishes it.

accelerate launch scripts/train.py configs/quickstart.yaml
accelerate launch scripts/train.py configs/quickstart.yaml --position_encoding alibi --learning_rate 1e-3
"""

from functools import partial
from pathlib import Path

from accelerate import PartialState

from hf_mt.corpora import load_corpus
from hf_mt.data import filter_corpus, format_table, prepare_data
from hf_mt.dry_run import dry_run
from hf_mt.experiment import parse_experiment, run_script
from hf_mt.hardware import prepare_hardware
from hf_mt.hub import publisher_for
from hf_mt.models import check_architecture, load_or_build_model
from hf_mt.progress import quiet_libraries
from hf_mt.results import finish
from hf_mt.run_folder import open_run_folder
from hf_mt.slices import describe_outputs
from hf_mt.summary import summarise
from hf_mt.tokenization import get_tokenizer
from hf_mt.tracking import log_results
from hf_mt.training import TranslationTrainer, last_checkpoint, with_texts


def main() -> None:
    experiment = parse_experiment()
    prepare_hardware(experiment.training.cpu_threads)
    quiet_libraries()
    check_architecture(experiment)
    args, say = experiment.training, PartialState().print
    with args.main_process_first(desc="data"):  # the others find it in the cache
        corpus, counts = filter_corpus(load_corpus(experiment.data), experiment.data)
        tokenizer = get_tokenizer(corpus, experiment.data, experiment.model, experiment.resolved.get("vocab_size", 0))
        data = prepare_data(corpus, tokenizer, experiment.data, counts=counts)
    model = load_or_build_model(experiment, tokenizer, data)
    sets = {name: with_texts(data, name) for name in ("validation", "test")}
    folder, status = Path(args.output_dir), "rehearsal" if args.dry_run else open_run_folder(experiment)
    if status == "finished":
        return say(f"{folder} is a finished run of this experiment; see {folder}/all_results.json")
    say(format_table(data.counts))
    publish = None if args.dry_run else publisher_for(experiment)
    trainer = TranslationTrainer(
        model,
        args,
        tokenizer,
        train_dataset=data.train,
        eval_dataset=sets["validation"],
        score=partial(describe_outputs, tokenized=args.tokenized_scores),
        label_smoothing=experiment.architecture.get("label_smoothing", 0.0),
        publish=publish,
    )
    if args.dry_run:
        return say(dry_run(trainer))
    if args.should_save:
        data.save_table(folder / "data_table.json")
    checkpoint = last_checkpoint(folder)
    say(f"{'Resuming from ' + checkpoint if checkpoint else 'Training from the start'}, in {folder}")
    trainer.train(resume_from_checkpoint=checkpoint)
    results = finish(trainer, experiment, sets["test"])
    if args.should_save:
        say(summarise(folder, license=args.card_license, show_samples=args.card_samples))
        if "wandb" in (args.report_to or ()):
            log_results(folder, results)
        if publish is not None:
            say(f"Published at {publish(folder)}")


if __name__ == "__main__":
    run_script(main)
