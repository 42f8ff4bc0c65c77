"""The profiles of Accelerate are read by it, and begin with a command that starts one of our runs with them."""

import argparse
import re
import shlex
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser

from hf_mt.arguments import TranslationTrainingArguments
from hf_mt.experiment import parse_experiment


ROOT = Path(__file__).parents[1]
PROFILES = sorted((ROOT / "configs" / "accelerate").glob("*.yaml"))
MODES = {"ddp": "multi_gpu", "ddp_cpu": "multi_gpu", "nodes": "multi_gpu", "fsdp": "use_fsdp"}
KEYS = set(TranslationTrainingArguments.__dataclass_fields__)
MODES |= {"deepspeed": "use_deepspeed", "cpu": None, "single_gpu": None}

profiles = pytest.mark.parametrize("path", PROFILES, ids=lambda path: path.stem)


def commands(text: str) -> list[list[str]]:
    """The words of each `accelerate launch` in the comment that a profile begins with, without variables before it."""
    comment = re.match(r"(#.*\n)+", text)
    lines = comment.group().splitlines() if comment else []
    found = [re.search(r"accelerate launch .*(?<!')", line) for line in lines]
    return [shlex.split(match.group().rstrip("'"))[2:] for match in found if match]


def launch_arguments(command: list[str]) -> argparse.Namespace:
    """What `accelerate launch` makes of its arguments and of the profile that they name."""
    return _validate_launch_command(launch_command_parser().parse_args(command))[0]


@profiles
def test_the_profile_is_read_and_chooses_what_its_name_says(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    load_config_from_file(str(path))
    found = [command for command in commands(path.read_text()) if "$" not in " ".join(command)]
    assert found
    for command in found:
        assert command[:2] == ["--config_file", f"configs/accelerate/{path.name}"]
        arguments = launch_arguments(command)
        modes = {mode for mode in ("multi_gpu", "use_fsdp", "use_deepspeed") if getattr(arguments, mode)}
        assert modes == {MODES[path.stem]} - {None}
        assert (ROOT / arguments.training_script).is_file()
        config, *options = arguments.training_script_args
        assert {option.removeprefix("--") for option in options[::2]} <= KEYS
        assert parse_experiment([config]).name == "quickstart"


def test_every_profile_names_itself_in_each_of_its_commands() -> None:
    for path in PROFILES:
        assert all(command[1].endswith(f"/{path.name}") for command in commands(path.read_text()))
    assert set(MODES) == {path.stem for path in PROFILES}


def test_a_profile_that_accelerate_does_not_know_would_be_found(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(PROFILES[0].read_text() + "proceses: 2\n")
    with pytest.raises(ValueError, match="proceses"):
        load_config_from_file(str(wrong))
    assert commands("distributed_type: FSDP\n#   accelerate launch scripts/train.py\n") == []
    assert commands("# Words.\n#   A=1 accelerate launch --x 1 a.py\n") == [["--x", "1", "a.py"]]


def test_the_profiles_of_shards_choose_what_was_tested(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    fsdp, deepspeed = (
        launch_arguments(["--num_processes", "2", "--config_file", f"configs/accelerate/{name}.yaml", "train.py"])
        for name in ("fsdp", "deepspeed")
    )
    assert (fsdp.fsdp_version, fsdp.fsdp_state_dict_type) == (2, "FULL_STATE_DICT")
    assert deepspeed.zero_stage == 2
