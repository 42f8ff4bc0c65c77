"""Trains OpenNMT-py by its own command, in its own environment, and counts what its trainer is given."""

import sys
from pathlib import Path
from typing import Any

import onmt.trainer
from meter import EnoughMeasured, Meter, leave_out_dropout, read_job
from onmt.bin.train import main as train


def options(job: dict[str, Any], learning_rate: float = 2, warmup_steps: int = 400) -> list[str]:
    size, folder, text = job["size"], Path(job["folder"]), job["text"]
    words = Path(text, "words").read_text(encoding="utf-8").split("\n")[:-1]
    words += [f"unused{number}" for number in range(size["vocab_size"] - 4 - len(words))]  # a wide vocabulary
    (folder / "vocabulary").write_text("".join(f"{word}\t1\n" for word in words), encoding="utf-8")
    corpus = f"{{path_src: {text}/train.source, path_tgt: {text}/train.target, transforms: []}}"
    config = folder / "config.yaml"
    config.write_text(f"data: {{corpus: {corpus}}}\n", encoding="utf-8")
    flags = f"""
        -config {config} -save_data {folder}/data -save_model {folder}/model -overwrite
        -src_vocab {folder}/vocabulary -tgt_vocab {folder}/vocabulary -share_vocab
        -src_vocab_size {size["vocab_size"]} -tgt_vocab_size {size["vocab_size"]}
        -encoder_type transformer -decoder_type transformer -position_encoding
        -enc_layers {size["encoder_layers"]} -dec_layers {size["decoder_layers"]} -heads {size["heads"]}
        -hidden_size {size["d_model"]} -word_vec_size {size["d_model"]} -transformer_ff {size["ffn_dim"]}
        -share_embeddings -share_decoder_embeddings -param_init 0 -param_init_glorot
        -dropout {size["dropout"]} -attention_dropout 0.0 -label_smoothing 0.1
        -batch_type tokens -batch_size {job["tokens_per_batch"]} -normalization tokens -bucket_size 30000
        -num_workers 0 -optim adam -adam_beta2 0.98 -max_grad_norm 1
        -learning_rate {learning_rate} -decay_method noam -warmup_steps {warmup_steps}
        -train_steps 100000 -valid_steps 200000 -save_checkpoint_steps 100000
        -report_every 1000 -seed 1
    """
    return flags.split()


def counts(batches: list) -> dict[str, int]:
    """Tokens, and cells with padding, of batches as OpenNMT-py's trainer has them."""
    return {
        "target_tokens": sum(int((batch["tgt"][:, 1:] != 1).sum()) for batch in batches),  # 1 is its padding
        "target_cells": sum(batch["tgt"][:, 1:].numel() for batch in batches),
        "source_tokens": sum(int(batch["srclen"].sum()) for batch in batches),
        "source_cells": sum(batch["src"].numel() for batch in batches),
    }


def counted(meter: Meter) -> Any:
    """The trainer's step, followed by a count of its batches."""
    plain = onmt.trainer.Trainer._gradient_accumulation

    def step(self: Any, batches: list, *args: Any) -> None:
        if not meter.steps:
            leave_out_dropout(self.model, "feed_forward.dropout_1")
        plain(self, batches, *args)
        meter.step(**counts(batches))
        if meter.steps == 1:
            self.model_saver.save(1)  # for the decoding benchmark

    return step


def main() -> None:
    job = read_job()
    sys.argv[1:] = options(job)
    meter = Meter(job)
    onmt.trainer.Trainer._gradient_accumulation = counted(meter)
    try:
        train()
    except EnoughMeasured:
        meter.write()


if __name__ == "__main__":
    main()
