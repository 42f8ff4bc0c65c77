"""Settings of transformers and Accelerate that they would fail on later, or in words that name no key of ours."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from accelerate.utils import DynamoBackend, GradientAccumulationPlugin
from transformers.trainer_pt_utils import AcceleratorConfig

from hf_mt.arguments import TranslationTrainingArguments
from hf_mt.errors import InputError, listing, shown
from hf_mt.settings import did_you_mean


NESTED = ("accelerator_config", "fsdp", "fsdp_config", "deepspeed")  # keys that hold settings of other programs
UNTOLD = ("flyte", "azure_ml")  # trackers of which transformers does not tell whether they are installed
FOREIGN = (
    ArithmeticError,
    AttributeError,
    ImportError,
    LookupError,
    NotImplementedError,
    OSError,
    RecursionError,
    TypeError,
    ValueError,
)


def training_arguments(given: Mapping[str, Any]) -> TranslationTrainingArguments:
    """The arguments of training; what is given stays as it is, where transformers would write into it.

    Raises:
        InputError: transformers or Accelerate can't make anything of a value; with its key, where that is known.
    """
    _check_trackers(given.get("report_to"))
    _check_compiler(given.get("torch_compile_backend"), given.get("torch_compile_mode"))
    if given.get("fsdp_config") and not given.get("fsdp"):
        raise InputError("fsdp_config has no effect without fsdp: set it to true, or launch with a profile instead")
    if given.get("deepspeed") and find_spec("deepspeed") is None:
        raise InputError(
            "deepspeed: the package is not installed; `pip install -e '.[deepspeed]'`, leave the key out, and launch "
            "with configs/accelerate/deepspeed.yaml"
        )
    readers: dict[str, Callable[[Any], Any]] = {"accelerator_config": _accelerator_config, "fsdp_config": _mapping}
    values = deepcopy(dict(given))
    for key, read in readers.items():
        if values.get(key) is not None:
            with _named(key):
                values[key] = read(values[key])
    nested = [key for key in NESTED if given.get(key)]
    try:
        return TranslationTrainingArguments(**values)
    except FOREIGN as error:
        if not nested and not isinstance(error, ValueError):
            raise
        raise InputError(_told(error) + (f" (given: {' and '.join(nested)})" if nested else "")) from error


def _check_trackers(report_to: str | list[str] | None) -> None:
    names = [report_to] if isinstance(report_to, str) else report_to or []
    if not names or names in (["none"], ["all"]):
        return
    # here, since it imports trackers, and may write to standard output
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK as TRACKERS
    from transformers.integrations.integration_utils import get_available_reporting_integrations

    installed = get_available_reporting_integrations()
    for name in names:
        if name not in TRACKERS:
            wanted = f"none, all, or some of {', '.join(TRACKERS)}{did_you_mean(name, list(TRACKERS))}"
            raise InputError(f"report_to: found {shown(name)}, wanted {wanted}")
        if name not in (*installed, *UNTOLD):
            raise InputError(f"report_to: {name} is not installed here; there is {listing(installed)}")


def _check_compiler(backend: str | None, mode: str | None) -> None:
    backends = [item.value.lower() for item in DynamoBackend]
    if backend is not None and backend.lower() not in backends:
        wanted = f"one of {', '.join(backends)}{did_you_mean(backend, backends)}"
        raise InputError(f"torch_compile_backend: found {shown(backend)}, wanted {wanted}")
    if mode is not None and backend in (None, "inductor"):
        from torch._inductor import list_mode_options  # here, since it takes a second

        modes = list(list_mode_options())
        if mode not in modes:
            raise InputError(f"torch_compile_mode: found {shown(mode)}, wanted one of {', '.join(modes)}")


def _accelerator_config(value: str | dict[str, Any]) -> AcceleratorConfig:
    config = AcceleratorConfig(**_mapping(value))
    for name, found in vars(config).items():
        if name != "gradient_accumulation_kwargs" and found not in (None, True, False):
            raise InputError(f"accelerator_config: {name} is {shown(found)}, wanted true or false")
    accumulation = {**(config.gradient_accumulation_kwargs or {})}
    if "num_steps" in accumulation:
        raise InputError(
            "accelerator_config: num_steps in gradient_accumulation_kwargs would silently take the place of "
            "gradient_accumulation_steps; leave it out, and use that key"
        )
    GradientAccumulationPlugin(num_steps=1, **accumulation)
    return config


def _mapping(value: str | dict[str, Any]) -> dict[str, Any]:
    """Settings, or those in a file of JSON."""
    found = json.loads(Path(value).read_text(encoding="utf-8")) if isinstance(value, str) else value
    if not isinstance(found, dict):
        raise InputError(f"{value} holds a {type(found).__name__}, wanted keys and values")
    return found


@contextmanager
def _named(key: str) -> Iterator[None]:
    try:
        yield
    except FOREIGN as error:
        told = _told(error)
        raise InputError(told if told.startswith(key) else f"{key}: {told}") from error


def _told(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename} can't be read: {error.strerror}"
    return str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
