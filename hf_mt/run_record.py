"""What the files of a run folder say, as far as strangers may read it.

- Nothing but files is read, so that it can be read again at any time and on another machine; what is absent is empty.
- Local paths are cut to file names and secrets left out.
- In a checkpoint folder, files of the whole run are taken from the folder above.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any

from hf_mt.errors import InputError
from hf_mt.key_rules import SECRET_KEYS
from hf_mt.model import HfMtConfig
from hf_mt.settings import read_yaml, untyped
from hf_mt.verdict import best_point


CURVES = "report/course-by-step.png"  # of a run folder
HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
NAME_KEYS = frozenset({"dataset_name", "model_name_or_path", "tokenizer_name", "hub_model_id"})
TEXT_KEYS = frozenset({"source_prefix"})  # a slash in them is no path


METRICS = {
    "bleu": "BLEU",
    "bleu_lc_tok": "BLEU of lower-cased tokens",
    "bleu_zh": "BLEU, Chinese by characters",
    "bleu_ja-mecab": "BLEU, Japanese by MeCab",
    "bleu_ko-mecab": "BLEU, Korean by MeCab",
    "bleu_char": "BLEU of characters",
    "spbleu": "spBLEU",
    "chrf": "chrF",
    "chrf_pp": "chrF++",
    "ter": "TER",
    "loss": "Negative log-likelihood, nats per target token",
    "perplexity": "Perplexity per target token",
    "accuracy": "Token accuracy, given the reference so far",
    "length_ratio": "Length ratio, output to reference",
    "empty_hypotheses": "Empty outputs",
    "cut_off": "Share of outputs cut at their length limit",
    "repeated": "Share of outputs with a loop of words",
    "copied_source": "Share of outputs that are their source",
    "copied_words": "Share of words copied from the source",
    "numbers_lost": "Share of the source's numbers lost",
}


@dataclass(frozen=True)
class Run:
    """What the files of a run folder say; whatever is absent is empty."""

    folder: Path
    name: str  # of the repository, or of the folder
    config: dict[str, Any]
    results: dict[str, Any]
    log_history: list[dict[str, Any]]
    best_step: int | None
    max_steps: int | None
    settings: dict[str, Any]  # without secrets and local paths
    data_table: dict[str, Any]
    environment: dict[str, Any]
    samples: list[dict[str, Any]]  # of the kept checkpoint

    @property
    def languages(self) -> tuple[str, str] | None:
        """Codes of source and target, where both are known."""
        pair = self.settings.get("source_lang"), self.settings.get("target_lang")
        return (str(pair[0]), str(pair[1])) if all(pair) else None

    @property
    def position_encodings(self) -> tuple[str, ...]:
        """Those of encoder and decoder; none for models of others."""
        names = (self.config.get(f"{side}position_encoding") for side in ("encoder_", "decoder_"))
        common = self.config.get("position_encoding")
        return tuple(str(name or common) for name in names) if common else ()

    @property
    def is_ours(self) -> bool:
        """Whether the model is one of hf_mt's own, whose code travels with its weights."""
        return self.config.get("model_type") == HfMtConfig.model_type


def read_run(run_folder: Path, *, name: str) -> Run:
    """Read what the card needs; raises InputError for a missing folder or an unreadable file."""
    with files_as_written([run_folder]):
        return _read_run(run_folder, name)


def _read_run(run_folder: Path, name: str) -> Run:
    if not run_folder.is_dir():
        raise InputError(f"{run_folder} is no folder; name the folder of a run, which holds config.json")
    state = read_mapping(_artefact(run_folder, "trainer_state.json"))
    settings = _settings(_artefact(run_folder, "config_resolved.yaml"))
    samples = _parsed(_artefact(run_folder, "samples.jsonl"), _lines) or []
    history = state.get("log_history", [])
    kept = kept_step(state, settings)
    steps = {row.get("step") for row in samples}
    wanted = kept if kept in steps else max((step for step in steps if step is not None), default=None)
    return Run(
        folder=run_folder,
        name=name,
        config=read_mapping(run_folder / "config.json"),
        results=_results(run_folder, state, settings),
        log_history=history,
        best_step=kept,
        max_steps=state.get("max_steps"),
        settings={key: without_path(key, value) for key, value in settings.items() if key not in SECRET_KEYS},
        data_table=read_mapping(_artefact(run_folder, "data_table.json")),
        environment=_environment(_artefact(run_folder, "environment.json")),
        samples=[row for row in samples if row.get("step") == wanted],
    )


