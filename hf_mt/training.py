"""Training on `Seq2SeqTrainer`, and what its translation users need that it gets wrong or leaves out.

- One loss for every model, in sums over tokens: the gradient of a step is the same however its batch is split over
  micro-batches and processes, which transformers 5.23 does not guarantee for its own models.
- Batches by tokens, evaluation batches too; each example is translated once, whatever the number of processes.
- What is logged is the unsmoothed negative log-likelihood per target token; the optimized loss is beside it.
- Evaluation runs the encoder once, for loss and translation, with averaged weights where an average is kept.

A step reads from top to bottom: `get_train_dataloader`, `compute_loss`, `log`, `evaluation_loop`, checkpoints.
"""

import json
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list, gather_object
from datasets import Dataset
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import EarlyStoppingCallback, PreTrainedModel, PreTrainedTokenizerBase, Seq2SeqTrainer
from transformers.modeling_outputs import BaseModelOutput
from transformers.trainer_callback import PrinterCallback, ProgressCallback, TrainerCallback
from transformers.trainer_utils import EvalLoopOutput

from hf_mt.arguments import InputError, TranslationTrainingArguments
from hf_mt.averaging import MOVING_AVERAGE_NAME, MovingAverage, UpdateAverage, average_checkpoints
from hf_mt.batching import TokenBatchSampler, TranslationCollator
from hf_mt.data import PreparedData, SegmentedPairs, pair_lengths
from hf_mt.generation import generate_batch, is_search, length_limits
from hf_mt.hardware import side_by_side
from hf_mt.losses import loss_sums
from hf_mt.model.loss_hf_mt import LossSums
from hf_mt.optimizer import muon_for
from hf_mt.progress import Meter, ProgressLines


logger = logging.getLogger(__name__)

Scores = Mapping[str, float | str]


