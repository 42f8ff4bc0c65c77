"""The page of a run: it shows what the files say, obeys nothing in them, and works in a browser."""

import json
import re
import shutil
import sys
import time
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import matplotlib.image
import pytest
import torch
from random_models import MODELS, SENTENCES, word_tokenizer
from scripts_on_path import load_script

from hf_mt import InputError
from hf_mt.figures import COLOURS, course_figure, inline_svg
from hf_mt.model.position_encodings import POSITION_ENCODINGS
from hf_mt.page import marked
from hf_mt.report import PARTS, TEMPLATE, write_report
from hf_mt.report_scores import scores_part
from hf_mt.run_record import Run, read_run
from hf_mt.scores import corpus_scores, scores_of_tokenized, sentence_scores, write_sentence_scores
from hf_mt.slices import describe_outputs, write_analysis


EVIL = "<script>document.title='evil'</script><img src=x onerror=\"document.title='evil'\"> **bold** [a](javascript:1)"
REFERENCES = [line.replace("w", "v") for line in SENTENCES]


def history(gain: float) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for step in range(10, 110, 10):
        common = {"step": step, "epoch": step / 40}
        training = {"loss": 5 - gain * step / 40, "accuracy": step / 200, "learning_rate": 1e-3, "train_seconds": 30.0}
        rows.append({**common, **training})
        rows.append({**common, "eval_loss": 5 - gain * step / 50, "eval_accuracy": step / 220, "eval_bleu": step / 4})
    return rows


def make_run(folder: Path, outputs: list[str], *, gain: float = 1.0, **settings: Any) -> Path:
    """A folder as a finished run leaves it, with a random model."""
    torch.manual_seed(0)
    MODELS["rope"][-1]().save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    scores = describe_outputs(SENTENCES, outputs, REFERENCES)
    files = {
        "all_results.json": {**{f"test_{name}": value for name, value in scores.items()}, "num_parameters": 1234567},
        "trainer_state.json": {"log_history": history(gain), "best_global_step": 100, "max_steps": 100},
        "config_resolved.yaml": {"source_lang": "en", "target_lang": "de", "learning_rate": 0.001, **settings},
        "environment.json": {"Python": "3.11", "git revision": "0123abcd"},
        "data_table.json": {
            "train": {
                "read": 30,
                "found": {"empty": 2},
                "kept": 28,
                "source_tokens": {"mean": 7.5, "histogram": [3, 20, 5]},
                "target_tokens": {"mean": 8.5, "histogram": [1, 22, 5]},
            }
        },
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    samples = [
        {"step": 100, "source": source, "reference": reference, "hypothesis": output}
        for source, reference, output in zip(SENTENCES, REFERENCES, outputs, strict=True)
    ]
    (folder / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in samples))
    analysed = write_analysis(folder / "test_analysis.json", SENTENCES, outputs, REFERENCES)
    write_sentence_scores(folder / "test_scores.tsv", analysed)
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("runs")
    return [
        make_run(root / "first", REFERENCES[:-1] + ["v1"]),
        make_run(root / "second", ["v5", *REFERENCES[1:]], gain=1.2, learning_rate=0.002),
    ]


