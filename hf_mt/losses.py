"""Loss sums of any encoder-decoder model.

- Ours computes them itself, without holding scores. Others give scores (their own losses differ in what they divide
  by), and the sums are taken here, over positions with a label.
- R-Drop may begin late: what is learned first is learned at half the price without it.
"""

from collections.abc import Mapping
from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel, TrainerCallback

from hf_mt.model.loss_hf_mt import IGNORE_INDEX, LossSums


def loss_sums(model: nn.Module, batch: Mapping[str, Any], *, label_smoothing: float = 0.0) -> LossSums:
    """Sums over the labels of a batch.

    Args:
        model: The model, or its distributed wrapper.
        batch: `input_ids` (B, S), `attention_mask` (B, S), `labels` (B, T), and `encoder_outputs` if known.
        label_smoothing: For models other than ours, whose configuration has its own.
    """
    unwrapped = extract_model_from_parallel(model)
    if unwrapped.config.model_type == "hf_mt":
        output = model(**batch, skip_logits=True, num_items_in_batch=1)
        return LossSums(output.loss, output.nll, output.num_correct, output.num_tokens)
    labels = batch["labels"]
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    logits = model(**inputs, decoder_input_ids=decoder_inputs(unwrapped, labels), use_cache=False).logits
    return scores_to_sums(logits, labels, label_smoothing)


def decoder_inputs(model: PreTrainedModel, labels: Tensor) -> Tensor:
    """What the decoder reads to predict labels (B, T): a start token, and the labels one place later.

    M2M100, NLLB and Blenderbot do this within `forward` and offer no method for it.
    """
    if hasattr(model, "prepare_decoder_input_ids_from_labels"):
        return model.prepare_decoder_input_ids_from_labels(labels=labels)
    start = labels.new_full((len(labels), 1), model.config.decoder_start_token_id)
    before = labels[:, :-1].masked_fill(labels[:, :-1] == IGNORE_INDEX, model.config.pad_token_id)
    return torch.cat((start, before), dim=1)


def scores_to_sums(logits: Tensor, labels: Tensor, label_smoothing: float) -> LossSums:
    """Sums of (B, T, V) scores against (B, T) labels, as `linear_cross_entropy` gives them."""
    # torch passes over -100 by itself; a mask would copy all scores, and all their gradients
    logits, labels = logits.flatten(0, 1).float(), labels.flatten()  # (B * T, V), (B * T,)
    loss = F.cross_entropy(logits, labels, reduction="sum", label_smoothing=label_smoothing)
    nll = F.cross_entropy(logits.detach(), labels, reduction="sum") if label_smoothing else loss.detach()
    num_correct = (logits.detach().argmax(-1) == labels).sum().float()
    return LossSums(loss, nll, num_correct, (labels != IGNORE_INDEX).sum().float())


class LateRDrop(TrainerCallback):
    """Leaves R-Drop out of the first steps of a model that has it, `start` being their share of all."""

    def __init__(self, start: float):
        self.start = start

    def on_step_begin(self, args: Any, state: Any, control: Any, *, model: nn.Module, **kwargs: Any) -> None:
        begun = state.global_step >= self.start * state.max_steps
        model.r_drop = model.config.r_drop if begun else 0.0
