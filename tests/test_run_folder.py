"""Tests of hf_mt.run_folder: a folder belongs to one run, whatever is started on it."""

import dataclasses
import json
import re
from contextlib import nullcontext

import pytest

from hf_mt import text_files
from hf_mt.arguments import TranslationTrainingArguments
from hf_mt.errors import InputError
from hf_mt.experiment import parse_experiment, valid_keys
from hf_mt.key_rules import SECRET_KEYS
from hf_mt.run_folder import CONFIG_NAME, open_run_folder, save_config


LANGUAGES = ["--source_lang", "en", "--target_lang", "de"]


def parse(*words):
    return parse_experiment([*LANGUAGES, *words])


# config_resolved.yaml


def opened(experiment, **digests):
    """What is to be done in the folder, which is left at once."""
    with open_run_folder(experiment, digests) as verdict:
        return verdict


def test_no_secret_is_resolved_or_saved(tmp_path):
    experiment = parse("--token=hf_one", "--hub_token=hf_two")
    assert experiment.model.token == "hf_one" and experiment.training.hub_token == "hf_two"
    saved = save_config(experiment, tmp_path / "c.yaml").read_text()
    assert "hf_one" not in repr(experiment) and "hf_two" not in repr(experiment)
    assert "hf_one" not in json.dumps(experiment.resolved) and "hf_two" not in saved
    secret = {name for name in valid_keys() if name == "token" or name.endswith("_token")}
    assert secret == SECRET_KEYS


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--rope_parameters", '{"rope_type": "yarn", "factor": 4.0}', "--report_to", '["wandb"]', "--init_std=.02"],
        ["--per_device_train_batch_size=16", "--fsdp=None", "--source_prefix=a: # b", "--eval_strategy=steps"]
        + ["--save_strategy=steps", "--accelerator_config", '{"even_batches": false}'],
        ["--model_name_or_path=no", "--dropout=0", "--include_num_input_tokens_seen=true", "--run_name=null"],
    ],
)
def test_a_saved_config_is_the_same_experiment(tmp_path, words):
    experiment = parse(*words)
    again = parse_experiment([str(save_config(experiment, tmp_path / "config_resolved.yaml"))])
    assert again.resolved == experiment.resolved and again.name == experiment.name
    assert again.training.to_dict() == experiment.training.to_dict() and again.data == experiment.data
    changed = parse_experiment([str(tmp_path / "config_resolved.yaml"), "--weight_decay=0.5"])
    assert changed.resolved != experiment.resolved
    assert json.loads(json.dumps(experiment.resolved)) == experiment.resolved
    assert {path.name for path in tmp_path.iterdir()} == {"config_resolved.yaml"}


# The run folder


def finish(folder, steps=30, asked=30, epoch=3.0):
    (folder / "checkpoint-30").mkdir()
    (folder / "all_results.json").write_text("{}")
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": steps, "max_steps": asked, "epoch": epoch}))


def test_life_of_a_run_folder(tmp_path):
    folder = tmp_path / "deep" / "run"
    words = [f"--output_dir={folder}", "--num_train_epochs=3"]
    assert opened(parse(*words)) == "new" and (folder / "config_resolved.yaml").exists()
    assert opened(parse(*words)) == "new", "a config without a checkpoint: nothing to go on from"
    (folder / "checkpoint-10").mkdir()
    assert opened(parse(*words)) == "resume"
    finish(folder)
    assert opened(parse(*words)) == "finished"


@pytest.mark.parametrize(
    "words, verdict",
    [
        (["--num_train_epochs=3"], "finished"),
        (["--num_train_epochs=2"], "finished"),
        (["--num_train_epochs=3.5"], "resume"),
        (["--max_steps=30"], "finished"),
        (["--max_steps=31"], "resume"),
    ],
)
def test_a_longer_run_goes_on(tmp_path, words, verdict):
    opened(parse(f"--output_dir={tmp_path}"))
    finish(tmp_path)
    assert opened(parse(f"--output_dir={tmp_path}", *words)) == verdict
    saved = parse_experiment([str(tmp_path / "config_resolved.yaml")]).resolved
    asked = parse(*words).resolved
    same = [saved[name] == asked[name] for name in ("num_train_epochs", "max_steps")]
    assert all(same) == (verdict == "resume" or words == ["--num_train_epochs=3"])


