"""Trains a Marian of the same size with the stock Seq2SeqTrainer, in random order or grouped by length, and counts."""

from typing import Any

import torch
from datasets import Dataset
from meter import EnoughMeasured, Meter, read_job
from tokenizers import Tokenizer, models
from transformers import (
    DataCollatorForSeq2Seq,
    MarianConfig,
    MarianMTModel,
    PreTrainedTokenizerFast,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    TrainerCallback,
)


def build(job: dict[str, Any]) -> MarianMTModel:
    size = job["size"]
    heads = {f"{side}_attention_heads": size["heads"] for side in ("encoder", "decoder")}
    widths = {f"{side}_ffn_dim": size["ffn_dim"] for side in ("encoder", "decoder")}
    named = {key: size[key] for key in ("vocab_size", "d_model", "encoder_layers", "decoder_layers", "dropout")}
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
    std = size["d_model"] ** -0.5
    return MarianMTModel(MarianConfig(**named, **heads, **widths, **ids, forced_eos_token_id=None, init_std=std))


class Count(DataCollatorForSeq2Seq):
    """The stock collator; it keeps the counts of the batch that is being trained on."""

    def __call__(self, features: list[dict[str, Any]], return_tensors: str | None = None) -> Any:
        batch = super().__call__([{k: row[k] for k in ("input_ids", "labels")} for row in features], return_tensors)
        self.counts = {
            "target_tokens": int((batch["labels"] != -100).sum()),
            "target_cells": batch["labels"].numel(),
            "source_tokens": int(batch["attention_mask"].sum()),
            "source_cells": batch["attention_mask"].numel(),
        }
        return batch


class Step(TrainerCallback):
    def __init__(self, meter: Meter, collator: Count):
        self.meter, self.collator = meter, collator

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        try:
            self.meter.step(**self.collator.counts)
        except EnoughMeasured:
            control.should_training_stop = True


def main() -> None:
    job = read_job()
    torch.set_num_threads(job["threads"])
    by_length = job["system"].endswith("by length")
    args = Seq2SeqTrainingArguments(
        output_dir=job["folder"],
        per_device_train_batch_size=job["sentences_per_batch"],
        max_steps=100_000,
        learning_rate=1e-3,
        label_smoothing_factor=0.1,
        train_sampling_strategy="group_by_length" if by_length else "random",
        logging_steps=100_000,
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
    )
    empty = Tokenizer(models.WordLevel({"<pad>": 0}, unk_token="<pad>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=empty, pad_token="<pad>")
    model, meter = build(job), Meter(job)
    collator = Count(tokenizer, model=model)
    pairs = Dataset.from_parquet(f"{job['text']}/ids.parquet")
    trainer = Seq2SeqTrainer(
        model=model, args=args, data_collator=collator, train_dataset=pairs, callbacks=[Step(meter, collator)]
    )
    trainer.train()
    meter.write(parameters=model.num_parameters())


if __name__ == "__main__":
    main()
