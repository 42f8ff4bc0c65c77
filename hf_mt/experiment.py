"""
A command line and a YAML file made into an `Experiment`.

- Precedence: default < YAML file < command line.
- A key or value that would have no effect is refused, with the name of the one that has: no typo trains silently.
"""

from __future__ import annotations

import errno
import hashlib
import math
import os
import re
import sys
import textwrap
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from enum import Enum
from functools import cache
from inspect import get_annotations
from itertools import groupby
from typing import Any, NoReturn, get_args, get_type_hints

from hf_mt.arguments import (
    HIGHER_IS_BETTER,
    LOWER_IS_BETTER,
    NEED_NO_TRANSLATIONS,
    DataArguments,
    ModelArguments,
    TranslationTrainingArguments,
)
from hf_mt.errors import shown, visible
from hf_mt.key_rules import FINE_TUNING_KEYS, FREE_KEYS, LAUNCH_OPTIONS, REPLACED, SECRET_KEYS
from hf_mt.model.configuration_hf_mt import HfMtConfig
from hf_mt.settings import (
    COMMAND_LINE,
    InputError,
    Setting,
    convert,
    describe,
    did_you_mean,
    read_options,
    read_yaml,
    yaml_value,
)


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


# Of the system's errors: the disk, and names of files that the user gave
CURABLE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS})
WRONG_NAMES = frozenset({
    errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP
})  # fmt: skip
CLOSED_PIPE = 141  # as a shell reports SIGPIPE
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
            keys.setdefault(item.name, Key(item.name, group, hint, default, item.metadata))
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
        _hide_secrets(sys.argv)
    if "--help" in words or "-h" in words:
        print(help_text())
        raise SystemExit(0)
    path, options = read_options(words, _is_flag)
    in_file = typed_values(read_yaml(path)) if path else {}
    overrides = typed_values(options)
    given = _settle_batch_unit(in_file, overrides)
    _check_together({key.name: given.get(key.name, key.default) for key in valid_keys().values()})
    _check_architecture(given)
    name = _readable_name(path.stem if path else "experiment", overrides)
    given.setdefault("output_dir", f"runs/{name}")
    given.setdefault("run_name", name)
    return _build(given)


def _hide_secrets(words: list[str]) -> None:
    """Takes secrets out of the command line of this program, which trackers copy into their records."""
    for place, word in enumerate(words):
        name, equals, _ = word.partition("=")
        if name.startswith("--") and name[2:].replace("-", "_") in SECRET_KEYS:
            hidden = place if equals else place + 1
            words[hidden : hidden + 1] = [f"{name}=***" if equals else "***"][: len(words) - hidden]


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
    if kept is not None and values["average_checkpoints"] > kept:
        raise InputError(
            f"average_checkpoints is {values['average_checkpoints']}, but save_total_limit keeps only {kept}; raise it"
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
    if values["muon"] and values["optim"] != valid_keys()["optim"].default:
        raise InputError(f"muon and optim {values['optim']} are both given; leave one out")
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
    if name == "bleu_lc_tok" and not values["tokenized_scores"]:
        raise InputError("metric_for_best_model bleu_lc_tok needs tokenized_scores: true")
    if name not in NEED_NO_TRANSLATIONS and not values["predict_with_generate"]:
        raise InputError(f"metric_for_best_model {metric} needs predict_with_generate; or set the metric to loss")


def _check_schedule(values: Mapping[str, Any]) -> None:
    """A decay that is longer than training would begin somewhere in its middle."""
    more, warmup = values["lr_scheduler_kwargs"], values["warmup_steps"]
    decay = more.get("num_decay_steps") if isinstance(more, dict) else None
    if isinstance(decay, int) and 0 < values["max_steps"] < decay + (warmup if warmup >= 1 else 0):
        raise InputError(
            f"max_steps is {values['max_steps']}, fewer than warmup_steps ({warmup:g}) and the num_decay_steps of "
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

    try:
        training = TranslationTrainingArguments(**of("training", "transformers"))
    except ValueError as error:
        raise InputError(str(error)) from error
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
    return {key.name: given.get(key.name, key.default) for key in valid_keys().values() if key.name not in silent}


def help_text() -> str:
    """Every key with its type, default and meaning; those of transformers by name only."""
    lines = [f"usage: {USAGE}", "", "The same keys work in the YAML file and on the command line, which wins."]
    for group, keys in groupby(valid_keys().values(), key=lambda key: key.group):
        lines += ["", f"{group}:"]
        if group == "transformers":
            names = " ".join(key.name for key in keys)
            lines += [textwrap.fill(names, 119, initial_indent="  ", subsequent_indent="  ")]
        else:
            lines += [_help_entry(key) for key in keys]
    return "\n".join(lines)


def _help_entry(key: Key) -> str:
    default = "required" if key.default is MISSING else f"default {yaml_value(key.default)}"
    meaning = f"{key.metadata['help']}. " if "help" in key.metadata else ""
    text = f"{meaning}{describe(key.hint)} ({default})"
    return textwrap.fill(text, 119, initial_indent=f"  --{key.name:<32} ", subsequent_indent=" " * 37)


def run_script(main: Callable[[], None]) -> None:
    """Runs a script's `main`. What the user can cure ends as one message on stderr and exit code 2, an interrupt as
    one line and 130, a closed pipe as 141; any other exception keeps its traceback.
    """
    try:
        main()
    except InputError as error:
        _end(error)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(130) from None
    except BrokenPipeError:  # who read the output has enough, as `head` has; Python would write the rest at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(CLOSED_PIPE) from None
    except OSError as error:
        if error.errno in WRONG_NAMES and error.filename is not None:
            _end(f"{error.filename!s}: {error.strerror}; name another file or folder")
        if error.errno not in CURABLE:
            raise
        _end(f"{error.filename or 'a file'} can't be written: {error.strerror}; make room, or write somewhere else")


def _end(message: object) -> NoReturn:
    rank, whose = os.environ.get("RANK", "0"), ""
    if rank != "0":
        time.sleep(2)  # the launcher ends this process by then, if the first one has failed and told why
        whose = f"process {rank}: "
    text = visible(str(message), keep=chr(10))
    print(f"error: {whose}{text}\nfor help: python {sys.argv[0]} --help", file=sys.stderr)
    raise SystemExit(2) from None
