"""Averages of weights: of many steps while training runs, and of a few checkpoints after it.

- The moving average costs one pass over the weights a step and one more copy of them; it is what is evaluated and
  kept, while the optimizer goes on with the plain weights.
- It warms up: after t steps the decay is at most (1 + t) / (10 + t), so that a short run is not held back by its
  random beginning (the schedule of TensorFlow's `ExponentialMovingAverage`).
"""

import logging
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.trainer_callback import TrainerCallback
from transformers.utils import SAFE_WEIGHTS_NAME

from hf_mt.checkpoints import MANIFEST, verify_checkpoint
from hf_mt.errors import InputError
from hf_mt.non_finite import NonFiniteSteps
from hf_mt.pretrained import MOVING_AVERAGE_NAME
from hf_mt.sharding import like, whole
from hf_mt.text_files import unfinished


logger = logging.getLogger(__name__)


class MovingAverage:
    """An exponential moving average of a model's trainable weights, kept in float32.

    Args:
        model: The model, whole or sharded; of a sharded one each process averages its shards.
        decay: Share of the old average that a step keeps, in [0, 1).
    """

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        self.steps = 0
        saved_as = getattr(model, "all_tied_weights_keys", {})  # a tied weight is saved under one of its names
        named = ((saved_as.get(name, name), weight) for name, weight in model.named_parameters())
        self._live = {name: weight for name, weight in named if weight.requires_grad}
        self.weights = {name: weight.detach().float().clone() for name, weight in self._live.items()}

    def follow(self) -> None:
        """Takes the average to where the weights are: DeepSpeed moves a model only when training begins."""
        for name, weight in self._live.items():
            self.weights[name] = self.weights[name].to(weight.device)

    @torch.no_grad()
    def update(self) -> None:
        """Takes in the weights after an optimizer step."""
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        live = [weight.float() for weight in self._live.values()]
        torch._foreach_lerp_(list(self.weights.values()), live, 1 - decay)

    @torch.no_grad()
    def copy_to_model(self) -> None:
        """Overwrites the model's weights with the average."""
        for name, weight in self._live.items():
            weight.copy_(self.weights[name])

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within the block the model has the averaged weights; then its own again."""
        live = {name: weight.detach().clone() for name, weight in self._live.items()}
        self.copy_to_model()
        try:
            yield
        finally:
            with torch.no_grad():
                for name, weight in self._live.items():
                    weight.copy_(live[name])

    def save(self, folder: Path, *, write: bool = True) -> None:
        """Writes the average beside a checkpoint's weights; where it is sharded all processes call, and one writes."""
        weights = {name: whole(weight).contiguous() for name, weight in self.weights.items()}
        if write:
            with unfinished(folder / MOVING_AVERAGE_NAME) as temporary:
                save_file(weights, temporary, {"steps": str(self.steps), "format": "pt"})

    def load(self, folder: Path) -> None:
        """Reads what `save` wrote.

        Raises:
            InputError: The folder has no average, or one of another model.
        """
        path = folder / MOVING_AVERAGE_NAME
        if not path.is_file():
            raise InputError(f"{folder} has no {MOVING_AVERAGE_NAME}: it was trained without ema_decay")
        saved = _read(path)
        if saved.keys() != self.weights.keys():
            raise InputError(f"{path} is of another model: its weights have other names")
        for name, weight in self.weights.items():
            weight.copy_(like(weight, saved[name]))
        with safe_open(path, framework="pt") as file:
            self.steps = int(file.metadata()["steps"])


class UpdateAverage(TrainerCallback):
    """Takes every step's weights into the moving average, but for steps that were not taken.

    Args:
        average: The average.
        non_finite: Tells which were not.
    """

    def __init__(self, average: MovingAverage, non_finite: NonFiniteSteps):
        self.average, self.non_finite = average, non_finite

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.average.follow()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not self.non_finite.in_a_row:
            self.average.update()


def _read(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{path} can't be read: {error}") from error


def checkpoint_weights(folder: Path) -> dict[str, Tensor]:
    """The weights that were evaluated at a checkpoint: its moving average if it has one, else the plain ones.

    Raises:
        InputError: The folder has no weights in safetensors format.
    """
    path = folder / SAFE_WEIGHTS_NAME
    if not path.is_file():
        found = ", ".join(sorted(item.name for item in folder.iterdir())) if folder.is_dir() else "no such folder"
        raise InputError(f"{folder} has no {SAFE_WEIGHTS_NAME} ({found}); name folders of whole checkpoints")
    weights = _read(path)
    if (folder / MOVING_AVERAGE_NAME).is_file():
        weights.update({k: v for k, v in _read(folder / MOVING_AVERAGE_NAME).items() if k in weights})
    return weights


def average_checkpoints(folders: Sequence[Path]) -> dict[str, Tensor]:
    """The mean of several checkpoints' weights, computed in float64 one checkpoint at a time.

    Raises:
        InputError: A folder is damaged, or has no weights, or weights of other names or shapes than the first.
    """
    for folder in folders:
        if (folder / MANIFEST).is_file():
            verify_checkpoint(folder)
    first = checkpoint_weights(folders[0])
    sums = {name: weight.double() for name, weight in first.items()}
    for folder in folders[1:]:
        weights = checkpoint_weights(folder)
        if {k: v.shape for k, v in weights.items()} != {k: v.shape for k, v in first.items()}:
            raise InputError(f"{folder} holds another model than {folders[0]}: names or shapes of weights differ")
        for name, weight in weights.items():
            sums[name] += weight
    return {name: (total / len(folders)).to(first[name].dtype) for name, total in sums.items()}


def save_average(folders: Sequence[Path], output_dir: Path) -> None:
    """Writes a model folder with the averaged weights, and everything else from the last folder.

    Raises:
        InputError: As `average_checkpoints`; or `output_dir` exists.
    """
    if output_dir.exists():
        raise InputError(f"{output_dir} exists; name a new folder")
    weights = average_checkpoints(folders)
    temporary = output_dir.with_name(f".unfinished-{output_dir.name}")
    skipped = (
        "optimizer*",
        "scheduler*",
        "rng_state*",
        "scaler*",
        "trainer_state.json",
        "training_args.bin",
        MANIFEST,
    )
    try:
        shutil.copytree(folders[-1], temporary, ignore=shutil.ignore_patterns(*skipped, MOVING_AVERAGE_NAME, "*.bin"))
        save_file(weights, temporary / SAFE_WEIGHTS_NAME, metadata={"format": "pt"})
        temporary.rename(output_dir)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{output_dir} can't be written: {getattr(error, 'strerror', None) or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