class TranslationTrainer(Seq2SeqTrainer):
    """Trains and evaluates any encoder-decoder model of transformers on sentence pairs.

    Args:
        model: Ours, or any model that `AutoModelForSeq2SeqLM` loads.
        args: Length of training, batches, learning rate, checkpoints.
        tokenizer: Saved with every checkpoint; turns translations into text.
        train_dataset: Rows with `input_ids`, `labels` and their lengths.
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
        train_dataset: Dataset | SegmentedPairs | None = None,
        eval_dataset: Dataset | None = None,
        score: Callable[[Sequence[str], Sequence[str], Sequence[str]], Scores] | None = None,
        label_smoothing: float = 0.0,
        publish: Callable[[Path], object] | None = None,
        callbacks: Sequence[TrainerCallback] = (),
    ):
        if eval_dataset is None and args.eval_strategy != "no":
            raise InputError(
                f"there is no development set to evaluate on (eval_strategy is {str(args.eval_strategy)!r}): give "
                "validation_file, or set eval_strategy to no and load_best_model_at_end to false"
            )
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
        self.model_accepts_loss_kwargs = True  # so that the labels of a whole step are counted, for any model
        self.tokenizer = tokenizer
        self.score = score
        self.average = MovingAverage(model, args.ema_decay) if args.ema_decay else None
        self.meter = Meter(args.device)
        self.signatures: dict[str, str] = {}
        self.lines = ProgressLines(eval_dataset)
        self._add_callbacks(args)

    def _add_callbacks(self, args: TranslationTrainingArguments) -> None:
        for unwanted in (PrinterCallback, ProgressCallback):
            self.remove_callback(unwanted)
        self.add_callback(self.lines)
        if args.early_stopping_patience:
            self.add_callback(EarlyStoppingCallback(args.early_stopping_patience))
        if self.average is not None:
            self.add_callback(UpdateAverage(self.average))

    # ---- batches

    def get_train_dataloader(self) -> DataLoader:
        """Token-budget batches, shuffled by seed and epoch, dealt to the processes by Accelerate."""
        args: TranslationTrainingArguments = self.args
        self.train_sampler = training_sampler(self.train_dataset, args)
        self.train_sampler.check_same_everywhere()
        loader = DataLoader(
            self.train_dataset,
            batch_sampler=self.train_sampler,
            collate_fn=self.data_collator,
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory and args.device.type == "cuda",
            persistent_workers=args.dataloader_persistent_workers,
            prefetch_factor=args.dataloader_prefetch_factor,
        )
        self.accelerator.even_batches = False  # the sampler deals evenly by itself, and repeats nothing
        return self.accelerator.prepare(loader)

    def _run_epoch(self, *, epoch: int, **kwargs: Any) -> None:
        self.train_sampler.set_epoch(epoch)  # Accelerate's wrappers don't pass it on when an epoch is resumed
        super()._run_epoch(epoch=epoch, **kwargs)

    def get_eval_dataloader(self, eval_dataset: Dataset | str | None = None) -> DataLoader:
        """This process's share of the batches: longest first, each example in one batch of one process."""
        dataset = eval_dataset if isinstance(eval_dataset, Dataset) else self.eval_dataset
        sampler = TokenBatchSampler(pair_lengths(dataset), tokens_per_batch=self._eval_budget(dataset), shuffle=False)
        batches = list(sampler)[self.args.process_index :: self.args.world_size]
        return DataLoader(dataset, batch_sampler=batches, collate_fn=self.data_collator)

    def get_test_dataloader(self, test_dataset: Dataset) -> DataLoader:
        return self.get_eval_dataloader(test_dataset)

    def _eval_budget(self, dataset: Dataset) -> int:
        """Test data is never dropped, so that its longest sentence gets a batch of its own if need be."""
        return max(self.args.eval_tokens_per_batch, int(pair_lengths(dataset).max()))

    # ---- optimizer and loss

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """AdamW, or what `optim` names; with `muon` its own for the matrices of the layers."""
        if self.args.muon and self.optimizer is None:
            self.optimizer = muon_for(self.model, self.args, self.get_decay_parameter_names(self.model))
        return super().create_optimizer(model)

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

    def log(self, logs: dict[str, Any], start_time: float | None = None) -> None:
        """Numbers only; the training loss becomes that per token, unsmoothed, and its company is added."""
        if "loss" in logs:
            logs["smoothed_loss"] = logs.pop("loss")
            logs.update(self.meter.read(self.accelerator))
            self._stop_if_diverged(logs)
        elif "train_runtime" in logs:  # the end: steps since the last line of the log
            logs["train_seconds"] = self.meter.read(self.accelerator)["train_seconds"]
        numbers = {name: value for name, value in logs.items() if not isinstance(value, str)}
        super().log(numbers, start_time)
        logs.update(numbers)

    def _stop_if_diverged(self, logs: Mapping[str, Any]) -> None:
        if not math.isfinite(logs["smoothed_loss"]):
            logger.error("The loss is %s at step %d: stopping.", logs["smoothed_loss"], self.state.global_step)
            self.control.should_training_stop = True

    # ---- evaluation

    def averaged_weights(self) -> AbstractContextManager[None]:
        """Within the block the model has the weights to evaluate and to publish."""
        return self.average.applied() if self.average is not None and self.is_in_train else nullcontext()

    @contextmanager
    def _off_the_clock(self) -> Iterator[None]:
        """Keeps the time of evaluations and checkpoints out of training speed."""
        start = time.perf_counter()
        yield
        self.meter.pause(time.perf_counter() - start)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Loss, perplexity, accuracy and, by translating, scores; see `evaluation_loop`."""
        if self.is_in_train:
            self.lines.training = self.meter.read(self.accelerator, "evaluation")
        with self._off_the_clock(), self.averaged_weights():
            return super().evaluate(*args, **kwargs)

    def evaluation_loop(
        self,
        dataloader: DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Loss sums and translations of this process's batches, then of all processes, then scores.

        Returns:
            `predictions`: one text for each example, in the order of the data set, on every process. Metrics, with the
            prefix: loss (nats per token, unsmoothed), perplexity, accuracy, cut_off (share of translations that hit
            their length limit), and what `score` gives.
        """
        model = self.accelerator.unwrap_model(self.model).eval()
        totals, rows = torch.zeros(3, device=self.args.device), []
        run = side_by_side if self.args.device.type == "cpu" and is_search(model, self._gen_kwargs) else map
        batches = zip(dataloader.batch_sampler, dataloader, strict=True)
        for sums, translations in run(lambda batch: self._evaluate_batch(model, *batch), batches):
            totals += torch.stack((sums.nll, sums.num_correct, sums.num_tokens))
            rows += translations
        rows = sorted(gather_object(rows))
        totals = self.accelerator.reduce(totals)
        metrics = self._metrics(totals.tolist(), rows, dataloader.dataset)
        texts = self.lines.translations = [text for _, text, _ in rows]
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
        return EvalLoopOutput(texts, None, metrics, num_samples=len(dataloader.dataset))

    @torch.no_grad()
    def _evaluate_batch(
        self, model: PreTrainedModel, indices: Sequence[int], batch: Mapping[str, Tensor]
    ) -> tuple[LossSums, list[tuple[int, str, bool]]]:
        """Loss sums of a batch, and its translations if they are wanted; the encoder runs once for both."""
        batch = self._prepare_inputs(batch)
        with self.accelerator.autocast():
            encoded = model.get_encoder()(batch["input_ids"], attention_mask=batch["attention_mask"])
            sums = loss_sums(model, {**batch, "encoder_outputs": encoded})
            wanted = self.args.predict_with_generate
            return sums, self._translate(model, batch, encoded, indices) if wanted else []

    def _translate(
        self, model: PreTrainedModel, batch: Mapping[str, Tensor], encoded: BaseModelOutput, indices: Sequence[int]
    ) -> list[tuple[int, str, bool]]:
        """Index in the data set, translation, and whether it ended by itself, for each sentence of a batch."""
        generated = generate_batch(
            model,
            batch["input_ids"],
            batch["attention_mask"],
            encoder_outputs=encoded,
            limits=length_limits(batch["attention_mask"]),
            **self._gen_kwargs,
        )
        texts = self.tokenizer.batch_decode(generated.sequences, skip_special_tokens=True)
        return list(zip(indices, texts, generated.finished.tolist(), strict=True))

    def _metrics(
        self, totals: Sequence[float], rows: Sequence[tuple[int, str, bool]], dataset: Dataset
    ) -> dict[str, float]:
        """Everything known about one evaluation; scores are computed by one process and told to the others."""
        nll, num_correct, num_tokens = totals
        loss = nll / num_tokens
        metrics: dict[str, Any] = {
            "loss": loss,
            "perplexity": math.exp(min(loss, 700)),
            "accuracy": num_correct / num_tokens,
        }
        if not rows:
            return metrics
        metrics["cut_off"] = sum(not finished for _, _, finished in rows) / len(rows)
        scores: list[Any] = [None]
        if self.score is not None:
            if self.is_world_process_zero():
                scores = [dict(self.score(dataset["source"], [text for _, text, _ in rows], dataset["target"]))]
            broadcast_object_list(scores)
            self.signatures.update({k: v for k, v in scores[0].items() if isinstance(v, str)})
            metrics.update({k: v for k, v in scores[0].items() if not isinstance(v, str)})
        return metrics

    # ---- checkpoints

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        with self._off_the_clock():
            super()._save_checkpoint(model, trial)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.average is not None and self.args.should_save:
            self.average.save(Path(output_dir))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if self.average is not None and checkpoint is not None:
            self.average.load(Path(checkpoint))

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Tied weights are saved once, and are not missing."""
        tied = self.accelerator.unwrap_model(self.model).all_tied_weights_keys
        load_result.missing_keys[:] = [name for name in load_result.missing_keys if name not in tied]
        super()._issue_warnings_after_load(load_result)

    def _load_best_model(self) -> None:
        super()._load_best_model()
        best = Path(self.state.best_model_checkpoint)
        if self.average is not None and (best / MOVING_AVERAGE_NAME).is_file():
            self.average.load(best)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As `Trainer.train`; afterwards the model has the weights to keep: best, moving average, or mean of the last
        checkpoints where that is better on the development set."""
        output = super().train(*args, **kwargs)
        if self.average is not None:
            self.average.copy_to_model()
        if self.args.average_checkpoints > 1:
            self._try_mean_of_checkpoints()
        return output

    def _try_mean_of_checkpoints(self) -> None:
        """Keeps the mean of the last checkpoints if it does better than the model at hand."""
        folders = checkpoints(Path(self.args.output_dir))[-self.args.average_checkpoints :]
        metric, sign = self.args.metric_for_best_model, 1 if self.args.greater_is_better else -1
        metric = f"eval_{metric.removeprefix('eval_')}"
        model = self.accelerator.unwrap_model(self.model)
        kept = {name: weight.clone() for name, weight in model.state_dict().items()}
        before = self.evaluate()[metric]
        model.load_state_dict(average_checkpoints(folders), strict=False)
        after = self.evaluate()[metric]
        if sign * after <= sign * before:
            model.load_state_dict(kept)
        logger.warning("Mean of %d checkpoints: %s %.4f, best %.4f", len(folders), metric, after, before)

    # ---- pushing: what loads, and nothing else

    def init_hf_repo(self, *args: Any, **kwargs: Any) -> None:
        """`publish` makes the repository."""

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """`hf_mt.hub` writes the card, from more than the trainer knows."""

    def push_to_hub(self, *args: Any, **kwargs: Any) -> None:
        """Publishes the run folder, by the allow-list of `hf_mt.hub`."""
        self._publish(Path(self.args.output_dir))

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if self.args.hub_strategy != "end":
            self._publish(Path(checkpoint_folder))

    def _publish(self, folder: Path) -> None:
        if self.publish is not None and self.is_world_process_zero():
            self.publish(folder)


