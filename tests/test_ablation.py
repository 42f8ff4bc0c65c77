"""An ablation trains each run once, with what the run changes, and compares what the files of the runs say."""

import json
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
from scripts_on_path import load_script

from hf_mt import InputError, trials
from hf_mt.experiment import parse_experiment
from hf_mt.trials import joined, merged


ablate = load_script("ablate")
RECIPE = "source_lang: en\ntarget_lang: de\ndropout: 0.3\nmax_steps: 50\n"
FILE = """recipe: {recipe}
common: {{max_steps: 10, learning_rate: 1e-3}}
runs:
  as it is: {{}}
  less dropout: {{dropout: 0.1}}
  longer: {{max_steps: 20}}
"""


def write(folder: Path, text: str = FILE) -> Path:
    (folder / "recipe.yaml").write_text(RECIPE)
    (folder / "ablation.yaml").write_text(text.format(recipe=folder / "recipe.yaml"))
    return folder / "ablation.yaml"


def test_a_run_has_what_all_change_and_what_it_changes_itself_which_wins(tmp_path: Path) -> None:
    ablation = ablate.read_ablation(write(tmp_path), ["--seed=7"])
    options = {name: merged(ablation.common, changes) for name, changes in ablation.runs.items()}
    assert options["longer"] == ["--max_steps=20", "--learning_rate=1e-3", "--seed=7"]
    assert options["as it is"] == ["--max_steps=10", "--learning_rate=1e-3", "--seed=7"]
    assert joined(["--a", "1", "--b=2", "--c", "--d", "x"]) == ["--a=1", "--b=2", "--c", "--d=x"]


def test_numbers_within_a_setting_stay_numbers(tmp_path: Path) -> None:
    nested = FILE.replace(
        "{{max_steps: 20}}", "{{warmup_steps: 2, lr_scheduler_kwargs: {{num_decay_steps: 8, decay_type: linear}}}}"
    )
    ablation = ablate.read_ablation(write(tmp_path, nested), [])
    experiment = parse_experiment([ablation.recipe, *merged(ablation.common, ablation.runs["longer"])])
    assert experiment.training.lr_scheduler_kwargs == {"num_decay_steps": 8, "decay_type": "linear"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (FILE.replace("dropout: 0.1", "dropuot: 0.1"), "did you mean 'dropout'"),
        (FILE.replace("runs:", "rows:"), "wanted recipe, common and runs"),
        (FILE.replace("{{max_steps: 20}}", "20"), "wanted, as {key: value}"),
        ("runs: {{}}\n", "wanted recipe"),
    ],
)
def test_a_mistake_is_found_before_anything_is_trained(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        ablate.read_ablation(write(tmp_path, text), [])


def trained(command: list[Any], **options: Any) -> CompletedProcess:
    """Stands for `accelerate launch scripts/train.py`."""
    words = dict(word.lstrip("-").split("=", 1) for word in map(str, command) if word.startswith("--") and "=" in word)
    folder = Path(words["output_dir"])
    folder.mkdir(exist_ok=True)
    scores = {"eval_bleu": 20 + 10 * float(words.get("dropout", 0.3)), "eval_loss": 2.0, "train_minutes": 1.0}
    (folder / "all_results.json").write_text(json.dumps({**scores, "epoch": 3.0, "seed": 1}))
    return CompletedProcess(command, 0)


def test_the_table_compares_with_the_first_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trials.subprocess, "run", trained)
    words = ["ablate.py", str(write(tmp_path)), "--output_dir", str(tmp_path / "runs"), "--seed", "7"]
    monkeypatch.setattr("sys.argv", words)
    ablate.main()
    text = (tmp_path / "runs" / "ablation.md").read_text()
    assert "| as it is | nothing | 23.00 | +0.00 | 2.000 | 1.0 | 3.0 |" in text
    assert "--dropout=0.1 | 21.00 | -2.00 |" in text and "--seed=7" in text


def test_a_failed_run_names_its_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "runs" / "dropout=0.1"
    folder.mkdir(parents=True)
    (folder / "all_results.json").write_text("{}")  # of a run with other settings, which training refuses
    monkeypatch.setattr(trials.subprocess, "run", lambda *args, **options: CompletedProcess(args, 1))
    with pytest.raises(InputError, match=r"dropout=0\.1\.log"):
        trials.train_run("recipe.yaml", [], folder, script=Path("train.py"), launcher="cpu.yaml")


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).parents[1] / "configs" / "ablations").glob("*.yaml")), ids=lambda path: path.stem
)
def test_the_ablations_of_the_project_are_valid(path: Path) -> None:
    ablation = ablate.read_ablation(path, ["--train_file=data/train", "--validation_file=data/val"])
    assert len(ablation.runs) > 3 and not next(iter(ablation.runs.values()))
