"""Sentences a second of CTranslate2, with the OpenNMT-py model of the same size that the training benchmark left."""

import json
import time
from pathlib import Path
from typing import Any

import ctranslate2
import torch
from ctranslate2.converters import OpenNMTPyConverter
from meter import read_job


def convert(checkpoint: str, folder: Path) -> str:
    """The checkpoint is our own of a moment ago, and holds options that the converter's safe loading refuses."""
    load = torch.load

    def load_all(path: Any, **options: Any) -> Any:
        checkpoint = load(path, **{**options, "weights_only": False})
        checkpoint["opt"].self_attn_type = "scaled-dot"  # of its names for one kernel, the one that is known
        return checkpoint

    torch.load = load_all
    return OpenNMTPyConverter(checkpoint).convert(str(folder / "converted"), force=True)


def main() -> None:
    job = read_job()
    converted = convert(job["opennmt_model"], Path(job["folder"]))
    lines = Path(job["text"], "train.source").read_text(encoding="utf-8").split("\n")[: job["sentences"]]
    workers = {"inter_threads": job["threads"], "intra_threads": 1}  # at this size better than sharing operations
    translator = ctranslate2.Translator(converted, device="cpu", **workers)
    options = {"beam_size": job["num_beams"], "max_batch_size": job["batch_size"]}
    options |= {"min_decoding_length": job["length"], "max_decoding_length": job["length"]}
    sources = [line.split() for line in lines]
    translator.translate_batch(sources[:128], **options)
    start = time.perf_counter()
    translator.translate_batch(sources, **options)
    seconds = time.perf_counter() - start
    result = {"sentences_per_second": job["sentences"] / seconds, "seconds": seconds}
    Path(job["result"]).write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main()