class Page(HTMLParser):
    """Tags with their attributes, and the text of a page outside of scripts and styles."""

    def __init__(self, html: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if not {"script", "style"} & set(self.open):
            self.text += data


def page_of(folders: list[Path], folder: Path | None = None) -> Page:
    return Page(write_report(folders, folder=folder).read_text("utf-8"))


def test_a_run_is_shown_with_all_its_parts(runs: list[Path]) -> None:
    page = page_of(runs[:1])
    for title in PARTS:
        assert ("section", {"id": title.lower().replace(" ", "-")}) in page.tags
    results = json.loads((runs[0] / "all_results.json").read_text())
    expected = [f"{results['test_bleu']:.2f}", results["test_bleu_signature"], "1,234,567", "en to de, rope"]
    expected += [
        "0123abcd",
        "empty 2",
        "learning_rate",
        *SENTENCES,
        *REFERENCES,
        "layer 1",
        "BLEU by words of the source",
        "chrF by words of the source",
    ]
    for words in expected:
        assert words in page.text, words
    courses = [f"course-by-{unit}" for unit in ("step", "epoch", "minute")]
    for name in (*courses, "bleu-by-length", "chrf-by-length", "attention-1-1", "lengths-1"):
        assert matplotlib.image.imread(runs[0] / "report" / f"{name}.png").std() > 0


def test_sentences_at_the_ends_have_the_numbers_by_which_they_are_chosen(runs: list[Path], tmp_path: Path) -> None:
    html = write_report(runs[:1], folder=tmp_path).read_text("utf-8")
    worst = html.split('data-title="worst of the test set"')[1]
    assert re.findall(r"source, sentence (\d+)", worst)[0] == str(len(SENTENCES))  # the one that is wrong
    assert REFERENCES[-1].split()[0] in worst[: worst.index("output, ")]


def test_the_page_tells_no_path_of_the_launcher(runs: list[Path], tmp_path: Path) -> None:
    folder = shutil.copytree(runs[0], tmp_path / "run")
    for told, shown in (("none at /home/a b/c.y", "none at c.y"), ("C:\\a b\\c.y", "c.y"), ("/home/a/c.y", "c.y")):
        (folder / "environment.json").write_text(json.dumps({"accelerate config": told, "GPUs": "one / two"}))
        text = page_of([folder]).text
        assert f"accelerate config{shown}" in text and "one / two" in text


def test_an_old_run_has_no_course_by_minute(runs: list[Path], tmp_path: Path) -> None:
    old = shutil.copytree(runs[1], tmp_path / "old")
    state = json.loads((old / "trainer_state.json").read_text())
    for row in state["log_history"]:
        row.pop("train_seconds", None)
    (old / "trainer_state.json").write_text(json.dumps(state))
    for folders, expected in ((runs, True), ([runs[0], old], False)):
        page = page_of(folders, tmp_path / "page" / str(expected))
        assert ("by minute" in page.text) == expected and "by epoch" in page.text
        assert (tmp_path / "page" / str(expected) / "course-by-minute.png").is_file() == expected


def test_attention_of_chosen_sentences(runs: list[Path], tmp_path: Path) -> None:
    html = write_report(runs[:1], folder=tmp_path, sentences=[2, 1]).read_text("utf-8")
    assert html.index("sentence 2") < html.index("sentence 1") and (tmp_path / "attention-1-2.png").is_file()
    write_report(runs[:1], folder=tmp_path / "one", sentences=[2])
    assert not (tmp_path / "one" / "attention-1-1.png").exists()
    with pytest.raises(InputError, match="has 6 test sentences, and no sentence 0, 7"):
        write_report(runs[:1], folder=tmp_path, sentences=[0, 1, 7])


def test_the_page_needs_nothing_but_itself(runs: list[Path]) -> None:
    page = page_of(runs[:1])
    links = [value for _, attributes in page.tags for name, value in attributes.items() if name in ("src", "href")]
    assert [link for link in links if not (link or "").startswith("#")] == []
    html = (runs[0] / "report" / "index.html").read_text("utf-8")
    assert "@import" not in html and not re.search(r"url\((?!#)", html)
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert str(runs[0].parent) not in html


def test_runs_side_by_side(runs: list[Path], tmp_path: Path) -> None:
    page = page_of(runs, tmp_path / "both")
    for words in ("first against second", "Paired bootstrap", "baseline", "differs", "0.002", "v5"):
        assert words in page.text
    assert "differs" not in page_of(runs[:1]).text
    (runs[1] / "test_scores.tsv").rename(tmp_path / "kept")
    without = page_of(runs, tmp_path / "both").text
    assert "No test of significance: second has no" in without and "Paired bootstrap" not in without
    assert str(runs[1]) not in without
    (tmp_path / "kept").rename(runs[1] / "test_scores.tsv")


def scored_run(folder: Path, outputs: list[str], references: list[str], score: Any) -> Run:
    folder.mkdir(parents=True)
    write_sentence_scores(folder / "test_scores.tsv", sentence_scores(references, outputs, references))
    results = {f"test_{name}": value for name, value in score(outputs, references).items()}
    (folder / "all_results.json").write_text(json.dumps(results))
    return read_run(folder, name=folder.name)


@pytest.mark.parametrize("score", [corpus_scores, scores_of_tokenized])
def test_scores_that_differ_are_marked_in_their_table(tmp_path: Path, score: Any) -> None:
    references = [f"the {n} dogs run over the hill to house {n * 7} ." for n in range(40)]
    worse = [text.replace("run over", "walk on") for text in references]
    outputs = {"first": references, "same": list(references), "worse": worse}
    html = scores_part(
        {name: scored_run(tmp_path / name, lines, references, score) for name, lines in outputs.items()}
    )
    table, _, tests = html.partition("Paired bootstrap on the test set")
    cells = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in re.findall(r"<tr>(.*?)</tr>", table)]
    stars = {row[0]: [value.endswith(" *") for value in row[1:]] for row in cells if row}
    tested = {"BLEU", "chrF"} | ({"BLEU of lower-cased tokens"} if score is scores_of_tokenized else set())
    assert {name for name, found in stars.items() if found == [False, False, True]} == tested
    assert {name for name, found in stars.items() if not any(found)} == stars.keys() - tested
    assert {name for name in stars if f">{name}</td>" in tests} == tested


