"""One process of several ends: it closes their group first, as torch asks for.

A thread of gloo may hold what was last sent, tensors of Python included, for a while after it has arrived. Where the
process ends meanwhile, the thread asks an interpreter that is gone for its lock, and the process aborts after all its
work was done: "terminate called without an active exception" (https://github.com/pytorch/pytorch/pull/179291,
https://github.com/pytorch/pytorch/issues/190489). The group waits for its threads when it is freed, which is when
nothing holds it any longer.
"""

import gc
import importlib
import os
import sys


def keep_out_of_defaults() -> None:
    """Call it before there is a group: torch has functions that hold, by default, the one they are imported with."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        importlib.import_module("torch.distributed.nn")


def close_process_group() -> None:
    """Closes the group of processes if there is one, once nothing is left that uses it but circles of references.

    For a process that has done its work. One that failed leaves without it: closing may wait for the others.
    """
    distributed = sys.modules.get("torch.distributed")  # scripts without torch stay without it
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()
        gc.collect()  # a trainer and its wrapped model
