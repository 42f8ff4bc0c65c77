"""A corpus that is read while training: every pair once a pass, the same steps for every layout, constant memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import PreTrainedTokenizerFast, TrainerCallback, set_seed

from hf_mt import HfMtConfig, HfMtForConditionalGeneration
from hf_mt.arguments import DataArguments, TranslationTrainingArguments
from hf_mt.corpora import load_corpus, stream_pairs
from hf_mt.data import prepare_data
from hf_mt.dry_run import dry_run
from hf_mt.errors import InputError
from hf_mt.experiment import parse_experiment
from hf_mt.load_data import load_data
from hf_mt.pair_stream import PairStream
from hf_mt.streaming import POSITION, BatchStream
from hf_mt.tokenization import train_tokenizer
from hf_mt.training import TranslationTrainer


ROOT = Path(__file__).parents[1]
Pair = tuple[str, str]
Row = tuple[tuple[int, ...], tuple[int, ...]]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(["0 1 2 3 4 5 6 7 8 9"], vocab_size=24)


def numbers(count: int, first: int = 0) -> list[Pair]:
    """Pairs of which no two are equal, of several lengths."""
    texts = [" ".join(f"{number:03d}{'7' * (number % 5)}") for number in range(first, first + count)]
    return [(text, f"{text} {'1 2 3 4 5 6'[: number % 12]}".strip()) for number, text in enumerate(texts)]


def as_text(folder: Path, pairs: list[Pair], name: str = "train") -> str:
    for side, language in enumerate(("en", "de")):
        (folder / f"{name}.{language}").write_text("".join(f"{pair[side]}\n" for pair in pairs), encoding="utf-8")
    return str(folder / name)


def streamed(folder: Path, pairs: list[Pair], **changes: Any) -> DataArguments:
    settings = {"train_file": as_text(folder, pairs), "streaming": True, "streaming_buffer": 40}
    settings |= {"max_source_length": 32, "max_target_length": 32}
    return DataArguments("en", "de", **{**settings, **changes})


def layout(processes: int = 1, rank: int = 0, parts: int = 1, *, tokens: int = 128, seed: int = 0) -> Any:
    """One of several processes; `tokens` is the budget of a whole step."""
    budget = tokens // (processes * parts)
    return SimpleNamespace(world_size=processes, process_index=rank, gradient_accumulation_steps=parts, seed=seed,
                           data_seed=None, tokens_per_batch=budget, sentences_per_batch=None, max_steps=9)  # fmt: skip


def row(row: dict[str, list[int]]) -> Row:
    return tuple(row["input_ids"]), tuple(row["labels"])


def one_pass(stream: BatchStream) -> Iterator[list[Row]]:
    """The rest of the pass that the stream is in."""
    begun = stream.passes
    for rows in stream:
        if stream.passes > begun:
            return
        yield list(map(row, rows))


def steps_of(data: DataArguments, tokenizer: Any, processes: int, parts: int, **more: int) -> list[set[Row]]:
    """What each step of the first pass sees on all processes together."""
    ranks = [layout(processes, rank, parts, **more) for rank in range(processes)]
    batches = [list(one_pass(BatchStream(PairStream(data, tokenizer), rank))) for rank in ranks]
    assert len({len(rank) for rank in batches}) == 1 and len(batches[0]) % parts == 0
    steps = range(0, len(batches[0]), parts)
    return [{pair for rank in batches for batch in rank[step : step + parts] for pair in batch} for step in steps]


# --- which pairs


@pytest.mark.parametrize("count", [1, 3, 40, 41, 59, 61, 97, 200])
@pytest.mark.parametrize("processes", [1, 2, 3])
def test_every_pair_is_read_once_a_pass_by_one_process(
    count: int, processes: int, tokenizer: Any, tmp_path: Path
) -> None:
    stream = PairStream(streamed(tmp_path, numbers(count)), tokenizer)
    ranks = [BatchStream(stream, layout(processes, rank, tokens=64 * processes)) for rank in range(processes)]
    if count < processes:
        with pytest.raises(InputError, match=f"There are {count} sentence pairs, fewer than the {processes} micro"):
            next(iter(ranks[0]))
        return
    for _ in range(2):
        shares = [Counter(pair for batch in one_pass(rank) for pair in batch) for rank in ranks]
        assert len(sum(shares, Counter())) == sum(sum(share.values()) for share in shares) == count
        assert all(shares) and (processes == 1 or len(sum(shares[1:], Counter())) < count)  # control: one left out
        for rank in ranks:
            rank.load_state_dict({**rank.state_dict(), "passes": 1, "pair": 0, "steps": 0, "digest": None})


@pytest.mark.parametrize(("processes", "parts"), [(1, 2), (2, 1), (2, 2), (4, 1), (1, 4)])
def test_a_step_is_the_same_for_every_layout(processes: int, parts: int, tokenizer: Any, tmp_path: Path) -> None:
    data = streamed(tmp_path, numbers(190))
    whole = steps_of(data, tokenizer, 1, 1)
    assert len(whole) > 10 and steps_of(data, tokenizer, processes, parts) == whole
    assert steps_of(data, tokenizer, processes, parts, seed=1) != whole  # control


def test_order_differs_by_pass_and_by_seed_and_blocks_don_t(tokenizer: Any, tmp_path: Path) -> None:
    stream = PairStream(streamed(tmp_path, numbers(200)), tokenizer)
    first, again, other = (BatchStream(stream, layout(seed=seed)) for seed in (0, 0, 1))
    order = list(one_pass(first))
    assert list(one_pass(again)) == order and list(one_pass(other)) != order
    second_pass = BatchStream(stream, layout())
    second_pass.load_state_dict({**second_pass.state_dict(), "passes": 1})
    second = list(one_pass(second_pass))
    assert second != order and Counter(sum(second, [])) == Counter(sum(order, []))
    blocks = [{tuple(ids) for ids in block.table["input_ids"].to_pylist()} for block in stream.blocks()]
    assert list(map(len, blocks)) == [40] * 5
    seen = [pair[0] for batch in order for pair in batch]
    assert [set(seen[at : at + 40]) for at in range(0, 200, 40)] == blocks and seen[:40] != sorted(seen[:40])


@pytest.mark.parametrize(("count", "sizes"), [(79, [40, 39]), (99, [40, 59]), (100, [40, 40, 20]), (19, [19])])
def test_a_small_rest_joins_the_block_before(count: int, sizes: list[int], tokenizer: Any, tmp_path: Path) -> None:
    blocks = list(PairStream(streamed(tmp_path, numbers(count)), tokenizer).blocks())
    assert [block.table.num_rows for block in blocks] == sizes
    assert [block.end for block in blocks] == [sum(sizes[: at + 1]) for at in range(len(sizes))]


def test_blocks_that_the_filters_empty_are_passed_over(tokenizer: Any, tmp_path: Path) -> None:
    hole = [("", "1")] * 200
    data = streamed(tmp_path, [*hole, *numbers(50), *hole, *numbers(7, 50), *hole])
    stream = BatchStream(PairStream(data, tokenizer), layout())
    assert len({pair for batch in one_pass(stream) for pair in batch}) == 57
    assert (stream.before.counts.read, stream.before.counts.found["empty"]) == (657, 600)
    nothing = BatchStream(PairStream(replace(data, max_train_samples=100), tokenizer), layout())
    with pytest.raises(InputError, match="No training pair is left"):
        next(iter(nothing))


def test_what_was_read_is_counted(tokenizer: Any, tmp_path: Path) -> None:
    odd = [("", "1"), ("<url>1", "1"), ("1", "2" * 200), ("1 " * 40, "1"), ("3", "4"), ("3", "4")]
    pairs = [*numbers(60), *odd, *numbers(60, 60), ("3", "4")]
    data = streamed(tmp_path, pairs, streaming_buffer=1000)
    stream = BatchStream(PairStream(data, tokenizer), layout())
    assert sum(len(batch) for batch in one_pass(stream)) == 121
    held = prepare_data(load_corpus(replace(data, streaming=False), splits=["train"]), tokenizer, data)
    found = {"empty": 1, "metadata": 1, "length ratio": 1, "duplicate": 2, "too long": 1}
    assert stream.before.counts == held.counts[0] and held.counts[0].found == found
    counted, exact = stream.before.tokens(), held.tokens["train"]
    for side in ("source", "target"):
        close = {"percentile_95": pytest.approx(exact[side].percentile_95, abs=1)}
        assert vars(counted[side]) == {**vars(exact[side]), **close}
    in_blocks = BatchStream(PairStream(replace(data, streaming_buffer=66), tokenizer), layout())
    assert sum(len(batch) for batch in one_pass(in_blocks)) == 122  # the second duplicate is in another block
    assert in_blocks.before.counts.found == {**found, "duplicate": 1}


# --- where they come from


def as_tsv(folder: Path, pairs: list[Pair]) -> str:
    (folder / "x.tsv").write_text("".join("\t".join(pair) + "\n" for pair in [("en", "de"), *pairs]))
    return str(folder / "x.tsv")


def as_jsonl(folder: Path, pairs: list[Pair]) -> str:
    (folder / "x.jsonl").write_text("".join(json.dumps(dict(zip(("en", "de"), pair))) + "\n" for pair in pairs))  # noqa: B905
    return str(folder / "x.jsonl")


def as_parquet(folder: Path, pairs: list[Pair]) -> str:
    rows = [{"en": source, "de": target} for source, target in pairs]
    pq.write_table(pa.table({"id": range(len(rows)), "translation": rows}), folder / "x.parquet", row_group_size=70)
    return str(folder / "x.parquet")


@pytest.mark.parametrize("write", [as_text, as_tsv, as_jsonl, as_parquet])
def test_every_format_gives_the_same_stream(write: Callable[..., str], tmp_path: Path) -> None:
    pairs = [*numbers(150), ("Two\u2028dogs.", ""), ("ä", "ß")]
    data = DataArguments("en", "de", train_file=write(tmp_path, pairs), streaming=True)
    assert list(stream_pairs(data)) == pairs
    assert list(stream_pairs(replace(data, max_train_samples=9))) == pairs[:9]
    assert list(stream_pairs(replace(data, source_lang="de", target_lang="en")))[0] == pairs[0][::-1]  # control


def test_a_data_set_is_streamed_as_from_the_hub(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for split, count in (("train", 150), ("validation", 8), ("test", 3)):
        rows = [{"en": source, "de": target} for source, target in numbers(count)]
        pq.write_table(pa.table({"translation": rows}), tmp_path / "data" / f"{split}.parquet")
    data = DataArguments("en", "de", dataset_name=str(tmp_path / "data"), streaming=True)
    assert list(stream_pairs(data)) == numbers(150)
    held = load_corpus(data, splits=["validation", "test"])
    assert list(held) == ["validation", "test"] and len(held["validation"]) == 8
    assert held["validation"][3]["translation"] == {"en": numbers(8)[3][0], "de": numbers(8)[3][1]}
    with pytest.raises(InputError, match=r"no 'fr'; there is (en, de|de, en)"):
        list(stream_pairs(replace(data, target_lang="fr")))


@pytest.mark.parametrize(
    ("name", "break_it", "message"),
    [
        ("train.en", lambda lines: [*lines[:150], b"caf\xe9\n", *lines[151:]], r"train\.en, line 151, byte 4: 0xe9"),
        ("train.de", lambda lines: lines[:-1], r"train\.en has 200 lines and .*train\.de has 199"),
        ("x.tsv", lambda lines: [*lines[:160], b"1\t2\t3\n"], r"x\.tsv, line 161: 3 columns, but line 1 has 2"),
        ("x.jsonl", lambda lines: [*lines[:160], b'{"en": "1"}\n'], r"x\.jsonl, line 161: no 'de'; there is en"),
    ],
)
def test_a_bad_line_is_named_when_it_is_reached(
    name: str, break_it: Callable[..., list[bytes]], message: str, tokenizer: Any, tmp_path: Path
) -> None:
    write = {"tsv": as_tsv, "jsonl": as_jsonl}.get(name.rpartition(".")[2], as_text)
    data = replace(streamed(tmp_path, numbers(200)), train_file=write(tmp_path, numbers(200)))
    assert sum(1 for _ in PairStream(data, tokenizer).blocks()) == 5  # control
    path = tmp_path / name
    path.write_bytes(b"".join(break_it(path.read_bytes().splitlines(keepends=True))))
    stream = BatchStream(PairStream(data, tokenizer), layout())
    read = 0
    with pytest.raises(InputError, match=message):
        for rows in stream:
            read += len(rows)
    assert 80 <= read < 200


# --- going on


@pytest.mark.parametrize("parts", [1, 2])
def test_a_stream_goes_on_where_it_was_and_tokenises_nothing_twice(
    parts: int, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = streamed(tmp_path, [*numbers(95), ("", "1"), *numbers(30, 95)])
    stream, batches, states, seen = BatchStream(PairStream(data, tokenizer), layout(parts=parts)), [], [], []
    for rows in islice(stream, 64):
        batches.append(list(map(row, rows)))
        seen.append(stream.seen.counts)
        states.append(json.loads(json.dumps(stream.state_dict(), sort_keys=True)))
    assert stream.passes >= 1 and len(batches) == 64
    tokenise, tokenised = PairStream._tokenise, []
    count = lambda self, pairs: tokenised.append(len(pairs)) or tokenise(self, pairs)  # noqa: E731
    monkeypatch.setattr(PairStream, "_tokenise", count)
    for at in range(parts - 1, 50, parts):
        again = BatchStream(PairStream(data, tokenizer), layout(parts=parts))
        again.load_state_dict(states[at])
        tokenised.clear()
        assert [list(map(row, rows)) for rows in islice(again, 9)] == batches[at + 1 : at + 10]
        assert again.seen.counts == seen[at + 9]
        rest = 126 - states[at]["pair"]
        assert sum(tokenised) <= rest + 126 * (again.passes - states[at]["passes"])
    fresh = BatchStream(stream.stream, layout(parts=parts))  # control
    assert [list(map(row, rows)) for rows in islice(fresh, 9)] != batches[8:17]


def test_a_stream_goes_on_with_other_processes(tokenizer: Any, tmp_path: Path) -> None:
    data = streamed(tmp_path, numbers(150))
    steps = steps_of(data, tokenizer, 1, 1)
    stream = BatchStream(PairStream(data, tokenizer), layout(parts=2))
    list(islice(stream, 14))
    ranks = [BatchStream(PairStream(data, tokenizer), layout(2, rank)) for rank in range(2)]
    for rank in ranks:
        rank.load_state_dict(stream.state_dict())
    shares = [[set(batch) for batch in one_pass(rank)] for rank in ranks]
    assert [one | other for one, other in zip(*shares, strict=True)] == steps[7:] != steps[:-7]


def test_other_texts_than_those_read_before_are_refused(tokenizer: Any, tmp_path: Path) -> None:
    pairs = numbers(150)
    data = streamed(tmp_path, pairs)
    stream = BatchStream(PairStream(data, tokenizer), layout())
    list(islice(stream, 15))
    assert stream.pair == 80
    again = BatchStream(PairStream(data, tokenizer), layout())
    again.load_state_dict(stream.state_dict())
    next(iter(again))  # control
    as_text(tmp_path, [*pairs[:20], ("1", "1"), *pairs[21:]])
    with pytest.raises(InputError, match=rf"first {stream.pair} training pairs are other ones"):
        next(iter(again))


def test_other_texts_in_the_block_in_use_are_refused(tokenizer: Any, tmp_path: Path) -> None:
    pairs = numbers(150)
    data = streamed(tmp_path, pairs)
    stream = BatchStream(PairStream(data, tokenizer), layout())
    list(islice(stream, 2))
    assert (stream.pair, stream.steps) == (0, 2)
    again = BatchStream(PairStream(data, tokenizer), layout())
    again.load_state_dict(stream.state_dict())
    next(iter(again))  # control
    again.load_state_dict(stream.state_dict())
    as_text(tmp_path, [*pairs[:20], ("1", "1"), *pairs[21:]])
    with pytest.raises(InputError, match="training pairs are other ones"):
        next(iter(again))


def test_other_texts_in_a_later_pass_are_refused(tokenizer: Any, tmp_path: Path) -> None:
    pairs = numbers(150)
    data = streamed(tmp_path, pairs)
    stream = BatchStream(PairStream(data, tokenizer), layout())
    batches = iter(stream)
    while stream.passes < 2:  # control: twice the same
        next(batches)
    again = BatchStream(PairStream(data, tokenizer), layout())
    again.load_state_dict(stream.state_dict())
    as_text(tmp_path, [*pairs[:140], ("1", "1"), *pairs[141:]])
    with pytest.raises(InputError, match="first 150 training pairs are other ones"):
        list(islice(again, 1000))


def test_a_data_set_without_other_splits_is_streamed(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    rows = [{"en": source, "de": target} for source, target in numbers(30)]
    pq.write_table(pa.table({"translation": rows}), tmp_path / "set" / "train.parquet")
    words = ["--dataset_name", str(tmp_path / "set"), "--source_lang", "en", "--target_lang", "de", "--streaming"]
    words += ["--max_steps", "3", "--vocab_size", "24", "--eval_strategy", "no", "--save_strategy", "no"]
    experiment = parse_experiment([*words, "--load_best_model_at_end", "false"])
    corpus, _, prepared = load_data(experiment)
    assert not corpus and prepared.validation is None and isinstance(prepared.train, PairStream)


SIZES = {"d_model": 16, "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 32}
SIZES |= {"encoder_layers": 1, "decoder_layers": 1, "decoder_ffn_dim": 32, "dropout": 0.1, "vocab_size": 24}
TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}


def trainer(folder: Path, data: DataArguments, tokenizer: Any, **changes: Any) -> TranslationTrainer:
    settings: dict[str, Any] = {"max_steps": 26, "tokens_per_batch": 64, "gradient_accumulation_steps": 2}
    settings |= {"learning_rate": 1e-2, "lr_scheduler_type": "constant", "warmup_steps": 0, "logging_steps": 1}
    settings |= {"eval_strategy": "no", "save_strategy": "no"}
    settings |= {"load_best_model_at_end": False, "use_cpu": True, "disable_tqdm": True}
    args = TranslationTrainingArguments(output_dir=str(folder), **{**settings, **changes})
    set_seed(3)
    model = HfMtForConditionalGeneration(HfMtConfig(**SIZES, **TOKENS))
    return TranslationTrainer(model, args, tokenizer, train_dataset=PairStream(data, tokenizer))


class SaveAt(TrainerCallback):
    def __init__(self, steps: set[int]) -> None:
        self.steps = steps

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_save |= state.global_step in self.steps


def test_a_resumed_run_becomes_the_uninterrupted_one(tokenizer: Any, tmp_path: Path) -> None:
    data = streamed(tmp_path, [*numbers(95), ("", "1")])
    stream = BatchStream(PairStream(data, tokenizer), layout())
    places = [(stream.passes, stream.pair, stream.steps) for _ in islice(stream, 30)]
    at_end_of_block = next(step for step, (_, pair, taken) in enumerate(places, 1) if pair and not taken)
    within_block = next(step for step, (_, pair, taken) in enumerate(places, 1) if pair and taken > 1)
    in_second_pass = next(step for step, (passes, _, taken) in enumerate(places, 1) if passes and taken)
    last, saved = in_second_pass + 3, {at_end_of_block, within_block, in_second_pass}
    whole = trainer(tmp_path / "whole", data, tokenizer, max_steps=last)
    whole.add_callback(SaveAt(saved))
    whole.train()
    weights = whole.model.state_dict()
    for step in saved:
        again = trainer(tmp_path / f"again-{step}", data, tokenizer, max_steps=last)
        again.train(resume_from_checkpoint=str(tmp_path / f"whole/checkpoint-{step}"))
        assert _same(again.model.state_dict(), weights) and again.state.epoch == whole.state.epoch == 1
        assert again.stream.seen.counts == whole.stream.seen.counts
    path = tmp_path / f"whole/checkpoint-{within_block}/trainer_state.json"
    state = json.loads(path.read_text())
    state["stateful_callbacks"][POSITION]["steps"] -= 1  # control: one step read twice
    path.write_text(json.dumps(state))
    wrong = trainer(tmp_path / "wrong", data, tokenizer, max_steps=last)
    wrong.train(resume_from_checkpoint=str(path.parent))
    assert not _same(wrong.model.state_dict(), weights)
    del state["stateful_callbacks"][POSITION]
    path.write_text(json.dumps(state))
    with pytest.raises(InputError, match="doesn't tell how far its stream was read"):
        wrong.train(resume_from_checkpoint=str(path.parent))


def _same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_batches_of_a_stream_are_sent_before_their_labels_are_counted(tokenizer: Any, tmp_path: Path) -> None:
    run, places = trainer(tmp_path, streamed(tmp_path, numbers(95)), tokenizer), []
    batches = iter(run.get_train_dataloader())
    for stream in (run.stream, None):  # the second is the control
        run.stream = stream
        step, _ = run.get_batch_samples(batches, 2, torch.device("meta"))
        places.append({value.device.type for batch in step for value in batch.values()})
        assert len(step) == 2 and run._step_batches is step
    assert places == [{"meta"}, {"cpu"}]


def test_a_finished_stream_takes_no_step_more(tokenizer: Any, tmp_path: Path) -> None:
    data = streamed(tmp_path, numbers(95))
    trainer(tmp_path / "run", data, tokenizer, max_steps=3, save_strategy="steps", save_steps=3).train()
    for steps, taken in ((3, 3), (5, 5)):  # the second is the control
        again = trainer(tmp_path / "run", data, tokenizer, max_steps=steps)
        again.train(resume_from_checkpoint=str(tmp_path / "run/checkpoint-3"))
        assert again.state.global_step == taken


def test_a_stream_can_be_rehearsed(tokenizer: Any, tmp_path: Path) -> None:
    told = dry_run(trainer(tmp_path / "run", streamed(tmp_path, numbers(95)), tokenizer, max_steps=800))
    assert "batches   as of the first pairs" in told and "the same scores" in told and "steps     800 of" in told
    assert not list((tmp_path / "run").glob("*"))


# --- the command


KEYS = """
source_lang: en
target_lang: de
streaming: true
streaming_buffer: 60
max_source_length: 48
max_target_length: 48
vocab_size: 40
d_model: 16
encoder_layers: 1
decoder_layers: 1
encoder_attention_heads: 2
decoder_attention_heads: 2
encoder_ffn_dim: 32
decoder_ffn_dim: 32
max_steps: 12
tokens_per_batch: 128
learning_rate: 1e-2
warmup_steps: 0
logging_steps: 1
eval_strategy: "no"
save_strategy: "no"
load_best_model_at_end: false
dropout: 0.0
num_beams: 1
cpu_threads: 1
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "stream.yaml"
    files = {"train": numbers(170), "test": numbers(7, 500)}
    names = "".join(f"{split}_file: {as_text(tmp_path, pairs, split)}\n" for split, pairs in files.items())
    path.write_text(KEYS + names)
    return path


