"""Trains OpenNMT-py beside a finished run, with the same text, subwords, sizes, threads and minutes; compares scores.

    python scripts/benchmark_quality.py runs/multi30k_en_de

OpenNMT-py is given settings published for a Transformer of width 128; at other widths its schedule makes the learning
rate fall with the square root of the width. Its last checkpoint and means of its last checkpoints are scored on both
sets (quality.json); the one that is best on the development set is compared with the run's own best.
"""

import argparse
import json
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.jobs import STAND_INS, measure, subwords
from datasets import DatasetDict
from transformers import PreTrainedTokenizerBase

from hf_mt.command_line import number, path_name, run_script
from hf_mt.corpora import load_corpus
from hf_mt.data import filter_corpus
from hf_mt.errors import InputError
from hf_mt.experiment import Experiment, parse_experiment
from hf_mt.hardware import available_cores
from hf_mt.markdown import table
from hf_mt.run_folder import CONFIG_NAME
from hf_mt.scores import corpus_scores, scores_of_tokenized
from hf_mt.text_files import write_whole
from hf_mt.tokenization import load_tokenizer


def read_experiment(run: Path, folder: Path) -> Experiment:
    """What the run was, on however many processes."""
    if not (run / CONFIG_NAME).is_file():
        raise InputError(f"{run} is no run of this package: {CONFIG_NAME} is missing")
    settings = re.sub(r"(?m)^num_processes:.*\n", "", (run / CONFIG_NAME).read_text(encoding="utf-8"))
    experiment = parse_experiment([str(write_whole(folder / "config.yaml", settings))])
    if experiment.data.validation_file is None and experiment.data.dataset_name is None:
        raise InputError(f"{run} has no development set, on which the best checkpoint of a peer would be chosen")
    return experiment


def write_text(folder: Path, corpus: DatasetDict, tokenizer: PreTrainedTokenizerBase, experiment: Experiment) -> None:
    """All splits in subwords, a sentence a line, and the vocabulary."""
    folder.mkdir(parents=True, exist_ok=True)
    languages = {"source": experiment.data.source_lang, "target": experiment.data.target_lang}
    for split, rows in corpus.items():
        for side, language in languages.items():
            texts = [pair[language] for pair in rows["translation"]]
            lines = (" ".join(subwords(tokenizer, ids[:-1])) for ids in tokenizer(texts)["input_ids"])
            (folder / f"{split}.{side}").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    words = subwords(tokenizer, range(4, len(tokenizer)))
    (folder / "words").write_text("".join(f"{word}\n" for word in words), encoding="utf-8")


def read_translations(path: Path, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Lines of subwords as text."""
    table = str.maketrans({stand_in: space for space, stand_in in STAND_INS.items()})
    lines = (line.split(" ") for line in path.read_text(encoding="utf-8").split("\n")[:-1])
    ids = [tokenizer.convert_tokens_to_ids([word.translate(table) for word in words]) for words in lines]
    return tokenizer.batch_decode(ids, skip_special_tokens=True)


def scores(
    folder: Path, corpus: DatasetDict, tokenizer: PreTrainedTokenizerBase, experiment: Experiment
) -> Iterator[dict[str, Any]]:
    """BLEU of each candidate on each split that it translated."""
    score = scores_of_tokenized if experiment.training.tokenized_scores else corpus_scores
    for path in sorted(folder.glob("validation.*")):
        row: dict[str, Any] = {"candidate": path.suffix[1:]}
        for split, prefix in (("validation", "eval"), ("test", "test")):
            output = path.with_name(f"{split}{path.suffix}")
            if output.is_file():
                references = [pair[experiment.data.target_lang] for pair in corpus[split]["translation"]]
                found = score(read_translations(output, tokenizer), references)
                row |= {f"{prefix}_{name}": value for name, value in found.items() if name.startswith("bleu")}
        yield row


def size_of(run: Path, vocab_size: int) -> dict[str, Any]:
    """The run's sizes as a job has them."""
    config = json.loads((run / "config.json").read_text(encoding="utf-8"))
    names = ("d_model", "encoder_layers", "decoder_layers", "dropout")
    heads_and_ffn = {"heads": config["decoder_attention_heads"], "ffn_dim": config["decoder_ffn_dim"]}
    return {name: config[name] for name in names} | heads_and_ffn | {"vocab_size": vocab_size}


def report(run: Path, ours: Mapping[str, Any], theirs: Mapping[str, Any], minutes: float) -> str:
    keys = [key for key in ("eval_bleu", "test_bleu", "test_bleu_lc_tok") if key in ours and key in theirs]
    rows = [(run.name, *(f"{ours[key]:.2f}" for key in keys), f"{ours['train_minutes']:.1f}")]
    rows += [(f"OpenNMT-py, {theirs['candidate']}", *(f"{theirs[key]:.2f}" for key in keys), f"{minutes:.1f}")]
    difference = [f"{ours[key] - theirs[key]:+.2f}" for key in keys]
    return table(("System", *keys, "minutes"), [*rows, ("difference", *difference, "")])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0], allow_abbrev=False)
    parser.add_argument("run", type=path_name, help="folder of a finished run, trained from scratch")
    parser.add_argument("--minutes", type=number(0.01, 10**6), help="those of the run by default")
    parser.add_argument("--output_dir", type=path_name, help="runs/quality/NAME by default")
    args = parser.parse_args()
    if not (args.run / "all_results.json").is_file():
        raise InputError(f"{args.run} is no finished run: all_results.json is missing")
    ours = json.loads((args.run / "all_results.json").read_text(encoding="utf-8"))
    folder = (args.output_dir or Path("runs/quality") / args.run.name).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    experiment = read_experiment(args.run, folder)
    corpus, _ = filter_corpus(load_corpus(experiment.data), experiment.data)
    tokenizer = load_tokenizer(str(args.run))
    write_text(folder / "text", corpus, tokenizer, experiment)
    job = {"text": str(folder / "text"), "splits": [split for split in corpus if split != "train"]}
    job |= {"size": size_of(args.run, len(tokenizer)), "tokens_per_batch": 4096, "threads": available_cores()}
    job |= {"seconds": 60 * (args.minutes or ours["train_minutes"]), "warmup_steps": 1}
    shutil.rmtree(folder / "OpenNMT-py", ignore_errors=True)  # models of an earlier call, trained for other minutes
    measured = measure("quality_opennmt.py", "OpenNMT-py", job, folder / "OpenNMT-py")
    found = list(scores(folder / "OpenNMT-py", corpus, tokenizer, experiment))
    best = max(found, key=lambda row: row["eval_bleu"])
    text = report(args.run, ours, best, measured["seconds"] / 60)
    write_whole(folder / "quality.json", json.dumps({"ours": ours, "theirs": found, **measured}, indent=2) + "\n")
    print(f"{text}\n\nOpenNMT-py: {measured['target_tokens_per_second']:,.0f} target tokens a second")
    print(write_whole(folder / "quality.md", text + "\n"))


if __name__ == "__main__":
    run_script(main)
