"""Tests of hf_mt.arguments, hf_mt.experiment and hf_mt.key_rules: which keys there are, and how they go together."""

import dataclasses
import errno
import os
import re
import sys

import pytest
import torch
from pyarrow import ArrowMemoryError
from transformers import PreTrainedConfig

from hf_mt.arguments import DataArguments, ModelArguments, TranslationTrainingArguments
from hf_mt.command_line import run_script
from hf_mt.errors import InputError
from hf_mt.experiment import _architecture_help, help_text, parse_experiment, valid_keys
from hf_mt.key_rules import EFFECTIVE_BATCH_KEYS, FINE_TUNING_KEYS, FREE_KEYS, LAUNCH_OPTIONS, REPLACED, SECRET_KEYS
from hf_mt.model.configuration_hf_mt import HfMtConfig


LANGUAGES = ["--source_lang", "en", "--target_lang", "de"]


@pytest.fixture(autouse=True)
def no_sweep(monkeypatch):
    monkeypatch.delenv("WANDB_RUN_ID", raising=False)
    monkeypatch.delenv("LOCAL_RANK", raising=False)


def parse(*words):
    return parse_experiment([*LANGUAGES, *words])


def write(folder, text, name="x.yaml"):
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def message_of(*words):
    with pytest.raises(InputError) as caught:
        parse_experiment(list(words))
    return str(caught.value)


def yaml_message(folder, text):
    return message_of(str(write(folder, text)))


def test_secrets_are_taken_out_of_the_command_line(monkeypatch):
    words = ["train.py", *LANGUAGES, "--token", "hf_1", "--hub-token=hf_2", "--run_name", "hf_3"]
    monkeypatch.setattr("sys.argv", list(words))
    experiment = parse_experiment()
    assert experiment.model.token == "hf_1" and experiment.training.hub_token == "hf_2"
    assert sys.argv == [*words[:5], "--token", "***", "--hub-token=***", "--run_name", "hf_3"]
    monkeypatch.setattr("sys.argv", ["train.py", "--token"])
    with pytest.raises(InputError, match="--token needs a value"):
        parse_experiment()
    assert sys.argv == ["train.py", "--token"]


# Precedence and places


def test_command_line_beats_file_beats_default(tmp_path):
    config = write(tmp_path, "source_lang: en\ntarget_lang: de\nlearning_rate: 2e-3\nd_model: 64\n")
    default, in_file = parse(), parse_experiment([str(config)])
    both = parse_experiment(["--learning-rate", "1e-4", str(config)])
    assert default.training.learning_rate == TranslationTrainingArguments().learning_rate
    assert in_file.training.learning_rate == 2e-3 != default.training.learning_rate
    assert both.training.learning_rate == 1e-4
    assert both.architecture == in_file.architecture == {"d_model": 64} and default.architecture == {}


def test_every_key_goes_where_it_belongs():
    experiment = parse("--model_revision=v1", "--vocab_size=99", "--cldr_seed=-1", "--num_beams=2", "--adam_beta1=.8")
    assert experiment.model.model_revision == "v1" and experiment.architecture == {"vocab_size": 99}
    assert experiment.data.cldr_seed == -1 and experiment.data.source_lang == "en"
    assert experiment.training.num_beams == 2 and experiment.training.adam_beta1 == 0.8


def test_architecture_keys_are_introspected():
    names = {key.name for key in valid_keys().values() if key.group == "architecture"}
    own = set(HfMtConfig.__annotations__)
    assert {"d_model", "vocab_size", "label_smoothing", "position_encoding"} <= names <= own
    assert not any("token_id" in name for name in names)
    inherited = {item.name for item in dataclasses.fields(PreTrainedConfig)} - own
    assert inherited and not inherited & set(valid_keys()) - {"output_dir"}


