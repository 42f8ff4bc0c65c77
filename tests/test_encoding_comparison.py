"""The comparison of encodings cuts the test set by length and compares like with like."""

import json
import re
from pathlib import Path
from typing import Any

import matplotlib.image
import pytest
from random_models import word_tokenizer
from scripts_on_path import load_script

from hf_mt import InputError, trials
from hf_mt.encoding_comparison import LengthScores, comparison_figure, comparison_table, scores_by_length
from hf_mt.model import POSITION_ENCODINGS
from hf_mt.scores import corpus_scores, sentence_scores, write_sentence_scores
from hf_mt.trials import folder_name


LENGTHS = [3, 4, 7, 9, 13, 14, 19, 25] * 8  # words; the end of sentence is one token more
SOURCES = [" ".join(f"w{4 + (place + row) % 30}" for place in range(length)) for row, length in enumerate(LENGTHS)]


def translate(sources: list[str], good_up_to: int, seed: int) -> list[str]:
    return [
        source if len(source.split()) <= good_up_to else " ".join([*source.split()[: len(source) % 5 + seed], "x"])
        for source in sources
    ]


def make_run(folder: Path, good_up_to: int, seed: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    word_tokenizer().save_pretrained(folder)
    outputs = translate(SOURCES, good_up_to, seed)
    write_sentence_scores(folder / "test_scores.tsv", sentence_scores(SOURCES, outputs, SOURCES))
    results = {"train_target_tokens_per_second": 1000.0 * seed, "num_parameters": 5, "test_bleu": 10.0}
    results["train_minutes"] = 2.0 * seed
    (folder / "all_results.json").write_text(json.dumps(results))
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> dict[str, list[Path]]:
    return {
        name: [make_run(tmp_path / f"{name}-{seed}", good_up_to, seed) for seed in (1, 2)]
        for name, good_up_to in (("sinusoidal", 9), ("rope", 19))
    }


def test_buckets_are_shares_of_the_cap_in_tokens(runs: dict[str, list[Path]]) -> None:
    buckets = scores_by_length(runs, cap=10)
    assert [(bucket.name, bucket.sentences) for bucket in buckets] == [
        ("1-5", 16), ("6-10", 16), ("11-15", 16), ("16-20", 8), ("21+", 8),
    ]  # fmt: skip
    rows = [row for row, length in enumerate(LENGTHS) if 11 <= length + 1 <= 15]
    outputs = [translate(SOURCES, 9, 2)[row] for row in rows]
    expected = corpus_scores(outputs, [SOURCES[row] for row in rows], metrics=("bleu",))["bleu"]
    assert buckets[2].bleu["sinusoidal"][1] == expected and buckets[2].bleu["rope"] == [pytest.approx(100)] * 2


def test_differences_beyond_the_cap_are_significant_and_none_before(runs: dict[str, list[Path]]) -> None:
    buckets = scores_by_length(runs, cap=10)
    assert [bucket.p_value["rope"] for bucket in buckets[:2]] == [1.0, 1.0]
    assert max(bucket.p_value["rope"] or 0 for bucket in buckets[2:4]) < 0.05
    lines = comparison_table(buckets, runs).splitlines()
    rope = next(line for line in lines if "`rope`" in line)
    assert rope.count("&#42;") == 2 and "100.0 ± 0.0 (0.0) &#42;" in rope and "1,500" in rope and "| 3.0 |" in rope
    assert "&#42;" not in next(line for line in lines if "`sinusoidal`" in line)


def test_each_encoding_has_a_colour_of_its_own() -> None:
    names = list(POSITION_ENCODINGS)
    buckets = [
        LengthScores(length, 5, {name: [1.0, 2.0] for name in names}, dict.fromkeys(names, 0.5), dict.fromkeys(names))
        for length in ("1-5", "6-10")
    ]
    (axes,) = comparison_figure(buckets, cap=10).axes
    lines = [container[0] for container in axes.containers]
    assert [[*line.get_ydata()] for line in lines] == [[1.5, 1.5]] * len(names)
    assert len({line.get_color() for line in lines}) == len(names) > 10  # as many as matplotlib has


def test_a_run_too_short_for_a_speed_has_none(runs: dict[str, list[Path]]) -> None:
    path = runs["rope"][1] / "all_results.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "train_target_tokens_per_second": None}))
    lines = comparison_table(scores_by_length(runs, cap=10), runs).splitlines()
    cells = {name: next(line for line in lines if f"`{name}`" in line).split("|") for name in runs}
    assert cells["rope"][-4].strip() == "" and cells["sinusoidal"][-4].strip() == "1,500"


def test_runs_tested_on_different_sentences_are_not_compared(runs: dict[str, list[Path]]) -> None:
    others = [f"{source} more" for source in SOURCES]
    write_sentence_scores(runs["rope"][1] / "test_scores.tsv", sentence_scores(others, SOURCES, SOURCES))
    with pytest.raises(InputError, match=r"sinusoidal-1 and .*rope-2 were tested on different sentences"):
        scores_by_length(runs, cap=10)


def trained(command: list[str], output: Any) -> int:
    """Stands for `accelerate launch scripts/train.py`."""
    words = dict(word.lstrip("-").split("=", 1) for word in command if word.startswith("--") and "=" in word)
    make_run(Path(words["output_dir"]), 9 if words["position_encoding"] == "none" else 19, int(words["seed"]))
    return 0


def test_the_script_trains_each_encoding_with_each_seed(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setattr(trials, "launch", trained)
    (tmp_path / "recipe.yaml").write_text(
        "dataset_name: cldr\nsource_lang: en\ntarget_lang: de\nmax_source_length: 10\n"
    )
    words = [str(tmp_path / "recipe.yaml"), "--encodings", "none", "t5", "--seeds", "1", "3", "--output_dir",
             str(tmp_path / "runs"), "--max_steps", "5", "--hub_token", "hf_secret"]  # fmt: skip
    monkeypatch.setattr("sys.argv", ["compare_position_encodings.py", *words])
    load_script("compare_position_encodings").main()
    assert {path.name for path in (tmp_path / "runs").iterdir() if path.is_dir()} == {
        "none-1",
        "none-3",
        "t5-1",
        "t5-3",
    }
    text = (tmp_path / "runs" / "comparison.md").read_text()
    assert (
        "hf_secret" not in text
        and "11-15 tokens" in text
        and "at most 10 tokens" in text
        and "--seeds 1 3" in text
        and "--max_steps 5" in text
    )
    assert matplotlib.image.imread(tmp_path / "runs" / "comparison.png").std() > 0


def test_a_row_may_have_settings_of_its_own(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    commands: list[list[str]] = []

    def launched(command: list[str], output: Any) -> int:
        commands.append(command)
        return trained(command, output)

    monkeypatch.setattr(trials, "launch", launched)
    (tmp_path / "recipe.yaml").write_text(
        "dataset_name: cldr\nsource_lang: en\ntarget_lang: de\nmax_source_length: 10\n"
    )
    variant = 'rope+rope_parameters={"rope_type": "linear", "factor": 2}'
    entries = ["none", "none+position_shift=100", "rope+position-shift=5+decoder_position_encoding=alibi", variant]
    words = [str(tmp_path / "recipe.yaml"), "--encodings", *entries, "--seeds", "1", "--output_dir",
             str(tmp_path / "runs"), "--position_shift", "7"]  # fmt: skip
    monkeypatch.setattr("sys.argv", ["compare_position_encodings.py", *words])
    load_script("compare_position_encodings").main()
    options = [{word for word in command if word.startswith("--")} for command in commands]
    assert {"--position_encoding=none", "--position_shift=7"} <= options[0]
    assert {"--position_encoding=none", "--position_shift=100"} <= options[1]
    assert "--position_shift=7" not in options[1] | options[2]
    assert {"--position_shift=5", "--decoder_position_encoding=alibi"} <= options[2]
    folders = [path.name for path in (tmp_path / "runs").iterdir() if path.is_dir()]
    assert {"none-1", "none+position_shift=100-1"} < set(folders) and len(folders) == 4
    assert not any(set(name) & set('{}": /') for name in folders)
    text = (tmp_path / "runs" / "comparison.md").read_text()
    assert all(f"| `{entry}` |" in text for entry in entries)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("rop", "found 'rop', wanted one of sinusoidal, .*; did you mean 'rope'"),
        ("rope+", "found '', wanted key=value after each"),
        ("rope+muon", "found 'muon', wanted key=value"),
        ("rope+seed=3", "seed can't be another one for each encoding"),
        ("rope+max-source-length=5", "max_source_length can't be another one"),
        ("rope+positon_shift=3", "did you mean 'position_shift'"),
        ("rope+decoder_position_encoding=alibbi", "decoder_position_encoding: found 'alibbi'"),
    ],
)
def test_a_row_that_cannot_be_is_refused(tmp_path: Path, monkeypatch: Any, entry: str, message: str) -> None:
    monkeypatch.setattr(trials, "launch", lambda *args, **options: pytest.fail("trained"))
    (tmp_path / "recipe.yaml").write_text("dataset_name: cldr\nsource_lang: en\ntarget_lang: de\n")
    words = [str(tmp_path / "recipe.yaml"), "--encodings", entry, "--output_dir", str(tmp_path / "runs")]
    monkeypatch.setattr("sys.argv", ["compare_position_encodings.py", *words])
    with pytest.raises(InputError, match=message):
        load_script("compare_position_encodings").main()
    assert not (tmp_path / "runs").exists()


def test_names_of_folders_are_safe_and_different() -> None:
    assert folder_name("rope+position_shift=100-1") == "rope+position_shift=100-1"
    odd = ["..", "../a/b", "a b", "a_b", "a/b", "x" * 200, "x" * 201, "\u00e9" * 90]
    names = [folder_name(text) for text in odd]
    assert len(set(names)) == len(odd) and all(re.fullmatch(r"[\w.=+-]{1,100}", name, re.ASCII) for name in names)
    assert not set(names) & {".", ".."}