def kept_step(state: Mapping[str, Any], settings: Mapping[str, Any]) -> int | None:
    """Step of the weights that a run, or a checkpoint of it, holds: the best ones unless the last were asked for.

    Args:
        state: What `trainer_state.json` holds.
        settings: What `config_resolved.yaml` holds.
    """
    if not settings.get("load_best_model_at_end", True):
        return state.get("global_step")
    best = best_point(state.get("log_history", []))
    return state.get("best_global_step") or (best.step if best else None)


def _results(run_folder: Path, state: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """What `all_results.json` holds; of a checkpoint with other weights, only what was measured at its own step."""
    results = read_mapping(_artefact(run_folder, "all_results.json"))
    step = state.get("global_step")
    finished = read_mapping(_artefact(run_folder, "trainer_state.json", of_run=True))
    if not is_checkpoint(run_folder) or step == kept_step(finished, settings):
        return results
    rows = [row for row in state.get("log_history", []) if row.get("step") == step]
    scores = {key: value for row in rows for key, value in row.items() if key.startswith("eval_")}
    about = {key: value for key, value in results.items() if not key.startswith(("test_", "eval_"))}
    signed = {f"{key}_signature" for key in scores}
    signatures = {key: value for key, value in results.items() if key in signed}
    return {**about, **signatures, **scores}


def beam_sizes(run: Run) -> dict[str, int | None]:
    """Beams of the final test, and of development data; None where the run does not tell."""
    test = run.results.get("num_beams", run.settings.get("num_beams"))
    development = run.settings.get("generation_num_beams", 1 if run.settings else None)
    return {"test": test, "development": test if development is None else development}


def is_checkpoint(folder: Path) -> bool:
    return folder.name.startswith("checkpoint-")


@contextmanager
def files_as_written(folders: Iterable[Path]) -> Iterator[None]:
    """What makes something of the files of runs, which may hold anything by now, fails with a message in the block.

    Raises:
        InputError: They have not the form in which training wrote them.
    """
    try:
        yield
    except InputError:
        raise
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        names = ", ".join(map(str, folders))
        raise InputError(
            f"a file in {names} has not the form in which training wrote it ({type(error).__name__}: {error}); "
            "restore or delete the file that was changed"
        ) from error


def _artefact(folder: Path, name: str, *, of_run: bool = False) -> Path:
    """The file in the folder, or in that of the run if a checkpoint has none, or that of the run in any case."""
    inside = folder / name
    return folder.parent / name if is_checkpoint(folder) and (of_run or not inside.exists()) else inside


def read_mapping(path: Path) -> dict[str, Any]:
    """What a file holds, a mapping; an empty one if there is no file. Raises InputError if it holds something else."""
    found = _parsed(path, json.loads) or {}
    if not isinstance(found, dict):
        raise InputError(f"{path} holds a {type(found).__name__}, but must hold keys and values; restore or delete it")
    return found


def _settings(path: Path) -> dict[str, Any]:
    """What a file of settings holds; nothing if there is none. It is read as training reads it: without aliases, a few
    of which may stand for more than any memory holds."""
    try:
        return {key: untyped(setting.raw) for key, setting in read_yaml(path).items()} if path.exists() else {}
    except InputError as error:
        raise InputError(f"{path} cannot be read: {error}; restore or delete it") from error


def _environment(path: Path) -> dict[str, Any]:
    """Versions and machine; of the launcher's file, the name alone."""
    found, launcher = read_mapping(path), "accelerate config"
    if launcher in found:
        found[launcher] = re.sub(r"(none at |^).*[/\\]", r"\1", str(found[launcher]))
    return found


def _lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.split("\n") if line.strip()]


def _parsed(path: Path, parse: Callable[[str], Any]) -> Any:
    """What is in the file; None if there is none."""
    try:
        return parse(path.read_text(encoding="utf-8")) if path.exists() else None
    except (ValueError, OSError, RecursionError) as error:
        raise InputError(f"{path} cannot be read: {error}; restore or delete it") from error


def without_path(key: str, value: Any) -> Any:
    """`value` with every local path in it cut to its last part; names of the Hub stay."""
    if isinstance(value, Mapping):
        return {name: without_path(name, item) for name, item in value.items()}
    if isinstance(value, list):
        return [without_path(key, item) for item in value]
    if not isinstance(value, str) or not re.search(r"[/\\]", value) or key in TEXT_KEYS or hub_name(key, value):
        return value
    return PureWindowsPath(value).name  # which knows both kinds of slash


def hub_name(key: str, value: Any) -> str | None:
    """`value` if the setting `key` names a repository of the Hub with it, not a local path."""
    is_name = key in NAME_KEYS and isinstance(value, str) and HUB_NAME.fullmatch(value) and not Path(value).exists()
    return value if is_name else None