def test_no_key_has_two_owners():
    owners = [
        set(ModelArguments.__annotations__),
        {key.name for key in valid_keys().values() if key.group == "architecture"},
        set(DataArguments.__annotations__),
        {item.name for item in dataclasses.fields(TranslationTrainingArguments)},
    ]
    assert len(set.union(*owners)) == sum(map(len, owners))


def test_key_rules_name_real_keys():
    """A misspelt rule protects nothing. Negative control: a name that is no key."""
    for rule in (FREE_KEYS, EFFECTIVE_BATCH_KEYS, SECRET_KEYS, FINE_TUNING_KEYS):
        assert rule <= set(valid_keys())
    assert not {"learning_rat"} <= set(valid_keys())
    assert not FREE_KEYS & EFFECTIVE_BATCH_KEYS and not set(REPLACED) & set(valid_keys())
    assert LAUNCH_OPTIONS & set(valid_keys()) == {"num_processes"}


@pytest.mark.parametrize("hint", REPLACED.values())
def test_replacements_that_are_keys_exist(hint):
    for name in re.findall(r"^use (\w+)", hint):
        assert name in valid_keys()


# The command line


@pytest.mark.parametrize(
    "words, wanted",
    [
        (["--positon_encoding", "rope"], "unknown key 'positon_encoding'; did you mean 'position_encoding'?"),
        (["--num_b", "2"], "unknown key 'num_b'"),
        (["--seed", "1", "--seed=2"], "--seed is given twice"),
        (["--learning-rate=1", "--learning_rate=1"], "--learning_rate is given twice"),
        (["--seed"], "--seed needs a value"),
        (["--seed", "--fp16"], "--seed needs a value"),
        (["a.yaml", "b.yaml"], "one YAML file at most"),
        (["config"], "neither a .yaml file nor an option"),
        (["-seed", "1"], "neither a .yaml file nor an option"),
        (["--num_processes", "2"], "before the script"),
        (["--mixed-precision=bf16"], "before the script"),
        (["--label_smoothing_factor", "0.1"], "use label_smoothing"),
        (["--per_device_eval_batch_size", "8"], "use eval_tokens_per_batch"),
        (["--evaluation_strategy", "epoch"], "use eval_strategy"),
        (["--overwrite_output_dir"], "delete the folder"),
        (["--group_by_length", "True"], "like length"),
    ],
)
def test_bad_options_are_refused(words, wanted):
    assert wanted in message_of(*words)


def test_what_a_sweep_sends():
    experiment = parse("--learning_rate=0.001", "--gated_ffn=True", "--drop_duplicates=False", "--init_std=None")
    assert experiment.architecture == {"gated_ffn": True, "init_std": None}
    assert experiment.data.drop_duplicates is False and experiment.training.learning_rate == 0.001


def test_flags_stand_alone_or_take_a_word(tmp_path):
    config = write(tmp_path, "source_lang: en\ntarget_lang: de\n")
    assert parse_experiment(["--dry_run", str(config)]).training.dry_run is True
    assert parse_experiment([str(config), "--dry-run", "False"]).training.dry_run is False
    assert parse("--source_prefix", "-x ", "--dry_run").data.source_prefix == "-x "


@pytest.mark.parametrize("replaced", sorted(REPLACED))
def test_each_replaced_key_is_refused_with_its_reason(replaced):
    assert REPLACED[replaced] in message_of(*LANGUAGES, f"--{replaced}=1")


def test_help_lists_every_key_and_stops(capsys):
    with pytest.raises(SystemExit) as caught:
        parse_experiment(["--seed", "x", "--help"])
    assert caught.value.code == 0 and capsys.readouterr().out.strip() == help_text().strip()
    shown = set(re.findall(r"\w+", help_text()))
    assert set(valid_keys()) <= shown and not set(REPLACED) & shown - {"num_processes"}
    assert max(map(len, help_text().splitlines())) <= 119
    told = re.sub(r"\s+", " ", help_text())
    assert "--decoder_ffn_dim Inner widths of the feed-forward blocks. a whole number (default 1024)" in told
    described = {name for name in _architecture_help() if name != "use_cache" and "_token_id" not in name}
    assert described == {key.name for key in valid_keys().values() if key.group == "architecture"}


