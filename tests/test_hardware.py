"""Work side by side gives what work in a row gives, and leaves threads as they were."""

import threading
import time
from collections.abc import Iterator

import pytest
import torch
from random_models import SENTENCES, build, word_tokenizer

from hf_mt import Translator
from hf_mt.hardware import side_by_side


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

    assert list(side_by_side(work, range(8))) == [(item, 1) for item in range(8)]
    assert len(seen) == threads and torch.get_num_threads() == threads


def test_an_error_reaches_the_caller_and_threads_come_back(threads: int) -> None:
    def work(item: int) -> int:
        return 1 // item

    with pytest.raises(ZeroDivisionError):
        list(side_by_side(work, [1, 2, 0, 3]))
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
