"""Work side by side gives what work in a row gives, and leaves threads as they were; freed memory is kept, or not."""

import json
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest
import torch
from random_models import SENTENCES, build, word_tokenizer

from hf_mt import Translator, hardware
from hf_mt.hardware import map_in_threads


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_results_come_in_order_and_each_has_one_thread(threads: int) -> None:
    seen: set[int] = set()

    def work(item: int) -> tuple[int, int]:
        seen.add(threading.get_ident())
        time.sleep(0.02 if item == 0 else 0.002)  # the first is the last to be ready
        return item, torch.get_num_threads()

    assert list(map_in_threads(work, range(8))) == [(item, 1) for item in range(8)]
    assert len(seen) == threads and torch.get_num_threads() == threads


def test_an_error_reaches_the_caller_and_threads_come_back(threads: int) -> None:
    def work(item: int) -> int:
        return 1 // item

    with pytest.raises(ZeroDivisionError):
        list(map_in_threads(work, [1, 2, 0, 3]))
    assert torch.get_num_threads() == threads


def test_translations_do_not_depend_on_threads(threads: int) -> None:
    model = build("rope")
    translator = Translator(model, word_tokenizer())
    idents: set[int] = set()
    model.register_forward_pre_hook(lambda *_: idents.add(threading.get_ident()) or time.sleep(0.001))
    lines = SENTENCES * 3
    together = translator(lines, num_beams=3, tokens_per_batch=20)
    assert len(idents) == threads
    assert together == [translator(line, num_beams=3) for line in lines]
    assert together != translator(lines, num_beams=1)


def test_samples_are_drawn_in_one_thread(threads: int) -> None:
    """For they share one stream of random numbers, whose order would be anyone's guess."""
    model = build("rope")
    translator = Translator(model, word_tokenizer())
    idents: set[int] = set()
    model.register_forward_pre_hook(lambda *_: idents.add(threading.get_ident()) or None)
    translator(SENTENCES, do_sample=True, tokens_per_batch=10)
    assert idents == {threading.get_ident()}


def test_a_processor_beside_a_gpu_has_all_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", told.append)
    monkeypatch.setattr(torch, "set_flush_denormal", lambda on: None)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(hardware, "keep_freed_memory", lambda: None)
    monkeypatch.setattr(hardware, "available_cores", lambda: 8)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    for device in (None, torch.device("cuda", 0), torch.device("cpu")):
        hardware.prepare_hardware(device=device)
    assert told == [4], "for the last one alone"


MEMORY = """
import json, os, torch
from hf_mt.hardware import keep_freed_memory, release_freed_memory, map_in_threads

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

def work(item):
    blocks = [torch.ones(2**18) for _ in range(200)]  # 200 MiB in blocks of 1 MiB
    return len(blocks)

keep_freed_memory()
torch.set_num_threads(2)
found = [resident()]
list(map_in_threads(work, range(4)))
found.append(resident())
release_freed_memory()
print(json.dumps([*found, resident()]))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another allocator")
def test_freed_memory_is_kept_until_it_is_released() -> None:
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    before, kept, released = json.loads(done.stdout)
    assert kept > before + 150  # control: MiB that nobody uses
    assert released - before < (kept - before) / 2


DENORMAL = """
import json, torch
from hf_mt.hardware import prepare_hardware, map_in_threads

if {prepared}:
    prepare_hardware(2)
torch.set_num_threads(2)
numbers = torch.full((2**20,), 1e-20)
left = [int((numbers * 1e-20).count_nonzero())]  # by both threads; 1e-40 is below what float32 has whole
left += map_in_threads(lambda _: int((numbers[:10] * 1e-20).count_nonzero()), range(2))
print(json.dumps(left))
"""


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="has no such switch")
def test_the_smallest_numbers_are_zero_in_every_thread() -> None:
    found = {}
    for prepared in (True, False):
        code = DENORMAL.format(prepared=prepared)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        found[prepared] = json.loads(done.stdout)
    assert found == {True: [0, 0, 0], False: [2**20, 10, 10]}
