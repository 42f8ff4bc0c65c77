"""Trains one of our models as `scripts/train.py` does, and counts."""

from typing import Any

from datasets import Dataset
from meter import EnoughMeasured, Meter, read_job
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast, TrainerCallback

from hf_mt.arguments import TranslationTrainingArguments
from hf_mt.hardware import prepare_hardware
from hf_mt.model import HfMtConfig, HfMtForConditionalGeneration
from hf_mt.models import round_products
from hf_mt.training import TranslationTrainer


def build(job: dict[str, Any], kernel: str | None = "eager", **more: Any) -> HfMtForConditionalGeneration:
    """A new model of the job's size; the system is `hf_mt ENCODING` or `hf_mt ENCODING, PRECISION of products`.

    The kernel is that of short sentences.
    """
    size = job["size"]
    heads = {f"{side}_attention_heads": size["heads"] for side in ("encoder", "decoder")}
    widths = {f"{side}_ffn_dim": size["ffn_dim"] for side in ("encoder", "decoder")}
    named = {key: size[key] for key in ("vocab_size", "d_model", "encoder_layers", "decoder_layers", "dropout")}
    encoding = job["system"].split()[1].removesuffix(",")
    config = HfMtConfig(**named, **heads, **widths, position_encoding=encoding, label_smoothing=0.1, **more)
    return HfMtForConditionalGeneration._from_config(config, attn_implementation=kernel)


class Count(TrainerCallback):
    """Reads what the trainer's own meter counted, step by step."""

    def __init__(self, meter: Meter):
        self.meter = meter
        self.trainer: TranslationTrainer  # set once there is one
        self.before = [0, 0, 0, 0]

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        window, cells = self.trainer.meter._window, self.trainer.meter._cells
        now = [int(window[2]), cells[0], int(window[3]), cells[1]]
        before, self.before = self.before, now
        names = ("target_tokens", "target_cells", "source_tokens", "source_cells")
        try:
            self.meter.step(**{name: new - old for name, new, old in zip(names, now, before, strict=True)})
        except EnoughMeasured:
            control.should_training_stop = True


def new_trainer(job: dict[str, Any], callback: TrainerCallback) -> TranslationTrainer:
    """A trainer of `job` that neither evaluates nor saves, and trains until the callback stops it."""
    prepare_hardware(job["threads"])
    model, (_, _, precision) = build(job), job["system"].partition(", ")
    round_products(model, precision or "highest", model.device)
    args = TranslationTrainingArguments(
        output_dir=job["folder"],
        tokens_per_batch=job["tokens_per_batch"],
        max_steps=100_000,
        learning_rate=1e-3,
        eval_strategy="no",
        save_strategy="no",
        load_best_model_at_end=False,
        logging_steps=100_000,
        disable_tqdm=True,
        use_cpu=True,
    )
    empty = Tokenizer(models.WordLevel({"<pad>": 0}, unk_token="<pad>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=empty, pad_token="<pad>")
    pairs = Dataset.from_parquet(f"{job['text']}/ids.parquet")
    return TranslationTrainer(model, args, tokenizer, train_dataset=pairs, callbacks=[callback])


def main() -> None:
    job = read_job()
    meter = Meter(job)
    count = Count(meter)
    trainer = count.trainer = new_trainer(job, count)
    trainer.train()
    meter.write(parameters=trainer.model.num_parameters())


if __name__ == "__main__":
    main()