def test_a_run_that_is_asked_for_more_is_unfinished_until_it_is_tested_again(tmp_path):
    opened(parse(f"--output_dir={tmp_path}"))
    finish(tmp_path)
    assert opened(parse(f"--output_dir={tmp_path}")) == "finished"  # control
    assert opened(parse(f"--output_dir={tmp_path}", "--max_steps=31")) == "resume"
    finish_again = {"global_step": 31, "max_steps": 31, "epoch": 3.1}  # killed between this and the results
    (tmp_path / "trainer_state.json").write_text(json.dumps(finish_again))
    assert opened(parse(f"--output_dir={tmp_path}", "--max_steps=31")) == "resume"


@pytest.mark.parametrize("content", ['{"global_st', "[]", '{"epoch": "x"}'])
def test_a_finished_run_of_unknown_length_is_told(tmp_path, content):
    opened(parse(f"--output_dir={tmp_path}"))
    finish(tmp_path)
    (tmp_path / "trainer_state.json").write_text(content)
    with pytest.raises(InputError, match="trainer_state.json can't be read .* put the file back"):
        opened(parse(f"--output_dir={tmp_path}", "--num_train_epochs=9"))


def test_an_early_stopped_run_is_finished_until_it_is_asked_for_more(tmp_path):
    words = [f"--output_dir={tmp_path}", "--early_stopping_patience=2"]
    opened(parse(*words, "--num_train_epochs=10"))
    finish(tmp_path, steps=60, asked=100, epoch=6.0)
    assert opened(parse(*words, "--num_train_epochs=10")) == "finished"
    assert opened(parse(*words, "--num_train_epochs=20")) == "resume"


IDENTITY = ["--learning_rate=1e-3", "--d_model=64", "--train_file=b", "--seed=1", "--tokens_per_batch=100"]
IDENTITY += ["--model_name_or_path=m", "--gradient_accumulation_steps=2", "--tokenizer_type=unigram"]
FREE = ["--num_train_epochs=9", "--max_steps=5", "--logging_steps=3", "--save_steps=9", "--run_name=x", "--token=t"]
FREE += ["--report_to=wandb", "--dataloader_num_workers=1", "--eval_tokens_per_batch=9", "--push_to_hub=True"]


@pytest.mark.parametrize("word", IDENTITY)
def test_another_identity_is_refused_and_shown(tmp_path, word):
    opened(parse(f"--output_dir={tmp_path}"))
    (tmp_path / "checkpoint-1").mkdir()
    before = (tmp_path / "config_resolved.yaml").read_bytes()
    with pytest.raises(InputError, match="holds a run with other settings") as caught:
        opened(parse(f"--output_dir={tmp_path}", word))
    assert "->" in str(caught.value) and "--output_dir" in str(caught.value)
    assert (tmp_path / "config_resolved.yaml").read_bytes() == before


@pytest.mark.parametrize("name", ["checkpoint-1", "all_results.json", "model.safetensors"])
def test_what_was_never_trained_is_nobodys(tmp_path, name):
    """Data or sizes that cannot work are found after the config was written; they are corrected in the same folder."""
    opened(parse(f"--output_dir={tmp_path}"))
    assert opened(parse(f"--output_dir={tmp_path}", "--seed=7")) == "new"
    assert parse_experiment([str(tmp_path / "config_resolved.yaml")]).resolved["seed"] == 7
    (tmp_path / name).touch()
    with pytest.raises(InputError, match="seed: 7 -> 8"):
        opened(parse(f"--output_dir={tmp_path}", "--seed=8"))


@pytest.mark.parametrize("digest, verdict", [("1f", "resume"), (None, None)])
def test_files_may_lie_elsewhere_if_their_texts_are_known(tmp_path, digest, verdict):
    opened(parse(f"--output_dir={tmp_path}", "--train_file=a"))
    (tmp_path / "checkpoint-1").mkdir()
    (tmp_path / "data_table.json").write_text(json.dumps({"train": {"digest": digest}}))
    again = parse(f"--output_dir={tmp_path}", "--train_file=b")
    with nullcontext() if verdict else pytest.raises(InputError, match="train_file: a -> b"):
        assert opened(again) == verdict
    finish(tmp_path)
    with pytest.raises(InputError, match="train_file: . -> c"):  # nothing would be compared
        opened(parse(f"--output_dir={tmp_path}", "--train_file=c"))


