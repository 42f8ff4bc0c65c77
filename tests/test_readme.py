"""The README's commands are commands that work, and its table of recipes tells their sizes."""

import re
import shlex
from pathlib import Path

import pytest
import torch
from accelerate.commands.launch import launch_command_parser

from hf_mt import HfMtConfig, HfMtForConditionalGeneration, InputError
from hf_mt.experiment import parse_experiment


ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = "".join(re.findall(r"```bash\n(.*?)```", README, re.DOTALL))
COMMANDS = [shlex.split(line, comments=True) for line in BLOCKS.replace("\\\n", " ").splitlines()]
TRAININGS = [words[2:] for words in COMMANDS if words[:2] == ["accelerate", "launch"] and "scripts/train.py" in words]
ROW = re.compile(r"^\|[^|]*\|(?P<configs>[^|]*)\| (?P<weights>[\d.]+) million \|", re.MULTILINE)
RECIPES = {"quickstart", "multi30k_en_de", "multi30k_en_fr", "ted_en_fr", "medium", "large"}


def test_every_file_in_a_command_is_there() -> None:
    named = {word for words in COMMANDS for word in words if word.startswith(("scripts/", "configs/"))}
    assert {"scripts/train.py", "scripts/evaluate.py", "configs/medium.yaml"} <= named
    wrong = "configs/nothing.yaml"  # the control
    assert {name for name in named | {wrong} if not (ROOT / name).is_file()} == {wrong}


@pytest.mark.parametrize("words", TRAININGS, ids=lambda words: words[-1])
def test_every_training_is_a_command_that_works(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    arguments = launch_command_parser().parse_args(words)
    assert arguments.training_script == "scripts/train.py"
    parse_experiment(arguments.training_script_args)
    with pytest.raises(InputError, match="outptu_dir"):  # the control
        parse_experiment([*arguments.training_script_args, "--outptu_dir", "runs/x"])


def test_a_step_on_one_gpu_sees_what_one_on_eight_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    seen = []
    for words in (words for words in TRAININGS if "configs/large.yaml" in words):
        arguments = launch_command_parser().parse_args(words)
        training = parse_experiment(arguments.training_script_args).training
        seen.append(training.tokens_per_batch * training.gradient_accumulation_steps * (arguments.num_processes or 1))
    assert seen == [32768, 32768] and "a step sees 32,768 tokens" in README


def test_the_table_tells_the_sizes_of_recipes() -> None:
    told = {
        name: float(row["weights"])
        for row in ROW.finditer(README)
        for name in re.findall(r"`(\w+)\.yaml`", row["configs"])
    }
    assert told.keys() == RECIPES
    for name, millions in told.items():
        architecture = parse_experiment([str(ROOT / "configs" / f"{name}.yaml")]).architecture
        with torch.device("meta"):
            model = HfMtForConditionalGeneration._from_config(HfMtConfig(**architecture))
        found = sum(weight.numel() for weight in model.parameters()) / 1e6
        assert found == pytest.approx(millions, rel=0.04)
        assert found != pytest.approx(1.1 * millions, rel=0.04), "the control"
