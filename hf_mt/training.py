"""Training on `Seq2SeqTrainer`, and what its translation users need that it gets wrong or leaves out.

- One loss for every model, in sums over tokens: the gradient of a step is the same however its batch is split over
  micro-batches and processes, which transformers 5.23 does not guarantee for its own models.
- Batches by tokens, evaluation batches too; each example is translated once, whatever the number of processes.
- What is logged is the unsmoothed negative log-likelihood per target token; the optimized loss is beside it.
- Evaluation runs the encoder once, for loss and translation, with averaged weights where an average is kept.

A step reads from top to bottom: `get_train_dataloader`, `compute_loss`, `log`, evaluation; what is saved is in
`checkpointing.py`.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import send_to_device
from datasets import Dataset
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.trainer_callback import PrinterCallback, ProgressCallback, TrainerCallback
from transformers.trainer_utils import IntervalStrategy

from hf_mt.arguments import TranslationTrainingArguments
from hf_mt.averaging import MovingAverage, UpdateAverage, average_checkpoints
from hf_mt.batching import TranslationCollator, training_sampler
from hf_mt.checkpointing import METER, CheckpointingTrainer
from hf_mt.checkpoints import checkpoints, state_without_code
from hf_mt.data import SegmentedPairs, pair_lengths
from hf_mt.early_stopping import EarlyStopping
from hf_mt.errors import InputError
from hf_mt.evaluation_loop import Scores
from hf_mt.experiment import check_decay
from hf_mt.interruption import EvaluationInterrupted, Interruption, leave_to_the_trainer
from hf_mt.losses import LateRDrop, loss_sums
from hf_mt.non_finite import NonFiniteSteps
from hf_mt.optimizer import muon_for
from hf_mt.pair_stream import PairStream
from hf_mt.progress import Meter, ProgressLines
from hf_mt.sharding import check_same_kind, check_sharding, load_whole, shard
from hf_mt.streaming import BatchStream, StreamProgress


logger = logging.getLogger(__name__)


@contextmanager
def _named(key: str, value: Any) -> Iterator[None]:
    """What transformers can't make of a setting is told with its name."""
    try:
        yield
    except (ImportError, TypeError, ValueError) as error:
        raise InputError(f"{key} is {getattr(value, 'value', value)}, which can't be had: {error}") from error


