"""Weights that are spread over the processes (FSDP2): shards for training, whole again for evaluation.

- Accelerate makes a unit of its own of the embedding and of the output that it is tied to. An encoder-decoder model
  ties three or four modules, of which torch allows none outside that unit, so that the model is sharded here: a unit
  for each layer, and one for everything else.
- Processes translate different batches in different numbers of steps, while shards are gathered by all at once. So an
  evaluation takes a whole copy of the weights, once, and its steps need no other process.
"""

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from accelerate.utils.constants import OPTIMIZER_NAME
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, StateDictType, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel

from hf_mt.arguments import TranslationTrainingArguments
from hf_mt.errors import InputError


def check_sharding(args: TranslationTrainingArguments) -> None:
    """Whether the profile that Accelerate was launched with can train this; known before any data is read.

    Raises:
        InputError: Shards were asked for where Accelerate would leave them out in silence, with an optimizer that
            needs whole matrices, or in a form that no model is loaded from.
    """
    fsdp, deepspeed = _asked_for("FSDP") or bool(args.fsdp), _asked_for("DEEPSPEED") or bool(args.deepspeed)
    kind = args.distributed_state.distributed_type
    left_out = fsdp and kind in (DistributedType.NO, DistributedType.MULTI_CPU)
    if left_out or (deepspeed and kind != DistributedType.DEEPSPEED):
        raise InputError(
            f"the profile asks for {'FSDP' if fsdp else 'DeepSpeed'}, which Accelerate would leave out here (no GPUs, "
            "use_cpu, or not started by its launcher): take configs/accelerate/ddp_cpu.yaml, or a machine with GPUs"
        )
    if args.muon and (fsdp or deepspeed):
        raise InputError(
            "muon needs whole matrices, and this profile gives each process a share of them: set muon to false, or "
            "take configs/accelerate/ddp.yaml"
        )
    if fsdp:
        _check_fsdp(FullyShardedDataParallelPlugin(**(args.fsdp_plugin_args or {})))


def check_same_kind(checkpoint: Path, fsdp: bool, deepspeed: bool) -> None:
    """Whether a start under FSDP, under DeepSpeed, or under neither can go on from a checkpoint.

    Raises:
        InputError: It was written under another one, which keeps the optimizer in a form of its own.
    """
    forms = {
        "FSDP": f"{OPTIMIZER_NAME}.bin",
        "DeepSpeed": "global_step*",
        "neither FSDP nor DeepSpeed": "optimizer.pt",
    }
    now = "FSDP" if fsdp else "DeepSpeed" if deepspeed else "neither FSDP nor DeepSpeed"
    before = [kind for kind, form in forms.items() if any(checkpoint.glob(form))]
    if before and now not in before:
        raise InputError(
            f"{checkpoint} was written under {before[0]}, this start is under {now}, and neither can read the other's "
            "optimizer: launch it with the profile of configs/accelerate that it began with, or train on from its "
            f"weights with --model_name_or_path {checkpoint} and another output_dir"
        )


def _asked_for(kind: str) -> bool:
    return os.environ.get(f"ACCELERATE_USE_{kind}", "false").lower() == "true"


def _check_fsdp(plugin: FullyShardedDataParallelPlugin) -> None:
    if plugin.fsdp_version != 2:
        raise InputError("the profile asks for FSDP 1: set fsdp_version to 2, as configs/accelerate/fsdp.yaml does")
    if plugin.state_dict_type != StateDictType.FULL_STATE_DICT:
        raise InputError(
            "the profile saves shards, of which no checkpoint can be loaded as a model: set fsdp_state_dict_type to "
            "FULL_STATE_DICT, as configs/accelerate/fsdp.yaml does"
        )


def shard(model: PreTrainedModel, accelerator: Accelerator) -> None:
    """Spreads the parameters over the processes, in place, if the profile asks for it; before there is an optimizer.

    Embeddings and output, tied or not, are gathered with the rest of what is no layer; each layer when its turn comes.
    """
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    if plugin is None:
        return
    options, policy = {}, plugin.mixed_precision_policy or MixedPrecisionPolicy()
    if plugin.cpu_offload:
        options["offload_policy"] = plugin.cpu_offload
    plugin.auto_wrap_policy = None  # it would look for the classes of layers that are wrapped already
    model.to(accelerator.device)
    layers = getattr(model, "_repeated_blocks", None) or model._no_split_modules
    for module in list(model.modules()):
        if type(module).__name__ in layers:
            layer_policy = replace(policy, output_dtype=None)
            fully_shard(module, mp_policy=layer_policy, reshard_after_forward=plugin.reshard_after_forward, **options)
    plain = type(model)
    fully_shard(model, mp_policy=replace(policy, output_dtype=torch.float32), **options)  # sums of losses are whole
    for name in ("__module__", "__name__", "__qualname__"):  # what is saved is a model, and the code of that model
        setattr(type(model), name, getattr(plain, name))


def whole_model(model: PreTrainedModel) -> PreTrainedModel:
    """The model itself; a copy with whole weights if they are sharded. All processes call this together."""
    if not isinstance(model, FSDPModule):
        return model
    weights = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
    plain = next(kind for kind in type(model).__mro__ if not issubclass(kind, FSDPModule))
    with torch.random.fork_rng(), torch.device(next(iter(weights.values())).device):
        whole = plain(model.config)  # draws initial weights, which must not move the random numbers of training
    whole.load_state_dict(weights)
    whole.generation_config = model.generation_config
    return whole


def without_ties(model: PreTrainedModel, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Whole weights as they are saved: tied ones once, though they were gathered under each of their names."""
    return {name: weight for name, weight in weights.items() if name not in model.all_tied_weights_keys}


def load_whole(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Fills a model, sharded or not, with whole weights that every process has. Names that are missing are left."""
    set_model_state_dict(model, dict(weights), options=StateDictOptions(full_state_dict=True, strict=False))


def whole(weight: Tensor) -> Tensor:
    """A tensor of which this process may hold a shard; all processes call this together."""
    return weight.full_tensor() if isinstance(weight, DTensor) else weight


def like(weight: Tensor, saved: Tensor) -> Tensor:
    """`saved`, whole on every process, laid out as `weight` is."""
    if not isinstance(weight, DTensor):
        return saved
    saved = saved.to(weight.device)
    return distribute_tensor(saved, weight.device_mesh, weight.placements, src_data_rank=None)
