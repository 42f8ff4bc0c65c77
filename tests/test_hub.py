"""Pushes with the real client to a Hub on loopback, and a model that comes back without this package."""

import json
import logging
import os
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hub_server import TOKEN, HubServer, running_hub
from huggingface_hub import constants
from test_model_card import write_run
from test_scripts import TINY
from transformers import AutoTokenizer

from hf_mt import HfMtForConditionalGeneration, InputError, hub
from hf_mt import model as travelling_folder
from hf_mt.averaging import MOVING_AVERAGE_NAME, MovingAverage
from hf_mt.hub import Publisher, files_to_push, push
from hf_mt.tokenization import train_tokenizer


ROOT = Path(__file__).parents[1]
MODEL = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
CODE = {path.name for path in Path(str(travelling_folder.__file__)).parent.glob("*.py")} - {"__init__.py"}
SENT = MODEL | CODE | {"README.md", "report/course-by-step.png"}
PLANTED = (
    "generated_predictions.txt",
    "test_scores.tsv",
    "eval_scores.tsv",
    "optimizer.pt",
    "scheduler.pt",
    "rng_state.pth",
    "training_args.bin",
    "notes.py",
    ".env",
    "report/index.html",
    "report/attention-1-1.png",
    "checkpoint-20/model.safetensors",
    "checkpoint-20/config.json",
    "wandb/debug.png",
)


@pytest.fixture(scope="module")
def model(tiny_model: Any) -> HfMtForConditionalGeneration:
    return tiny_model(vocab_size=300)


@pytest.fixture
def run(model: HfMtForConditionalGeneration, tmp_path: Path) -> Path:
    """A finished run with all its files, and many that must not leave it."""
    folder = write_run(tmp_path / "run")
    model.save_pretrained(folder)
    texts = ["A dog runs", "Ein Hund rennt"] * 5
    train_tokenizer(texts, vocab_size=300, tokenizer_type="byte_bpe").save_pretrained(folder)
    AutoTokenizer.from_pretrained(folder).save_pretrained(folder)  # as after a resumed run
    for name in PLANTED:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("secret: hf_" + "x" * 34)
    return folder


@pytest.fixture
def server() -> Iterator[HubServer]:
    with running_hub() as running:
        yield running


@pytest.fixture
def online(server: HubServer, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Where and as whom to push from this process, whose client was imported offline."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    return {"endpoint": server.endpoint, "token": TOKEN}


def on_hub(server: HubServer, branch: str = "main", name: str = "user/name") -> dict[str, bytes]:
    files = server.repositories[name][branch]
    return {path: data for path, data in files.items() if path != ".gitattributes"}


def in_folder(folder: Path, names: set[str]) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in names}


