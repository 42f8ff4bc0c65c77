"""Pushes to the Hugging Face Hub of what loads, and of nothing else.

- A push sends a closed list of files in one commit, after checking that they are complete. transformers' own push
  sends the whole run folder, test translations and local paths included, and its pushes during training leave out the
  code of the model, so that they do not load.
- Code files are those that `auto_map` names and what they import, found as transformers finds them when it loads.
- Of the pictures only the curves are pushed: those of attention show sentences of the corpus.
- A push during training that fails is reported and training goes on; see `Publisher`.
"""

import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HfHubHTTPError, HTTPError
from safetensors import SafetensorError
from safetensors.torch import save_file
from transformers.dynamic_module_utils import get_relative_imports
from transformers.utils import SAFE_WEIGHTS_NAME

from hf_mt.averaging import MOVING_AVERAGE_NAME, checkpoint_weights
from hf_mt.errors import InputError
from hf_mt.experiment import Experiment
from hf_mt.model_card import write_model_card
from hf_mt.run_record import CURVES, read_mapping


logger = logging.getLogger(__name__)

WEIGHT_FILES = ("model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json")
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "target_vocab.json",
    "vocab.txt",
    "merges.txt",
    "source.spm",
    "target.spm",
    "spiece.model",
    "sentencepiece.bpe.model",
    "sentencepiece.model",
    "tokenizer.model",
)
ALLOWED_FILES = ("config.json", "generation_config.json", *WEIGHT_FILES, *TOKENIZER_FILES, "README.md", CURVES)
SECRET = re.compile(rb"\bhf_[A-Za-z0-9]{30,}")
TEXT_SUFFIXES = frozenset({".json", ".md", ".py", ".txt"})


def files_to_push(folder: Path) -> list[str]:
    """The files of `folder` that a push sends, by their path inside it, sorted.

    Raises:
        InputError: The model would not load: no config.json, no weights, a missing shard or code file; or a file
            holds an access token.
    """
    if not (folder / "config.json").is_file():
        raise InputError(f"{folder} holds no config.json; name the folder of a finished run, or of a checkpoint in it")
    found = {path for pattern in ALLOWED_FILES for path in folder.glob(pattern) if path.is_file()}
    names = {path.relative_to(folder).as_posix() for path in found}
    wanted = _code_files(folder) | _shards(folder)
    missing = sorted(name for name in wanted if not (folder / name).is_file())
    if not any(name.endswith(".safetensors") for name in names):
        missing.append("model.safetensors")
    if missing:
        listed = ", ".join(missing)
        raise InputError(f"{folder} would not load from the Hub; missing: {listed}. Save it with save_pretrained")
    _refuse_secrets(folder, names | wanted)
    return sorted(names | wanted)


def _shards(folder: Path) -> set[str]:
    """The files among which the index, if there is one, divides the weights."""
    shards = _mapping(folder / "model.safetensors.index.json", "weight_map").values()
    return {_inside(folder, name) for name in shards}


def _mapping(path: Path, key: str) -> dict[str, Any]:
    found = read_mapping(path).get(key) or {}
    if not isinstance(found, dict):
        raise InputError(f"{path}: {key} is a {type(found).__name__}, wanted keys and values; save the model again")
    return found


def _inside(folder: Path, name: Any) -> str:
    """A file of the folder itself: a name with a path in it could fetch one from anywhere."""
    if not isinstance(name, str) or not re.fullmatch(r"[\w.-]+", name) or name.startswith("."):
        raise InputError(
            f"{folder} names {name!r} as a part of the model, which is no file in it; save the model again"
        )
    return name


def _code_files(folder: Path) -> set[str]:
    """The Python files that `auto_map` names, and all that they import relatively."""
    queue = sorted(_auto_map_files(folder))
    code: set[str] = set()
    while queue:
        name = queue.pop()
        if name not in code:
            code.add(name)
            path = folder / name
            queue += [f"{module}.py" for module in get_relative_imports(path)] if path.is_file() else []
    return code


