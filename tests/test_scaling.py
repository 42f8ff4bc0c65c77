"""What is computed about many GPUs, against numbers worked out by hand."""

import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hf_mt import HfMtConfig
from hf_mt.scaling import STRATEGIES, Cluster, Size, ddp_buckets, efficiency, efficiency_table, size_of, volume_table


ROOT = Path(__file__).parents[1]
BY_NAME = {strategy.name: strategy for strategy in STRATEGIES}
SIZE = Size("hand", in_layers=600, elsewhere=400, output=300, layers=4)
CLUSTER = Cluster("hand", per_machine=8, inside=1000.0, between=500.0, peak=54e5, hop=0.5, bandwidth_share=0.5)


def test_bytes_of_a_ring() -> None:
    assert BY_NAME["DDP"].bytes_sent(SIZE, 4) == 2 * 3 / 4 * 4 * 1000  # twice, float32
    assert BY_NAME["ZeRO-2"].bytes_sent(SIZE, 4) == 3 / 4 * (2 + 2) * 1000  # gradients, weights
    assert BY_NAME["FSDP2"].bytes_sent(SIZE, 4) == 3 / 4 * 2 * ((2 * 600 + 400) + 1000)  # weights, gradients
    for strategy in STRATEGIES:
        assert strategy.bytes_sent(SIZE, 1) == 0 < strategy.bytes_sent(SIZE, 2) < strategy.bytes_sent(SIZE, 64)


def test_seconds_are_bytes_at_the_slowest_link_and_hops() -> None:
    ddp = BY_NAME["DDP"]
    assert ddp.seconds(SIZE, 8, CLUSTER) == 2 * 7 / 8 * 4000 / 500 + 2 * 7 * 0.5
    assert ddp.seconds(SIZE, 16, CLUSTER) == 2 * 15 / 16 * 4000 / 250 + 2 * 15 * 0.5
    assert BY_NAME["FSDP2"].messages(SIZE) == 3 * 4 + 2
    assert ddp_buckets(Size("", 10 * 2**20, 0, 0, 1)) == 1 + 2  # 40 MiB: 1, and 39 in two of 25


def test_efficiency_counts_what_is_left_of_the_speed() -> None:
    arithmetic = 6 * 1000 * (600 + 300) / (54e5 * 0.5)
    assert arithmetic == 2.0
    sending = BY_NAME["DDP"].seconds(SIZE, 8, CLUSTER)  # 14 + 7
    after, beside = efficiency(SIZE, BY_NAME["DDP"], 8, CLUSTER, tokens=1000, peak_share=0.5)
    assert after == pytest.approx(2 / (2 + sending)) == pytest.approx(2 / 23)
    assert beside == pytest.approx(2 / (2 + sending - 4 / 3))
    assert efficiency(SIZE, BY_NAME["DDP"], 1, CLUSTER, tokens=1000, peak_share=0.5) == (1.0, 1.0)
    larger = efficiency(SIZE, BY_NAME["DDP"], 8, CLUSTER, tokens=4000, peak_share=0.5)
    assert larger[0] > after and larger[1] > beside, "more work between messages"
    more = efficiency(SIZE, BY_NAME["DDP"], 16, CLUSTER, tokens=1000, peak_share=0.5)
    assert more[0] < after


def test_a_model_is_counted_as_it_is(tiny_config: Callable[..., HfMtConfig]) -> None:
    size = size_of("tiny", tiny_config())
    width, ffn = 32, 48
    attention = 4 * (width * width + width)
    feed_forward = 2 * width * ffn + width + ffn
    encoder, decoder = attention + feed_forward + 2 * 2 * width, 2 * attention + feed_forward + 3 * 2 * width
    assert size.in_layers == 2 * (encoder + decoder) and size.layers == 4
    assert size.output == 40 * width and size.elsewhere >= size.output
    untied = size_of("untied", tiny_config(tie_embeddings="none"))
    assert untied.elsewhere >= size.elsewhere + size.output and untied.output == size.output


def test_tables_have_a_cell_for_each_number_of_gpus() -> None:
    volumes = list(volume_table([SIZE], [1, 8, 64]))
    assert [line.count("|") for line in volumes] == [2 + 6 + 1] * 3
    rows = list(efficiency_table([SIZE], [CLUSTER], [1, 8, 64], tokens=1000, peak_share=0.5))
    assert len(rows) == 2 + len(STRATEGIES)
    assert rows[2].startswith("| hand | hand | DDP | 100 % | 9-9 % |")


def test_the_script_prints_the_tables_of_the_page(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    configs = ["configs/multi30k_en_de.yaml", "configs/report/set4.yaml"]
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["scripts/scaling.py", *configs])
    runpy.run_path("scripts/scaling.py", run_name="__main__")
    page = (ROOT / "model_cards" / "scaling.md").read_text()
    lines = capsys.readouterr().out.split("\n")
    assert sum(line.startswith("|") for line in lines) > 20
    assert [line for line in lines if line and line not in page] == []
    monkeypatch.setattr(sys, "argv", ["scripts/scaling.py", *configs, "--tokens", "4096"])
    runpy.run_path("scripts/scaling.py", run_name="__main__")
    fastest = [line for line in capsys.readouterr().out.split("\n") if "NVLink, 8 x NDR" in line]
    assert len(fastest) == 12 and [line for line in fastest if line not in page] == []
    monkeypatch.setattr(sys, "argv", ["scripts/scaling.py", *configs, "--peak_share", "0.2"])
    runpy.run_path("scripts/scaling.py", run_name="__main__")
    assert [line for line in capsys.readouterr().out.split("\n") if line and line not in page]