@pytest.mark.parametrize(
    "digests, refused",
    [
        ({"train": "1f", "validation": "2f"}, None),
        ({"train": "1f", "validation": "3f"}, "validation"),
        ({"train": "4f", "validation": "3f"}, "train and validation"),
        ({"train": "1f", "validation": "2f", "test": "5f"}, None),  # had none
        ({}, None),  # streamed, or compared in another process
    ],
)
def test_a_run_goes_on_with_its_own_texts_only(tmp_path, digests, refused):
    opened(parse(f"--output_dir={tmp_path}"))
    (tmp_path / "data_table.json").write_text('{"train": {"digest": "1f"}, "validation": {"digest": "2f"}}')
    assert opened(parse(f"--output_dir={tmp_path}"), **digests) == "new"  # nothing was learned yet
    finish(tmp_path)
    before = {path.name: path.read_text() for path in tmp_path.iterdir() if path.is_file()}
    longer = parse(f"--output_dir={tmp_path}", "--max_steps=31")
    with pytest.raises(InputError, match=f"sentences of {refused} are other") if refused else nullcontext():
        assert opened(longer, **digests) == "resume"
    after = {path.name: path.read_text() for path in tmp_path.iterdir() if path.is_file()}
    assert (before == after) == (refused is not None), "what is refused leaves a run as it was"


def test_a_table_of_an_older_version_has_nothing_to_say(tmp_path):
    opened(parse(f"--output_dir={tmp_path}"))
    (tmp_path / "checkpoint-1").mkdir()
    (tmp_path / "data_table.json").write_text('{"train": {"read": 5}}')
    assert opened(parse(f"--output_dir={tmp_path}"), train="1f") == "resume"


@pytest.mark.parametrize(
    "splits, kept, verdict",
    [
        ("train", "checkpoint-30", "resume"),
        ("train test", "checkpoint-30", None),
        ("train", "model.safetensors", None),
    ],
)
def test_a_finished_run_gets_a_test_set_if_it_had_none(tmp_path, splits, kept, verdict):
    opened(parse(f"--output_dir={tmp_path}", "--train_file=a"))
    finish(tmp_path)
    (tmp_path / "checkpoint-30").rename(tmp_path / kept)
    (tmp_path / "data_table.json").write_text(json.dumps({split: {"digest": "1f"} for split in splits.split()}))
    again = parse(f"--output_dir={tmp_path}", "--train_file=a", "--test_file=c")
    with nullcontext() if verdict else pytest.raises(InputError, match="test_file: None -> c"):
        assert opened(again) == verdict
    assert (tmp_path / "all_results.json").exists() == (verdict is None), "what is refused leaves a run as it was"


def test_each_difference_is_shown(tmp_path):
    opened(parse(f"--output_dir={tmp_path}"))
    (tmp_path / "checkpoint-1").mkdir()
    with pytest.raises(InputError) as caught:
        opened(parse(f"--output_dir={tmp_path}", "--learning_rate=2e-3", "--seed=7", "--tokens_per_batch=2"))
    changes = [line.strip() for line in str(caught.value).splitlines() if "->" in line]
    assert changes[:2] == ["learning_rate: 0.0005 -> 0.002", "seed: 42 -> 7"]
    assert len(changes) == 3 and changes[2].endswith("processes: 4096 tokens -> 2 tokens")


@pytest.mark.parametrize("word", FREE)
def test_free_keys_may_change(tmp_path, word):
    opened(parse(f"--output_dir={tmp_path}"))
    assert opened(parse(f"--output_dir={tmp_path}", word)) == "new"


def test_batches_are_compared_as_a_product(tmp_path):
    words = [f"--output_dir={tmp_path}"]
    opened(parse(*words, "--tokens_per_batch=400"))
    halves = parse(*words, "--tokens_per_batch=200", "--gradient_accumulation_steps=2")
    assert opened(halves) == "new"
    two_processes = dataclasses.replace(
        parse(*words), resolved={**parse(*words).resolved, "tokens_per_batch": 200, "num_processes": 2}
    )
    assert opened(two_processes) == "new"
    (tmp_path / "checkpoint-1").mkdir()
    with pytest.raises(InputError, match="400 tokens -> 400 sentences"):
        opened(parse(*words, "--per_device_train_batch_size=400"))


