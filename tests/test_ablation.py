"""An ablation trains each run once, with what the run changes, and compares what the files of the runs say."""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from scripts_on_path import load_script

from hf_mt import InputError, trials
from hf_mt.ablation import check_translated, luck, read_ablation
from hf_mt.experiment import parse_experiment
from hf_mt.scores import sentence_scores, write_sentence_scores
from hf_mt.trials import PlannedRun, add_launcher, check_plan, joined, launch, train_run


CPU = "configs/accelerate/cpu.yaml"
RECIPE = "dataset_name: cldr\nsource_lang: en\ntarget_lang: de\ndropout: 0.3\nmax_steps: 50\n"
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
    runs = read_ablation(write(tmp_path), ["--seed=7"]).planned(tmp_path)
    assert runs["longer"].options == ["--max_steps=20", "--learning_rate=1e-3", "--seed=7"]
    assert runs["as it is"].options == ["--max_steps=10", "--learning_rate=1e-3", "--seed=7"]
    assert runs["as it is"].folder == tmp_path / "as_it_is"
    assert joined(["--a", "1", "--b=2", "--c", "--d", "x"]) == ["--a=1", "--b=2", "--c", "--d=x"]


def test_numbers_within_a_setting_stay_numbers(tmp_path: Path) -> None:
    nested = FILE.replace(
        "{{max_steps: 20}}", "{{warmup_steps: 2, lr_scheduler_kwargs: {{num_decay_steps: 8, decay_type: linear}}}}"
    )
    run = read_ablation(write(tmp_path, nested), []).planned(tmp_path)["longer"]
    experiment = parse_experiment([run.recipe, *run.options])
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
        runs = read_ablation(write(tmp_path, text), []).planned(tmp_path / "runs")
        check_plan(runs.values(), [], tmp_path / "runs", CPU)


def trained(command: list[str], output: Any) -> int:
    """Stands for `accelerate launch scripts/train.py`."""
    words = dict(word.lstrip("-").split("=", 1) for word in command if word.startswith("--") and "=" in word)
    folder = Path(words["output_dir"])
    folder.mkdir(exist_ok=True)
    scores = {"eval_bleu": 20 + 10 * float(words.get("dropout", 0.3)), "eval_loss": 2.0, "train_minutes": 1.0}
    (folder / "all_results.json").write_text(json.dumps({**scores, "epoch": 3.0, "seed": 1}))
    return int(words.get("dropout") == "0.9")


def ablate(path: Path, monkeypatch: pytest.MonkeyPatch, launch: Any = trained) -> str:
    """The table that the script writes."""
    folder = path.parent / "runs"
    monkeypatch.setattr(trials, "launch", launch)
    monkeypatch.setattr("sys.argv", ["ablate.py", str(path), "--output_dir", str(folder), "--seed", "7"])
    try:
        load_script("ablate").main()
    finally:
        text = (folder / "ablation.md").read_text()
    return text


def test_the_table_compares_with_the_first_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = ablate(write(tmp_path), monkeypatch)
    assert "| as it is | nothing | 23.00 | +0.00 |  | 2.000 | 1.0 | 3.0 |" in text
    assert "--dropout=0.1 | 21.00 | -2.00 |  |" in text and "--seed=7" in text


def test_a_difference_on_the_development_set_has_its_p_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    references = [f"the {n} dogs run over the hill to house {n * 7} ." for n in range(40)]

    def trained_with_sentences(command: list[str], output: Any) -> int:
        code = trained(command, output)
        folder = Path(next(word for word in command if word.startswith("--output_dir=")).partition("=")[2])
        worse = [line.replace("run over", "walk on") for line in references]
        lines = worse if folder.name == "less_dropout" else references
        if folder.name != "longer":  # as a run of a version that did not keep them
            write_sentence_scores(folder / "eval_scores.tsv", sentence_scores(references, lines, references))
        return code

    text = ablate(write(tmp_path), monkeypatch, trained_with_sentences)
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| ")]
    cells = {row[0].strip("| "): row for row in rows}
    assert cells["Run"][4] == "p" and 0 < float(cells["less dropout"][4]) < 0.05
    assert cells["as it is"][4] == cells["longer"][4] == "" and "paired bootstrap" in text
    folders = {name: tmp_path / "runs" / name for name in ("as_it_is", "less_dropout")}
    same = luck(folders["as_it_is"], folders["less_dropout"], "bleu_lc_tok")
    assert same is not None and same < 0.05
    write_sentence_scores(
        folders["less_dropout"] / "eval_scores.tsv", sentence_scores(references, references, references[::-1])
    )
    assert luck(folders["as_it_is"], folders["less_dropout"], "bleu") is None  # other references


