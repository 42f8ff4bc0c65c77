"""Time of a training step of every encoding at one length, one step of each in turn.

Programs that run one after the other see another machine each, where it is shared; here all see the same one.
"""

import json
import statistics
from pathlib import Path

import torch
from length_cost import new_ids, new_model, step_seconds
from meter import read_job

from hf_mt.hardware import prepare_hardware
from hf_mt.model.position_encodings import POSITION_ENCODINGS


def main() -> None:
    job = read_job()
    prepare_hardware(job["threads"])
    torch.manual_seed(0)
    models = {name: new_model({**job, "system": f"hf_mt {name}"}) for name in POSITION_ENCODINGS}
    ids = new_ids(job)
    times: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(job["repeats"] + 1):
        for name, model in models.items():
            times[name].append(step_seconds(model, ids))
    costs = {name: 1e6 * statistics.median(found[1:]) / ids.numel() for name, found in times.items()}
    Path(job["result"]).write_text(json.dumps({"microseconds_per_token": costs}), encoding="utf-8")


if __name__ == "__main__":
    main()