def test_a_tokenizer_that_is_named_decides_what_a_recipe_says_of_the_trained_one(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("source_lang: en\ntarget_lang: de\nvocab_size: 500\ntokenizer_type: unigram\n")
    assert parse_experiment([str(path)]).resolved["vocab_size"] == 500
    named = parse_experiment([str(path), "--tokenizer_name=x"])
    assert "vocab_size" not in named.architecture and not {"vocab_size", "tokenizer_type"} & set(named.resolved)


# Keys together


@pytest.mark.parametrize(
    "words, wanted",
    [
        ([], "source_lang and target_lang not given"),
        (["--source_lang=en"], "target_lang not given"),
        (["--source_lang=en", "--target_lang=en"], "must differ"),
        ([*LANGUAGES, "--source_column=a"], "go together"),
        ([*LANGUAGES, "--early_stopping_patience=2", "--eval_strategy=no"], "needs evaluations"),
        ([*LANGUAGES, "--average_checkpoints=5", "--save_total_limit=3"], "keeps only 3.* raise it to 6"),
        ([*LANGUAGES, "--average_checkpoints=3", "--save_total_limit=3"], "keeps only 3.* raise it to 4"),
        ([*LANGUAGES, "--muon", "--optim_args=betas=0.9"], "muon and optim_args betas=0.9 are both given"),
        ([*LANGUAGES, "--tokenizer_name=x", "--vocab_size=500"], "vocab_size: fixed by the tokenizer x"),
        ([*LANGUAGES, "--tokenizer_revision=x"], "tokenizer_revision needs tokenizer_name"),
        (
            [*LANGUAGES, "--lr_scheduler_type=constant_with_warmup", '--lr_scheduler_kwargs={"num_cycles": 2}'],
            "has no effect on lr_scheduler_type constant_with_warmup",
        ),
        ([*LANGUAGES, "--average_checkpoints=2", "--eval_strategy=no"], "average_checkpoints compares"),
        ([*LANGUAGES, "--average_checkpoints=2", "--save_strategy=no"], "average_checkpoints compares"),
        (
            [*LANGUAGES, "--max_steps=100", "--warmup_steps=30", '--lr_scheduler_kwargs={"num_decay_steps": 80}'],
            "training has 100 steps, fewer",
        ),
        (
            [*LANGUAGES, "--max_steps=100", "--warmup_steps=0.3", '--lr_scheduler_kwargs={"num_decay_steps": 80}'],
            r"warmup_steps \(30\)",
        ),
        ([*LANGUAGES, "--lr_scheduler_type=constant", "--warmup_steps=9"], "warmup_steps is 9.*constant_with_warmup"),
        ([*LANGUAGES, "--lr_scheduler_type=greedy", "--warmup_steps=0.1"], "warmup_steps is 0.1, .* set it to 0$"),
        ([*LANGUAGES, "--attn_implementation=flash_attention_2"], "leaves out target positions"),
        ([*LANGUAGES, "--r_drop_start=0.5"], "r_drop_start has nothing to start"),
        ([*LANGUAGES, "--push_to_hub=true", "--hub_strategy=all_checkpoints"], "at its end or at every_save"),
        ([*LANGUAGES, "--muon", "--optim=adafactor"], "leave one out"),
        ([*LANGUAGES, "--optim=schedule_free_adamw"], "choose another"),
        ([*LANGUAGES, "--metric_for_best_model=BLEU"], "must be one of accuracy, bleu"),
        ([*LANGUAGES, "--metric_for_best_model=eval_bleu_lc_tok"], "needs tokenized_scores: true"),
        ([*LANGUAGES, "--metric_for_best_model=bleu_zh"], "needs bleu_tokenize: zh"),
        ([*LANGUAGES, "--metric_for_best_model=spbleu", "--bleu_tokenize=zh"], "needs bleu_tokenize: flores200"),
        ([*LANGUAGES, "--metric_for_best_model=chrf_pp", "--predict_with_generate=false"], "predict_with_generate"),
        (
            [
                *LANGUAGES,
                "--early_stopping_patience=2",
                "--metric_for_best_model=null",
                "--load_best_model_at_end=false",
            ],
            "needs a metric_for_best_model",
        ),
        ([*LANGUAGES, "--dataloader_persistent_workers=true"], "needs dataloader_num_workers"),
        ([*LANGUAGES, "--predict_with_generate=False"], "needs predict_with_generate"),
        ([*LANGUAGES, "--eval_strategy=no"], "load_best_model_at_end"),
        ([*LANGUAGES, "--model_name_or_path=m", "--d_model=64", "--dropout=0.2"], "d_model: fixed by the pretrained"),
    ],
)
def test_keys_at_odds_are_refused(words, wanted):
    assert re.search(wanted, message_of(*words))


def test_keys_in_accord_are_not_refused():
    """Negative control of the test above: the cured command lines pass."""
    parse("--source_column=a", "--target_column=b", "--average_checkpoints=2", "--early_stopping_patience=2")
    parse("--average_checkpoints=5", "--save_total_limit=null")
    parse("--predict_with_generate=False", "--metric_for_best_model=loss")
    tuned = parse("--model_name_or_path=m", "--dropout=0.2", "--label_smoothing=0.1")
    assert tuned.architecture == {"dropout": 0.2, "label_smoothing": 0.1}
    assert "d_model" not in tuned.resolved and "d_model" in parse().resolved


@pytest.mark.parametrize(
    "metric, greater", [("bleu", True), ("loss", False), ("eval_perplexity", False), ("ter", False)]
)
def test_better_follows_the_metric(metric, greater):
    assert parse(f"--metric_for_best_model={metric}").training.greater_is_better is greater


def test_batches_count_tokens_or_sentences(tmp_path):
    assert parse().training.sentences_per_batch is None
    assert parse("--per_device_train_batch_size=16").training.sentences_per_batch == 16
    message = message_of(*LANGUAGES, "--per_device_train_batch_size=16", "--tokens_per_batch=100")
    assert "either tokens or sentences" in message
    sentences = str(write(tmp_path, "source_lang: en\ntarget_lang: de\nper_device_train_batch_size: 16\n"))
    tokens = str(write(tmp_path, "source_lang: en\ntarget_lang: de\ntokens_per_batch: 100\n", "y.yaml"))
    last_wins = parse_experiment([sentences, "--tokens_per_batch=100"])
    assert last_wins.training.sentences_per_batch is None and last_wins.training.tokens_per_batch == 100
    assert parse_experiment([tokens, "--per_device_train_batch_size=8"]).training.sentences_per_batch == 8
    assert "per_device_train_batch_size" not in last_wins.resolved


def test_a_file_may_ask_for_a_number_of_processes(tmp_path):
    text = "source_lang: en\ntarget_lang: de\nnum_processes: {}\n"
    assert parse_experiment([str(write(tmp_path, text.format(1)))]).resolved["num_processes"] == 1
    assert "num_processes is 2, but 1 started" in yaml_message(tmp_path, text.format(2))


# Names


def test_names_tell_runs_apart(tmp_path):
    config = str(write(tmp_path, "source_lang: en\ntarget_lang: de\n", "quick.yaml"))
    names = [
        parse_experiment([config, *words]).training.output_dir
        for words in ([], ["--learning_rate=2e-3"], ["--learning_rate=3e-3"], ["--train_file=" + "a/" * 99])
    ]
    assert names[:2] == ["runs/quick", "runs/quick-learning_rate=0.002"]
    assert len(set(names)) == 4 and all(len(name) <= 105 and name.count("/") == 1 for name in names)


def test_names_do_not_depend_on_order_spelling_or_free_keys(tmp_path):
    one = parse("--d_model=64", "--learning-rate=2e-3", "--num_train_epochs=9", "--token=hf_secret")
    other = parse("--learning_rate", "0.002", "--d_model=64", "--num_train_epochs=10")
    assert one.name == other.name == one.training.run_name and "secret" not in one.name
    assert one.name != parse("--d_model=64").name


def test_trials_of_a_sweep_never_share_a_folder(monkeypatch):
    alone = parse().training.output_dir
    monkeypatch.setenv("WANDB_RUN_ID", "abc")
    first = parse()
    monkeypatch.setenv("WANDB_RUN_ID", "def")
    assert first.training.output_dir == f"{alone}-abc" != parse().training.output_dir
    assert first.training.run_name.endswith("-abc")
    assert parse("--output_dir=here").training.output_dir == "here"


def test_parsing_creates_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    parse()
    assert not list(tmp_path.iterdir())


# Scripts


def refuse():
    raise InputError("found a, wanted b")


def break_down():
    raise RuntimeError("a bug")


def fill_the_disk():
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "scores.tsv")


