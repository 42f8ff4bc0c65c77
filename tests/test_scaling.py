"""What is computed about many GPUs, against numbers worked out by hand."""

import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from hf_mt import HfMtConfig, HfMtForConditionalGeneration
from hf_mt.scaling import (
    STRATEGIES,
    Cluster,
    Size,
    ddp_buckets,
    efficiency,
    efficiency_table,
    size_of,
    step_table,
    volume_table,
)
from hf_mt.step_time import measured_step, training_step


ROOT = Path(__file__).parents[1]
BY_NAME = {strategy.name: strategy for strategy in STRATEGIES}
SIZE = Size("hand", in_layers=600, elsewhere=400, output=300, layers=4)
CLUSTER = Cluster("hand", per_machine=8, inside=1000.0, between=500.0, hop=0.5, bandwidth_share=0.5)


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
    sending = BY_NAME["DDP"].seconds(SIZE, 8, CLUSTER)  # 14 + 7
    after, beside = efficiency(SIZE, BY_NAME["DDP"], 8, CLUSTER, step=2.0)
    assert after == pytest.approx(2 / (2 + sending)) == pytest.approx(2 / 23)
    assert beside == pytest.approx(2 / (2 + sending - 4 / 3))
    assert efficiency(SIZE, BY_NAME["DDP"], 1, CLUSTER, step=2.0) == (1.0, 1.0)
    longer = efficiency(SIZE, BY_NAME["DDP"], 8, CLUSTER, step=8.0)
    assert longer[0] > after and longer[1] > beside, "more work between messages"
    more = efficiency(SIZE, BY_NAME["DDP"], 16, CLUSTER, step=2.0)
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
    rows = list(efficiency_table([SIZE], [2.0], [CLUSTER], [1, 8, 64]))
    assert len(rows) == 2 + len(STRATEGIES)
    assert rows[2].startswith("| hand | hand | DDP | 100 % | 9-9 % |")


def test_the_share_of_the_peak_is_the_arithmetic_over_the_time() -> None:
    assert SIZE.operations(1000) == 6 * 1000 * (600 + 300)
    assert list(step_table([SIZE], [2.0], 1000, peak=54e5))[2] == "| hand | 2000.00 | 0.5 | 0.0 | 50.0 % |"


def test_a_step_of_more_tokens_takes_longer(tiny_config: Callable[..., HfMtConfig]) -> None:
    times = {tokens: measured_step(tiny_config(), tokens, torch.device("cpu"), repeats=3) for tokens in (50, 50_000)}
    assert 0 < times[50] < times[50_000]


def test_a_measured_step_learns(tiny_config: Callable[..., HfMtConfig]) -> None:
    torch.manual_seed(0)
    models: list[HfMtForConditionalGeneration] = []

    def build(config: HfMtConfig) -> HfMtForConditionalGeneration:
        models.append(HfMtForConditionalGeneration(config))
        return models[0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hf_mt.step_time.HfMtForConditionalGeneration", build)
        step = training_step(tiny_config(), 100, torch.device("cpu"))
    before = [weight.detach().clone() for weight in models[0].parameters()]
    step()
    assert any((weight != old).any() for weight, old in zip(models[0].parameters(), before, strict=True))


def scaling(*words: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setattr(sys, "argv", ["scripts/scaling.py", *words])
        runpy.run_path("scripts/scaling.py", run_name="__main__")


def test_steps_are_measured_told_or_assumed(capsys: Any) -> None:
    scaling("--measure", "--tokens", "50", "--gpus", "1")
    measured = capsys.readouterr().out
    assert "measured on" in measured and torch.__version__ in measured
    scaling("--step_milliseconds", "50", "100", "250", "--tokens", "50")
    told = capsys.readouterr().out
    assert "| Transformer big | 250.00 | 0.2 |" in told and "measured" not in told
    with pytest.raises(SystemExit) as stopped:
        scaling("--step_milliseconds", "100")
    assert stopped.value.code == 2 and "1 numbers for 3 models" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        scaling("--step_milliseconds", "50", "100", "250", "--measure")


CONFIGS = ("configs/report/set4.yaml",)
STEPS = {
    25000: ["79.98", "77.68", "81.93", "134.42"],
    4096: ["50.39", "75.36", "55.91", "59.48"],
}


def test_the_script_prints_the_tables_of_the_page(capsys: Any) -> None:
    page = (ROOT / "model_cards" / "scaling.md").read_text()

    def printed(*words: str) -> list[str]:
        scaling(*CONFIGS, *words)
        return [line for line in capsys.readouterr().out.split("\n") if line]

    lines = printed("--step_milliseconds", *STEPS[25000])
    assert sum(line.startswith("|") for line in lines) > 20
    assert [line for line in lines if line not in page] == []
    small = printed("--step_milliseconds", *STEPS[4096], "--tokens", "4096")
    assert [line for line in small if " NDR" not in line and line not in page] == []
    for fastest in (small, printed("--peak_share", "0.4")):
        rows = [line for line in fastest if "NVLink, 8 x NDR" in line]
        assert len(rows) == 12 and [line for line in rows if line not in page] == []
    assert [line for line in printed("--peak_share", "0.2") if line not in page]
