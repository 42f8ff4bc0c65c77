"""Evaluation within `Seq2SeqTrainer`: loss sums and translations of a development or test set, each example once.

- Batches are by tokens; what an example gives does not depend on its company or on the number of processes.
- The encoder runs once, for loss and translation.
- The loss is the unsmoothed negative log-likelihood per target token of the whole set, not a mean over batches.
- SIGTERM ends an evaluation between two batches; all processes agree on it before they go on together.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from accelerate.utils import broadcast_object_list, gather_object
from datasets import Dataset
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Seq2SeqTrainer
from transformers.modeling_outputs import BaseModelOutput
from transformers.trainer_utils import EvalLoopOutput

from hf_mt.batching import TokenBatchSampler
from hf_mt.data import PreparedData, pair_lengths
from hf_mt.generation import generate_batch, length_limits, uses_own_search
from hf_mt.hardware import map_in_threads, release_freed_memory
from hf_mt.interruption import EvaluationInterrupted, Interruption
from hf_mt.losses import loss_sums
from hf_mt.model.loss_hf_mt import LossSums
from hf_mt.progress import ProgressLines
from hf_mt.sharding import whole_model


Scores = Mapping[str, float | str]
Row = tuple[int, str, bool]  # index in the data set, translation, and whether it ended by itself


class TranslationEvaluator(Seq2SeqTrainer):
    """The half of `TranslationTrainer` that evaluates; it sets the attributes below."""

    tokenizer: PreTrainedTokenizerBase
    score: Callable[[Sequence[str], Sequence[str], Sequence[str]], Scores] | None
    signatures: dict[str, str]
    lines: ProgressLines
    interruption: Interruption

    def get_eval_dataloader(self, eval_dataset: Dataset | str | None = None) -> DataLoader:
        """This process's share of the batches: longest first, each example in one batch of one process."""
        dataset = eval_dataset if isinstance(eval_dataset, Dataset) else self.eval_dataset
        sampler = TokenBatchSampler(pair_lengths(dataset), tokens_per_batch=self._eval_budget(dataset), shuffle=False)
        batches = list(sampler)[self.args.process_index :: self.args.world_size]
        own = torch.Generator()  # a loader draws a seed, and evaluating must not change what training draws
        return DataLoader(dataset, batch_sampler=batches, collate_fn=self.data_collator, generator=own)

    def get_test_dataloader(self, test_dataset: Dataset) -> DataLoader:
        return self.get_eval_dataloader(test_dataset)

    def _eval_budget(self, dataset: Dataset) -> int:
        """Tokens of a batch, of which each beam needs as much memory; the longest sentence is never dropped."""
        beams = 1
        if self.args.predict_with_generate:
            asked = getattr(self, "_gen_kwargs", {}).get("num_beams")
            beams = asked or self.accelerator.unwrap_model(self.model).generation_config.num_beams or 1
        return max(self.args.eval_tokens_per_batch // beams, int(pair_lengths(dataset).max()))

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
        model = whole_model(self.accelerator.unwrap_model(self.model)).eval()
        totals, rows = torch.zeros(3, device=self.args.device), []
        run = map_in_threads if self.args.device.type == "cpu" and uses_own_search(model, self._gen_kwargs) else map
        batches = zip(dataloader.batch_sampler, dataloader, strict=True)
        for sums, translations in run(lambda batch: self._evaluate_batch(model, *batch), batches):
            totals += torch.stack((sums.nll, sums.num_correct, sums.num_tokens))
            rows += translations
            if self.interruption.requested:
                break
        if self.interruption.agreed():
            raise EvaluationInterrupted
        rows = sorted(gather_object(rows))
        totals = self.accelerator.reduce(totals)
        metrics = self._metrics(totals.tolist(), rows, dataloader.dataset)
        release_freed_memory()
        texts = self.lines.translations = [text for _, text, _ in rows]
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
        return EvalLoopOutput(texts, None, metrics, num_samples=len(dataloader.dataset))

    @torch.no_grad()
    def _evaluate_batch(
        self, model: PreTrainedModel, indices: Sequence[int], batch: Mapping[str, Tensor]
    ) -> tuple[LossSums, list[Row]]:
        """Loss sums of a batch, and its translations if they are wanted; the encoder runs once for both."""
        batch = self._prepare_inputs(batch)
        with self.accelerator.autocast():
            encoded = model.get_encoder()(batch["input_ids"], attention_mask=batch["attention_mask"])
            sums = loss_sums(model, {**batch, "encoder_outputs": encoded})
            wanted = self.args.predict_with_generate
            return sums, self._translate(model, batch, encoded, indices) if wanted else []

    def _translate(
        self, model: PreTrainedModel, batch: Mapping[str, Tensor], encoded: BaseModelOutput, indices: Sequence[int]
    ) -> list[Row]:
        """A row for each sentence of a batch."""
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

    def _metrics(self, totals: Sequence[float], rows: Sequence[Row], dataset: Dataset) -> dict[str, float]:
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


def with_texts(data: PreparedData, split: str) -> Dataset | None:
    """A validation or test set as the trainer wants it, token ids beside the texts they come from; None if absent."""
    tokenized = {"validation": data.validation, "test": data.test}[split]
    if tokenized is None:
        return None
    return tokenized.add_column("source", data.sources[split]).add_column("target", data.references[split])
