"""`data_table.json` of a run: what its data is, in numbers and as a digest of the texts."""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict

from hf_mt.data import FilterCounts, PreparedData, TokenCounts
from hf_mt.run_folder import DATA_TABLE_NAME
from hf_mt.text_files import write_whole


def text_digests(corpus: DatasetDict) -> dict[str, str]:
    """A digest of the pairs of each split, in their order."""
    return {split: _digest(pairs) for split, pairs in corpus.items()}


def _digest(pairs: Dataset) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for batch in pairs.iter(batch_size=10_000):
        digest.update(json.dumps(batch["translation"], sort_keys=True).encode())
    return digest.hexdigest()


def save_data_table(folder: Path, data: PreparedData, digests: dict[str, str]) -> None:
    """Writes counts and token statistics, `{split: {read, found, kept, digest, source_tokens, target_tokens}}`."""
    table = {count.split: _entry(count, data.tokens[count.split], digests.get(count.split)) for count in data.counts}
    write_whole(folder / DATA_TABLE_NAME, json.dumps(table, indent=2) + "\n")


def update_data_table(folder: Path, counts: FilterCounts, tokens: dict[str, TokenCounts]) -> None:
    """Puts what is known of a streamed split by now into the table."""
    path = folder / DATA_TABLE_NAME
    table = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    table[counts.split] = _entry(counts, tokens, digest=None)
    write_whole(path, json.dumps(table, indent=2) + "\n")


def _entry(counts: FilterCounts, tokens: dict[str, TokenCounts], digest: str | None) -> dict[str, Any]:
    numbers = {key: value for key, value in asdict(counts).items() if key != "split"}
    return {**numbers, "digest": digest, **{f"{side}_tokens": asdict(counted) for side, counted in tokens.items()}}
