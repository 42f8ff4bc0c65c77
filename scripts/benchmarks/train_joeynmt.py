"""Trains JoeyNMT by its own command, in its own environment, and counts what its trainer is given."""

from pathlib import Path
from typing import Any

from joeynmt.config import load_config
from joeynmt.helpers import make_model_dir
from joeynmt.training import TrainManager, train
from meter import EnoughMeasured, Meter, leave_out_dropout, read_job


def config(job: dict[str, Any]) -> Path:
    size, folder, text = job["size"], Path(job["folder"]), job["text"]
    words = Path(text, "words").read_text(encoding="utf-8").split("\n")[:-1]
    words += [f"unused{number}" for number in range(size["vocab_size"] - 4 - len(words))]
    (folder / "vocabulary").write_text("".join(f"{word}\n" for word in words), encoding="utf-8")
    side = f"""
        max_length: 300
        level: "word"
        voc_file: "{folder}/vocabulary"
        tokenizer_type: null
    """
    stack = f"""
        type: "transformer"
        num_heads: {size["heads"]}
        embeddings: {{embedding_dim: {size["d_model"]}, scale: True, dropout: 0.0}}
        hidden_size: {size["d_model"]}
        ff_size: {size["ffn_dim"]}
        dropout: {size["dropout"]}
        layer_norm: "pre"
    """
    path = folder / "config.yaml"
    path.write_text(
        f"""
name: "benchmark"
joeynmt_version: "2.3.0"
model_dir: "{folder}/model"
use_cuda: False
fp16: False
random_seed: 1
data:
    train: "{text}/train"
    dev: "{text}/train"
    dataset_type: "plain"
    src:
        lang: "source"{side}
    trg:
        lang: "target"{side}
    special_symbols: {{unk_token: "<unk>", unk_id: 0, pad_token: "<pad>", pad_id: 1, bos_token: "<s>", bos_id: 2,
        eos_token: "</s>", eos_id: 3, lang_tags: []}}
testing: {{beam_size: 1, batch_size: 64, batch_type: "sentence", eval_metrics: ["bleu"]}}
training:
    overwrite: True
    optimizer: "adamw"
    adam_betas: [0.9, 0.98]
    learning_rate: 0.001
    scheduling: "warmupinversesquareroot"
    learning_rate_warmup: 1000
    loss: "crossentropy"
    label_smoothing: 0.1
    normalization: "tokens"
    clip_grad_norm: 1.0
    batch_size: {job["tokens_per_batch"]}
    batch_type: "token"
    shuffle: True
    epochs: 1000
    validation_freq: 1000000
    logging_freq: 1000
    early_stopping_metric: "bleu"
    num_workers: 0
model:
    initializer: "xavier_uniform"
    embed_initializer: "xavier_uniform"
    tied_embeddings: True
    tied_softmax: True
    encoder:
        num_layers: {size["encoder_layers"]}{stack}
    decoder:
        num_layers: {size["decoder_layers"]}{stack}
""",
        encoding="utf-8",
    )
    return path


def counted(meter: Meter) -> Any:
    """The trainer's step, followed by a count of its batch."""
    plain = TrainManager._train_step

    def step(self: Any, batch: Any) -> Any:
        if not meter.steps:
            leave_out_dropout(self.model, "_att.dropout", "feed_forward.pwff_layer.2")
        result = plain(self, batch)
        meter.step(
            target_tokens=int(batch.ntokens),
            target_cells=batch.trg.numel(),
            source_tokens=int(batch.src_length.sum()),
            source_cells=batch.src.numel(),
        )
        return result

    return step


def main() -> None:
    job = read_job()
    settings = load_config(config(job))
    make_model_dir(Path(settings["model_dir"]), overwrite=True)
    meter = Meter(job)
    TrainManager._train_step = counted(meter)
    try:
        train(rank=0, world_size=None, cfg=settings, skip_test=True)
    except EnoughMeasured:
        meter.write()


if __name__ == "__main__":
    main()