# scripts/train.py, and how many of gloo's threads it leaves behind
TRAIN = f"""
import runpy, sys
from pathlib import Path
runpy.run_path({str(ROOT / "scripts/train.py")!r}, run_name="__main__")
names = [path.read_text() for path in Path("/proc/self/task").glob("*/comm")]
sys.stdout.write(f"left: {{names.count('pt_gloo_runloop' + chr(10))}}\\n")
"""


def test_two_processes_learn_what_one_does(config: Path, tmp_path: Path) -> None:
    program = tmp_path / "train.py"
    program.write_text(TRAIN)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "MASTER_PORT": "0"}
    launcher = [Path(sys.executable).with_name("accelerate"), "launch", "--quiet", "--config_file"]
    command = [*launcher, ROOT / "configs/accelerate/ddp_cpu.yaml", program, config]
    words = [str(word) for word in (*command, "--output_dir", tmp_path / "two")]
    done = subprocess.run(words, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    history = json.loads((tmp_path / "two/trainer_state.json").read_text())["log_history"]
    curves = {"two": [line["loss"] for line in history if "smoothed_loss" in line]}
    for name, parts in (("one", 2), ("half", 1)):
        words = [str(config), f"--output_dir={tmp_path / name}", f"--gradient_accumulation_steps={parts}"]
        curves[name] = _losses(words)
    assert curves["two"] == pytest.approx(curves["one"], rel=1e-4) and len(curves["two"]) == 12
    assert curves["half"] != pytest.approx(curves["one"], rel=1e-4)
    table = json.loads((tmp_path / "two/data_table.json").read_text())
    assert table["train"]["kept"] > 170 and table["test"]["kept"] == 7
    assert "trained on the first 170 pairs" in done.stderr and "Read so far" in done.stdout
    assert done.stdout.count("left: 0\n") == 2  # test_process_group.py has the control


def _losses(words: list[str]) -> list[float]:
    from hf_mt.models import load_or_build_model

    experiment = parse_experiment(words)
    _, tokenizer, data = load_data(experiment)
    model = load_or_build_model(experiment, tokenizer, data)
    run = TranslationTrainer(model, experiment.training, tokenizer, train_dataset=data.train)
    run.train()
    return [line["loss"] for line in run.state.log_history if "smoothed_loss" in line]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--max_steps=-1", "give max_steps, since the length of an epoch isn't known"),
        ("--eval_strategy=epoch --save_strategy=epoch", "set eval_strategy and save_strategy to steps or no"),
        ("--bpe_dropout=0.1", "set bpe_dropout to 0"),
        ("--dataloader_num_workers=2", "set dataloader_num_workers to 0"),
        ("--ignore_data_skip=true", "set ignore_data_skip to false"),
    ],
)
def test_what_a_stream_cannot_do_is_refused(words: str, message: str, config: Path) -> None:
    parse_experiment([str(config)])  # control
    with pytest.raises(InputError, match=f"streaming: .*{message}"):
        parse_experiment([str(config), *words.split()])
    parse_experiment([str(config), *words.split(), "--streaming=false"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens_per_batch": 31}, "a streamed pair may have 32 tokens on one side, and a batch 31"),
        ({"gradient_accumulation_steps": 21}, "streaming_buffer is 40, too few pairs for the 21 micro-batches"),
    ],
)
def test_what_does_not_fit_is_refused_before_training(
    changes: dict[str, int], message: str, tokenizer: Any, tmp_path: Path
) -> None:
    data = streamed(tmp_path, numbers(95))
    trainer(tmp_path / "good", data, tokenizer)  # control
    with pytest.raises(InputError, match=message):
        trainer(tmp_path / "bad", data, tokenizer, **changes)


