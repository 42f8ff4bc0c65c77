"""Early stopping that an interruption does not set back."""

from typing import Any

from transformers import EarlyStoppingCallback, TrainerControl, TrainerState


class EarlyStopping(EarlyStoppingCallback):
    """Stops after so many evaluations without a better score; those before the checkpoint that is gone on from count,
    unless training shall be longer now than it should have been then.

    transformers writes the count into checkpoints, and reads it only with `restore_callback_states_from_checkpoint`,
    which would bring back the old patience, too.
    """

    max_steps = 0

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        super().on_train_begin(args, state, control, **kwargs)
        kept = state.stateful_callbacks.get(type(self).__name__, {}).get("attributes", {})
        is_longer = state.max_steps > kept.get("max_steps", state.max_steps)
        self.early_stopping_patience_counter = 0 if is_longer else kept.get("early_stopping_patience_counter", 0)
        self.max_steps = state.max_steps
        control.should_training_stop |= self.early_stopping_patience_counter >= self.early_stopping_patience

    def state(self) -> dict[str, Any]:
        found = super().state()
        found["attributes"]["max_steps"] = self.max_steps
        return found