def test_a_run_that_fails_leaves_the_others_and_is_told_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, FILE.replace("dropout: 0.1", "dropout: 0.9"))
    with pytest.raises(InputError, match=r"'less_dropout' did not finish .*less_dropout\.log"):
        ablate(path, monkeypatch)
    text = (tmp_path / "runs" / "ablation.md").read_text()
    assert "| as it is |" in text and "| longer |" in text and "| less dropout |" not in text


def test_a_failed_run_names_its_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "runs" / "dropout=0.1"
    folder.mkdir(parents=True)
    (folder / "all_results.json").write_text("{}")  # of a run with other settings, which training refuses
    monkeypatch.setattr(trials, "launch", lambda command, output: 1)
    with pytest.raises(InputError, match=r"dropout=0\.1\.log"):
        train_run(PlannedRun("recipe.yaml", [], folder), script=Path("train.py"), launcher="cpu.yaml")


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--seed=3", "--seed can't be given for all runs"),
        ("--dry_run", "--dry_run can't be given for all runs"),
        ("--run-name=x", "--run_name can't be given for all runs"),
        ("--d_model=100", "d_model"),
        ("--max_steps=60", r"one.* holds a run of another length \(max_steps 50 -> 60\)"),
        ("--num_train_epochs=3", None),
    ],
)
def test_a_plan_is_checked_as_a_whole(tmp_path: Path, option: str, message: str | None) -> None:
    write(tmp_path)
    options = [option, "--position_encoding=rope", "--num_train_epochs=3"]
    (tmp_path / "one" / "checkpoint-10").mkdir(parents=True)
    run = PlannedRun(str(tmp_path / "recipe.yaml"), list(dict.fromkeys(options)), tmp_path / "one")
    (tmp_path / "one" / "config_resolved.yaml").write_text("max_steps: 50\nnum_train_epochs: 3\n")
    if message is None:
        return check_plan([run], options, tmp_path, CPU, decided=("seed",))
    with pytest.raises(InputError, match=message):
        check_plan([run], options, tmp_path, CPU, decided=("seed",))


@pytest.mark.parametrize(("there_is_a_gpu", "profile"), [(True, "single_gpu"), (False, "cpu")])
def test_runs_are_launched_on_the_gpu_where_there_is_one(
    there_is_a_gpu: bool, profile: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: there_is_a_gpu)
    parser = argparse.ArgumentParser()
    add_launcher(parser)
    found = parser.parse_args([]).launcher
    assert found == f"configs/accelerate/{profile}.yaml" and (Path(__file__).parents[1] / found).is_file()
    assert parser.parse_args(["--launcher", CPU]).launcher == CPU and "single_gpu.yaml" in parser.format_help()


@pytest.mark.parametrize("option", ["--predict_with_generate=false", "--train_file=data/train"])
def test_runs_without_development_bleu_are_not_compared(tmp_path: Path, option: str) -> None:
    write(tmp_path)
    options = [option, "--metric_for_best_model=loss"]
    with pytest.raises(InputError, match="one: runs are compared by their development BLEU"):
        check_translated([PlannedRun(str(tmp_path / "recipe.yaml"), options, tmp_path / "one")])
    check_translated([PlannedRun(str(tmp_path / "recipe.yaml"), [], tmp_path / "one")])


def test_a_training_ends_with_the_script_that_started_it(tmp_path: Path) -> None:
    """SIGTERM, which would leave a child running."""
    program = "import sys; from pathlib import Path; from hf_mt.trials import launch\n"
    child = f"open({str(tmp_path / 'started')!r}, 'w').close(); import time; time.sleep(60)"
    program += f"launch([sys.executable, '-c', {child!r}], open({str(tmp_path / 'log')!r}, 'wb'))"
    script = subprocess.Popen([sys.executable, "-c", program])
    while not (tmp_path / "started").exists():
        assert script.poll() is None
        time.sleep(0.05)
    children = Path(f"/proc/{script.pid}/task/{script.pid}/children").read_text().split()
    script.send_signal(signal.SIGTERM)
    assert script.wait(timeout=30) == 128 + signal.SIGTERM and len(children) == 1
    with pytest.raises(ProcessLookupError):
        os.kill(int(children[0]), 0)


def test_a_command_tells_its_exit_code(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with (tmp_path / "log").open("wb") as log:
        assert [launch([sys.executable, "-c", f"print(7); exit({code})"], log) for code in (0, 3)] == [0, 3]
    assert (tmp_path / "log").read_text() == "7\n7\n" and signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).parents[1] / "configs" / "ablations").glob("*.yaml")), ids=lambda path: path.stem
)
def test_the_ablations_of_the_project_are_valid(path: Path) -> None:
    ablation = read_ablation(path, ["--train_file=data/train", "--validation_file=data/val"])
    assert len(ablation.runs) > 3 and not next(iter(ablation.runs.values()))
    for run in ablation.planned(Path("runs")).values():
        parse_experiment([run.recipe, *run.options])
