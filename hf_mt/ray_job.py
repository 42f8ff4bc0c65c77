"""A large translation as a Ray Data job, for a cluster whose machines share a file system.

- A row of the data set is the place of a shard in the input, not its text: an actor, which holds a translator, reads
  the lines itself, by the same code as without Ray.
- Rows of the result have the number of their line. They come in order and are written as they come; a number out of
  turn is an error.
- Ray repeats the shards of a machine that was lost. A job that was ended begins anew; `hf_mt.shards` would go on.
"""

import os
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from transformers.utils import logging as transformers_logging

from hf_mt.errors import InputError
from hf_mt.hypotheses import Hypothesis, Tally
from hf_mt.search_limits import check_limits
from hf_mt.shards import SHARD_SIZE
from hf_mt.text_files import open_output
from hf_mt.translation import Translator
from hf_mt.translation_input import Input, Sentences, open_input
from hf_mt.translation_output import write_hypotheses


NAMES = ("model", "input", "dataset")  # options that may be paths


class ShardTranslator:
    """What an actor does.

    Args:
        model: Arguments of `Translator`.
        source: Arguments of `open_input`.
        size: Lines of a shard.
        options: Those of `Translator.translate_stream`.
    """

    def __init__(self, model: Mapping[str, Any], source: Mapping[str, Any], size: int, options: Mapping[str, Any]):
        self.model, self.given, self.size, self.options = model, source, size, options

    @cached_property
    def translator(self) -> Translator:
        transformers_logging.disable_progress_bar()
        return Translator(**self.model)

    @cached_property
    def source(self) -> Input:
        return open_input(**self.given)

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, list[Any]]:
        """One shard, `first_line` and `place`, each of one number, to rows of `line`, `text`, `finished`, `parts`.

        Instead of an error, of which Ray would hand on the traceback alone, there is a row that is `refused`.
        """
        first, place = int(batch["first_line"][0]), int(batch["place"][0])
        refused = False
        try:
            lines = self.source.shard(place, first, self.size)  # type: ignore[union-attr]
            stream = self.translator.translate_stream(lines, first_line=first, tally=Tally(), **self.options)
            best = [hypotheses[0] for hypotheses in stream]
        except InputError as error:
            best, refused = [Hypothesis(str(error), None, False)], True
        columns = {name: [getattr(each, name) for each in best] for name in ("text", "finished", "parts")}
        return {"line": list(range(first, first + len(best))), "refused": [refused] * len(best), **columns}


def translate_with_ray(
    model: Mapping[str, Any],
    source: Mapping[str, Any],
    output: str,
    *,
    shard_size: int = SHARD_SIZE,
    actors: int | None = None,
    num_cpus: float = 1,
    num_gpus: float | None = None,
    **options: Any,
) -> Tally:
    """Translates a file or data set on a Ray cluster: that of RAY_ADDRESS, or this machine.

    Args:
        model: Arguments of `Translator`.
        source: Arguments of `open_input`.
        output: A file, which appears once it is whole, with a line for each line of the input.
        shard_size: Lines that an actor translates at a time.
        actors: How many; as many as there is room for if None.
        num_cpus: Processors of an actor.
        num_gpus: GPUs of an actor; 1 if None and the cluster has any.
        **options: Those of `Translator.translate_stream`.

    Raises:
        InputError: Ray isn't installed, input or output can't be had, or a line is too long.
    """
    model, source = _absolute(model), _absolute(source)
    opened = open_input(**source)
    if isinstance(opened, Sentences) or output == "-":
        raise InputError("a Ray job needs --input with a file or --dataset, and --output with a file")
    check_limits(shard_size=shard_size)
    survey = opened.survey(shard_size)
    rows = [{"first_line": 1 + number * shard_size, "place": place} for number, place in enumerate(survey.places)]
    make = (model, source, shard_size, options)
    tally = Tally()
    results = _run(rows, make, actors=actors, num_cpus=num_cpus, num_gpus=num_gpus) if rows else None
    with open_output(output) as file:
        if results is not None:
            write_hypotheses(_in_order(results, tally), file, tally)
        if tally.lines != survey.lines:
            raise RuntimeError(f"Ray gave {tally.lines} lines, where the input has {survey.lines}")
    return tally


def _run(
    rows: list[dict[str, int]], make: tuple[Any, ...], *, actors: int | None, num_cpus: float, num_gpus: float | None
) -> Iterator[dict[str, Any]]:
    """Rows of the result, as they come; the cluster is there when this returns."""
    ray = _import_ray()
    ray.init(ignore_reinit_error=True)
    ray.data.DataContext.get_current().execution_options.preserve_order = True
    resources = ray.cluster_resources()
    num_gpus = num_gpus if num_gpus is not None else min(1, resources.get("GPU", 0))
    pool = ray.data.ActorPoolStrategy(size=actors or min(_room(resources, num_cpus, num_gpus), len(rows)))
    shards = ray.data.from_items(rows, override_num_blocks=len(rows))
    results = shards.map_batches(
        ShardTranslator,
        batch_size=1,
        compute=pool,
        fn_constructor_args=make,
        num_cpus=num_cpus,
        num_gpus=num_gpus or None,
    )
    return iter(results.iter_rows())


def _room(resources: Mapping[str, float], num_cpus: float, num_gpus: float) -> int:
    """How many actors fit on a cluster; one if none does, which waits for what it lacks."""
    scarce, share = ("GPU", num_gpus) if num_gpus else ("CPU", num_cpus or 1)
    return max(1, int(resources.get(scarce, 0) // share))


def _in_order(rows: Iterator[dict[str, Any]], tally: Tally) -> Iterator[list[Hypothesis]]:
    for number, row in enumerate(rows, 1):
        if row["refused"]:
            raise InputError(row["text"])
        if row["line"] != number:
            raise RuntimeError(f"Ray gave line {row['line']}, where line {number} was due")
        best = [Hypothesis(row["text"], None, row["finished"], row["parts"])]
        tally.add(best)
        yield best


def _import_ray() -> Any:
    try:
        import ray.data
    except ImportError as error:
        raise InputError(f"Ray isn't installed ({error}): pip install 'hf_mt[ray]'") from error
    return ray


def _absolute(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options with whole paths: actors may have another working directory."""
    return {
        name: str(Path(value).resolve()) if name in NAMES and value and os.path.exists(value) else value
        for name, value in options.items()
    }