def test_only_the_first_process_writes_and_all_agree(tmp_path, monkeypatch):
    experiment = parse(f"--output_dir={tmp_path / 'run'}")
    monkeypatch.setattr(TranslationTrainingArguments, "process_index", 1)
    before = opened(experiment)
    assert not (tmp_path / "run").exists()
    monkeypatch.setattr(TranslationTrainingArguments, "process_index", 0)
    first = opened(experiment)
    monkeypatch.setattr(TranslationTrainingArguments, "process_index", 1)
    assert before == first == opened(experiment) == "new"


def test_foreign_folders_and_files_are_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(InputError, match="holds something else .thesis.tex"):
        opened(parse(f"--output_dir={tmp_path}"))
    with pytest.raises(InputError, match="output_dir"):
        opened(parse(f"--output_dir={tmp_path / 'thesis.tex'}"))
    with pytest.raises(InputError, match="output_dir"):
        opened(parse(f"--output_dir={tmp_path / 'thesis.tex' / 'below'}"))
    (tmp_path / "hidden").mkdir()
    (tmp_path / "hidden" / ".nfs01").write_text("x")
    assert opened(parse(f"--output_dir={tmp_path / 'hidden'}")) == "new"


def test_a_config_of_another_version_is_read(tmp_path, caplog):
    config = save_config(parse(f"--output_dir={tmp_path}"), tmp_path / "config_resolved.yaml")
    lines = [line for line in config.read_text().splitlines() if not line.startswith("cldr_seed")]
    config.write_text("\n".join([*lines, "forgotten_key: 1"]))
    assert opened(parse(f"--output_dir={tmp_path}")) == "new" and "forgotten_key" in caplog.text
    config.write_text("\n".join([*lines, "forgotten_key: 1"]))
    (tmp_path / "checkpoint-1").mkdir()
    with pytest.raises(InputError, match="cldr_seed: 0 -> 3"):
        opened(parse(f"--output_dir={tmp_path}", "--cldr_seed=3"))


def test_a_warm_up_that_an_older_version_took_without_effect_is_no_difference(tmp_path):
    words = [f"--output_dir={tmp_path}", "--lr_scheduler_type=constant"]
    opened(parse(*words))
    config = tmp_path / CONFIG_NAME
    config.write_text(re.sub(r"(?m)^warmup_steps: .*$", "warmup_steps: 1000", config.read_text()))
    (tmp_path / "checkpoint-1").mkdir()
    assert opened(parse(*words)) == "resume" and parse(*words).resolved["warmup_steps"] == 0
    with pytest.raises(InputError, match="lr_scheduler_type: constant -> constant_with_warmup"):
        opened(parse(f"--output_dir={tmp_path}", "--lr_scheduler_type=constant_with_warmup", "--warmup_steps=5"))


@pytest.mark.parametrize(
    "options, told",
    [
        (["--lr_scheduler_type=linear"], "with it the learning rate of the linear schedule from here on: the"),
        (["--lr_scheduler_type=inverse_sqrt", "--r_drop=5", "--r_drop_start=0.5"], "with it the step at which R-Drop"),
        (["--lr_scheduler_type=inverse_sqrt"], None),
    ],
)
def test_a_new_length_is_told_where_something_depends_on_it(tmp_path, caplog, options, told):
    words = [f"--output_dir={tmp_path}", *options]
    opened(parse(*words))
    (tmp_path / "checkpoint-1").mkdir()
    opened(parse(*words))
    assert not caplog.text
    opened(parse(*words, "--num_train_epochs=9"))
    assert (told or "the length of training changed") in caplog.text or not told
    assert ("the length of training changed" in caplog.text) is (told is not None)


def test_a_config_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = save_config(parse(), tmp_path / "c.yaml")
    before = path.read_bytes()

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(text_files.os, "replace", fail)
    with pytest.raises(InputError, match="No space left"):
        save_config(parse("--seed=1"), path)
    assert path.read_bytes() == before
