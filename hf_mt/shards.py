"""A large translation as shards: shared by processes, and gone on with after it was interrupted.

- `OUTPUT.shards/` holds each finished shard as a whole file, beside the counts of its lines, and a manifest of the
  job: digests of input and model, and the options. Shards of another job are refused, whatever differs.
- A process takes the next shard that nobody has, by a lock that the system releases whatever ends the process: fast
  processes do more, and nobody waits for a dead one. The first process waits for the others by such locks too, does
  what they left, and joins the shards.
- Two processes that did the same shard would write the same file, so a file system whose locks don't reach other
  machines costs time, and nothing else.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from filelock import FileLock, Timeout

from hf_mt.errors import InputError
from hf_mt.hypotheses import Tally
from hf_mt.loading import model_identity
from hf_mt.search_limits import check_limits
from hf_mt.text_files import open_output, unfinished, write_whole
from hf_mt.translation import Translator
from hf_mt.translation_input import Input, Sentences, Survey, TextColumn, TextFile
from hf_mt.translation_output import write_lines, write_translations


MANIFEST = "manifest.json"
SHARD_SIZE = 20000
FREE_OPTIONS = frozenset({"tokens_per_batch", "show_progress"})  # they change no translation


def translate(
    translator: Translator,
    source: Input,
    output: str,
    *,
    shard_size: int | None = None,
    say: Callable[[str], None],
    **options: Any,
) -> None:
    """Translates an input into a file: at once, or in shards if there are several processes, a size is given, or a job
    in shards was begun and has not ended.

    Args:
        translator: Translates, in each process.
        source: What to translate.
        output: A file, which appears once it is whole; "-", standard output, for one process without shards.
        shard_size: Lines of a shard; 20,000 where several processes, or a job to go on with, are given none.
        say: Shows a line to the user; called in the first process alone.
        **options: Those of `hf_mt.translation_output.write_lines`.

    Raises:
        InputError: Input or output can't be had in shards, `OUTPUT.shards` is of another job, or a line is too long.
    """
    if output != "-" and Path(output).is_dir():
        raise InputError(f"{output} is a folder; name a file to write")
    processes = PartialState()
    begun = not isinstance(source, Sentences) and Path(f"{output}.shards").is_dir()
    if shard_size is None and processes.num_processes == 1 and not begun:
        write_translations(translator, source, output, **options)
        return
    size = SHARD_SIZE if shard_size is None else shard_size
    check_limits(shard_size=size)
    if isinstance(source, Sentences) or output == "-":
        raise InputError(
            f"found {source.name} as input and {output} as output: shards and several processes need --input with a "
            "file or --dataset, and --output with a file"
        )
    Job(translator, source, Path(output), size, say, options).run(processes)


@dataclass(frozen=True)
class Job:
    """One process's share of a translation in shards; arguments as for `translate`."""

    translator: Translator
    source: TextFile | TextColumn
    output: Path
    size: int
    say: Callable[[str], None]
    options: Mapping[str, Any]

    @property
    def folder(self) -> Path:
        return self.output.with_name(f"{self.output.name}.shards")

    def run(self, processes: PartialState) -> None:
        """Does a share of the shards; the first process ends when the output is there."""
        if processes.is_main_process:
            self._lead(processes)
            return
        survey = self._agree(None)
        with _locked(self.folder / f"process-{processes.process_index}.lock"):
            processes.wait_for_everyone()
            self._work(survey, lambda: None)

    def _lead(self, processes: PartialState) -> None:
        """The first process's share: it begins and ends the job."""
        with ExitStack() as stack:
            try:
                stack.enter_context(_owned(self.folder))
                survey = self.source.survey(self.size)
                self._open(survey)
            except InputError as error:
                self._agree(error)
                raise
            self._agree(survey)
            processes.wait_for_everyone()
            self._work(survey, lambda: self.say(self._progress(survey)))
            for index in range(1, processes.num_processes):  # until it has ended, one way or the other
                with FileLock(self.folder / f"process-{index}.lock", poll_interval=0.2):
                    pass
            self._work(survey, lambda: self.say(self._progress(survey)))
            self._join(survey)

    def _agree(self, found: Survey | InputError | None) -> Survey:
        """What the first process found, in all of them."""
        [agreed] = broadcast_object_list([found])
        if isinstance(agreed, InputError):
            raise agreed
        return agreed

    def _open(self, survey: Survey) -> None:
        """Begins the job or goes on with it.

        Raises:
            InputError: The shards are of another job, or some line can't be translated.
        """
        identity, path = self._identity(survey), self.folder / MANIFEST
        if not path.is_file():
            limits = {name: self.options[name] for name in ("max_source_tokens", "long_lines") if name in self.options}
            self.translator.check_lines(self.source, **limits)
            for stale in [*self.folder.glob("*.txt"), *self.folder.glob("*.json")]:  # of a job killed at its very end
                stale.unlink()
            write_whole(path, json.dumps(identity, indent=2) + "\n")
        before = _read_json(path)
        names = [name for name in {**before, **identity} if before.get(name) != identity.get(name)]
        if names:
            changes = "; ".join(f"{name}: {before.get(name)!s:.16} -> {identity.get(name)!s:.16}" for name in names)
            raise InputError(
                f"{self.folder} has shards of another job ({changes}): give the same input, model and options to go "
                "on with that one, remove the folder to begin anew, or choose another output"
            )
        self.say(self._progress(survey))

    def _identity(self, survey: Survey) -> dict[str, Any]:
        """All that translations depend on; plain JSON."""
        translator = self.translator
        model = model_identity(translator.model.name_or_path, translator.model)
        return {
            "input lines": survey.lines,
            "input sha256": survey.sha256,
            **{f"model {name}": value for name, value in model.items()},
            "dtype": str(translator.model.dtype),
            "source_prefix": translator.source_prefix,
            "source language": getattr(translator.tokenizer, "src_lang", None),
            "target language": translator.language_options or None,
            "shard_size": self.size,
            **{name: value for name, value in self.options.items() if name not in FREE_OPTIONS},
        }

    def _shard(self, number: int) -> Path:
        return self.folder / f"{number:06}.txt"

    def _missing(self, survey: Survey) -> list[int]:
        present = {path.name for path in self.folder.iterdir()}
        return [number for number in range(len(survey.places)) if self._shard(number).name not in present]

    def _progress(self, survey: Survey) -> str:
        missing, shards = len(self._missing(survey)), len(survey.places)
        return f"{self.folder}: {shards - missing} of {shards} shards are done, {missing} to do"

    def _work(self, survey: Survey, tell: Callable[[], None]) -> None:
        """Translates the missing shards that no other process has at the moment."""
        for number in self._missing(survey):
            lock = FileLock(self.folder / f"{number:06}.lock", blocking=False)
            try:
                with lock:
                    if self._shard(number).is_file():
                        continue
                    self._translate(survey, number)
            except Timeout:
                continue
            tell()

    def _translate(self, survey: Survey, number: int) -> None:
        first, path = 1 + number * self.size, self._shard(number)
        lines = self.source.shard(survey.places[number], first, self.size)
        with unfinished(path) as aside:
            with aside.open("wb") as file:
                tally = write_lines(self.translator, lines, file, first_line=first, **self.options)
                file.flush()
                os.fsync(file.fileno())  # its name must not outlive a power cut that its content does not
            write_whole(path.with_suffix(".json"), json.dumps(asdict(tally)) + "\n")

    def _join(self, survey: Survey) -> None:
        """Writes the output and removes the folder.

        Raises:
            InputError: A shard was changed, or the input while it was translated.
        """
        if self.source.survey(self.size) != survey:
            raise InputError(
                f"{self.source.name} changed while it was translated: put the old one back, and the same command ends "
                f"the job, or remove {self.folder} to translate the new one"
            )
        tally = Tally()
        with open_output(self.output) as file:
            for number in range(len(survey.places)):
                tally += self._check(number, min(self.size, survey.lines - number * self.size))
                with self._shard(number).open("rb") as shard:
                    shutil.copyfileobj(shard, file)
        (self.folder / MANIFEST).unlink()
        tally.warn()
        self.say(f"{self.output}: translations of {tally.lines} lines")

    def _check(self, number: int, wanted: int) -> Tally:
        """The counts of a shard.

        Raises:
            InputError: Its file, which someone else changed, hasn't as many lines as its input.
        """
        path = self._shard(number)
        with path.open("rb") as file:  # with nbest, the hypotheses of a line share its index
            nbest = self.options.get("nbest")
            found = len({line.split(b" ", 1)[0] if nbest else number for number, line in enumerate(file)})
        counts = _read_json(path.with_suffix(".json"))
        tally = Tally(**{field.name: counts.get(field.name, 0) for field in fields(Tally)})
        if not found == tally.lines == wanted:
            raise InputError(
                f"{path} has {found} lines, not {wanted}: remove it, and the same command translates it anew"
            )
        return tally


def _read_json(path: Path) -> dict[str, Any]:
    """What the file of a job holds.

    Raises:
        InputError: It was cut or changed.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(found, dict):
            return found
        error: object = f"it holds a {type(found).__name__}"
    except (OSError, ValueError) as reason:
        error = reason
    raise InputError(f"{path} can't be read ({error}): remove {path.parent} to translate anew")


@contextmanager
def _owned(folder: Path) -> Iterator[None]:
    """The folder of a job for one program alone; one without a manifest is removed in the end."""
    with _locked(folder / "job.lock"):
        try:
            yield
        finally:
            if not (folder / MANIFEST).is_file():
                shutil.rmtree(folder)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """A lock that nobody else may hold.

    Raises:
        InputError: Another process has it, or the folder can't be written.
    """
    try:
        path.parent.mkdir(exist_ok=True)
        lock = FileLock(path, blocking=False)
        lock.acquire()
    except Timeout:
        raise InputError(f"{path.parent} is in use by a translation that is running now; wait for its end") from None
    except OSError as error:
        raise InputError(f"{path.parent} can't be written: {error.strerror}") from error
    try:
        yield
    finally:
        lock.release()
