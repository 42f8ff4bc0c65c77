"""A plain loop over `torch.nn.Transformer`, as tutorials write it: random batches, loss over all positions."""

import random

import torch
from datasets import Dataset
from meter import EnoughMeasured, Meter, leave_out_dropout, read_job
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence


class Model(nn.Module):
    def __init__(self, size: dict):
        super().__init__()
        width = size["d_model"]
        self.embeddings = nn.Embedding(size["vocab_size"], width, padding_idx=0)
        self.positions = nn.Embedding(512, width)
        self.transformer = nn.Transformer(
            width,
            size["heads"],
            size["encoder_layers"],
            size["decoder_layers"],
            size["ffn_dim"],
            size["dropout"],
            batch_first=True,
            norm_first=True,
        )
        leave_out_dropout(self.transformer, ".dropout")  # that of residual sums is called dropout1, 2 and 3
        for module in self.transformer.modules():
            if isinstance(module, nn.MultiheadAttention):
                module.dropout = 0.0
        self.head = nn.Linear(width, size["vocab_size"], bias=False)
        self.head.weight = self.embeddings.weight

    def embed(self, ids: Tensor) -> Tensor:
        return self.embeddings(ids) + self.positions(torch.arange(ids.shape[1]))

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        causal = nn.Transformer.generate_square_subsequent_mask(target.shape[1]).isinf()
        states = self.transformer(
            self.embed(source),
            self.embed(target),
            tgt_mask=causal,
            src_key_padding_mask=source == 0,
            memory_key_padding_mask=source == 0,
        )
        return self.head(states)


def main() -> None:
    job = read_job()
    torch.set_num_threads(job["threads"])
    pairs = Dataset.from_parquet(f"{job['text']}/ids.parquet")
    rows = list(zip(pairs["input_ids"], pairs["labels"], strict=True))
    model, meter, rng = Model(job["size"]), Meter(job), random.Random(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    loss = nn.CrossEntropyLoss(ignore_index=0, label_smoothing=0.1)
    try:
        while True:
            batch = rng.sample(rows, job["sentences_per_batch"])
            source, target = (pad_sequence([torch.tensor(row[side]) for row in batch], True) for side in (0, 1))
            inputs = torch.cat((torch.ones_like(target[:, :1]), target[:, :-1]), dim=1)
            optimizer.zero_grad()
            loss(model(source, inputs).flatten(0, 1), target.flatten()).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            meter.step(
                target_tokens=(target != 0).sum(),
                target_cells=target.numel(),
                source_tokens=(source != 0).sum(),
                source_cells=source.numel(),
            )
    except EnoughMeasured:
        meter.write(parameters=sum(weight.numel() for weight in model.parameters()))


if __name__ == "__main__":
    main()
