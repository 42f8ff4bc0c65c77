"""Properties of training: what a step learns, what an evaluation counts, what a resumed run becomes."""

import json
import math
import os
import signal
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    M2M100Config,
    M2M100ForConditionalGeneration,
    MarianConfig,
    MarianMTModel,
    PreTrainedModel,
    Seq2SeqTrainer,
    T5Config,
    T5ForConditionalGeneration,
    set_seed,
)

from hf_mt import HfMtConfig, HfMtForConditionalGeneration, InputError, training
from hf_mt.arguments import DataArguments, TranslationTrainingArguments
from hf_mt.averaging import MOVING_AVERAGE_NAME, checkpoint_weights
from hf_mt.batching import TokenBatchSampler, TranslationCollator
from hf_mt.checkpointing import UNPLANNED
from hf_mt.checkpoints import checkpoints, last_checkpoint
from hf_mt.corpora import toy_corpus
from hf_mt.data import PreparedData, pair_lengths, prepare_data
from hf_mt.evaluation_loop import with_texts
from hf_mt.losses import loss_sums
from hf_mt.non_finite import IN_A_ROW
from hf_mt.sharding import check_same_kind
from hf_mt.tokenization import train_tokenizer
from hf_mt.training import TranslationTrainer


SIZES = {"d_model": 16, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
SIZES |= {"encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return train_tokenizer(["0 1 2 3 4 5 6 7 8 9"], vocab_size=24)


@pytest.fixture(scope="module")
def data(tokenizer: Any) -> PreparedData:
    corpus = toy_corpus("copy", sizes={"train": 60, "validation": 13, "test": 7}, seed=1, max_digits=8)
    return prepare_data(corpus, tokenizer, DataArguments(source_lang="src", target_lang="tgt"))


def ours(**changes: Any) -> PreTrainedModel:
    set_seed(3)
    return HfMtForConditionalGeneration(HfMtConfig(vocab_size=24, dropout=0.0, **SIZES, **TOKENS, **changes))


def marian() -> PreTrainedModel:
    set_seed(3)
    config = MarianConfig(vocab_size=24, dropout=0.0, **SIZES, **TOKENS, forced_eos_token_id=None)
    return MarianMTModel(config)


def bart() -> PreTrainedModel:
    set_seed(3)
    return BartForConditionalGeneration(BartConfig(vocab_size=24, dropout=0.0, **SIZES, **TOKENS))


def t5() -> PreTrainedModel:
    set_seed(3)
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2, "dropout_rate": 0.0}
    return T5ForConditionalGeneration(T5Config(vocab_size=24, **sizes, pad_token_id=0, decoder_start_token_id=0))


def m2m100() -> PreTrainedModel:
    set_seed(3)
    sizes = {**SIZES, "encoder_layerdrop": 0.0, "decoder_layerdrop": 0.0, "max_position_embeddings": 64}
    return M2M100ForConditionalGeneration(M2M100Config(vocab_size=24, dropout=0.0, **sizes, **TOKENS))


MODELS = {"hf_mt": ours, "marian": marian, "bart": bart, "t5": t5, "m2m100": m2m100}


def arguments(folder: Path, **changes: Any) -> TranslationTrainingArguments:
    settings = {"max_steps": 4, "tokens_per_batch": 128, "learning_rate": 1e-2, "lr_scheduler_type": "constant"}
    settings |= {"warmup_steps": 0, "logging_steps": 1, "eval_strategy": "no", "save_strategy": "no"}
    settings |= {"load_best_model_at_end": False, "use_cpu": True, "disable_tqdm": True, "num_samples_shown": 1}
    return TranslationTrainingArguments(output_dir=str(folder), **{**settings, **changes})


def score(sources: Sequence[str], hypotheses: Sequence[str], references: Sequence[str]) -> dict[str, float | str]:
    right = sum(hypothesis == reference for hypothesis, reference in zip(hypotheses, references, strict=True))
    return {"bleu": 100 * right / len(references), "bleu_signature": "exact match"}


def trainer(model: PreTrainedModel, data: PreparedData, tokenizer: Any, args: Any, **more: Any) -> TranslationTrainer:
    validation = with_texts(data, "validation")
    more = {"score": score, "eval_dataset": validation, **more}
    return TranslationTrainer(model, args, tokenizer, train_dataset=data.train, **more)


def curve(run: TranslationTrainer, *names: str) -> list[tuple[float, ...]]:
    return [tuple(row[name] for name in names) for row in run.state.log_history if "smoothed_loss" in row]


def weights(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    return {name: weight.clone() for name, weight in model.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# --- what a step learns


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_step_is_the_same_however_its_batch_is_split(
    name: str, smoothing: float, data: PreparedData, tokenizer: Any, tmp_path: Path
) -> None:
    curves = []
    for parts in (1, 4):
        args = arguments(tmp_path / str(parts), tokens_per_batch=256 // parts, gradient_accumulation_steps=parts)
        model = ours(label_smoothing=smoothing) if name == "hf_mt" else MODELS[name]()
        run = trainer(model, data, tokenizer, args, label_smoothing=smoothing)
        run.train()
        curves.append(curve(run, "loss", "smoothed_loss", "grad_norm", "accuracy"))
    assert len(curves[0]) == 4
    same_steps = 2 if name == "m2m100" else 4  # its key biases have no gradient but rounding, which AdamW enlarges
    one, other = (torch.tensor(found[:same_steps]) for found in curves)
    assert one == pytest.approx(other, rel=1e-4, abs=1e-5)


def test_the_stock_trainer_learns_something_else_when_the_batch_is_split(
    data: PreparedData, tokenizer: Any, tmp_path: Path
) -> None:
    norms = []
    for parts in (1, 4):
        args = arguments(tmp_path / str(parts), max_steps=1, gradient_accumulation_steps=parts)
        args.per_device_train_batch_size = 16 // parts
        run = Seq2SeqTrainer(marian(), args, TranslationCollator(tokenizer), data.train.remove_columns("length"))
        run.train()
        norms.append(run.state.log_history[0]["grad_norm"])
    assert norms[1] > 2 * norms[0]


def test_the_logged_loss_is_unsmoothed_and_the_smoothed_one_is_beside_it(
    data: PreparedData, tokenizer: Any, tmp_path: Path
) -> None:
    run = trainer(ours(label_smoothing=0.3), data, tokenizer, arguments(tmp_path, max_steps=1))
    model, batches = ours(label_smoothing=0.0), [run.data_collator(list(data.train))]
    sums = loss_sums(model.eval(), batches[0])
    run.args.tokens_per_batch = 100_000  # one batch: all pairs
    run.train()
    row = run.state.log_history[0]
    assert row["loss"] == pytest.approx(float(sums.nll / sums.num_tokens), rel=1e-5)
    assert row["accuracy"] == pytest.approx(float(sums.num_correct / sums.num_tokens))
    assert row["smoothed_loss"] != pytest.approx(row["loss"], rel=1e-3)


def test_sentences_can_be_counted_instead_of_tokens(data: PreparedData, tokenizer: Any, tmp_path: Path) -> None:
    run = trainer(ours(), data, tokenizer, arguments(tmp_path, tokens_per_batch=0, per_device_train_batch_size=7))
    sizes = [len(batch["labels"]) for batch in run.get_train_dataloader()]
    assert sorted(sizes)[2:] == [7] * (len(sizes) - 2) and sum(sizes) == 60
    by_tokens = trainer(ours(), data, tokenizer, arguments(tmp_path, tokens_per_batch=64))
    assert len({len(batch["labels"]) for batch in by_tokens.get_train_dataloader()}) > 2


def test_the_parameters_of_a_model_are_counted_once(data: PreparedData, tokenizer: Any, tmp_path: Path) -> None:
    run = trainer(ours(), data, tokenizer, arguments(tmp_path))
    batch = next(iter(run.get_train_dataloader()))
    operations = Seq2SeqTrainer.floating_point_ops(run, batch)
    assert run.floating_point_ops(batch) == operations > 0
    run.model.num_parameters = None
    assert run.floating_point_ops(batch) == operations
    with pytest.raises(TypeError):
        Seq2SeqTrainer.floating_point_ops(run, batch)


def sick_at(run: TranslationTrainer, *steps: int) -> TranslationTrainer:
    """The trainer, in which the loss of these steps is NaN."""
    healthy = run.compute_loss

    def compute_loss(model: Any, *args: Any, **kwargs: Any) -> Any:
        loss = healthy(model, *args, **kwargs)
        return loss * math.nan if run.state.global_step + 1 in steps and model.training else loss

    run.compute_loss = compute_loss
    return run


def test_a_step_that_is_not_finite_stops_training_before_it_does_harm(
    data: PreparedData, tokenizer: Any, tmp_path: Path
) -> None:
    two = trainer(ours(), data, tokenizer, arguments(tmp_path, max_steps=2))
    two.train()
    stopped = sick_at(trainer(ours(), data, tokenizer, arguments(tmp_path, max_steps=20)), 3)
    stopped.train()
    assert stopped.state.global_step == 3 and math.isnan(stopped.state.log_history[2]["smoothed_loss"])
    assert same(weights(stopped.model), weights(two.model))
    kept = [json.loads(line) for line in (tmp_path / "non_finite" / "step-3-process-0.jsonl").read_text().splitlines()]
    batch = list(TokenBatchSampler(pair_lengths(data.train), tokens_per_batch=128, seed=42))[2]
    assert [row["labels"] for row in kept] == [data.train[index]["labels"] for index in batch]
    assert all(row["source"] == row["target"] for row in kept)  # the task is to copy


@pytest.mark.parametrize("kept", [{}, {"muon": True}, {"ema_decay": 0.9}, {"max_grad_norm": 0.0}])
def test_skipped_steps_leave_no_trace(
    kept: dict[str, Any], data: PreparedData, tokenizer: Any, tmp_path: Path
) -> None:
    """A step in the wrong changes weights and moments; the runs below differ in nothing else."""
    settings = {"max_steps": 8, "non_finite_steps": "skip", **kept}
    skipping = sick_at(trainer(ours(), data, tokenizer, arguments(tmp_path, **settings)), 3, 4)
    skipping.train()
    rows = [row for row in skipping.state.log_history if "smoothed_loss" in row]
    assert len(rows) == 8 and rows[-1]["skipped_steps"] == 2
    assert [math.isnan(row["smoothed_loss"]) for row in rows] == [False, False, True, True] + [False] * 4
    assert all(weight.isfinite().all() for weight in skipping.model.parameters())
    stopped = trainer(ours(), data, tokenizer, arguments(tmp_path / "before", **{**settings, "max_steps": 2}))
    stopped.train()
    after = sick_at(trainer(ours(), data, tokenizer, arguments(tmp_path, **{**settings, "max_steps": 4})), 3, 4)
    after.train()
    assert same(weights(after.model), weights(stopped.model)), "neither gradient nor momentum nor decay moved them"
    spoilt = sick_at(trainer(ours(), data, tokenizer, arguments(tmp_path, **settings)), 3, 4)
    spoilt.non_finite.check = lambda *args: None  # control: without the check
    spoilt.train()
    assert not all(weight.isfinite().all() for weight in spoilt.model.parameters())


def test_skipping_ends_when_nothing_else_happens(data: PreparedData, tokenizer: Any, tmp_path: Path) -> None:
    args = arguments(tmp_path, max_steps=40, non_finite_steps="skip")
    run = sick_at(trainer(ours(), data, tokenizer, args), *range(5, 40))
    run.train()
    assert run.state.global_step == 4 + IN_A_ROW


# --- what an evaluation counts


@pytest.mark.parametrize("name", MODELS)
def test_every_example_is_counted_once_whatever_the_batches(
    name: str, data: PreparedData, tokenizer: Any, tmp_path: Path
) -> None:
    results = []
    for budget in (32, 10_000):
        run = trainer(MODELS[name](), data, tokenizer, arguments(tmp_path, eval_tokens_per_batch=budget))
        results.append((run.evaluate(), run.predict(run.eval_dataset)))
    (first, one), (second, other) = results
    for key in ("eval_loss", "eval_perplexity", "eval_accuracy", "eval_bleu", "eval_cut_off"):
        assert first[key] == pytest.approx(second[key], rel=1e-5), key
    assert one.predictions == other.predictions and len(one.predictions) == 13


def test_a_batch_of_an_evaluation_counts_every_beam(data: PreparedData, tokenizer: Any, tmp_path: Path) -> None:
    sizes = {}
    for beams, translated in ((1, True), (4, True), (4, False)):
        more = {"generation_num_beams": beams, "predict_with_generate": translated, "eval_tokens_per_batch": 80}
        run = trainer(ours(), data, tokenizer, arguments(tmp_path, **more))
        seen: list[int] = []
        run.model.get_encoder().register_forward_pre_hook(lambda _, inputs, seen=seen: seen.append(inputs[0].numel()))
        run.evaluate()
        sizes[beams, translated] = max(seen)
    longest = int(pair_lengths(run.eval_dataset).max())
    assert sizes[4, True] <= max(80 // 4, longest) < sizes[1, True] <= 80
    assert sizes[4, False] == sizes[1, True]  # a loss alone has no beams


def test_the_development_loss_is_a_mean_over_tokens_not_over_batches(
    data: PreparedData, tokenizer: Any, tmp_path: Path
) -> None:
    run = trainer(ours(), data, tokenizer, arguments(tmp_path, eval_tokens_per_batch=32))
    sums = [loss_sums(run.model.eval(), batch) for batch in run.get_eval_dataloader()]
    by_token = sum(float(s.nll) for s in sums) / sum(float(s.num_tokens) for s in sums)
    by_batch = sum(float(s.nll / s.num_tokens) for s in sums) / len(sums)
    assert run.evaluate()["eval_loss"] == pytest.approx(by_token, rel=1e-5)
    assert by_batch != pytest.approx(by_token, rel=1e-5)


def test_predictions_are_in_the_order_of_the_data(data: PreparedData, tokenizer: Any, tmp_path: Path) -> None:
    run = trainer(ours(), data, tokenizer, arguments(tmp_path, max_steps=150, learning_rate=5e-3))
    run.train()
    predictions = run.predict(run.eval_dataset).predictions
    targets = run.eval_dataset["target"]
    closeness = [[_overlap(p, t) for t in targets] for p in predictions]
    assert sum(row[i] for i, row in enumerate(closeness)) > sum(row[i - 1] for i, row in enumerate(closeness))


def _overlap(one: str, other: str) -> int:
    return sum(a == b for a, b in zip(one, other, strict=False))


def test_signatures_are_kept_out_of_the_log(data: PreparedData, tokenizer: Any, tmp_path: Path) -> None:
    run = trainer(ours(), data, tokenizer, arguments(tmp_path))
    metrics = run.evaluate()
    assert run.signatures == {"bleu_signature": "exact match"} and "eval_bleu" in metrics
    assert all(isinstance(value, int | float) for row in run.state.log_history for value in row.values())


def test_no_development_set_is_refused_unless_none_is_needed(
    data: PreparedData, tokenizer: Any, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="validation_file"):
        trainer(ours(), data, tokenizer, arguments(tmp_path, eval_strategy="epoch"), eval_dataset=None)
    trainer(ours(), data, tokenizer, arguments(tmp_path), eval_dataset=None).train()


# --- what is kept


CHECKPOINTED = {"eval_strategy": "steps", "eval_steps": 3, "save_strategy": "steps", "save_steps": 3}


@pytest.mark.parametrize("kept", [{}, {"ema_decay": 0.9}, {"muon": True}, {"r_drop_start": 0.8}])
def test_a_resumed_run_becomes_the_uninterrupted_one(
    kept: dict[str, Any], data: PreparedData, tokenizer: Any, tmp_path: Path
) -> None:
    model = partial(_with_dropout, 5.0 if "r_drop_start" in kept else 0.0)
    settings = {**CHECKPOINTED, **kept, "gradient_accumulation_steps": 2, "tokens_per_batch": 64}
    whole = trainer(model(), data, tokenizer, arguments(tmp_path / "whole", max_steps=9, **settings))
    whole.train()
    checkpoint = str(tmp_path / "whole" / "checkpoint-6")
    resumed = trainer(model(), data, tokenizer, arguments(tmp_path / "again", max_steps=9, **settings))
    resumed.train(resume_from_checkpoint=checkpoint)
    assert same(weights(whole.model), weights(resumed.model))
    assert curve(whole, "loss", "grad_norm")[-3:] == curve(resumed, "loss", "grad_norm")[-3:]
    fresh_order = trainer(
        model(), data, tokenizer, arguments(tmp_path / "other", max_steps=9, data_seed=7, **settings)
    )
    fresh_order.train(resume_from_checkpoint=checkpoint)
    assert not same(weights(whole.model), weights(fresh_order.model))


def test_evaluating_changes_nothing_of_training(data: PreparedData, tokenizer: Any, tmp_path: Path) -> None:
    ends = []
    for every in (1, 4, 8):
        settings = {"max_steps": 8, "eval_strategy": "steps", "eval_steps": every}
        run = trainer(_with_dropout(), data, tokenizer, arguments(tmp_path, **settings))
        run.train()
        ends.append(weights(run.model))
    assert same(ends[0], ends[1]) and same(ends[1], ends[2])


@pytest.mark.parametrize("strategy, delay, steps", [("steps", 7, [9]), ("epoch", 2, [12]), ("epoch", 0, [6, 12])])
def test_an_evaluation_that_is_not_due_is_not_made_up_for(
    strategy: str, delay: int, steps: list[int], data: PreparedData, tokenizer: Any, tmp_path: Path
) -> None:
    settings = {**CHECKPOINTED, "eval_strategy": strategy, "eval_delay": delay, "max_steps": max(steps)}
    run = trainer(ours(), data, tokenizer, arguments(tmp_path, **settings))
    run.train()
    assert [step for step, *_ in _scores(run)] == steps


@pytest.mark.parametrize("moment", ["a step", "a step before an evaluation", "an evaluation"])
def test_sigterm_saves_where_it_comes_and_nothing_is_lost(
    moment: str, data: PreparedData, tokenizer: Any, tmp_path: Path
) -> None:
    settings = {**CHECKPOINTED, "max_steps": 9, "ema_decay": 0.9}
    whole = trainer(_with_dropout(), data, tokenizer, arguments(tmp_path / "whole", **settings))
    whole.train()
    stopped = trainer(_with_dropout(), data, tokenizer, arguments(tmp_path / "cut", **settings))
    name = "_evaluate_batch" if moment == "an evaluation" else "compute_loss"
    step = 4 if moment == "a step" else 6
    _signal_in(stopped, name, step)
    handler = signal.getsignal(signal.SIGTERM)
    stopped.train()
    assert stopped.interruption.happened and stopped.state.global_step == step
    assert signal.getsignal(signal.SIGTERM) == handler
    resumed = trainer(_with_dropout(), data, tokenizer, arguments(tmp_path / "cut", **settings))
    resumed.train(resume_from_checkpoint=last_checkpoint(tmp_path / "cut"))
    assert same(weights(whole.model), weights(resumed.model))
    assert _scores(whole) == _scores(resumed) and len(_scores(whole)) == 3
    assert whole.state.best_global_step == resumed.state.best_global_step


def test_sigterm_leaves_the_mean_of_checkpoints_as_it_is(
    data: PreparedData, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    averaged = []
    mean = training.average_checkpoints
    monkeypatch.setattr(
        training,
        "average_checkpoints",
        lambda folders: averaged.append([folder.name for folder in folders]) or mean(folders),
    )
    settings = {**CHECKPOINTED, "max_steps": 9, "average_checkpoints": 2}
    trainer(ours(), data, tokenizer, arguments(tmp_path / "whole", **settings)).train()
    for step in (5, 8):
        stopped = trainer(ours(), data, tokenizer, arguments(tmp_path / "cut", **settings))
        _signal_in(stopped, "compute_loss", step)
        stopped.train(resume_from_checkpoint=last_checkpoint(tmp_path / "cut"))
        assert (tmp_path / "cut" / f"checkpoint-{step}").is_dir()
    resumed = trainer(ours(), data, tokenizer, arguments(tmp_path / "cut", **settings))
    resumed.train(resume_from_checkpoint=last_checkpoint(tmp_path / "cut"))
    assert averaged == [["checkpoint-6", "checkpoint-9"]] * 2


def test_numbers_logged_after_an_interruption_are_of_all_their_steps(
    data: PreparedData, tokenizer: Any, tmp_path: Path
) -> None:
    settings = {**CHECKPOINTED, "max_steps": 9, "logging_steps": 4}
    whole = trainer(ours(), data, tokenizer, arguments(tmp_path, **settings))
    whole.train()
    resumed = trainer(ours(), data, tokenizer, arguments(tmp_path / "again", **settings))
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    assert curve(whole, "loss", "accuracy", "padding_share") == curve(resumed, "loss", "accuracy", "padding_share")
    seconds = [sum(row.get("train_seconds", 0) for row in run.state.log_history) for run in (whole, resumed)]
    forgetful = trainer(ours(), data, tokenizer, arguments(tmp_path / "other", **settings))
    forgetful.meter.go_on = lambda unread: None  # control
    forgetful.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    assert curve(whole, "loss") != curve(forgetful, "loss") and min(seconds) > 0


def test_a_run_that_was_killed_after_its_last_checkpoint_takes_no_further_step(
    data: PreparedData, tokenizer: Any, tmp_path: Path
) -> None:
    settings = {**CHECKPOINTED, "max_steps": 3}  # within an epoch
    whole = trainer(_with_dropout(), data, tokenizer, arguments(tmp_path, **settings))
    whole.train()
    resumed = trainer(_with_dropout(), data, tokenizer, arguments(tmp_path, **settings))
    resumed.train(resume_from_checkpoint=last_checkpoint(tmp_path))
    assert resumed.state.global_step == 3 and same(weights(whole.model), weights(resumed.model))
    assert _scores(whole) == _scores(resumed) and [path.name for path in checkpoints(tmp_path)] == ["checkpoint-3"]


@pytest.mark.parametrize(
    "settings",
    [
        {"max_steps": 4},
        {"num_train_epochs": 1, "max_steps": -1, "eval_strategy": "epoch"},
        {"max_steps": 4, "eval_strategy": "epoch"},  # ends within an epoch
    ],
)
def test_sigterm_in_the_last_evaluation_is_made_up_for(
    settings: dict[str, Any], data: PreparedData, tokenizer: Any, tmp_path: Path
) -> None:
    settings = {**CHECKPOINTED, **settings}
    whole = trainer(ours(), data, tokenizer, arguments(tmp_path / "whole", **settings))
    whole.train()
    last = whole.state.global_step
    for _ in range(2):  # the second time in the evaluation that is made up for
        cut = trainer(ours(), data, tokenizer, arguments(tmp_path / "cut", **settings))
        _signal_in(cut, "_evaluate_batch", last)
        cut.train(resume_from_checkpoint=last_checkpoint(tmp_path / "cut"))
        assert cut.interruption.happened and cut.state.global_step == last
    resumed = trainer(ours(), data, tokenizer, arguments(tmp_path / "cut", **settings))
    resumed.train(resume_from_checkpoint=last_checkpoint(tmp_path / "cut"))
    assert _scores(whole) == _scores(resumed) and _scores(whole)[-1][0] == last
    assert whole.state.best_global_step == resumed.state.best_global_step


def test_sigterm_while_the_last_checkpoint_is_written(data: PreparedData, tokenizer: Any, tmp_path: Path) -> None:
    run = trainer(ours(), data, tokenizer, arguments(tmp_path, **CHECKPOINTED, max_steps=3))
    _signal_in(run, "_save_state", 3)
    run.train()
    assert run.interruption.happened and [path.name for path in checkpoints(tmp_path)] == ["checkpoint-3"]


def test_sigterm_after_the_checkpoint_of_a_step_writes_no_other(
    data: PreparedData, tokenizer: Any, tmp_path: Path
) -> None:
    settings = {**CHECKPOINTED, "save_steps": 1, "eval_strategy": "epoch", "num_train_epochs": 1, "max_steps": -1}
    trainer(ours(), data, tokenizer, arguments(tmp_path / "whole", **settings)).train()
    last = max(int(folder.name[11:]) for folder in checkpoints(tmp_path / "whole"))
    run = trainer(ours(), data, tokenizer, arguments(tmp_path / "cut", **settings))
    _signal_in(run, "_evaluate_batch", last)
    saved, save = [], run._save_state
    run._save_state = lambda folder: saved.append(run.state.global_step) or save(folder)
    run.train()
    assert run.interruption.happened and saved == [*range(1, last + 1)]
    assert not run.state.stateful_callbacks.get(UNPLANNED)


def test_a_checkpoint_that_turns_out_the_best_was_planned(data: PreparedData, tokenizer: Any, tmp_path: Path) -> None:
    settings = {**CHECKPOINTED, "eval_steps": 2, "save_steps": 6, "max_steps": 6, "load_best_model_at_end": True}
    cut = trainer(ours(), data, tokenizer, arguments(tmp_path, **settings), score=scores_in_turn(1))
    _signal_in(cut, "_evaluate_batch", 4)
    cut.train()
    assert cut.state.stateful_callbacks[UNPLANNED] == ["checkpoint-4"]
    resumed = trainer(ours(), data, tokenizer, arguments(tmp_path, **settings), score=scores_in_turn(9, 2))
    resumed.train(resume_from_checkpoint=last_checkpoint(tmp_path))
    assert resumed.state.best_global_step == 4 and resumed.state.stateful_callbacks[UNPLANNED] == []


def test_pairs_that_are_cut_otherwise_are_refused(data: PreparedData, tokenizer: Any, tmp_path: Path) -> None:
    settings = {**CHECKPOINTED, "eval_strategy": "no"}
    trainer(ours(), data, tokenizer, arguments(tmp_path, max_steps=3, **settings)).train()
    checkpoint = last_checkpoint(tmp_path)
    trainer(ours(), data, tokenizer, arguments(tmp_path, max_steps=4, **settings)).train(
        resume_from_checkpoint=checkpoint
    )  # control
    other = replace(data, train=data.train.select(range(len(data.train) - 1, -1, -1)))
    with pytest.raises(InputError, match="cut into other tokens than when this run began"):
        trainer(ours(), other, tokenizer, arguments(tmp_path, max_steps=5, **settings)).train(
            resume_from_checkpoint=checkpoint
        )


@pytest.mark.parametrize(
    "form, before", [("optimizer.bin", "FSDP"), ("global_step3", "DeepSpeed"), ("optimizer.pt", "neither")]
)
def test_a_checkpoint_of_another_kind_of_start_is_refused(form: str, before: str, tmp_path: Path) -> None:
    (tmp_path / form).mkdir()
    for fsdp, deepspeed in ((True, False), (False, True), (False, False)):
        now = "FSDP" if fsdp else "DeepSpeed" if deepspeed else "neither"
        refused = pytest.raises(InputError, match=f"was written under {before}.*this start is under {now}")
        with nullcontext() if now == before else refused:
            check_same_kind(tmp_path, fsdp, deepspeed)


def _signal_in(run: TranslationTrainer, name: str, step: int) -> None:
    """Sends SIGTERM to this process in a call of a method at a step, once."""
    method = getattr(run, name)

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        at = run.state.global_step + (name == "compute_loss")
        if at == step and not run.interruption.requested:
            for _ in range(2):  # schedulers and launchers signal a process once each
                os.kill(os.getpid(), signal.SIGTERM)
        return method(*args, **kwargs)

    setattr(run, name, wrapped)


def _scores(run: TranslationTrainer) -> list[tuple[float, ...]]:
    return [(row["step"], row["eval_loss"], row["eval_bleu"]) for row in run.state.log_history if "eval_loss" in row]


def test_a_resumed_run_does_not_read_what_it_skips(data: PreparedData, tokenizer: Any, tmp_path: Path) -> None:
    settings = {**CHECKPOINTED, "max_steps": 8, "tokens_per_batch": 64, "eval_strategy": "no"}
    reads: dict[str, list[int]] = {}
    for name, checkpoint in (("whole", None), ("resumed", str(tmp_path / "whole" / "checkpoint-6"))):
        run = trainer(ours(), data, tokenizer, arguments(tmp_path / name, **settings))
        collate, reads[name] = run.data_collator, []
        run.data_collator = lambda rows, name=name, collate=collate: reads[name].append(len(rows)) or collate(rows)
        run.train(resume_from_checkpoint=checkpoint)
    assert len(reads["whole"]) >= 8 and len(reads["resumed"]) <= len(reads["whole"]) - 6


def _with_dropout(r_drop: float = 0.0) -> PreTrainedModel:
    model = ours()
    model.config.r_drop = model.r_drop = r_drop
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.1
    return model


def test_what_is_evaluated_and_kept_is_the_moving_average(data: PreparedData, tokenizer: Any, tmp_path: Path) -> None:
    args = arguments(tmp_path, max_steps=6, ema_decay=0.95, **CHECKPOINTED)
    run = trainer(ours(), data, tokenizer, args)
    run.train()
    kept = checkpoint_weights(tmp_path / "checkpoint-6")
    live = {name: weight for name, weight in run.model.state_dict().items() if name in kept}
    assert all(torch.allclose(live[name], kept[name]) for name in kept)
    (tmp_path / "checkpoint-6" / MOVING_AVERAGE_NAME).unlink()
    plain = checkpoint_weights(tmp_path / "checkpoint-6")
    assert not all(torch.allclose(live[name], plain[name]) for name in plain)
    last = [row for row in run.state.log_history if "eval_loss" in row][-1]
    assert run.evaluate()["eval_loss"] == pytest.approx(last["eval_loss"], rel=1e-5)


def test_the_best_checkpoint_is_loaded_not_the_last(data: PreparedData, tokenizer: Any, tmp_path: Path) -> None:
    settings = {**CHECKPOINTED, "metric_for_best_model": "loss", "load_best_model_at_end": True}
    settings |= {"greater_is_better": False, "save_total_limit": 1, "learning_rate": 5.0, "max_steps": 12}
    run = trainer(ours(), data, tokenizer, arguments(tmp_path, **settings))
    run.train()  # far too fast: the loss rises
    losses = {row["step"]: row["eval_loss"] for row in run.state.log_history if "eval_loss" in row}
    assert min(losses, key=lambda step: losses[step]) == run.state.best_global_step != 12
    assert run.evaluate()["eval_loss"] == pytest.approx(min(losses.values()), rel=1e-5)


def scores_in_turn(*values: float) -> Any:
    turn = iter(values)
    return lambda *texts: {"bleu": next(turn)}


def test_the_best_is_kept_also_between_checkpoints(data: PreparedData, tokenizer: Any, tmp_path: Path) -> None:
    settings = {**CHECKPOINTED, "eval_steps": 1, "load_best_model_at_end": True, "metric_for_best_model": "bleu"}
    run = trainer(ours(), data, tokenizer, arguments(tmp_path, max_steps=6, save_total_limit=1, **settings),
                  score=scores_in_turn(5, 9, 2, 3, 4, 5))  # fmt: skip
    run.train()
    kept = [path.name for path in checkpoints(tmp_path)]
    assert run.state.best_global_step == 2 and kept == ["checkpoint-2", "checkpoint-6"]
    best = checkpoint_weights(tmp_path / "checkpoint-2")
    assert all(torch.equal(run.model.state_dict()[name], best[name]) for name in best)


def test_the_best_is_found_in_a_folder_that_was_moved(data: PreparedData, tokenizer: Any, tmp_path: Path) -> None:
    settings = {**CHECKPOINTED, "load_best_model_at_end": True, "metric_for_best_model": "bleu", "max_steps": 6}
    first = trainer(ours(), data, tokenizer, arguments(tmp_path / "here", **settings), score=scores_in_turn(9, 1))
    first.train()
    (tmp_path / "here").rename(tmp_path / "there")
    run = trainer(ours(), data, tokenizer, arguments(tmp_path / "there", **settings))
    run.train(resume_from_checkpoint=str(tmp_path / "there" / "checkpoint-6"))
    assert same(weights(run.model), weights(first.model))
    best, last = (checkpoint_weights(tmp_path / "there" / f"checkpoint-{step}") for step in (3, 6))
    assert all(torch.equal(run.model.state_dict()[name], best[name]) for name in best)
    assert not all(torch.equal(last[name], best[name]) for name in best)


def test_how_often_is_what_is_asked_for_now(data: PreparedData, tokenizer: Any, tmp_path: Path) -> None:
    trainer(ours(), data, tokenizer, arguments(tmp_path, max_steps=6, **CHECKPOINTED)).train()
    settings = {**CHECKPOINTED, "eval_steps": 2, "save_steps": 2}
    run = trainer(ours(), data, tokenizer, arguments(tmp_path, max_steps=10, **settings))
    run.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    assert [row["step"] for row in run.state.log_history if "eval_loss" in row] == [3, 6, 8, 10]


def test_weights_alone_are_averaged_and_not_gone_on_from(data: PreparedData, tokenizer: Any, tmp_path: Path) -> None:
    settings = {**CHECKPOINTED, "max_steps": 3, "save_only_model": True, "ema_decay": 0.9}
    trainer(ours(), data, tokenizer, arguments(tmp_path, **settings)).train()
    checkpoint = tmp_path / "checkpoint-3"
    assert (checkpoint / MOVING_AVERAGE_NAME).is_file() and not (checkpoint / "optimizer.pt").exists()
    again = trainer(ours(), data, tokenizer, arguments(tmp_path, **{**settings, "max_steps": 6}))
    with pytest.raises(InputError, match="weights alone"):
        again.train(resume_from_checkpoint=str(checkpoint))


def test_the_start_is_evaluated_once(data: PreparedData, tokenizer: Any, tmp_path: Path) -> None:
    settings = {**CHECKPOINTED, "eval_on_start": True}
    first = trainer(ours(), data, tokenizer, arguments(tmp_path, max_steps=3, **settings))
    first.train()
    run = trainer(ours(), data, tokenizer, arguments(tmp_path, max_steps=6, **settings))
    run.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert [row["step"] for row in run.state.log_history if "eval_loss" in row] == [0, 3, 6]
    with pytest.raises(InputError, match="eval_on_start"):
        trainer(ours(), data, tokenizer, arguments(tmp_path, eval_on_start=True), eval_dataset=None)


@pytest.mark.parametrize("key, value", [("optim", "apollo_adamw"), ("lr_scheduler_type", "warmup_stable_decay")])
def test_what_transformers_cannot_make_is_named(
    key: str, value: str, data: PreparedData, tokenizer: Any, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=f"{key} is {value}"):
        trainer(ours(), data, tokenizer, arguments(tmp_path, **{key: value})).train()


@pytest.mark.parametrize("metric, mode", [("bleu", "max"), ("ter", "min"), ("numbers_lost", "min"), ("loss", "min")])
def test_a_plateau_is_one_of_the_metric(metric: str, mode: str, tmp_path: Path) -> None:
    settings = {"lr_scheduler_type": "reduce_lr_on_plateau", "metric_for_best_model": metric, "eval_strategy": "steps"}
    assert arguments(tmp_path, **settings).lr_scheduler_kwargs == {"mode": mode}
    own = arguments(tmp_path, **settings, lr_scheduler_kwargs={"mode": "min", "patience": 3})
    assert own.lr_scheduler_kwargs == {"mode": "min", "patience": 3}


def test_a_step_that_was_not_taken_is_no_checkpoint(data: PreparedData, tokenizer: Any, tmp_path: Path) -> None:
    args = arguments(tmp_path, max_steps=30, eval_strategy="epoch", save_strategy="epoch", max_grad_norm=0.0)
    run = trainer(ours(), data, tokenizer, args)
    spoil = run.compute_loss
    run.compute_loss = lambda *a, **k: spoil(*a, **k) * (math.nan if run.state.global_step == 1 else 1)
    run.train()
    assert run.non_finite.stopped and not checkpoints(tmp_path)
    assert not any("eval_loss" in row for row in run.state.log_history)


def test_early_stopping_waits_and_then_stops(data: PreparedData, tokenizer: Any, tmp_path: Path) -> None:
    settings = {**CHECKPOINTED, "metric_for_best_model": "loss", "load_best_model_at_end": True, "max_steps": 60}
    settings |= {"greater_is_better": False, "learning_rate": 5.0}
    stopped = trainer(ours(), data, tokenizer, arguments(tmp_path, early_stopping_patience=2, **settings))
    stopped.train()
    assert stopped.state.global_step == stopped.state.best_global_step + 6


def test_early_stopping_counts_on_after_an_interruption(data: PreparedData, tokenizer: Any, tmp_path: Path) -> None:
    settings = {**CHECKPOINTED, "metric_for_best_model": "loss", "load_best_model_at_end": True, "max_steps": 60}
    settings |= {"greater_is_better": False, "learning_rate": 5.0, "early_stopping_patience": 3}
    whole = trainer(ours(), data, tokenizer, arguments(tmp_path / "whole", **settings))
    whole.train()
    end = whole.state.global_step
    for step in (end - 3, end):  # before the last evaluation, and after it
        resumed = trainer(ours(), data, tokenizer, arguments(tmp_path / str(step), **settings))
        resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{step}"))
        assert resumed.state.global_step == end
    longer = trainer(ours(), data, tokenizer, arguments(tmp_path / "longer", **{**settings, "max_steps": 90}))
    longer.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{end}"))
    assert longer.state.global_step > end, "who asks for a longer training asks for new patience"


def test_the_mean_of_checkpoints_is_kept_only_if_it_is_better(
    data: PreparedData, tokenizer: Any, tmp_path: Path
) -> None:
    settings = {**CHECKPOINTED, "metric_for_best_model": "loss", "greater_is_better": False, "max_steps": 6}
    run = trainer(ours(), data, tokenizer, arguments(tmp_path, average_checkpoints=2, **settings))
    run.train()
    tried = [row["eval_loss"] for row in run.state.log_history if "eval_loss" in row]
    assert run.evaluate()["eval_loss"] == pytest.approx(min(tried[-2:]), rel=1e-5)


def test_only_the_publisher_pushes(data: PreparedData, tokenizer: Any, tmp_path: Path) -> None:
    pushed: list[str] = []
    settings = {**CHECKPOINTED, "max_steps": 3, "push_to_hub": True, "hub_model_id": "user/name"}
    publish = lambda folder: pushed.append(folder.name)  # noqa: E731
    trainer(ours(), data, tokenizer, arguments(tmp_path, **settings), publish=publish).train()
    trainer(ours(), data, tokenizer, arguments(tmp_path, hub_strategy="end", **settings), publish=publish).train()
    assert pushed == ["checkpoint-3"]