class TranslationTrainer(CheckpointingTrainer):
    """Trains and evaluates any encoder-decoder model of transformers on sentence pairs.

    Args:
        model: Ours, or any model that `AutoModelForSeq2SeqLM` loads.
        args: Length of training, batches, learning rate, checkpoints.
        tokenizer: Saved with every checkpoint; turns translations into text.
        train_dataset: Rows with `input_ids`, `labels` and their lengths, or a stream of them.
        eval_dataset: Rows with `input_ids` and `labels`, and the texts `source` and `target`; see `with_texts`.
        score: Scores of sources, hypotheses and references, as `hf_mt.slices.describe_outputs`; text values
            (signatures) are kept out of the log.
        label_smoothing: For models that bring no smoothing of their own; ours have it in their configuration.
        publish: Called with the folder of each checkpoint to push, if `push_to_hub` is set.
        callbacks: In addition to those that the arguments ask for.
    """

    optimizer: torch.optim.Optimizer | None
    loss_is_scaled_for_ga = True  # by `compute_loss`, over the whole step

    def __init__(
        self,
        model: PreTrainedModel,
        args: TranslationTrainingArguments,
        tokenizer: PreTrainedTokenizerBase,
        *,
        train_dataset: Dataset | SegmentedPairs | PairStream | None = None,
        eval_dataset: Dataset | None = None,
        score: Callable[[Sequence[str], Sequence[str], Sequence[str]], Scores] | None = None,
        label_smoothing: float = 0.0,
        publish: Callable[[Path], object] | None = None,
        callbacks: Sequence[TrainerCallback] = (),
    ):
        if eval_dataset is None and (args.eval_strategy != "no" or args.eval_on_start):
            raise InputError(
                f"there is no development set to evaluate on (eval_strategy is {str(args.eval_strategy)!r}): give "
                "validation_file, or a dataset_name with a validation split; or set eval_strategy to no, and "
                "load_best_model_at_end and eval_on_start to false"
            )
        check_sharding(args)
        if args.n_gpu > 1:  # transformers would spread each batch over them itself, by DataParallel
            logger.warning("One GPU of %d is used; for all of them: configs/accelerate/ddp.yaml", args.n_gpu)
            args._n_gpu = 1
        self.publish = publish
        self.label_smoothing = label_smoothing
        super().__init__(
            model=model,
            args=args,
            data_collator=TranslationCollator(tokenizer),
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=tokenizer,
            callbacks=list(callbacks),
        )
        shard(model, self.accelerator)
        self.model_accepts_loss_kwargs = True  # so that the labels of a whole step are counted, for any model
        self.tokenizer = tokenizer
        self.score = score
        self.average = MovingAverage(model, args.ema_decay) if args.ema_decay else None
        self.meter = Meter(args.device)
        self.signatures, self.saved_step = {}, None
        self.lines = ProgressLines(eval_dataset)
        self.interruption = Interruption(self.accelerator)
        self.stream = BatchStream(train_dataset, args) if isinstance(train_dataset, PairStream) else None
        self.non_finite = NonFiniteSteps(args.non_finite_steps, Path(args.output_dir), tokenizer)
        self._add_callbacks(args)

    def _add_callbacks(self, args: TranslationTrainingArguments) -> None:
        for unwanted in (PrinterCallback, ProgressCallback):
            self.remove_callback(unwanted)
        self.add_callback(self.lines)
        self.add_callback(self.interruption)
        if self.stream is not None:
            self.add_callback(StreamProgress(self.stream))
        if args.early_stopping_patience:
            self.add_callback(EarlyStopping(args.early_stopping_patience))
        if self.average is not None:
            self.add_callback(UpdateAverage(self.average, self.non_finite))
        if args.r_drop_start:
            self.add_callback(LateRDrop(args.r_drop_start))

    # ---- batches

    def get_train_dataloader(self) -> DataLoader:
        """Token-budget batches, shuffled by seed and epoch, dealt to the processes by Accelerate."""
        args: TranslationTrainingArguments = self.args
        pin = args.dataloader_pin_memory and args.device.type == "cuda"
        if self.stream is not None:  # deals to the processes itself; its loader must not draw from torch's generator
            own = {"collate_fn": self.data_collator, "pin_memory": pin, "generator": torch.Generator()}
            return DataLoader(self.stream, batch_size=None, **own)
        self.train_sampler = training_sampler(pair_lengths(self.train_dataset), args)
        self.train_sampler.check_same_everywhere()
        loader = DataLoader(
            self.train_dataset,
            batch_sampler=self.train_sampler,
            collate_fn=self.data_collator,
            num_workers=args.dataloader_num_workers,
            pin_memory=pin,
            persistent_workers=args.dataloader_persistent_workers,
            prefetch_factor=args.dataloader_prefetch_factor,
            multiprocessing_context=args.dataloader_multiprocessing_context,
            worker_init_fn=leave_to_the_trainer,
        )
        self.accelerator.even_batches = False  # the sampler deals evenly by itself, and repeats nothing
        self.accelerator.dataloader_config.non_blocking |= pin  # what is pinned is copied while other work goes on
        return self.accelerator.prepare(loader)

    def _run_epoch(self, *, epoch: int, **kwargs: Any) -> None:
        if self.stream is None:
            self.train_sampler.set_epoch(epoch)  # Accelerate's wrappers don't pass it on when an epoch is resumed
        else:
            kwargs["steps_trained_in_current_epoch"] = 0  # nothing to skip: it is where the checkpoint was
        self._make_up_for_evaluation(kwargs["trial"])
        if self.control.should_training_stop or self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True  # transformers would look only after one more step
        else:
            super()._run_epoch(epoch=epoch, **kwargs)

    def get_batch_samples(self, batches: Iterator[Any], number: int, device: torch.device) -> tuple[list[Any], Any]:
        if self.stream is not None:  # its loader is not one of Accelerate's, which send batches ahead themselves
            batches = (send_to_device(batch, device, non_blocking=device.type == "cuda") for batch in batches)
        self._step_batches, num_items = super().get_batch_samples(batches, number, device)  # kept if it goes wrong
        return self._step_batches, num_items

    @cached_property
    def _parameters_in_products(self) -> int:
        return self.model.num_parameters(exclude_embeddings=True)

    def floating_point_ops(self, inputs: dict[str, Tensor]) -> int:
        """As transformers', which goes through all modules of the model again for every micro-batch."""
        return 6 * inputs["input_ids"].numel() * self._parameters_in_products

    # ---- optimizer and loss

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """AdamW, or what `optim` names; with `muon` its own for the matrices of the layers."""
        if self.args.muon and self.optimizer is None:
            self.optimizer = muon_for(self.model, self.args, self.get_decay_parameter_names(self.model))
        with _named("optim", self.args.optim):
            return super().create_optimizer(model)

    def create_scheduler(self, num_training_steps: int, *args: Any, **kwargs: Any) -> Any:
        if not self.args.dry_run:  # whose few steps are the beginning of more
            warmup = self.args.get_warmup_steps(num_training_steps)
            check_decay(self.args.lr_scheduler_kwargs, warmup, num_training_steps)
        with _named("lr_scheduler_type", self.args.lr_scheduler_type):
            return super().create_scheduler(num_training_steps, *args, **kwargs)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, Any]:
        """Sum over the micro-batch, divided by the labels of the whole step, times the processes that average it."""
        sums = loss_sums(model, inputs, label_smoothing=self.label_smoothing)
        if model.training:
            self.meter.add(sums, inputs)
        loss = sums.loss / (sums.num_tokens if num_items_in_batch is None else num_items_in_batch)
        loss = loss * self.accelerator.num_processes
        return (loss, sums) if return_outputs else loss

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm)
        if self.accelerator.scaler is None:  # float16's own scaler skips steps as a matter of course
            step = (self._step_batches, self.state, self.control, self.args.process_index)
            self.non_finite.check(norm, model, *step)
        return norm

    def log(self, logs: dict[str, Any], start_time: float | None = None) -> None:
        """Numbers only; the training loss becomes that per token, unsmoothed, and its company is added."""
        if "loss" in logs:
            logs["smoothed_loss"] = logs.pop("loss")
            self._tr_loss.zero_()  # transformers subtracts it from itself, which a NaN survives
            logs.update(self.meter.read(self.accelerator))
            if self.stream is not None:
                logs |= {"pairs_read": self.stream.seen.counts.read, "pairs_kept": self.stream.seen.counts.kept}
            if self.non_finite.total:
                logs["skipped_steps"] = self.non_finite.total
        elif "train_runtime" in logs:  # the end: steps since the last line of the log
            logs["train_seconds"] = self.meter.read(self.accelerator)["train_seconds"]
        numbers = {name: value for name, value in logs.items() if not isinstance(value, str)}
        super().log(numbers, start_time)
        logs.update(numbers)

    # ---- evaluation

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Loss, perplexity, accuracy and, by translating, scores; see `evaluation_loop`."""
        unread: dict[str, list[float]] = {}
        if self.is_in_train:
            self.meter.drain(self.accelerator)
            unread = self.meter.unread()
            self.lines.training = self.meter.read(self.accelerator, "evaluation")
        averaged = self.average.applied() if self.average is not None and self.is_in_train else nullcontext()
        try:
            with self._off_the_clock(), averaged:
                return super().evaluate(*args, **kwargs)
        except EvaluationInterrupted:
            self.meter.go_on(unread)  # it is made up for when training goes on
            raise

    def _maybe_log_save_evaluate(self, tr_loss: Tensor, grad_norm: Any, model: nn.Module, trial: Any, *args: Any,
                                 **kwargs: Any) -> None:  # fmt: skip
        if self.non_finite.stopped:  # a step that was not taken is nothing to keep
            self.control.should_save = self.control.should_evaluate = False
        try:
            super()._maybe_log_save_evaluate(tr_loss, grad_norm, model, trial, *args, **kwargs)
        except EvaluationInterrupted:
            self.control.should_training_stop = True
            if self.saved_step != self.state.global_step:
                self.interruption.is_unplanned = not self.control.should_save
                self._save_checkpoint(model, trial)

    def _finalize_training(self, trial: Any, *args: Any) -> Any:
        if not self.interruption.agreed() and not self.non_finite.stopped:
            self._make_up_for_evaluation(trial)
        self._point_to_best(Path(self._get_output_dir(trial)))
        limit, self.args.save_total_limit = self.args.save_total_limit, None  # transformers would remove the last one
        try:
            return super()._finalize_training(trial, *args)
        finally:
            self.args.save_total_limit = limit

    def _init_training_state(self, max_steps: int, *args: Any) -> tuple[int, int]:
        """What is asked for now decides how often a run that goes on evaluates and saves; its meter goes on, too."""
        place = super()._init_training_state(max_steps, *args)
        self.state.compute_steps(self.args, max_steps)
        self.meter.go_on(self.state.stateful_callbacks.get(METER, {}))
        self._check_same_lengths()
        return place

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """The best weights are kept also where an evaluation is due and no checkpoint."""
        best = super()._determine_best_metric(metrics, trial)
        if best and self.args.load_best_model_at_end:
            self.control.should_save = True
        return best

    def _make_up_for_evaluation(self, trial: Any) -> None:
        """Evaluates at the step of the checkpoint that training goes on from, if SIGTERM came in the way then."""
        step, args = self.state.global_step, self.args
        if args.eval_strategy == IntervalStrategy.STEPS:
            last = step >= self.state.max_steps  # where transformers evaluates, too
            due = (step % self.state.eval_steps == 0 or last) and args.eval_delay <= step
        else:
            due = args.eval_strategy == IntervalStrategy.EPOCH
            due = due and (step >= self.state.max_steps or step % self._steps_per_epoch() == 0)
            due = due and args.eval_delay <= self.state.epoch
        done = any(row["step"] == step and "eval_loss" in row for row in self.state.log_history)
        if step and due and not done:
            best = self._determine_best_metric(self._evaluate(trial, None), trial)
            self._point_to_best(Path(self._get_output_dir(trial)))
            if best and args.load_best_model_at_end:  # for which a checkpoint would have been written anyway
                self._is_now_planned(step)

    def _steps_per_epoch(self) -> int:
        return len(self.train_sampler) // self.train_sampler.num_parts

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As `Trainer.train`; afterwards the model has the weights to keep: best, moving average, or mean of the last
        checkpoints where that is better on the development set."""
        output = None
        if kwargs.get("resume_from_checkpoint"):
            self.args.eval_on_start = False  # it was evaluated when it started
            check_same_kind(Path(kwargs["resume_from_checkpoint"]), self.is_fsdp_enabled, self.is_deepspeed_enabled)
        with state_without_code(), suppress(EvaluationInterrupted):  # of one that was made up for: nothing new to save
            output = super().train(*args, **kwargs)
        if self.interruption.agreed() or self.non_finite.stopped:
            return output
        if self.average is not None:
            self.average.copy_to_model()
        if self.args.average_checkpoints > 1:
            self._try_mean_of_checkpoints()
        return output

    def _try_mean_of_checkpoints(self) -> None:
        """Keeps the mean of the last checkpoints if it does better than the model at hand."""
        planned = [folder for folder in checkpoints(Path(self.args.output_dir)) if self._is_planned(folder)]
        folders = planned[-self.args.average_checkpoints :]
        metric, sign = self.args.metric_for_best_model, 1 if self.args.greater_is_better else -1
        metric = f"eval_{metric.removeprefix('eval_')}"
        model = self.accelerator.unwrap_model(self.model)
        kept = {name: weight.clone() for name, weight in model.state_dict().items()}
        before = self.evaluate()[metric]
        load_whole(model, average_checkpoints(folders))
        after = self.evaluate()[metric]
        if sign * after <= sign * before:
            model.load_state_dict(kept)
        logger.warning("Mean of %d checkpoints: %s %.4f, best %.4f", len(folders), metric, after, before)