def test_sources_without_a_stream_are_refused(tmp_path: Path) -> None:
    data = streamed(tmp_path, numbers(9))
    assert len(list(stream_pairs(data))) == 9  # control
    with pytest.raises(InputError, match="cldr is made in memory"):
        stream_pairs(replace(data, train_file=None, dataset_name="cldr"))
    with pytest.raises(InputError, match="no train split to stream"):
        stream_pairs(replace(data, train_file=None, test_file=data.train_file))
    with pytest.raises(InputError, match="only training reads a stream"):
        load_corpus(data)
    with pytest.raises(InputError, match=r"tain\.en does not exist; .*train\.en"):
        PairStream(replace(data, train_file=str(tmp_path / "tain")), train_tokenizer(["1"], vocab_size=9)).tokens()


# --- memory


PAIRS = 20_000
MEASURE = """
import sys
from dataclasses import replace
from types import SimpleNamespace
from hf_mt.arguments import DataArguments
from hf_mt.corpora import load_corpus
from hf_mt.pair_stream import PairStream
from hf_mt.streaming import BatchStream
from hf_mt.tokenization import train_tokenizer

def peak():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) / 1024

data = DataArguments("en", "de", train_file=sys.argv[1], streaming=True, streaming_buffer=1000)
args = SimpleNamespace(world_size=1, process_index=0, gradient_accumulation_steps=1, tokens_per_batch=4096, seed=0,
                       data_seed=None, sentences_per_batch=None, max_steps=1)
tokenizer = train_tokenizer(["abcdefgh " * 9], vocab_size=24)

def read(pairs):
    count, stream = 0, BatchStream(PairStream(replace(data, max_train_samples=pairs), tokenizer), args)
    for rows in stream:
        if stream.passes:
            return count
        count += len(rows)

read(5000)
start = peak()
streamed = read(None)
after_stream = peak()
held = len(load_corpus(replace(data, streaming=False), splits=["train"])["train"])
print(streamed, after_stream - start, held, peak() - after_stream)
"""


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="reads Linux's account of memory")
def test_memory_does_not_grow_with_the_corpus(tmp_path: Path) -> None:
    words = "abcdefgh " * 12
    prefix = as_text(tmp_path, [(f"{words}{number}", f"{number} {words}") for number in range(PAIRS)])
    command = [sys.executable, "-c", MEASURE, prefix]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    streamed, grown, held, grown_by_holding = map(float, done.stdout.split())
    assert streamed == held == PAIRS
    assert grown < 8 < grown_by_holding  # MiB