def test_what_a_folder_lacks_is_left_out(runs: list[Path], tmp_path: Path) -> None:
    shutil.copytree(runs[0], tmp_path / "bare")
    for name in ("test_analysis.json", "environment.json", "model.safetensors", "data_table.json", "samples.jsonl"):
        (tmp_path / "bare" / name).unlink()
    sections = {attributes["id"] for tag, attributes in page_of([tmp_path / "bare"]).tags if tag == "section"}
    assert sections == {"course", "scores", "settings"}


def test_text_is_shown_and_not_obeyed(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "a & b <i>", [EVIL] * len(SENTENCES), source_prefix=EVIL, run_name=EVIL)
    rows = [{"step": 100, "source": EVIL, "reference": EVIL, "hypothesis": EVIL}]
    (folder / "samples.jsonl").write_text(json.dumps(rows[0]) + "\n")
    (folder / "environment.json").write_text(json.dumps({EVIL: EVIL}))
    page = page_of([folder])
    assert [tag for tag, _ in page.tags].count("script") == 1 and "img" not in {tag for tag, _ in page.tags}
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert page.text.count("<script>document.title='evil'</script>") > 10
    unsafe = Page(f"<p>{EVIL}</p>")  # the control: what the parser finds in text that was not escaped
    assert {"script", "img"} <= {tag for tag, _ in unsafe.tags}


def test_differences_are_marked_word_by_word() -> None:
    assert marked("a b c", "a x c", "extra") == 'a <mark class="extra">b</mark> c'
    assert marked("a b", "a b", "extra") == "a b"
    assert marked("<b> c", "c", "missing") == '<mark class="missing">&lt;b&gt;</mark> c'


def test_differences_are_letters_where_words_have_no_spaces_between_them() -> None:
    assert (
        marked("\u72d7\u5728\u8dd1", "\u732b\u5728\u8dd1", "extra") == '<mark class="extra">\u72d7</mark>\u5728\u8dd1'
    )


def test_numbers_are_escaped_too(runs: list[Path], tmp_path: Path) -> None:
    folder = shutil.copytree(runs[0], tmp_path / "run")
    (folder / "all_results.json").write_text(json.dumps({"test_bleu": EVIL, "num_parameters": EVIL, "test_chrf": 1.5}))
    assert "img" not in {tag for tag, _ in page_of([folder]).tags}


def test_lengths_of_different_test_sets_have_pictures_of_their_own(runs: list[Path], tmp_path: Path) -> None:
    page_of(runs, tmp_path / "same")
    folder = shutil.copytree(runs[1], tmp_path / "other")
    path = folder / "test_analysis.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "unit": "characters"}))
    page = page_of([runs[0], folder], tmp_path / "both")
    assert "BLEU by words of the source" in page.text and "BLEU by characters of the source" in page.text
    made = {name: (tmp_path / name / "bleu-by-length-1.png").is_file() for name in ("same", "both")}
    assert made == {"same": False, "both": True}


