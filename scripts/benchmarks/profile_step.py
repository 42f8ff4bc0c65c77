"""Where the time of a training step goes, by kind of operation, as torch's profiler sees it."""

import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

from meter import read_job
from torch.profiler import ProfilerActivity, profile
from train_hf_mt import new_trainer
from transformers import TrainerCallback


STEPS = 10
KINDS = {  # names of operations after `aten::`, those of their backward functions too
    "products of linear layers and of the vocabulary": ("mm", "addmm", "addmm_"),
    "products of attention": ("bmm", "baddbmm", "_scaled_dot_product"),
    "softmax and loss": ("_softmax", "amax", "log", "gather", "scatter_add_", "eq"),
    "dropout and residual sums": ("random_", "ge", "addcmul"),
    "norms": ("native_layer_norm", "_fused_rms_norm"),
    "copies": ("copy_", "cat", "clone", "fill_", "index", "_index_put_impl_", "embedding_dense_backward"),
    "elementwise": ("mul", "mul_", "add", "add_", "sub", "neg", "div", "clamp_min", "threshold_backward", "sum"),
    "optimizer": ("_fused_adamw_", "linalg_vector_norm", "_foreach"),
}


def kind_of(operation: str) -> str:
    """The kind of `aten::name`; the longest of the names that fits decides."""
    name = operation.removeprefix("aten::")
    fits = [(len(start), kind) for kind, starts in KINDS.items() for start in starts if _is(name, start)]
    return max(fits)[1] if fits else "other operations"


def _is(name: str, start: str) -> bool:
    return name in (start, f"{start}_backward", f"{start}_backward_data") or (
        len(start) > 6 and name.startswith(start)
    )


class Profile(TrainerCallback):
    """Watches `STEPS` steps, after some that warm up, and stops."""

    def __init__(self, warmup_steps: int):
        self.warmup_steps = warmup_steps
        self.profiler = profile(activities=[ProfilerActivity.CPU])
        self.seconds = 0.0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.warmup_steps:
            self.profiler.start()
            self.seconds = -time.perf_counter()
        elif state.global_step == self.warmup_steps + STEPS:
            self.seconds += time.perf_counter()
            self.profiler.stop()
            control.should_training_stop = True

    def shares(self) -> dict[str, float]:
        """Percent of the time, largest first; between operations is Python, the trainer and the profiler itself."""
        times: Counter[str] = Counter()
        for event in self.profiler.key_averages():
            times[kind_of(event.key)] += event.self_cpu_time_total / 1e6
        times["between operations"] = self.seconds - times.total()
        return {kind: 100 * spent / self.seconds for kind, spent in times.most_common()}


def main() -> None:
    job = read_job()
    watch = Profile(job["warmup_steps"])
    new_trainer(job, watch).train()
    Path(job["result"]).write_text(json.dumps({"shares": watch.shares()}), encoding="utf-8")


if __name__ == "__main__":
    main()