def with_texts(data: PreparedData, split: str) -> Dataset | None:
    """A validation or test set as the trainer wants it, token ids beside the texts they come from; None if absent."""
    tokenized = {"validation": data.validation, "test": data.test}[split]
    if tokenized is None:
        return None
    return tokenized.add_column("source", data.sources[split]).add_column("target", data.references[split])


def training_sampler(dataset: Dataset | SegmentedPairs, args: TranslationTrainingArguments) -> TokenBatchSampler:
    """The batches of training: by tokens, or by sentences as long as the arguments say so."""
    lengths, budget = pair_lengths(dataset), args.tokens_per_batch
    if args.sentences_per_batch is not None:  # a sentence is one unit, whatever its length
        lengths, budget = lengths * 0 + 1, args.sentences_per_batch
    return TokenBatchSampler(
        lengths,
        tokens_per_batch=budget,
        num_parts=args.world_size * args.gradient_accumulation_steps,
        seed=args.data_seed if args.data_seed is not None else args.seed,
    )


def checkpoints(run_folder: Path) -> list[Path]:
    """Whole checkpoints of a run, oldest first: those whose state can be read, and which is written last."""
    found = []
    for folder in run_folder.glob("checkpoint-*"):
        try:
            found.append((json.loads((folder / "trainer_state.json").read_text())["global_step"], folder))
        except (OSError, ValueError, KeyError):
            logger.warning("%s is not whole and is left out.", folder)
    return [folder for _, folder in sorted(found)]


def last_checkpoint(run_folder: Path) -> str | None:
    """Where to go on from; None to begin."""
    found = checkpoints(run_folder)
    return str(found[-1]) if found else None