def without_test_set(run: Path, folder: Path) -> Path:
    """The run as it would be if its sentences were those of the development set."""
    shutil.copytree(run, folder, ignore=shutil.ignore_patterns("report"))
    for name in ("scores.tsv", "analysis.json"):
        (folder / f"test_{name}").rename(folder / f"eval_{name}")
    results = json.loads((folder / "all_results.json").read_text())
    results = {key.replace("test_", "eval_"): value for key, value in results.items()}
    (folder / "all_results.json").write_text(json.dumps(results))
    return folder


def test_a_run_without_a_test_set_is_shown_on_its_development_set(runs: list[Path], tmp_path: Path) -> None:
    folder = without_test_set(runs[0], tmp_path / "untested")
    page = Page(write_report([folder], sentences=[2]).read_text("utf-8"))
    for words in ("best of the development set", "source, development set", "their number in the development set"):
        assert words in page.text
    assert "test set" not in page.text
    with pytest.raises(InputError, match="has 6 development sentences, and no sentence 7"):
        write_report([folder], sentences=[7])


def test_runs_with_different_sets_are_shown_on_their_own(runs: list[Path], tmp_path: Path) -> None:
    folders = [runs[0], without_test_set(runs[1], tmp_path / "untested")]
    page = page_of(folders, tmp_path / "page")
    for words in ("worst of the test set, first", "worst of the development set, untested", "No test of significance"):
        assert words in page.text
    assert {path.name for path in (tmp_path / "page").glob("bleu-*")} == {"bleu-by-length.png", "bleu-by-length-1.png"}
    both = [shutil.copytree(runs[0], tmp_path / "both"), folders[1]]
    shutil.copy(runs[0] / "test_scores.tsv", both[0] / "eval_scores.tsv")
    text = page_of(both, tmp_path / "page").text
    assert "Paired bootstrap on the development set" in text and "No test of significance" not in text


def test_development_scores_are_called_so(runs: list[Path], tmp_path: Path) -> None:
    folders = [shutil.copytree(run, tmp_path / run.name) for run in runs]
    for folder in folders:
        (folder / "all_results.json").write_text(json.dumps({"eval_bleu": 12.5}))
    assert "development set" in page_of(folders, tmp_path / "both").text
    assert "development set" not in page_of(runs, tmp_path / "tested").text


def test_a_model_that_may_not_be_loaded_costs_its_attention_alone(runs: list[Path], tmp_path: Path) -> None:
    folder = shutil.copytree(runs[0], tmp_path / "strange")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "of_its_own"}))
    sections = {attributes["id"] for tag, attributes in page_of([folder]).tags if tag == "section"}
    assert "attention" not in sections and {"scores", "translations"} <= sections
    with pytest.raises(InputError):
        write_report([folder], folder=tmp_path / "page", sentences=[1])


def test_each_of_the_encodings_has_a_colour() -> None:
    assert len(set(COLOURS)) == len(COLOURS) > len(POSITION_ENCODINGS)


def contrast(one: str, other: str) -> float:
    """Of two colours like #12ab34, from 1 to 21 (WCAG 2.1)."""
    shares = [[int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)] for colour in (one, other)]
    linear = [[x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in share] for share in shares]
    dark, light = sorted(0.2126 * red + 0.7152 * green + 0.0722 * blue for red, green, blue in linear)
    return (light + 0.05) / (dark + 0.05)


def test_every_run_is_seen_on_a_light_and_on_a_dark_page() -> None:
    css = TEMPLATE.read_text("utf-8")
    themes = [css.split(start)[1].split("}")[0] for start in (":root:not([data-theme=light]) {", "=dark] {")]
    by_system, by_button = (dict(re.findall(r"--([\w-]+): (#\w{6})", theme)) for theme in themes)
    assert by_system == by_button
    shown = [by_button.get(f"run-{number}", colour) for number, colour in enumerate(COLOURS, start=1)]
    assert len(set(shown)) == len(COLOURS)
    assert min(contrast(colour, by_button["card"]) for colour in shown) > 3
    assert min(contrast(colour, "#ffffff") for colour in COLOURS) > 3
    assert contrast(COLOURS[8], by_button["card"]) < 2  # the control: why later runs have other colours there


