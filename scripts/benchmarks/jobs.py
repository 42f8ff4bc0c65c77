"""What is measured: sizes, systems, and the text that all of them read.

- All systems see the same text in the same subwords, the same sizes, label smoothing, threads and allocator, and the
  same dropout: of embeddings and residual sums, where a system drops elsewhere too that is taken away.
- A batch is a budget of tokens where the system has one, else the number of sentences that has as many tokens.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.environments import python_of
from hf_mt.corpora import load_corpus
from hf_mt.data import filter_corpus, pair_lengths, prepare_data
from hf_mt.errors import InputError
from hf_mt.experiment import parse_experiment
from hf_mt.model.position_encodings import POSITION_ENCODINGS
from hf_mt.tokenization import get_tokenizer


HERE = Path(__file__).parent
SPACE = "\u2581"
# Others split lines at any white space, so all of it is written as something else within a subword.
WHITE = [chr(code) for code in range(0x3001) if chr(code).isspace() and code != 0x20]
STAND_INS = {" ": SPACE, **{space: chr(0xE000 + place) for place, space in enumerate(WHITE)}}  # of private use
LAYERS = {"encoder_layers": 4, "decoder_layers": 4}
TINY = {**LAYERS, "d_model": 128, "ffn_dim": 256, "heads": 4, "dropout": 0.3}
SIZES: dict[str, dict[str, Any]] = {
    "tiny": {**TINY, "vocab_size": 6000},
    "base": {**LAYERS, "d_model": 512, "ffn_dim": 2048, "heads": 8, "dropout": 0.1, "vocab_size": 6000},
    "wide": {**TINY, "vocab_size": 32000},
}
TRAINING: dict[str, str] = {  # system -> program
    **{f"hf_mt {name}": "train_hf_mt.py" for name in POSITION_ENCODINGS},
    "hf_mt rope, medium": "train_hf_mt.py",  # float32_matmul_precision, where the processor has it
    "Marian, Seq2SeqTrainer, random": "train_marian.py",
    "Marian, Seq2SeqTrainer, by length": "train_marian.py",
    "torch.nn.Transformer loop": "train_torch.py",
    "OpenNMT-py": "train_opennmt.py",
    "OpenNMT-py, torch of hf_mt": "train_opennmt.py",
    "JoeyNMT": "train_joeynmt.py",
}
DECODING: dict[str, str] = {
    "hf_mt": "decode_transformers.py",
    "hf_mt, in threads": "decode_transformers.py",
    "Marian, generate": "decode_transformers.py",
    "CTranslate2": "decode_ctranslate2.py",
}
# What keeps glibc from giving memory back and faulting it in again at each step; hf_mt does so by itself.
ALLOCATOR = {
    "MALLOC_MMAP_THRESHOLD_": str(2**32),
    "MALLOC_TRIM_THRESHOLD_": str(2**33),
    "MALLOC_TOP_PAD_": str(2**28),
}


def prepare_text(folder: Path, train_file: str, source_lang: str, target_lang: str) -> dict[str, Any]:
    """Writes the training text in subwords, as ids and as words, and the vocabulary; returns where they are."""
    words = [f"--source_lang={source_lang}", f"--target_lang={target_lang}", f"--train_file={train_file}"]
    experiment = parse_experiment(
        [*words, "--vocab_size=6000", "--eval_strategy=no", "--load_best_model_at_end=false"]
    )
    corpus, counts = filter_corpus(load_corpus(experiment.data, splits=("train",)), experiment.data)
    tokenizer = get_tokenizer(corpus, experiment.data, experiment.model, 6000)
    pairs = prepare_data(corpus, tokenizer, experiment.data, counts=counts).train
    folder.mkdir(parents=True, exist_ok=True)
    pairs.select_columns(["input_ids", "labels"]).to_parquet(str(folder / "ids.parquet"))
    for column, side in (("input_ids", "source"), ("labels", "target")):
        lines = (" ".join(subwords(tokenizer, ids[:-1])) for ids in pairs[column])
        (folder / f"train.{side}").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    (folder / "words").write_text(
        "".join(f"{word}\n" for word in subwords(tokenizer, range(4, len(tokenizer)))), "utf-8"
    )
    mean = pair_lengths(pairs).mean(axis=0).tolist()
    return {"text": str(folder), "mean_source_tokens": mean[0], "mean_target_tokens": mean[1]}


def subwords(tokenizer: Any, ids: Any) -> list[str]:
    """Subwords as words of a line: the space that begins one is written as sentencepiece writes it."""
    table = str.maketrans(STAND_INS)
    return [word.translate(table) for word in tokenizer.convert_ids_to_tokens(list(ids))]


def measure(program: str, system: str, job: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Runs one program on one job, in the environment of its system, and returns what it measured.

    Raises:
        InputError: The program failed; the end of what it wrote is in the message, the whole beside its job.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file, result, log = folder / "job.json", folder / "result.json", folder / "log.txt"
    result.unlink(missing_ok=True)
    file.write_text(json.dumps({**job, "system": system, "folder": str(folder), "result": str(result)}), "utf-8")
    threads = str(job["threads"])
    environment = {**os.environ, **ALLOCATOR, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    environment |= {"CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    with log.open("wb") as output:
        command = [python_of(system) or sys.executable, HERE / program, file]
        done = subprocess.run(command, env=environment, stdout=output, stderr=subprocess.STDOUT, cwd=HERE.parents[1])
    if not result.is_file():
        tail = log.read_text(encoding="utf-8", errors="replace")[-2000:]
        raise InputError(f"{system} failed (exit code {done.returncode}):\n{tail}\nthe whole output: {log}")
    return json.loads(result.read_text(encoding="utf-8"))
