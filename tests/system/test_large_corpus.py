"""Five million pairs train two processes in less memory than the pairs alone would take; slow, some minutes.

pytest -m slow -s tests/system/test_large_corpus.py
"""

import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest


ROOT = Path(__file__).parents[2]
PAIRS = 5_000_000
STEPS = 1500
LIMIT = 2_560 * 2**20  # bytes that a process may reserve: torch takes 2,000 MiB, the pairs as objects 1,000 more
WARM = 0.25  # of the time, until every buffer is there
LAUNCH = (sys.executable, "-m", "accelerate.commands.launch", "--quiet", "--config_file")
CONFIG = """
source_lang: en
target_lang: de
vocab_size: 600
d_model: 32
encoder_layers: 1
decoder_layers: 1
encoder_attention_heads: 2
decoder_attention_heads: 2
encoder_ffn_dim: 64
decoder_ffn_dim: 64
tokens_per_batch: 8192
learning_rate: 1e-3
logging_steps: 20
eval_strategy: "no"
save_strategy: steps
save_steps: 100
save_total_limit: 2
load_best_model_at_end: false
num_beams: 1
"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="reads Linux's account of memory"),
]


def sentences(count: int, side: int) -> Iterator[str]:
    """Lines of 4 to 13 invented words, each with its number, ten thousand at a time."""
    random = np.random.default_rng(side)
    syllables = [first + last for first in "bdfgklmnprst" for last in "aeiou"]
    words = np.array(["".join(random.choice(syllables, size)) for size in random.integers(1, 4, 2000)])
    for start in range(0, count, 10_000):
        lengths = random.integers(4, 14, min(10_000, count - start))
        drawn = np.split(words[random.integers(0, len(words), lengths.sum())], np.cumsum(lengths)[:-1])
        yield "".join(f"{' '.join(line)} {start + number}\n" for number, line in enumerate(drawn))


def write(prefix: Path, pairs: int) -> Path:
    for side, language in enumerate(("en", "de")):
        with prefix.with_suffix(f".{language}").open("w") as file:
            file.writelines(sentences(pairs, side))
    return prefix


def resident(launcher: psutil.Process) -> list[float]:
    """MiB of each training process."""
    return [
        child.memory_info().rss / 2**20
        for child in launcher.children(recursive=True)
        if "RANK" in child.environ() and not child.children()
    ]


def train(profile: str, folder: Path, *options: object) -> tuple[int, str, list[tuple[float, list[float]]]]:
    """Exit code, what was printed, and the memory of the processes, second by second."""
    words = [*LAUNCH, ROOT / "configs/accelerate" / profile, ROOT / "scripts/train.py", *options]
    words += ["--output_dir", folder]
    seen, start, log = [], time.monotonic(), folder.with_suffix(".log")
    with log.open("w") as output, subprocess.Popen(
        [str(word) for word in words], cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=output, stderr=subprocess.STDOUT,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (LIMIT, LIMIT)),
    ) as launcher:  # fmt: skip
        while launcher.poll() is None:
            try:
                seen.append((time.monotonic() - start, resident(psutil.Process(launcher.pid))))
            except psutil.Error:  # it has just ended
                continue
            time.sleep(1)
    return launcher.returncode, log.read_text(), seen


def test_a_corpus_larger_than_memory_trains_with_constant_memory(tmp_path: Path) -> None:
    corpus, dev = write(tmp_path / "train", PAIRS), write(tmp_path / "dev", 100)
    megabytes = sum(path.stat().st_size for path in tmp_path.glob("train.*")) / 1e6
    config = tmp_path / "tiny.yaml"
    config.write_text(CONFIG)
    options = (config, f"--train_file={corpus}", f"--validation_file={dev}", f"--max_steps={STEPS}")
    code, out, seen = train("ddp_cpu.yaml", tmp_path / "stream", *options, "--streaming=true")
    assert code == 0, out[-3000:]
    rows = [max(memory) for _, memory in seen if len(memory) == 2]
    early, late = (rows[int(WARM * len(rows)) : len(rows) // 2], rows[len(rows) // 2 :])
    growth = max(late) / max(early) - 1
    print(f"{PAIRS:,} pairs, {megabytes:.0f} MB of text, at most {LIMIT / 2**20:.0f} MiB a process")
    print(f"resident: {max(early):.0f} MiB in the second quarter, {max(late):.0f} MiB after, in {seen[-1][0]:.0f} s")
    assert growth < 0.03
    code, out, _ = train("cpu.yaml", tmp_path / "held", *options, "--streaming=false")
    assert code == 1 and "this machine's memory is full" in out, out[-3000:]  # the launcher's code
    print(next(line for line in out.splitlines() if "memory is full" in line))
