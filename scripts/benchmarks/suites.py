"""What to measure: training and the peak of the machine, its profile, decoding, cost by length; in turns, resumable.

What was measured is kept in `results.json` after each program, so that a run that was cut off goes on where it was.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks.environments import NotInstalled
from benchmarks.jobs import DECODING, HERE, SIZES, TRAINING, measure
from hf_mt.errors import InputError
from hf_mt.model.position_encodings import POSITION_ENCODINGS
from hf_mt.text_files import write_whole


LENGTHS = (32, 64, 128, 256, 512, 1024)
BEAMS = (5, 1)
BATCHES = (64, 256)  # sentences decoded at a time
TRANSLATION_LENGTHS = (15, None)  # tokens of each translation; None: as many as its reference has


class Results:
    """Measurements by suite, size and system: lists, one entry for each repetition."""

    def __init__(self, path: Path):
        self.path = path
        self.rows: list[dict[str, Any]] = json.loads(path.read_text("utf-8")) if path.is_file() else []

    def of(self, **wanted: Any) -> list[dict[str, Any]]:
        return [row for row in self.rows if all(row[key] == value for key, value in wanted.items())]

    def add(self, row: Mapping[str, Any]) -> None:
        self.rows.append(dict(row))
        write_whole(self.path, json.dumps(self.rows, indent=1) + "\n")


def check_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    """Measurements that are kept in a folder are of the same settings and code, or it is refused."""
    path, now = folder / "settings.json", {**settings, "code": _digest_of_code()}
    before = json.loads(path.read_text("utf-8")) if path.is_file() else now
    changes = [f"{key}: {before.get(key)} -> {now[key]}" for key in now if before.get(key) != now[key]]
    if changes:
        raise InputError(
            f"{folder} has measurements of other settings ({'; '.join(changes)}); choose another --output_dir"
        )
    write_whole(path, json.dumps(now, indent=1) + "\n")


def _digest_of_code() -> str:
    """Of all that is measured and all that measures, committed or not."""
    digest = hashlib.blake2b(digest_size=8)
    for folder in (HERE.parents[1] / "hf_mt", HERE):
        for path in sorted(folder.rglob("*.py")):
            digest.update(str(path.relative_to(folder)).encode() + path.read_bytes())
    return digest.hexdigest()


def measure_all(
    results: Results, plan: Sequence[tuple[dict[str, Any], str, dict[str, Any]]], repeats: int
) -> Iterator[str]:
    """Takes turns: every entry once, then every entry again. Yields a line for each program that ran, and for each
    peer that can't be installed, which is left out.

    Args:
        results: Where measurements are kept, and looked for before anything is measured.
        plan: What a measurement is called (`suite`, `size`, `system`, ...), its program and its job.
        repeats: Measurements of each entry.
    """
    absent: set[str] = set()
    for turn in range(repeats):
        for name, program, job in plan:
            if len(results.of(**name)) > turn or name["system"] in absent:
                continue
            folder = results.path.parent / "-".join(str(value).replace(" ", "_") for value in name.values())
            try:
                found = measure(program, name["system"], job, folder)
            except NotInstalled as error:
                absent.add(name["system"])
                yield f"{name['system']} is left out: {error}"
                continue
            results.add({**name, **found})
            shown = {key: value for key, value in found.items() if isinstance(value, float)}
            words = "  ".join(f"{key} {value:,.4g}" for key, value in list(shown.items())[:3])
            yield f"{turn + 1}/{repeats}  {'  '.join(map(str, name.values()))}:  {words}"


def training_plan(
    text: Mapping[str, Any], job: Mapping[str, Any], sizes: Sequence[str], systems: Sequence[str]
) -> list:
    """Training of each system at each size; sentences for those that don't count tokens."""
    sentences = round(job["tokens_per_batch"] / max(text["mean_source_tokens"], text["mean_target_tokens"]))
    return [
        (
            {"suite": "training", "size": size, "system": system},
            TRAINING[system],
            {**text, **job, "size": SIZES[size], "sentences_per_batch": sentences, "warmup_steps": 3},
        )
        for size in sizes
        for system in systems
    ]


def peak_plan(results: Results, job: Mapping[str, Any], sizes: Sequence[str]) -> list:
    """The products of a step as our training takes it."""
    plan = []
    for size in sizes:
        for row in results.of(suite="training", size=size, system="hf_mt rope")[:1]:
            tokens = {f"{side}_tokens": round(row[f"{side}_tokens_per_second"] * row["seconds"] / row["steps"])
                      for side in ("source", "target")}  # fmt: skip
            name = {"suite": "peak", "size": size, "system": "matrix products"}
            plan.append((name, "matmul_peak.py", {**job, **tokens, "size": SIZES[size]}))
    return plan


def decoding_plan(text: Mapping[str, Any], job: Mapping[str, Any], opennmt_model: Path) -> list:
    """Decoding by each system with 5 beams and greedily; CTranslate2 takes the model that OpenNMT-py saved, and one
    length for all translations."""
    given = {"size": SIZES["tiny"], "sentences": 1024, "opennmt_model": str(opennmt_model)}
    kinds = (
        {"num_beams": beams, "batch_size": batch, "length": length}
        for beams, batch, length in product(BEAMS, BATCHES, TRANSLATION_LENGTHS)
    )
    return [
        ({"suite": "decoding", **kind, "system": system}, program, {**text, **job, **given, **kind})
        for kind in kinds
        for system, program in DECODING.items()
        if system != "CTranslate2" or (opennmt_model.is_file() and kind["length"])
    ]


def profile_plan(text: Mapping[str, Any], job: Mapping[str, Any], sizes: Sequence[str]) -> list:
    """Where the time of our step goes."""
    return [
        (
            {"suite": "profile", "size": size, "system": "hf_mt rope"},
            "profile_step.py",
            {**text, **job, "size": SIZES[size], "warmup_steps": 3},
        )
        for size in sizes
    ]


def length_plan(job: Mapping[str, Any]) -> list:
    """A training step of each encoding at each length."""
    return [
        (
            {"suite": "length", "length": length, "system": f"hf_mt {encoding}"},
            "length_cost.py",
            {**job, "size": SIZES["tiny"], "length": length, "tokens": 4096, "repeats": 3},
        )
        for length in LENGTHS
        for encoding in POSITION_ENCODINGS
    ]


def encodings_plan(job: Mapping[str, Any]) -> list:
    """A training step of all encodings in turn, at the shortest length."""
    name = {"suite": "encodings", "length": LENGTHS[0], "system": "hf_mt"}
    given = {"size": SIZES["tiny"], "length": LENGTHS[0], "tokens": 4096, "repeats": 9}
    return [(name, "encodings_in_turn.py", {**job, **given})]