def test_colours_of_later_runs_follow_the_theme() -> None:
    svg = inline_svg(course_figure({f"run {number}": history(1.0) for number in range(9)}, "step"), "course")
    assert f"var(--run-9, {COLOURS[8]})" in svg and COLOURS[0] in svg
    assert svg.count(COLOURS[8]) == svg.count("var(--run-9, ")


def test_bad_input_is_refused(runs: list[Path], tmp_path: Path) -> None:
    long = [shutil.copytree(runs[0], tmp_path / (letter * 47)) for letter in "ab"]
    with pytest.raises(InputError, match="102 characters, and 100 at most are taken; give --output"):
        write_report(long)
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in long}
    with pytest.raises(InputError, match="2 folders, but 1 names"):
        write_report([runs[0], runs[0]], folder=tmp_path)
    with pytest.raises(InputError, match="nowhere is no folder"):
        write_report([tmp_path / "nowhere"])


def test_several_runs_have_their_page_beside_the_first(
    runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    folders = [
        shutil.copytree(runs[0], tmp_path / "here" / "one"),
        shutil.copytree(runs[1], tmp_path / "there" / "two"),
    ]
    page = tmp_path / "here" / "report-one-two" / "index.html"
    assert write_report(folders) == page and page.is_file()
    monkeypatch.chdir(tmp_path / "here")
    assert write_report([Path("one"), folders[1]]) == page
    monkeypatch.setattr(sys, "argv", ["report.py", *map(str, folders)])
    load_script("report").main()
    assert capsys.readouterr().out == f"{page}\n"


def test_the_script_says_where_the_page_is(runs: list[Path], monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(sys, "argv", ["report.py", str(runs[0])])
    load_script("report").main()
    assert capsys.readouterr().out == f"{runs[0] / 'report' / 'index.html'}\n"


# --- in a browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Headless Chromium; tests that need it are skipped where it or its driver is not installed."""
    chromium, driver = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("needs Chromium and chromedriver")
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    opened = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield opened
    opened.quit()


def console(browser: Any) -> list[str]:
    return [entry["message"] for entry in browser.get_log("browser") if "favicon" not in entry["message"]]


@pytest.mark.parametrize("width", [1200, 390], ids=["desktop", "phone"])
def test_the_page_works_in_a_browser(browser: Any, runs: list[Path], tmp_path: Path, width: int) -> None:
    browser.set_window_size(width, 900)
    browser.get(write_report(runs, folder=tmp_path / "both").as_uri())
    for tabs in browser.find_elements("css selector", "[role=tablist]"):
        buttons = tabs.find_elements("css selector", "[role=tab]")
        panels = [browser.find_element("id", button.get_attribute("aria-controls")) for button in buttons]
        assert [panel.is_displayed() for panel in panels] == [place == 0 for place in range(len(panels))]
        for button, panel in zip(buttons, panels, strict=True):
            browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", button)
            button.click()
            assert [one.is_displayed() for one in panels] == [one == panel for one in panels]
            assert button.get_attribute("aria-selected") == "true"
    folded = browser.find_element("css selector", "details")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", folded)
    folded.find_element("css selector", "summary").click()
    assert folded.find_element("css selector", "table").is_displayed()
    root = browser.find_element("css selector", "body")
    before = root.value_of_css_property("background-color")
    browser.execute_script("scrollTo(0, 0)")
    browser.find_element("id", "theme").click()
    assert root.value_of_css_property("background-color") != before
    assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    assert console(browser) == []


def test_an_error_in_the_console_would_be_found(browser: Any, tmp_path: Path) -> None:
    (tmp_path / "broken.html").write_text("<script>throw new Error('broken')</script>")
    browser.get((tmp_path / "broken.html").as_uri())
    end = time.monotonic() + 20  # a busy machine takes its time to hand a message on
    while not any("broken" in message for message in console(browser)):
        assert time.monotonic() < end
        time.sleep(0.1)


def test_text_of_a_corpus_runs_no_script(browser: Any, tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", [EVIL] * len(SENTENCES))
    browser.get(write_report([folder]).as_uri())
    assert browser.title == "run"
    (tmp_path / "unsafe.html").write_text(f"<title>run</title><p>{EVIL}</p>")
    browser.get((tmp_path / "unsafe.html").as_uri())
    assert browser.title == "evil"