def interrupt():
    raise KeyboardInterrupt


def test_run_script_turns_errors_into_messages(capsys):
    with pytest.raises(SystemExit) as caught:
        run_script(refuse)
    assert caught.value.code == 2 and capsys.readouterr().err.startswith("error: found a, wanted b\n")
    with pytest.raises(SystemExit) as caught:
        run_script(interrupt)
    assert caught.value.code == 130 and capsys.readouterr().err.count("\n") == 1
    with pytest.raises(SystemExit) as caught:
        run_script(fill_the_disk)
    assert caught.value.code == 2 and "scores.tsv can't be written: No space left" in capsys.readouterr().err
    for bug in (break_down, lambda: os.stat("/nowhere/at/all")):
        with pytest.raises((RuntimeError, FileNotFoundError)):
            run_script(bug)
    assert run_script(lambda: None) is None


class OutOfMemoryError(RuntimeError):
    """As torch names it."""


def run_out_of_memory():
    raise OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.\nStatistics: {}")


def test_a_device_without_memory_left_ends_with_the_cure(capsys):
    with pytest.raises(SystemExit) as caught:
        run_script(run_out_of_memory)
    told = capsys.readouterr().err
    assert caught.value.code == 2 and told.startswith("error: CUDA out of memory. Tried to allocate 20.00 MiB.\n")
    assert (
        "lower tokens_per_batch" in told and "raise gradient_accumulation_steps" in told and "Statistics" not in told
    )
    assert issubclass(torch.OutOfMemoryError, RuntimeError)
    assert torch.OutOfMemoryError.__name__ == OutOfMemoryError.__name__


@pytest.mark.parametrize("error", [MemoryError(), ArrowMemoryError("malloc of size 128 failed")])
def test_a_machine_without_memory_left_ends_with_the_cure(error, capsys):
    def fill_memory():
        raise error

    with pytest.raises(SystemExit) as caught:
        run_script(fill_memory)
    told = capsys.readouterr().err
    assert caught.value.code == 2 and "memory is full" in told and "streaming: true" in told and str(error) in told


def test_other_ranks_leave_the_first_one_time_to_speak_and_say_who_they_are(capsys, monkeypatch):
    waits = []
    monkeypatch.setattr("time.sleep", waits.append)
    for rank, beginning in (("0", "error: found a"), ("3", "error: process 3: found a")):
        monkeypatch.setenv("RANK", rank)
        with pytest.raises(SystemExit) as caught:
            run_script(refuse)
        assert caught.value.code == 2 and capsys.readouterr().err.startswith(beginning)
    assert waits == [2]
