"""A saved folder brings its own code: it loads where hf_mt is not installed, and computes the same.

- One process that cannot import hf_mt does all the loading, since most of its time goes into importing transformers.
- It saves what it loaded once more: a copy of a copy must load too.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from hf_mt import HfMtForConditionalGeneration
from hf_mt.model import configuration_hf_mt


ENCODINGS = ["rope", "shaw", "learned"]
INPUTS = {"input_ids": [[5, 6, 7, 2], [8, 9, 2, 0]], "decoder_input_ids": [[1, 20, 21], [1, 22, 23]]}

ELSEWHERE = """
import json, sys
from pathlib import Path

class NoHfMt:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "hf_mt":
            raise ImportError("hf_mt is not installed here")

sys.meta_path.insert(0, NoHfMt())

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModel, AutoModelForSeq2SeqLM

def run(folder):
    model = AutoModelForSeq2SeqLM.from_pretrained(folder, trust_remote_code=True)
    base = AutoModel.from_pretrained(folder, trust_remote_code=True)
    config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
    with torch.no_grad():
        save_file({"logits": model(**inputs).logits, "states": base(**inputs).last_hidden_state}, folder / "elsewhere")
    return model, {"modules": [type(each).__module__ for each in (model, base, config)]}

def refusal(folder):
    try:
        AutoModelForSeq2SeqLM.from_pretrained(folder, trust_remote_code=False)
    except ValueError as error:
        return str(error)

inputs = {name: torch.tensor(value) for name, value in json.loads(sys.argv[1]).items()}
report = {}
for folder in map(Path, sys.argv[2:]):
    model, report[folder.name] = run(folder)
    report[folder.name]["refusal"] = refusal(folder)
    model.save_pretrained(folder / "again")
    run(folder / "again")
try:
    import hf_mt
except ImportError as error:
    report["import"] = str(error)
print(json.dumps(report))
"""


@pytest.fixture(scope="module")
def folders(tiny_model: Callable[..., HfMtForConditionalGeneration], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A saved model for each of `ENCODINGS`."""
    root = tmp_path_factory.mktemp("models")
    for encoding in ENCODINGS:
        tiny_model(position_encoding=encoding).save_pretrained(root / encoding)
    return {encoding: root / encoding for encoding in ENCODINGS}


@pytest.fixture(scope="module")
def report(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a process without hf_mt says about these folders; its scores lie in them."""
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    caches = {"HF_HOME": str(elsewhere / "home"), "HF_MODULES_CACHE": str(elsewhere / "modules")}
    command = [sys.executable, "-c", ELSEWHERE, json.dumps(INPUTS), *map(str, folders.values())]
    done = subprocess.run(command, cwd=elsewhere, env=os.environ | caches, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("generation", ["", "again"], ids=["saved-here", "saved-again-elsewhere"])
def test_scores_elsewhere_are_the_same_to_the_last_bit(
    tiny_model: Callable[..., HfMtForConditionalGeneration],
    folders: dict[str, Path],
    report: dict[str, Any],
    encoding: str,
    generation: str,
) -> None:
    elsewhere = load_file(folders[encoding] / generation / "elsewhere")
    model, inputs = tiny_model(position_encoding=encoding), {name: torch.tensor(ids) for name, ids in INPUTS.items()}
    with torch.no_grad():
        assert torch.equal(elsewhere["logits"], model(**inputs).logits)
        assert torch.equal(elsewhere["states"], model.model(**inputs).last_hidden_state)
        other = tiny_model(position_encoding="none")
        assert not torch.equal(elsewhere["logits"], other(**inputs).logits)


def test_the_code_that_ran_came_with_the_model(report: dict[str, Any]) -> None:
    assert report["import"] == "hf_mt is not installed here"
    for encoding in ENCODINGS:
        assert all(name.startswith("transformers_modules.") for name in report[encoding]["modules"])


def test_code_that_is_not_trusted_does_not_run(report: dict[str, Any]) -> None:
    for encoding in ENCODINGS:
        assert "trust_remote_code=True" in report[encoding]["refusal"]


def test_the_configuration_names_all_three_classes(folders: dict[str, Path]) -> None:
    written = json.loads((folders["rope"] / "config.json").read_text())
    assert written["auto_map"] == {
        "AutoConfig": "configuration_hf_mt.HfMtConfig",
        "AutoModel": "modeling_hf_mt.HfMtModel",
        "AutoModelForSeq2SeqLM": "modeling_hf_mt.HfMtForConditionalGeneration",
    }


def test_every_file_of_the_travelling_folder_travels(folders: dict[str, Path], report: dict[str, Any]) -> None:
    sources = {path.name: path.read_text() for path in Path(configuration_hf_mt.__file__).parent.glob("*.py")}
    del sources["__init__.py"]
    for folder in (folders["rope"], folders["rope"] / "again"):
        assert {path.name: path.read_text() for path in folder.glob("*.py")} == sources
