"""Steps whose gradient is NaN or infinite: never taken; training stops or goes on without them, and keeps the batch.

One such step spoils every weight for good. Gradients are looked at before the optimizer is, and removed, so that
neither the weights nor what the optimizer remembers change.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase, TrainerControl, TrainerState

from hf_mt.text_files import write_whole


logger = logging.getLogger(__name__)

FOLDER = "non_finite"
IN_A_ROW = 10  # skipped steps, after which nothing will be learned any more


class NonFiniteSteps:
    """What is done about them.

    Args:
        choice: "stop" ends training with the weights as they were; "skip" goes on, `IN_A_ROW` times at most.
        folder: The run folder, which gets `non_finite/step-N-process-R.jsonl`.
        tokenizer: Turns the batch into text.
    """

    def __init__(self, choice: Literal["stop", "skip"], folder: Path, tokenizer: PreTrainedTokenizerBase):
        self.choice, self.folder, self.tokenizer = choice, folder / FOLDER, tokenizer
        self.in_a_row = self.total = 0
        self.stopped = False

    def check(
        self,
        norm: Tensor | float,
        model: torch.nn.Module,
        batches: Sequence[Mapping[str, Tensor]],
        state: TrainerState,
        control: TrainerControl,
        process: int,
    ) -> None:
        """Looks at a step that is about to be taken.

        Args:
            norm: Of the gradient, the same on all processes.
            model: Loses its gradients if the norm is not finite.
            batches: The micro-batches of the step on this process.
            state: Tells the step.
            control: Is told to stop.
            process: Number of this process.
        """
        if torch.isfinite(torch.as_tensor(norm)):
            self.in_a_row = 0
            return
        model.zero_grad(set_to_none=True)
        self.in_a_row, self.total = self.in_a_row + 1, self.total + 1
        path = self._keep(batches, state.global_step + 1, process)
        stops = self.choice == "stop" or self.in_a_row == IN_A_ROW
        self.stopped |= stops
        control.should_training_stop |= stops
        logger.error(
            "The gradient of step %d has the norm %s; %s. Its batch is kept in %s%s",
            state.global_step + 1,
            float(norm),
            "stopping with the weights before it" if stops else "the step is skipped",
            path,
            "" if self.choice == "skip" else " (non_finite_steps skip would go on)",
        )

    def _keep(self, batches: Sequence[Mapping[str, Tensor]], step: int, process: int) -> Path:
        """Writes the pairs of a step: texts, and token ids without padding."""
        rows = [row for batch in batches for row in self._rows(batch)]
        path = self.folder / f"step-{step}-process-{process}.jsonl"
        return write_whole(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))

    def _rows(self, batch: Mapping[str, Tensor]) -> list[dict[str, Any]]:
        rows = []
        for ids, mask, labels in zip(batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True):
            source, target = ids[mask.bool()].tolist(), labels[labels != -100].tolist()
            texts = self.tokenizer.batch_decode([source, target], skip_special_tokens=True)
            rows.append({"source": texts[0], "target": texts[1], "input_ids": source, "labels": target})
        return rows
