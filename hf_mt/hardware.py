"""What the processor is, and how a run uses it.

- `accelerate launch` gives every process one thread on a machine without a GPU, unless told otherwise: a run takes all
  cores, divided by the processes on the machine.
- Threads that share a small operation wait for each other most of the time: `map_in_threads` gives each a batch.
- Numbers below 1e-38 are taken for zero. What an optimizer remembers of a unit that died fades into them, and
  products with them take many times as long on some processors.
- glibc returns large blocks to the system as soon as they are free and faults them in again at the next step. A
  training step frees and takes hundreds of megabytes, so a run keeps them. What an evaluation frees goes back: its
  threads have heaps of their own, and blocks of other sizes each time, and would pile them up.
"""

import ctypes
import os
import platform
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import torch
from accelerate import PartialState


Item = TypeVar("Item")
Result = TypeVar("Result")

_MALLOPT = {"M_TRIM_THRESHOLD": -1, "M_TOP_PAD": -2, "M_MMAP_MAX": -4}  # from malloc.h
_LARGEST = 2**31 - 1  # mallopt takes an int


def prepare_hardware(cpu_threads: int | None = None, device: torch.device | None = None) -> None:
    """Threads, memory and the smallest numbers of a run; call it once, before the first tensor of any size, whose
    threads take the last from the one that calls.

    Args:
        cpu_threads: Threads of this process; None takes the machine's cores, divided by its processes.
        device: Where it computes; an accelerator, if there is one, if None.
    """
    torch.set_flush_denormal(True)
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    on_processor = not torch.accelerator.is_available() if device is None else device.type == "cpu"
    if cpu_threads is not None or on_processor:
        torch.set_num_threads(cpu_threads or max(1, available_cores() // processes))
    keep_freed_memory()


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether a device has instructions for products in bfloat16; it would imitate them otherwise, and be slower."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and (torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())


def join_processes(device: str | None = None) -> PartialState:
    """This process among those that the launcher started, with its own accelerator, or `cpu` for all of them.

    Without an accelerator accelerate has to be told that it is so, or each process believes that it is alone. The
    others may wait for the first one for a day: it may have a long input to read.
    """
    cpu = device == "cpu" or not torch.accelerator.is_available()
    return PartialState(cpu=cpu, timeout=timedelta(days=1))


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def keep_freed_memory() -> bool:
    """Tells glibc's malloc to keep what is freed; False where there is another allocator."""
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    values = {"M_TRIM_THRESHOLD": _LARGEST, "M_TOP_PAD": 64 * 2**20, "M_MMAP_MAX": 0}
    return all(mallopt(_MALLOPT[name], value) == 1 for name, value in values.items())


def release_freed_memory() -> None:
    """Gives what is free in every heap of glibc's back to the system, for once; nothing with another allocator."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def map_in_threads(work: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Results in the order of the items, each by one thread, as many at a time as torch has threads.

    What torch keeps for each thread (gradients off, autocast) is for `work` to set.
    """
    threads = torch.get_num_threads()
    if threads == 1:
        yield from map(work, items)
        return
    try:
        with ThreadPoolExecutor(threads, initializer=lambda: torch.set_num_threads(1)) as pool:
            yield from pool.map(work, items)
    finally:
        torch.set_num_threads(threads)


def machine() -> str:
    """Processor or accelerators, and how many of them, in one line."""
    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{name}, {available_cores()} cores, {torch.get_num_threads()} threads"
