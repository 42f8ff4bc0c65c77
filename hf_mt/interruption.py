"""SIGTERM, as schedulers send it before they take a machine back: save, stop, and leave with an exit code of its own.

- The signal sets a flag; training looks at it after each step and evaluation after each batch.
- Processes get the signal at different moments, so they ask each other before one of them leaves a step or an
  evaluation: `Interruption.agreed` is a small sum over all processes, which one alone never waits for.
- A second signal, some seconds later, ends the program at once, as if there were no handler. One that comes with the
  first says nothing new: schedulers signal all processes of a job, and launchers pass on what they get.
- `accelerate launch` with one process does not pass the signal on: Linux does it, when the launcher has ended.
"""

import ctypes
import logging
import os
import signal
import sys
import threading
import time
from types import FrameType
from typing import Any

from accelerate import Accelerator
from transformers import TrainerCallback, TrainerControl, TrainerState
from transformers.trainer_utils import SaveStrategy


logger = logging.getLogger(__name__)

EXIT_CODE = 128 + signal.SIGTERM  # 143, as a shell reports it
_PR_SET_PDEATHSIG = 1  # of prctl(2)
_SAME_SIGNAL = 5  # seconds


def leave_to_the_trainer(worker: int) -> None:
    """For processes that load data: who asks the whole job to end must not break the step that is to be saved."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def end_with_launcher() -> None:
    """Asks Linux for SIGTERM here when the launcher ends, so that no training goes on unseen and unasked for."""
    if sys.platform == "linux" and "ACCELERATE_MIXED_PRECISION" in os.environ:  # set by every launch
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


class EvaluationInterrupted(Exception):
    """An evaluation was given up since the program is to end."""


class Interruption(TrainerCallback):
    """Whether this program was asked to end; stops training after the step in which it was, with a checkpoint.

    Args:
        accelerator: Asks the other processes.
    """

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator
        self.requested = False  # here, by a signal
        self.happened = False  # agreed by all processes
        self.is_unplanned = False  # its checkpoint, which would not be there without it
        self._before: Any = None
        self._since = 0.0

    def agreed(self) -> bool:
        """Whether any process was asked to end; call it on all of them."""
        if self.accelerator.num_processes == 1:
            self.happened |= self.requested
        else:
            if self.requested:
                self.accelerator.set_trigger()
            self.happened |= self.accelerator.check_trigger()
        return self.happened

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self.requested and time.monotonic() - self._since > _SAME_SIGNAL:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.raise_signal(signal.SIGTERM)
        elif not self.requested:
            self.requested, self._since = True, time.monotonic()

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if threading.current_thread() is threading.main_thread():  # Python lets no other set handlers
            self._before = signal.signal(signal.SIGTERM, self._handle)

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.agreed():
            logger.warning("SIGTERM: saving at step %d, then stopping", state.global_step)
            ends_epoch = args.save_strategy == SaveStrategy.EPOCH and float(state.epoch or 0.5).is_integer()
            self.is_unplanned = not control.should_save and not ends_epoch
            control.should_save = control.should_training_stop = True
            control.should_evaluate = False  # made up for when training goes on

    def on_epoch_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.happened:  # saved already
            control.should_save = control.should_evaluate = False

    def on_train_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)