def _auto_map_files(folder: Path) -> set[str]:
    """`{"AutoModel": "modeling_x.Model"}` names modeling_x.py; `user/name--modeling_x.Model` a file elsewhere."""
    files = set()
    for owner in ("config.json", "tokenizer_config.json"):
        for value in _mapping(folder / owner, "auto_map").values():
            names = [name for name in (value if isinstance(value, list) else [value]) if name]
            files |= {_inside(folder, f"{str(name).rpartition('.')[0]}.py") for name in names if "--" not in str(name)}
    return files


def _refuse_secrets(folder: Path, names: Sequence[str] | set[str]) -> None:
    for name in sorted(names):
        if Path(name).suffix in TEXT_SUFFIXES and SECRET.search((folder / name).read_bytes()):
            raise InputError(f"{folder / name} holds an access token (hf_...); take it out, and revoke it on the Hub")


def push(
    folder: Path,
    repo_id: str,
    *,
    token: str | None = None,
    private: bool | None = None,
    revision: str | None = None,
    commit_message: str | None = None,
    endpoint: str | None = None,
) -> str:
    """Push the model in `folder` to the Hub in one commit, and return its address there.

    Weights of an earlier push that the new ones do not replace are deleted in the same commit: `from_pretrained`
    would prefer an old `model.safetensors` to new shards.

    Args:
        folder: A finished run, a checkpoint in it, or any folder written by `save_pretrained`.
        repo_id: `user/name` or `organisation/name`; a bare `name` belongs to the owner of the token. Created if new.
        token: Access token; by default the one of `hf auth login` or HF_TOKEN.
        private: Whether a new repository is private; by default as the owner's settings say.
        revision: Branch to push to, created if new; by default `main`.
        commit_message: By default it names hf_mt.
        endpoint: Address of the Hub; by default HF_ENDPOINT or https://huggingface.co.

    Raises:
        InputError: `folder` would not load (see `files_to_push`), the Hub refuses the token, the name or the card, or
            cannot be reached; or `private` was asked for and the repository is public.
    """
    files = files_to_push(folder)
    api = HfApi(endpoint=endpoint, token=token)
    with _explained(repo_id, api.endpoint):
        repo_id = _open_repository(api, repo_id, private=private, revision=revision)
        there = api.list_repo_files(repo_id, revision=revision)
        stale = [name for name in there if _is_weight(name) and name not in files]
        with _evaluated_weights(folder) as replaced:
            paths = {name: folder / name for name in files} | replaced
            api.create_commit(
                repo_id,
                operations=[
                    *(CommitOperationAdd(path_in_repo=name, path_or_fileobj=path) for name, path in paths.items()),
                    *(CommitOperationDelete(path_in_repo=name) for name in stale),
                ],
                commit_message=commit_message or "Upload a model trained with hf_mt",
                revision=revision,
            )
    address = f"{api.endpoint}/{repo_id}" + (f"/tree/{revision}" if revision else "")
    logger.info("Pushed %d files to %s", len(files), address)
    return address


@contextmanager
def _evaluated_weights(folder: Path) -> Iterator[dict[str, Path]]:
    """A file in the place of a checkpoint's weights, if it has a moving average: the card has the average's scores."""
    if not (folder / MOVING_AVERAGE_NAME).is_file():
        yield {}
        return
    with TemporaryDirectory() as aside:
        path, weights = Path(aside, SAFE_WEIGHTS_NAME), checkpoint_weights(folder)
        try:
            save_file(weights, path, {"format": "pt"})
        except (OSError, SafetensorError) as error:
            raise InputError(f"{path} can't be written: {error}; make room there, or set TMPDIR") from error
        yield {path.name: path}


def _is_weight(name: str) -> bool:
    return any(Path(name).match(pattern) for pattern in WEIGHT_FILES) and "/" not in name


