"""Paired tests give the numbers of the sacrebleu command, and tell a real difference from luck."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from scripts_on_path import load_script

from hf_mt import InputError
from hf_mt.scores import sentence_scores, write_sentence_scores
from hf_mt.significance import common_split, compare_means, compare_systems, holm, read_systems


REFERENCES = [f"the {n} dogs run over the hill to house {n * 7} ." for n in range(60)]
GOOD = [text if n % 3 else text.replace("dogs", "cats") for n, text in enumerate(REFERENCES)]
ALIKE = [text if n % 3 != 1 else text.replace("hill", "field") for n, text in enumerate(REFERENCES)]
BAD = [text.replace("run over", "walk on") for text in REFERENCES]


def write(path: Path, lines: list[str]) -> str:
    path.write_text("".join(f"{line}\n" for line in lines), "utf-8")
    return str(path)


def numbers_of_command(output: str) -> list[tuple[str, ...]]:
    """Score, mean, interval and p of each system and metric, by metric; empty where the table has none."""
    scores = [re.findall(r"([\d.]+)(?: \(([\d.]+) ± ([\d.]+)\))? +│", line) for line in output.splitlines()]
    p_values = [re.findall(r"p = ([\d.]+)", line) for line in output.splitlines()]
    rows = [row for row in scores if len(row) == 2]
    luck = [["", ""], *(row for row in p_values if row)]
    return [(*row[metric], p[metric]) for metric in (0, 1) for row, p in zip(rows, luck, strict=True)]


@pytest.mark.parametrize(("method", "option"), [("bootstrap", "--paired-bs"), ("randomization", "--paired-ar")])
def test_numbers_are_those_of_the_command(tmp_path: Path, method: Any, option: str) -> None:
    paths = [write(tmp_path / name, lines) for name, lines in (("good", GOOD), ("bad", BAD), ("alike", ALIKE))]
    command = [sys.executable, "-m", "sacrebleu", write(tmp_path / "ref", REFERENCES), "-i", *paths, option]
    command += [f"{option}-n", "200", "-m", "bleu", "chrf", "-w", "4", "-f", "text"]
    expected = numbers_of_command(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    found = compare_systems({"good": GOOD, "bad": BAD, "alike": ALIKE}, REFERENCES, method=method, samples=200)
    assert [row.system for row in found] == ["good", "bad", "alike"] * 2
    for row, (score, mean, interval, p) in zip(found, expected, strict=True):
        assert (f"{row.score:.4f}", "" if row.p_value is None else f"{row.p_value:.4f}") == (score, p)
        if method == "bootstrap":  # the command gives no interval with the other one
            assert (f"{row.mean:.4f}", f"{row.interval:.4f}") == (mean, interval)
    other_seed = compare_systems({"good": GOOD, "bad": BAD}, REFERENCES, method=method, samples=200, seed=7)
    assert other_seed[0].mean != found[0].mean


def test_a_single_training_is_compared_as_sacrebleu_does() -> None:
    systems = {"good": GOOD, "alike": ALIKE, "bad": BAD, "same": list(GOOD)}
    found = compare_means({name: [lines] for name, lines in systems.items()}, REFERENCES, samples=2000)
    for row, expected in zip(
        found, compare_systems(systems, REFERENCES, metrics=("bleu",), samples=2000), strict=True
    ):
        assert row.score == pytest.approx(expected.score, abs=1e-9)
        assert row.mean == pytest.approx(expected.mean, abs=0.3)
        assert row.interval == pytest.approx(expected.interval, rel=0.1)
        assert (row.p_value or 0.0) >= (expected.p_value or 0.0)
    assert (found[2].p_value or 0.0) < 0.01 and found[1].p_value == pytest.approx(0.71, abs=0.05)
    assert found[3].p_value == 1.0 and found[0].p_value is None


def test_trainings_that_agree_are_no_further_evidence() -> None:
    """Three trainings with the same translations say what one says; as independent sentences they would say more."""
    one = compare_means({"good": [GOOD], "alike": [ALIKE]}, REFERENCES)
    three = compare_means({"good": [GOOD] * 3, "alike": [ALIKE] * 3}, REFERENCES)
    for row, again in zip(one, three, strict=True):
        assert (again.score, again.mean, again.interval) == pytest.approx((row.score, row.mean, row.interval))
        assert again.p_value == row.p_value
    pooled = compare_systems({"good": GOOD * 3, "alike": ALIKE * 3}, REFERENCES * 3, metrics=("bleu",))
    assert pooled[0].interval < 0.7 * one[0].interval


def test_a_mean_is_that_of_the_trainings() -> None:
    apart = [compare_means({"it": [lines]}, REFERENCES)[0] for lines in (GOOD, BAD)]
    together = compare_means({"it": [GOOD, BAD]}, REFERENCES)[0]
    assert together.score == pytest.approx((apart[0].score + apart[1].score) / 2)
    assert together.interval < max(row.interval for row in apart) and together.p_value is None


@pytest.mark.parametrize("method", ["bootstrap", "randomization"])
def test_where_resampling_shows_nothing_there_is_no_significance(method: Any) -> None:
    alone = compare_systems({"good": GOOD[:1], "bad": BAD[:1]}, REFERENCES[:1], method=method, samples=50)
    upper = [text.upper() for text in GOOD]
    equal = compare_systems({"good": GOOD, "upper": upper}, REFERENCES, method=method, samples=50, lowercase=True)
    assert {row.p_value for row in [*alone, *equal]} == {None, 1.0}
    assert alone[0].score != alone[1].score and equal[0].score == equal[1].score
    different = compare_systems({"good": GOOD, "bad": BAD}, REFERENCES, method=method, samples=50)
    assert different[1].p_value is not None and different[1].p_value < 0.05
    assert f"{'bs' if method == 'bootstrap' else 'ar'}:50" in different[0].signature


def test_means_of_a_single_sentence_differ_by_luck() -> None:
    alone = compare_means({"good": [GOOD[:1]], "bad": [BAD[:1]]}, REFERENCES[:1])
    assert alone[1].p_value == 1.0 and alone[0].score != alone[1].score


def test_many_tests_at_once_are_corrected() -> None:
    values = {"base": None, "a": 0.01, "b": 0.04, "c": 0.03, "d": 0.5}
    assert holm(values) == {"base": None, "a": 0.04, "b": pytest.approx(0.09), "c": pytest.approx(0.09), "d": 0.5}
    assert holm({"only": 0.04}) == {"only": 0.04} and holm({"a": 0.9, "b": 0.8}) == {"a": 1.0, "b": 1.0}


def p_value(one: list[str], other: list[str], **options: Any) -> float:
    return compare_systems({"one": one, "other": other}, REFERENCES, metrics=("bleu",), **options)[1].p_value or 0.0


def test_a_real_difference_is_told_from_luck() -> None:
    assert p_value(GOOD, BAD) < 0.01
    assert p_value(GOOD, ALIKE) > 0.05
    assert p_value(GOOD, list(GOOD)) == 1.0
    assert p_value(GOOD, list(GOOD), method="randomization", samples=100) == 1.0


@pytest.mark.parametrize("seed", [0, -1, 2**32])
def test_a_seed_that_decides_nothing_is_refused(seed: int) -> None:
    """sacrebleu takes 0 for none, and every comparison would be another one."""
    with pytest.raises(InputError, match=f"seed {seed}; .* 1 to 2 "):
        compare_systems({"good": GOOD, "bad": BAD}, REFERENCES, samples=10, seed=seed)
    assert p_value(GOOD, BAD, samples=10, seed=1) == p_value(GOOD, BAD, samples=10, seed=1)


def test_several_references_count() -> None:
    both = [[text, other] for text, other in zip(REFERENCES, BAD, strict=True)]
    assert compare_systems({"a": GOOD, "b": BAD}, both, metrics=("bleu",))[1].score == pytest.approx(100)


def test_runs_bring_their_references(tmp_path: Path) -> None:
    for name, lines in (("good", GOOD), ("bad", BAD)):
        (tmp_path / name).mkdir()
        write_sentence_scores(tmp_path / name / "test_scores.tsv", sentence_scores(REFERENCES, lines, REFERENCES))
    folders = [str(tmp_path / name) for name in ("good", "bad")]
    systems, references = read_systems(folders)
    assert list(systems.values()) == [GOOD, BAD] and references == [[text] for text in REFERENCES]
    extra = write(tmp_path / "alike.txt", ALIKE)
    assert read_systems([*folders, extra])[0][extra] == ALIKE
    (tmp_path / "other").mkdir()
    write_sentence_scores(tmp_path / "other" / "test_scores.tsv", sentence_scores(REFERENCES, GOOD, BAD))
    with pytest.raises(InputError, match="tested on other references"):
        read_systems([*folders, str(tmp_path / "other")])


def write_run(folder: Path, **translations: list[str]) -> str:
    """A run with the translations of its sets, `test` or `eval`."""
    folder.mkdir()
    for name, lines in translations.items():
        write_sentence_scores(folder / f"{name}_scores.tsv", sentence_scores(REFERENCES, lines, REFERENCES))
    return str(folder)


def test_runs_are_compared_on_a_set_that_all_have(tmp_path: Path) -> None:
    both = [write_run(tmp_path / name, test=GOOD, eval=BAD) for name in ("one", "two")]
    untested = write_run(tmp_path / "three", eval=ALIKE)
    assert common_split(both) == "test" and common_split(both, "validation") == "validation"
    assert common_split([*both, untested]) == common_split([untested]) == "validation"
    assert common_split([write(tmp_path / "lines", GOOD)]) is None
    assert list(read_systems(both)[0].values()) == [GOOD, GOOD]
    assert list(read_systems(both, split="validation")[0].values()) == [BAD, BAD]
    assert list(read_systems([both[0], untested])[0].values()) == [BAD, ALIKE]
    with pytest.raises(InputError, match="three has no test_scores.tsv"):
        read_systems([both[0], untested], split="test")
    tested = write_run(tmp_path / "four", test=GOOD)
    with pytest.raises(InputError, match="three has no test_scores.tsv and .*four has no eval_scores.tsv"):
        read_systems([tested, untested])


def test_the_script_says_which_set_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    runs = [write_run(tmp_path / name, test=GOOD, eval=BAD) for name in ("one", "two")]
    for more, words in (([], "on the test set"), (["--split", "validation"], "on the development set")):
        monkeypatch.setattr(sys, "argv", ["compare.py", *runs, "--samples", "10", *more])
        load_script("compare").main()
        assert words in capsys.readouterr().out
    files = [write(tmp_path / name, lines) for name, lines in (("good", GOOD), ("bad", BAD), ("ref", REFERENCES))]
    monkeypatch.setattr(sys, "argv", ["compare.py", *files[:2], "--references", files[2], "--split", "test"])
    with pytest.raises(InputError, match="--split test is a set of run folders, and none is given"):
        load_script("compare").main()


def test_the_script_prints_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    good, bad = write(tmp_path / "good", GOOD), write(tmp_path / "bad", BAD)
    ref = write(tmp_path / "ref", REFERENCES)
    monkeypatch.setattr(sys, "argv", ["compare.py", good, bad, "--references", ref, "--samples", "100"])
    load_script("compare").main()
    out = capsys.readouterr().out
    assert "baseline" in out and "*" in out and "bleu" in out and "chrf" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["good"], "1 systems were given"),
        (["good", "good"], "given twice"),
        (["good", "short"], "59 hypotheses, but references for 60 sentences"),
        (["good", "nowhere"], "nowhere"),
        (["good", "folder"], "no test_scores.tsv"),
        (["good", "bad", "--metrics", "bleurt"], "there is no metric bleurt"),
        (["good", "bad", "--tokenize", "flores200"], "whose model is not on this machine"),
    ],
)
def test_bad_input_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], message: str) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("hf_mt.scores.SACREBLEU_DIR", str(tmp_path))
    for name, lines in (("good", GOOD), ("bad", BAD), ("short", BAD[:59]), ("ref", REFERENCES)):
        write(tmp_path / name, lines)
    (tmp_path / "folder").mkdir()
    monkeypatch.setattr(sys, "argv", ["compare.py", *words, "--references", "ref"])
    with pytest.raises(InputError, match=message):
        load_script("compare").main()


def test_nothing_to_compare_with_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="give --references"):
        read_systems([write(tmp_path / "good", GOOD), write(tmp_path / "bad", BAD)])
    with pytest.raises(InputError, match="differ in their number of lines"):
        read_systems([], [write(tmp_path / "a", GOOD), write(tmp_path / "b", BAD[:3])])
