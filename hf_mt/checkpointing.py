"""What the trainer saves, loads again and publishes: whole checkpoints, and nothing in them that nobody reads.

- A checkpoint is written aside and renamed; see `checkpoints.py` for what that promises.
- The best one is found again in a folder that was moved, and is kept whatever `save_total_limit` is.
- A push takes what loads, and nothing else; see `hub.py`.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers.trainer import OPTIMIZER_NAME, TRAINER_STATE_NAME
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from hf_mt.averaging import MOVING_AVERAGE_NAME, MovingAverage
from hf_mt.batching import TokenBatchSampler
from hf_mt.checkpoints import remove_oldest, verify_checkpoint, whole_checkpoint
from hf_mt.errors import InputError
from hf_mt.evaluation_loop import TranslationEvaluator
from hf_mt.interruption import Interruption
from hf_mt.progress import Meter
from hf_mt.sharding import without_ties
from hf_mt.streaming import BatchStream


METER, UNPLANNED, LENGTHS = "meter", "unplanned", "lengths"  # among the states that a checkpoint keeps for callbacks


class CheckpointingTrainer(TranslationEvaluator):
    """The part of `TranslationTrainer` that saves; it sets the attributes below."""

    average: MovingAverage | None
    meter: Meter
    publish: Callable[[Path], object] | None
    interruption: Interruption
    stream: BatchStream | None
    train_sampler: TokenBatchSampler  # where there is no stream
    saved_step: int | None  # the last one with a checkpoint of this start

    @contextmanager
    def _off_the_clock(self) -> Iterator[None]:
        """Keeps the time of evaluations and checkpoints out of training speed."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.meter.pause(time.perf_counter() - start)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        """Model and tokenizer; not the arguments, a pickle that nobody reads and that would hold the Hub token."""
        folder = output_dir or self.args.output_dir
        whole = state_dict and without_ties(self.model, state_dict)
        self.model.save_pretrained(folder, state_dict=whole, is_main_process=self.args.should_save)
        if self.args.should_save:
            self.tokenizer.save_pretrained(folder)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """As transformers', but written aside, with a manifest, and renamed when it is whole."""
        run_folder = Path(self._get_output_dir(trial))
        folder = run_folder / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        self.meter.drain(self.accelerator)
        with self._off_the_clock():
            self.store_flos()
            with whole_checkpoint(folder) as aside:
                self.save_model(str(aside), _internal_call=True)
                if not self.args.save_only_model:
                    self._save_optimizer_and_scheduler(str(aside))
                    self._save_scaler(str(aside))
                    self._save_rng_state(str(aside))
                if self.average is not None:
                    self.average.save(aside, write=self.args.should_save)
                self._point_to_best(run_folder, folder)
                if self.interruption.is_unplanned:
                    self.state.stateful_callbacks.setdefault(UNPLANNED, []).append(folder.name)
                if self.args.should_save:
                    self._save_state(aside)
            self.saved_step = self.state.global_step
            self._push_from_checkpoint(str(folder))
            if self.args.should_save:
                limit, best = self.args.save_total_limit, self.state.best_model_checkpoint
                remove_oldest(run_folder, limit, best, self._is_planned)

    def _is_planned(self, checkpoint: Path) -> bool:
        """Whether it would be there without SIGTERM, which may come at any step."""
        return checkpoint.name not in self.state.stateful_callbacks.get(UNPLANNED, [])

    def _is_now_planned(self, step: int) -> None:
        unplanned = self.state.stateful_callbacks.get(UNPLANNED, [])
        self.state.stateful_callbacks[UNPLANNED] = [name for name in unplanned if not name.endswith(f"-{step}")]

    def _point_to_best(self, run_folder: Path, now_written: Path | None = None) -> None:
        """Notes where the best weights are, also in a run folder that was moved."""
        best = run_folder / f"{PREFIX_CHECKPOINT_DIR}-{self.state.best_global_step}"
        if best == now_written or (best / TRAINER_STATE_NAME).is_file():
            self.state.best_model_checkpoint = str(best)

    def _save_state(self, folder: Path) -> None:
        for callback in [*self.callback_handler.callbacks, self.control]:
            if isinstance(callback, ExportableState):
                self.state.stateful_callbacks[type(callback).__name__] = callback.state()
        self.state.stateful_callbacks[METER] = self.meter.unread()
        if self.stream is None:
            self.state.stateful_callbacks[LENGTHS] = self.train_sampler.digest
        self.state.save_to_json(str(folder / TRAINER_STATE_NAME))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        named_otherwise = self.is_deepspeed_enabled or self.is_fsdp_enabled
        if checkpoint is not None and not named_otherwise and not Path(checkpoint, OPTIMIZER_NAME).is_file():
            raise InputError(
                f"{checkpoint} has weights alone, since save_only_model was set: a run can't go on from it; train on "
                f"from its weights with --model_name_or_path {checkpoint} and another output_dir"
            )
        super()._load_optimizer_and_scheduler(checkpoint)
        if self.average is not None and checkpoint is not None:
            self.average.load(Path(checkpoint))

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Tied weights are saved once, and are not missing."""
        tied = self.accelerator.unwrap_model(self.model).all_tied_weights_keys
        load_result.missing_keys[:] = [name for name in load_result.missing_keys if name not in tied]
        super()._issue_warnings_after_load(load_result)

    def _check_same_lengths(self) -> None:
        """The pairs that the checkpoint's place in an epoch counts are those of now, cut into the same tokens."""
        if self.stream is not None:
            return
        before = self.state.stateful_callbacks.get(LENGTHS)  # None in checkpoints of older versions
        if before not in (None, self.train_sampler.digest):
            raise InputError(
                "the training pairs are cut into other tokens than when this run began: by another version of "
                "tokenizers or, with bpe_dropout, since HF_DATASETS_CACHE has lost the cuts that were drawn then. "
                "Bring it back, or begin anew in another output_dir"
            )

    def _load_best_model(self) -> None:
        if self.interruption.happened:  # the program ends, and nobody reads them
            return
        best = Path(self.state.best_model_checkpoint)
        verify_checkpoint(best)
        super()._load_best_model()
        if self.average is not None and (best / MOVING_AVERAGE_NAME).is_file():
            self.average.load(best)

    # ---- pushing: what loads, and nothing else

    def init_hf_repo(self, *args: Any, **kwargs: Any) -> None:
        """`publish` makes the repository."""

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """`hf_mt.hub` writes the card, from more than the trainer knows."""

    def push_to_hub(self, *args: Any, **kwargs: Any) -> None:
        """Publishes the run folder, by the allow-list of `hf_mt.hub`."""
        self._publish(Path(self.args.output_dir))

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        wanted = self.args.push_to_hub and self.args.hub_strategy != "end"
        if wanted and not self.interruption.happened:  # which leaves seconds; the next one is pushed
            self._publish(Path(checkpoint_folder))

    def _publish(self, folder: Path) -> None:
        if self.publish is not None and self.is_world_process_zero():
            self.publish(folder)
