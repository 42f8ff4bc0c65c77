"""Training from a corpus that is larger than memory.

- A block is to `TokenBatchSampler` what an epoch is otherwise: sorted by length, cut into global batches, shuffled. A
  step is the same for every layout of processes, and no pair is lost.
- Every process reads and tokenises every block and takes its own micro-batches of it. That is the cost: P processes do
  this work P times, side by side. None waits for another to deal out batches, and their shares can't overlap.
- Three blocks are in memory at most: the one in use, the next, which a thread prepares meanwhile, and the beginning of
  the one after it, which tells where the next one ends.
- When the corpus ends it is read again: the same blocks, in other batches and another order.
- The place in the stream is counted in pairs and steps, so that a run can go on with other processes.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from torch.utils.data import IterableDataset
from tqdm.auto import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState

from hf_mt.arguments import DataArguments, TranslationTrainingArguments
from hf_mt.batching import training_sampler
from hf_mt.data import (
    check_left,
    format_table,
    pair_lengths,
)
from hf_mt.data_table import update_data_table
from hf_mt.errors import InputError
from hf_mt.pair_stream import Block, PairStream, Tally, as_dataset, other_pairs


logger = logging.getLogger(__name__)

POSITION = "stream"  # among the states that a checkpoint keeps for callbacks


def ahead(blocks: Iterator[Block]) -> Iterator[Block]:
    """The same blocks; while one is used, a thread prepares the next."""
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, blocks, None)
        while block := coming.result():
            coming = thread.submit(next, blocks, None)
            yield block


class BatchStream(IterableDataset):
    """This process's micro-batches of rows, without end; `len` is what `max_steps` takes of them.

    It is always at the place that follows the last step whose micro-batches were asked for: `state_dict`.

    Args:
        stream: The pairs.
        args: Budget of a batch, seed, number of steps; which of how many processes this is.

    Raises:
        InputError: a block, or a batch, may be too small for what has to fit in.
    """

    def __init__(self, stream: PairStream, args: TranslationTrainingArguments) -> None:
        self.stream, self.args = stream, args
        self.num_parts = args.world_size * args.gradient_accumulation_steps
        self._check(stream.data)
        self.restart()

    def _check(self, data: DataArguments) -> None:
        longest = max(data.max_source_length, data.max_target_length)
        if self.args.sentences_per_batch is None and longest > self.args.tokens_per_batch:
            raise InputError(
                f"a streamed pair may have {longest} tokens on one side, and a batch {self.args.tokens_per_batch}: "
                f"raise tokens_per_batch to {longest}, or lower max_source_length and max_target_length"
            )
        if data.streaming_buffer < 2 * self.num_parts:
            raise InputError(
                f"streaming_buffer is {data.streaming_buffer}, too few pairs for the {self.num_parts} micro-batches "
                f"of a step (processes x gradient accumulation steps): raise it, to many times {2 * self.num_parts}"
            )

    def restart(self) -> None:
        """Go to the first pair of the first pass."""
        self.passes, self.pair, self.steps = 0, 0, 0  # whole passes, pairs before this block, steps taken of it
        self.digest: str | None = None  # of the pairs before this block
        self.block: str | None = None  # of those and its own
        self.corpus: str | None = None  # of all pairs, after a whole pass
        self.before = self.seen = Tally.nothing(self.stream.data)  # all before this block; and with it

    def state_dict(self) -> dict[str, Any]:
        """The place of the next step, as JSON."""
        place = {"passes": self.passes, "pair": self.pair, "steps": self.steps, "digest": self.digest}
        return {**place, "block": self.block, "corpus": self.corpus, "before": self.before.as_json()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to the place that a `state_dict` tells, whatever the number of processes was then."""
        self.passes, self.pair, self.steps, self.digest = (state[k] for k in ("passes", "pair", "steps", "digest"))
        self.block, self.corpus = state.get("block"), state.get("corpus")
        self.before = self.seen = Tally.nothing(self.stream.data) + Tally.from_json(state["before"])

    def __len__(self) -> int:
        return self.args.max_steps * self.args.gradient_accumulation_steps

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        while True:
            for block in ahead(self.stream.blocks(self.pair, self.digest)):
                self.seen = self.before + block.tally
                if block.table.num_rows:
                    yield from self._steps(block)
                else:
                    self._leave(block)
            check_left(self.seen.counts)
            if self.corpus not in (None, self.digest):
                raise other_pairs(self.pair)
            self.corpus = self.digest
            self.passes, self.pair, self.digest = self.passes + 1, 0, None

    def _steps(self, block: Block) -> Iterator[list[dict[str, Any]]]:
        if self.steps and self.block not in (None, block.digest):  # gone on with in the middle of a block
            raise other_pairs(block.end)
        self.block = block.digest
        rows = as_dataset(block)
        sampler = training_sampler(pair_lengths(rows), self.args)
        sampler.check_same_everywhere()
        sampler.set_epoch((self.passes << 40) + self.pair)  # another number for each block of each pass
        batches = list(sampler)
        for step in range(self.steps, sampler.num_steps):
            self.steps = step + 1
            if self.steps == sampler.num_steps:
                self._leave(block)
            parts = range(step * self.num_parts, (step + 1) * self.num_parts)
            for part in parts[self.args.process_index :: self.args.world_size]:
                yield rows.__getitems__(batches[part])

    def _leave(self, block: Block) -> None:
        self.before, self.pair, self.steps, self.digest = self.seen, block.end, 0, block.digest


class StreamProgress(TrainerCallback):
    """Puts the place in the stream into each checkpoint, goes back to it, and tells what was read.

    `epoch`, in logs and results, is the number of whole passes over the corpus.
    """

    def __init__(self, stream: BatchStream) -> None:
        self.stream = stream

    def on_train_begin(
        self, args: TranslationTrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if not state.global_step:
            self.stream.restart()
        elif POSITION in state.stateful_callbacks:
            self.stream.load_state_dict(state.stateful_callbacks[POSITION])
        else:
            raise InputError(f"the checkpoint of step {state.global_step} doesn't tell how far its stream was read")

    def on_step_end(
        self, args: TranslationTrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        state.epoch = float(self.stream.passes)
        state.stateful_callbacks[POSITION] = self.stream.state_dict()

    def on_save(
        self, args: TranslationTrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero:
            update_data_table(Path(args.output_dir), self.stream.seen.counts, self.stream.seen.tokens())

    def on_train_end(
        self, args: TranslationTrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.on_save(args, state, control)
        if state.is_world_process_zero:
            tqdm.write(f"Read so far:\n{format_table([self.stream.seen.counts])}")
