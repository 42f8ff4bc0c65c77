"""
A command line and a YAML file made into an `Experiment`.

- Precedence: default < YAML file < command line.
- A key or value that would have no effect is refused, with the name of the one that has: no typo trains silently.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import sys
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from enum import Enum
from functools import cache
from inspect import get_annotations, getdoc
from itertools import groupby
from typing import Any, get_args, get_type_hints

from hf_mt.arguments import (
    HIGHER_IS_BETTER,
    LOWER_IS_BETTER,
    NEED_NO_TRANSLATIONS,
    DataArguments,
    ModelArguments,
    TranslationTrainingArguments,
)
from hf_mt.command_line import without_secrets
from hf_mt.errors import InputError, shown
from hf_mt.key_rules import (
    BOUNDS,
    FINE_TUNING_KEYS,
    FREE_KEYS,
    LAUNCH_OPTIONS,
    REPLACED,
    SECRET_KEYS,
    TOKENIZER_KEYS,
    WITHOUT_KWARGS,
    WITHOUT_WARMUP,
)
from hf_mt.model.configuration_hf_mt import HfMtConfig
from hf_mt.settings import (
    COMMAND_LINE,
    Setting,
    convert,
    describe,
    did_you_mean,
    read_options,
    read_yaml,
    yaml_value,
)
from hf_mt.trainer_keys import training_arguments


@dataclass(frozen=True)
class Experiment:
    """
    One run, as `parse_experiment` understood it.

    `architecture` has only the `HfMtConfig` fields that the user set. `resolved` has every key with its final value,
    defaults included and secrets left out; it is plain JSON.
    """

    name: str
    model: ModelArguments
    architecture: dict[str, Any]
    data: DataArguments
    training: TranslationTrainingArguments
    resolved: dict[str, Any]


TRAINING_ARGUMENTS = "https://huggingface.co/docs/transformers/main_classes/trainer, TrainingArguments"
USAGE = "train.py [CONFIG.yaml] [--key value | --key=value ...]"


@dataclass(frozen=True)
class Key:
    """One thing that can be set: what it may be, what it is by default, and whose it is."""

    name: str
    group: str
    hint: Any
    default: Any
    metadata: Mapping[str, Any]


@cache
def valid_keys() -> dict[str, Key]:
    """Every key, by name, in the order of the help text and of `config_resolved.yaml`."""
    keys: dict[str, Key] = {}
    for group, owner, names in _groups():
        hints = get_annotations(owner) if owner is HfMtConfig else get_type_hints(owner)
        items = {item.name: item for item in fields(owner) if item.init and item.name not in REPLACED}
        for item in (items[name] for name in names if name in items):
            default = item.default if item.default_factory is MISSING else item.default_factory()
            hint = bool | hints[item.name] if item.metadata.get("const") is True else hints[item.name]
            default = default.value if isinstance(default, Enum) else default
            metadata = {**item.metadata, **BOUNDS.get(item.name, {})}
            keys.setdefault(item.name, Key(item.name, group, hint, default, metadata))
    return keys


def _groups() -> list[tuple[str, type, list[str]]]:
    """Group, dataclass and field names. Of `HfMtConfig`, what shapes the network: neither token ids nor switches."""
    switches = {"is_encoder_decoder", "use_cache"}
    architecture = [name for name in HfMtConfig.__annotations__ if name not in switches and "_token_id" not in name]
    return [
        ("model", ModelArguments, list(ModelArguments.__annotations__)),
        ("architecture", HfMtConfig, architecture),
        ("data", DataArguments, list(DataArguments.__annotations__)),
        ("training", TranslationTrainingArguments, list(TranslationTrainingArguments.__annotations__)),
        ("transformers", TranslationTrainingArguments, [item.name for item in fields(TranslationTrainingArguments)]),
    ]


def parse_experiment(argv: Sequence[str] | None = None) -> Experiment:
    """
    The experiment that a command line describes: `[CONFIG.yaml] [--key value | --key=value ...]`; default `sys.argv`.

    Touches no file but the YAML. `--help` prints every key and exits.

    Raises:
        InputError: an unknown, repeated or refused key, a value of the wrong type or range, or keys at odds.
    """
    words = sys.argv[1:] if argv is None else list(argv)
    if argv is None:
        sys.argv[:] = without_secrets(sys.argv)  # trackers copy it into their records
    if "--help" in words or "-h" in words:
        print(help_text())
        raise SystemExit(0)
    path, options = read_options(words, _is_flag)
    in_file = typed_values(read_yaml(path)) if path else {}
    overrides = typed_values(options)
    given = _settle_batch_unit(in_file, overrides)
    _settle_tokenizer(given, overrides)
    if given.get("lr_scheduler_type") in WITHOUT_WARMUP:
        given.setdefault("warmup_steps", 0)
    _check_together({key.name: given.get(key.name, key.default) for key in valid_keys().values()})
    _check_architecture(given)
    name = _readable_name(path.stem if path else "experiment", overrides)
    given.setdefault("output_dir", f"runs/{name}")
    given.setdefault("run_name", name)
    return _build(given)


def _is_flag(name: str) -> bool | None:
    key = valid_keys().get(name)
    return None if key is None else bool in (key.hint, *get_args(key.hint))


def typed_values(settings: Mapping[str, Setting]) -> dict[str, Any]:
    """
    The value of each setting.

    Raises:
        InputError: an unknown or refused key, or a value of the wrong type or range; with the place it stands.
    """
    return {name: _typed_value(name, setting) for name, setting in settings.items()}


def _typed_value(name: str, setting: Setting) -> Any:
    keys = valid_keys()
    if name in LAUNCH_OPTIONS and setting.where == COMMAND_LINE:
        raise InputError(f"--{name} is for the launcher: put it before the script (accelerate launch --{name} ...)")
    if name in REPLACED:
        raise InputError(f"{setting.where}: {name} is not used here: {REPLACED[name]}")
    if name not in keys:
        raise InputError(f"{setting.where}: unknown key {name!r}{did_you_mean(name, list(keys))}")
    metadata = keys[name].metadata
    try:
        value = convert(setting.raw, keys[name].hint)
    except InputError as error:
        raise InputError(f"{setting.where}: {name}: {error}") from None
    if "choices" in metadata and value not in (None, *metadata["choices"]):
        choices = list(metadata["choices"])
        wanted = ", ".join(choices) + did_you_mean(value, choices)
        raise InputError(f"{setting.where}: {name}: found {shown(value)}, wanted one of {wanted}")
    if "least" in metadata and value is not None and not metadata["least"] <= value < metadata.get("below", math.inf):
        raise InputError(f"{setting.where}: {name}: found {value}, wanted {_range(metadata)}")
    return value


def _range(metadata: Mapping[str, Any]) -> str:
    below = f" and below {metadata['below']}" if "below" in metadata else ""
    return f"at least {metadata['least']}{below}"


def _settle_batch_unit(in_file: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    """File and command line in one. Whichever names a batch size last decides if tokens or sentences are counted."""
    for source in (in_file, overrides):
        if source.get("tokens_per_batch") and "per_device_train_batch_size" in source:
            raise InputError(
                "tokens_per_batch and per_device_train_batch_size are both given: a batch counts either tokens or "
                "sentences; leave one out"
            )
    given = {**in_file, **overrides}
    if overrides.get("tokens_per_batch"):
        given.pop("per_device_train_batch_size", None)
    elif "per_device_train_batch_size" in given:
        given["tokens_per_batch"] = 0
    return given


def _settle_tokenizer(given: dict[str, Any], overrides: Mapping[str, Any]) -> None:
    """A tokenizer that is named has decided what a recipe says of the one to be trained."""
    if not given.get("tokenizer_name"):
        if given.get("tokenizer_revision"):
            raise InputError("tokenizer_revision needs tokenizer_name; a model's own tokenizer has model_revision")
        return
    own = [name for name in TOKENIZER_KEYS if name in overrides]
    if own:
        raise InputError(f"{', '.join(own)}: fixed by the tokenizer {given['tokenizer_name']}; leave them out")
    for name in TOKENIZER_KEYS:
        given.pop(name, None)


def _check_together(values: Mapping[str, Any]) -> None:
    """Keys at odds with each other. `values` has every key."""
    missing = [name for name in ("source_lang", "target_lang") if values[name] in (MISSING, "")]
    if missing:
        raise InputError(f"{' and '.join(missing)} not given: name both languages, such as --source_lang en")
    if values["source_lang"] == values["target_lang"]:
        raise InputError(f"source_lang and target_lang are both {values['source_lang']!r}; they must differ")
    if (values["source_column"] is None) != (values["target_column"] is None):
        raise InputError("source_column and target_column go together; give both or neither")
    if values["early_stopping_patience"] and values["eval_strategy"] == "no":
        raise InputError("early_stopping_patience needs evaluations: set eval_strategy to epoch or steps")
    kept = values["save_total_limit"]
    if kept is not None and values["average_checkpoints"] >= kept and values["average_checkpoints"] > 1:
        raise InputError(
            f"average_checkpoints is {values['average_checkpoints']}, but save_total_limit keeps only {kept}, one of "
            f"which may be the best and old: raise it to {values['average_checkpoints'] + 1}"
        )
    if values["average_checkpoints"] > 1 and (
        "no" in (values["eval_strategy"], values["save_strategy"]) or values["metric_for_best_model"] is None
    ):
        raise InputError(
            "average_checkpoints compares the mean of checkpoints on the development set: it needs eval_strategy and "
            "save_strategy other than no, and a metric_for_best_model"
        )
    if values["push_to_hub"] and values["hub_strategy"] not in ("end", "every_save"):
        raise InputError(f"hub_strategy is {values['hub_strategy']}; a model is pushed at its end or at every_save")
    if values["streaming"]:
        _check_streaming(values)
    if "flash" in str(values["attn_implementation"]):
        raise InputError(
            f"attn_implementation {values['attn_implementation']}: transformers leaves out target positions with it "
            "where the source of a batch is padded; use sdpa, which has a flash kernel of its own, or eager"
        )
    for name in ("optim", "optim_args", "optim_target_modules"):
        if values["muon"] and values[name] != valid_keys()[name].default:
            raise InputError(f"muon and {name} {values[name]} are both given; leave one out")
    _check_schedule(values)
    if values["r_drop_start"] and not values.get("r_drop"):
        raise InputError("r_drop_start has nothing to start: give r_drop, or leave it out")
    if str(values["optim"]).startswith("schedule_free"):
        raise InputError(f"optim {values['optim']} is scored at other weights than it trains; choose another")
    if values["dataloader_persistent_workers"] and not values["dataloader_num_workers"]:
        raise InputError("dataloader_persistent_workers needs dataloader_num_workers; give them, or leave it out")
    _check_metric(values)


def _check_metric(values: Mapping[str, Any]) -> None:
    """What decides which checkpoint is kept is measured at each evaluation."""
    metric = values["metric_for_best_model"]
    if metric is None:
        if values["early_stopping_patience"]:
            raise InputError("early_stopping_patience needs a metric_for_best_model")
        return
    name, known = metric.removeprefix("eval_"), sorted(HIGHER_IS_BETTER | LOWER_IS_BETTER)
    if name not in known:
        raise InputError(f"metric_for_best_model is {metric}, but must be one of {', '.join(known)}")
    if name not in NEED_NO_TRANSLATIONS and not values["predict_with_generate"]:
        raise InputError(f"metric_for_best_model {metric} needs predict_with_generate; or set the metric to loss")


def _check_schedule(values: Mapping[str, Any]) -> None:
    """A warm-up has an effect, and a decay is no longer than training, in whose middle it would begin otherwise."""
    schedule, more, warmup = (values[key] for key in ("lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps"))
    if warmup and schedule in WITHOUT_WARMUP:
        other = ", or lr_scheduler_type to constant_with_warmup" if schedule == "constant" else ""
        raise InputError(
            f"warmup_steps is {warmup:g}, but lr_scheduler_type {schedule} has no warm-up: set it to 0{other}"
        )
    if more and schedule in WITHOUT_KWARGS:
        raise InputError(f"lr_scheduler_kwargs has no effect on lr_scheduler_type {schedule}; leave it out")
    if values["max_steps"] > 0:
        check_decay(more, warmup if warmup >= 1 else warmup * values["max_steps"], values["max_steps"])


def check_decay(lr_scheduler_kwargs: Any, warmup_steps: float, steps: int) -> None:
    """
    Raises:
        InputError: warm-up and decay are longer than all of training.
    """
    decay = lr_scheduler_kwargs.get("num_decay_steps") if isinstance(lr_scheduler_kwargs, dict) else None
    if isinstance(decay, int) and steps < decay + warmup_steps:
        raise InputError(
            f"training has {steps} steps, fewer than warmup_steps ({warmup_steps:g}) and the num_decay_steps of "
            f"lr_scheduler_kwargs ({decay}) together; lower these, too"
        )


def _check_streaming(values: Mapping[str, Any]) -> None:
    """What a corpus that is read while training, and whose end isn't known, can't do."""
    by_epoch = [name for name in ("eval_strategy", "save_strategy", "logging_strategy") if values[name] == "epoch"]
    wrong = {
        "give max_steps, since the length of an epoch isn't known": values["max_steps"] <= 0,
        f"set {' and '.join(by_epoch)} to steps or no, for the same reason": by_epoch,
        "set bpe_dropout to 0, since its segmentations are made before training": values["bpe_dropout"],
        "set dataloader_num_workers to 0, since a thread reads ahead": values["dataloader_num_workers"],
        "set ignore_data_skip to false, since a resumed run goes on where it was": values["ignore_data_skip"],
    }
    cures = [cure for cure, is_wrong in wrong.items() if is_wrong]
    if cures:
        raise InputError(f"streaming: {'; '.join(cures)}")


def _check_architecture(given: Mapping[str, Any]) -> None:
    """A pretrained model brings its own sizes and choices."""
    fixed = [name for name in given if valid_keys()[name].group == "architecture" and name not in FINE_TUNING_KEYS]
    if given.get("model_name_or_path") and fixed:
        raise InputError(
            f"{', '.join(fixed)}: fixed by the pretrained model {given['model_name_or_path']}; leave out these keys "
            f"or model_name_or_path (fine-tuning may set {', '.join(sorted(FINE_TUNING_KEYS))})"
        )


def _readable_name(stem: str, overrides: Mapping[str, Any]) -> str:
    """`quickstart-learning_rate=0.002`: what tells this run from others. Trials of a sweep get their run id too."""
    changed = [f"{key}={value}" for key, value in sorted(overrides.items()) if key not in FREE_KEYS]
    told = "-".join([stem, *changed])
    name = re.sub(r"[^\w.=+-]+", "_", told)
    if len(name) > 100:
        name = f"{name[:87]}-{hashlib.sha256(told.encode()).hexdigest()[:12]}"
    return "-".join([name, *filter(None, [os.environ.get("WANDB_RUN_ID")])])


def _build(given: dict[str, Any]) -> Experiment:
    def of(*groups: str) -> dict[str, Any]:
        return {name: value for name, value in given.items() if valid_keys()[name].group in groups}

    training = training_arguments(of("training", "transformers"))
    if training.num_processes not in (None, training.world_size):
        raise InputError(
            f"num_processes is {training.num_processes}, but {training.world_size} started: use `accelerate launch "
            f"--num_processes {training.num_processes} scripts/train.py ...`, or take the key out of the file"
        )
    training.num_processes = training.world_size
    resolved = _resolve({**given, "num_processes": training.num_processes})
    model, data = ModelArguments(**of("model")), DataArguments(**of("data"))
    return Experiment(given["run_name"], model, of("architecture"), data, training, resolved)


def _resolve(given: Mapping[str, Any]) -> dict[str, Any]:
    """Every key that has a say, with its value: no secrets, and nothing that a pretrained model decides."""
    silent = set(SECRET_KEYS)
    if given.get("model_name_or_path"):
        silent |= {key.name for key in valid_keys().values() if key.group == "architecture" and key.name not in given}
    if given.get("tokens_per_batch", True):
        silent.add("per_device_train_batch_size")
    if given.get("tokenizer_name") or given.get("model_name_or_path"):
        silent |= set(TOKENIZER_KEYS)
    return {key.name: given.get(key.name, key.default) for key in valid_keys().values() if key.name not in silent}


def help_text() -> str:
    """Every key with its type, default and meaning; those of transformers by name only, with where they are told."""
    lines = [f"usage: {USAGE}", "", "The same keys work in the YAML file and on the command line, which wins."]
    for group, keys in groupby(valid_keys().values(), key=lambda key: key.group):
        lines += ["", f"{group}:"]
        if group == "transformers":
            names = textwrap.fill(" ".join(key.name for key in keys), 119, initial_indent="  ", subsequent_indent="  ")
            lines += [f"  of {TRAINING_ARGUMENTS}", names]
        else:
            lines += [_help_entry(key) for key in keys]
    return "\n".join(lines)


def _help_entry(key: Key) -> str:
    default = "required" if key.default is MISSING else f"default {yaml_value(key.default)}"
    told = key.metadata.get("help") or _architecture_help().get(key.name)
    meaning = f"{told}. " if told else ""
    text = f"{meaning}{describe(key.hint)} ({default})"
    return textwrap.fill(text, 119, initial_indent=f"  --{key.name:<32} ", subsequent_indent=" " * 37)


@cache
def _architecture_help() -> dict[str, str]:
    """What the docstring of `HfMtConfig` says of each argument."""
    arguments = (getdoc(HfMtConfig) or "").partition("Args:")[2].partition("Raises:")[0]
    entries = re.findall(r"(?m)^    ([a-z_0-9, ]+): (.*(?:\n {8}.*)*)", arguments)
    return {name: " ".join(text.split()).rstrip(".") for names, text in entries for name in names.split(", ")}
