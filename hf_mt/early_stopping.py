"""Early stopping that an interruption does not set back."""

from typing import Any

from transformers import EarlyStoppingCallback, TrainerControl, TrainerState


class EarlyStopping(EarlyStoppingCallback):
    """Stops after so many evaluations without a better score; those before the checkpoint that is gone on from count.

    transformers writes the count into checkpoints, and reads it only with `restore_callback_states_from_checkpoint`,
    which would bring back the old patience, too.
    """

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        super().on_train_begin(args, state, control, **kwargs)
        kept = state.stateful_callbacks.get(type(self).__name__, {})
        self.early_stopping_patience_counter = kept["attributes"]["early_stopping_patience_counter"] if kept else 0
        control.should_training_stop |= self.early_stopping_patience_counter >= self.early_stopping_patience