def load_elsewhere(program: str, server: HubServer, home: Path) -> Any:
    """Run a program in another folder, with nothing of this checkout to import and an empty cache; what it prints."""
    home.mkdir()
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "PYTHON"))}
    environment |= {"HF_ENDPOINT": server.endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
    command = [sys.executable, "-I", "-c", program]
    done = subprocess.run(command, env=environment, cwd=home, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


WITHOUT_PACKAGE = """
import contextlib, io, json, sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "hf_mt":
            raise ImportError("hf_mt is blocked")
sys.meta_path.insert(0, Blocked())
import torch
from huggingface_hub import hf_hub_download
from transformers import AutoModelForSeq2SeqLM
card = open(hf_hub_download("user/name", "README.md"), encoding="utf-8").read()
shown = io.StringIO()
with contextlib.redirect_stdout(shown):
    exec(card.split("```python\\n")[1].split("```")[0])
logits = model(input_ids=torch.tensor([[5, 6, 7, 2]]), decoder_input_ids=torch.tensor([[1, 8, 9]])).logits
try:
    AutoModelForSeq2SeqLM.from_pretrained("user/name", revision="broken", trust_remote_code=True)
    broken = "it loaded"
except OSError as error:
    broken = str(error)
print(json.dumps([logits.tolist(), shown.getvalue(), broken]))
"""


def run_script(
    arguments: list[str], online: dict[str, Any], monkeypatch: pytest.MonkeyPatch, *, name: str = "push_to_hub"
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", online["endpoint"])
    monkeypatch.setenv("HF_TOKEN", online["token"])
    script = str(ROOT / "scripts" / f"{name}.py")
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    runpy.run_path(script, run_name="__main__")


def test_the_script_sends_what_loads_without_the_package_and_nothing_else(
    run: Path,
    server: HubServer,
    online: dict[str, Any],
    model: HfMtForConditionalGeneration,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run_script([str(run), "--repo_id", "user/name"], online, monkeypatch)
    assert capsys.readouterr().out.strip() == f"{server.endpoint}/user/name"
    assert on_hub(server) == in_folder(run, SENT)

    server.repositories["user/name"]["broken"] = on_hub(server)
    del server.repositories["user/name"]["broken"]["position_encodings.py"]
    logits, shown, error = load_elsewhere(WITHOUT_PACKAGE, server, tmp_path / "home")
    with torch.no_grad():
        wanted = model(input_ids=torch.tensor([[5, 6, 7, 2]]), decoder_input_ids=torch.tensor([[1, 8, 9]])).logits
    torch.testing.assert_close(torch.tensor(logits), wanted)
    assert shown.startswith("['")  # the snippet of the card asked nothing and printed its translation
    assert "position_encodings.py" in error


def test_training_pushes_its_checkpoints_and_at_last_the_run(
    server: HubServer, online: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = tmp_path / "tiny.yaml"
    config.write_text(TINY + "push_to_hub: true\nhub_model_id: user/trained\nhub_strategy: every_save\n")
    run_script([str(config), "--output_dir", str(tmp_path / "run")], online, monkeypatch, name="train")
    messages = [commit["summary"] for commit in server.commits]
    sent = on_hub(server, name="user/trained")
    assert len(messages) == 3, messages  # two checkpoints and the finished run
    assert set(sent) == SENT and b"BLEU" in sent["README.md"]
    assert sent["model.safetensors"] == (tmp_path / "run" / "model.safetensors").read_bytes()
    assert (tmp_path / "run" / "generated_predictions.txt").is_file()


def test_a_dry_run_lists_the_files_and_sends_nothing(
    run: Path,
    server: HubServer,
    online: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run_script([str(run), "--dry_run"], online, monkeypatch)
    assert set(capsys.readouterr().out.split()) == SENT
    assert not server.requests


def test_an_open_list_would_send_what_must_stay(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (run / "README.md").write_text("card")
    assert set(files_to_push(run)) == SENT
    monkeypatch.setattr(hub, "ALLOWED_FILES", ("**/*",))
    monkeypatch.setattr(hub, "_refuse_secrets", lambda *_: None)
    assert set(PLANTED) < set(files_to_push(run))


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "modeling_hf_mt.py", "position_encodings.py"])
def test_what_would_not_load_is_refused_by_name(run: Path, name: str) -> None:
    assert name in files_to_push(run)
    (run / name).unlink()
    with pytest.raises(InputError, match=name):
        files_to_push(run)


def test_every_shard_must_be_there(run: Path) -> None:
    shards = {f"layer{i}": f"model-0000{i}-of-00002.safetensors" for i in (1, 2)}
    (run / "model.safetensors").rename(run / shards["layer1"])
    (run / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    with pytest.raises(InputError, match=r"missing: model-00002-of-00002.safetensors\."):
        files_to_push(run)
    (run / shards["layer2"]).write_bytes(b"")
    assert set(shards.values()) < set(files_to_push(run))


def test_a_token_in_a_file_stops_the_push(run: Path, server: HubServer, online: dict[str, Any]) -> None:
    (run / "README.md").write_text("my token is hf_" + "A1b2" * 9)
    with pytest.raises(InputError, match=r"README\.md holds an access token"):
        push(run, "user/name", **online)
    assert not server.requests
    (run / "README.md").write_text("tags: hf_mt, hf_test")
    assert push(run, "user/name", **online) == f"{server.endpoint}/user/name"


def test_a_branch_gets_the_files_and_main_does_not(run: Path, server: HubServer, online: dict[str, Any]) -> None:
    address = push(run, "name", revision="wmt", commit_message="half way", **online)
    assert address == f"{server.endpoint}/user/name/tree/wmt"
    assert on_hub(server, "wmt") == in_folder(run, SENT - {"README.md"})
    assert on_hub(server, "main") == {}
    assert [commit["summary"] for commit in server.commits] == ["half way"]


def test_a_second_push_leaves_no_stale_weights(run: Path, server: HubServer, online: dict[str, Any]) -> None:
    push(run, "user/name", **online)
    server.repositories["user/name"]["main"]["photo.jpg"] = b"mine"
    (run / "model.safetensors").rename(run / "model-00001-of-00001.safetensors")
    push(run, "user/name", **online)
    assert "model.safetensors" not in on_hub(server)
    assert {"model-00001-of-00001.safetensors", "photo.jpg"} < set(on_hub(server))
    assert len(server.commits) == 2


def test_private_means_private(run: Path, server: HubServer, online: dict[str, Any]) -> None:
    push(run, "user/hidden", private=True, **online)
    assert server.private == {"user/hidden"}
    push(run, "user/hidden", private=True, **online)
    push(run, "user/open", **online)
    with pytest.raises(InputError, match="is public"):
        push(run, "user/open", private=True, **online)


def test_the_hubs_refusals_say_what_to_do(run: Path, server: HubServer, online: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"HTTP 401.*settings/tokens"):
        push(run, "user/name", **(online | {"token": "hf_wrong"}))
    with pytest.raises(InputError, match="two//slashes"):
        push(run, "two//slashes", **online)
    with pytest.raises(InputError, match="check the network"):
        push(run, "user/name", **(online | {"endpoint": "http://127.0.0.1:9"}))
    (run / "README.md").write_text("---\nlanguage:\n- klingon\n---\n")
    with pytest.raises(InputError, match="klingon"):
        push(run, "user/name", **online)
    assert not server.commits


def test_offline_is_named(run: Path, server: HubServer, online: dict[str, Any], monkeypatch: Any) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="HF_HUB_OFFLINE"):
        push(run, "user/name", **online)


def test_a_publisher_outlives_a_hub_that_fails(
    run: Path, server: HubServer, online: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    publisher = Publisher("name", **online)
    publisher.prepare()
    assert publisher.repo_id == "user/name"
    server.fail_with = 503
    with caplog.at_level(logging.ERROR):
        assert publisher(run) is None
    assert publisher.failures == 1 and "503" in caplog.text
    with pytest.raises(InputError, match="503"):
        publisher.prepare()
    server.fail_with = None
    assert publisher(run) == f"{server.endpoint}/user/name"
    assert publisher.failures == 1
    assert b'from_pretrained("user/name"' in on_hub(server)["README.md"]


def test_a_publisher_pushes_a_checkpoint_that_loads(run: Path, server: HubServer, online: dict[str, Any]) -> None:
    checkpoint = run / "checkpoint-40"
    checkpoint.mkdir()
    for name in MODEL | CODE | {"trainer_state.json", "optimizer.pt"}:
        (run / name).rename(checkpoint / name)
    assert Publisher("user/name", show_samples=False, **online)(checkpoint)
    assert set(on_hub(server)) == MODEL | CODE | {"README.md"}
    card = on_hub(server)["README.md"].decode()
    assert "## Hyperparameters" in card and "A dog runs" not in card


def test_of_a_checkpoint_the_weights_that_were_evaluated_are_pushed(
    run: Path, server: HubServer, online: dict[str, Any], model: HfMtForConditionalGeneration
) -> None:
    average = MovingAverage(model, 0.9)
    for weight in average.weights.values():
        weight += 1.0
    average.save(run)
    push(run, "user/name", **online)
    pushed = safetensors.torch.load(on_hub(server)["model.safetensors"])
    own = safetensors.torch.load_file(run / "model.safetensors")
    assert pushed.keys() == own.keys()
    for name, weight in own.items():
        torch.testing.assert_close(pushed[name], weight + 1.0)
    assert MOVING_AVERAGE_NAME not in on_hub(server)