def _open_repository(api: HfApi, repo_id: str, *, private: bool | None, revision: str | None) -> str:
    """Create what is missing; return the full name."""
    full = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    if private and not api.model_info(full).private:
        raise InputError(f"{full} exists and is public; make it private in its settings on the Hub, or rename yours")
    if revision:
        api.create_branch(full, branch=revision, exist_ok=True)
    return full


@contextmanager
def _explained(repo_id: str, endpoint: str) -> Iterator[None]:
    """Turn what the Hub or the network refuses into an InputError that says what to do."""
    try:
        yield
    except HfHubHTTPError as error:
        status = error.response.status_code
        reason = error.server_message or error.response.reason_phrase
        raise InputError(f"the Hub refused {repo_id} (HTTP {status}: {reason}); {_remedy(status)}") from error
    except (HTTPError, OSError, RuntimeError) as error:  # RuntimeError is how an interrupted upload ends
        cure = "check the network, and that HF_HUB_OFFLINE is not set"
        raise InputError(f"pushing to {endpoint} failed: {error}; {cure}") from error
    except InputError:
        raise
    except ValueError as error:  # a malformed repository name, or metadata that the Hub refuses
        raise InputError(f"{repo_id} cannot be pushed: {error}") from error


def _remedy(status: int) -> str:
    if status in (401, 403):
        settings = "https://huggingface.co/settings/tokens"
        return f"create a token with write access at {settings}, and give it to `hf auth login` or in HF_TOKEN"
    return "try again later" if status >= 500 or status == 429 else "check the name of the repository and the branch"


class Publisher:
    """Pushes the checkpoints of a run to one repository.

    Call `prepare` before the first step, so that a wrong name or token is found then, and the publisher itself with
    each folder to push. A push that fails does not end the training: it is logged and counted in `failures`.

    Args:
        repo_id, token, private, revision, endpoint: As in `push`.
        license, show_samples: As in `write_model_card`.
    """

    def __init__(
        self,
        repo_id: str,
        *,
        token: str | None = None,
        private: bool | None = None,
        revision: str | None = None,
        endpoint: str | None = None,
        license: str | None = None,
        show_samples: bool = True,
    ):
        self.repo_id = repo_id
        self.failures = 0
        self._card: dict[str, Any] = {"license": license, "show_samples": show_samples}
        self._where: dict[str, Any] = {"token": token, "private": private, "revision": revision, "endpoint": endpoint}

    def prepare(self) -> None:
        """Create the repository and the branch where they are missing; raises InputError as `push` does."""
        api = HfApi(endpoint=self._where["endpoint"], token=self._where["token"])
        with _explained(self.repo_id, api.endpoint):
            private, revision = self._where["private"], self._where["revision"]
            self.repo_id = _open_repository(api, self.repo_id, private=private, revision=revision)

    def __call__(self, folder: Path) -> str | None:
        """Write the card into `folder` and push it; the address, or None where that failed."""
        try:
            write_model_card(folder, repo_id=self.repo_id, **self._card)
            return push(folder, self.repo_id, **self._where)
        except InputError as error:
            self.failures += 1
            logger.error("Push %d that failed; training goes on: %s", self.failures, error)
            return None


def publisher_for(experiment: Experiment) -> Publisher | None:
    """The publisher that an experiment asks for, its repository made by the first process; None without `push_to_hub`.

    Raises:
        InputError: No repository is named, or it cannot be made or written.
    """
    args = experiment.training
    if not args.push_to_hub:
        return None
    publisher = Publisher(
        args.hub_model_id or Path(args.output_dir).resolve().name,
        token=args.hub_token,
        private=args.hub_private_repo,
        revision=args.hub_revision,
        license=args.card_license,
        show_samples=args.card_samples,
    )
    if args.process_index == 0:
        publisher.prepare()
    return publisher
