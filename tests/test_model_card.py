"""Cards from the files of a run: complete, true to them, and harmless whatever the corpus says."""

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from markdown_it.token import Token

from hf_mt import HfMtConfig, InputError, markdown
from hf_mt.model_card import MARKER, metadata, write_model_card
from hf_mt.run_record import read_run, without_path


SIGNATURE = "nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:2.6.0"
PLAIN = {"source": "A dog runs", "reference": "Ein Hund rennt", "hypothesis": "Ein Hund geht"}
HOSTILE = (
    '<script>alert("x")</script>',
    "[click](javascript:alert(1)) [here](http://evil.example)",
    "![img](http://evil.example/x.png)",
    "a | b | c |",
    "```\n# heading\n```",
    "`code` **bold** _em_ ~~gone~~ $x^2$ \\",
    "</details><h1>owned</h1>",
    "<!-- hidden -->",
    "www.evil.example and http://evil.example and a@evil.example",
    "&lt;b&gt; &#35;",
    "- item\n---\n***\n| --- | --- |",
    "[ref]: http://evil.example",
)


def write_run(folder: Path, sample: dict[str, str] = PLAIN) -> Path:
    """Every file that a finished run has, but weights and tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    log = [
        {"loss": 4.0, "learning_rate": 1e-3, "step": 10, "epoch": 0.5},
        {"eval_loss": 3.0, "eval_bleu": 20.0, "eval_chrf": 40.0, "step": 20, "epoch": 1.0},
        {"eval_loss": 2.5, "eval_bleu": 31.25, "eval_chrf": 50.0, "step": 40, "epoch": 2.0},
        {"eval_loss": 2.6, "eval_bleu": 30.0, "eval_chrf": 49.0, "step": 60, "epoch": 3.0},
    ]
    results = {
        "test_bleu": 30.456,
        "test_bleu_signature": SIGNATURE,
        "test_chrf": 48.0,
        "test_chrf_signature": "nrefs:1|case:mixed|eff:yes|nc:6|nw:0|space:no|version:2.6.0",
        "test_loss": 2.4,
        "test_perplexity": 11.0,
        "num_parameters": 7_612_000,
        "train_minutes": 12.5,
        "machine": "Xeon 8481C, 2 cores",
        "seed": 3,
        "num_beams": 5,
        "epoch": 3.0,
        "hf_mt_version": "0.1.0",
    }
    counts = {"read": 30000, "found": {"empty": 5, "too long": 95}, "kept": 29900}
    tokens = {"mean": 14.1, "percentile_95": 25.0, "max": 44, "unknown": 0}
    resolved = {
        "source_lang": "en",
        "target_lang": "de",
        "dataset_name": "user/corpus",
        "train_file": "/home/somebody/private/train",
        "output_dir": "C:\\Users\\somebody\\run",
        "token": "hf_" + "a" * 34,
        "seed": 3,
        "learning_rate": 0.002,
        "num_beams": 5,
        "length_penalty": 1.0,
    }
    write_json(folder / "config.json", HfMtConfig().to_dict())
    write_json(folder / "trainer_state.json", {"log_history": log, "best_global_step": 40})
    write_json(folder / "all_results.json", results)
    write_json(folder / "data_table.json", {"train": {**counts, "source_tokens": tokens, "target_tokens": tokens}})
    (folder / "config_resolved.yaml").write_text(yaml.safe_dump(resolved))
    rows = [{**PLAIN, "step": 20}, {**sample, "step": 40}, {**PLAIN, "step": 60}]
    (folder / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "report").mkdir(exist_ok=True)
    (folder / "report" / "course-by-step.png").write_bytes(b"\x89PNG")
    return folder


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run")


def card_of(run: Path, **options: Any) -> str:
    return write_model_card(run, **options).read_text(encoding="utf-8")


def checkpoint_of(run: Path, step: int) -> Path:
    """A checkpoint as training leaves it: no results of its own, and the history up to its step."""
    folder = run / f"checkpoint-{step}"
    folder.mkdir()
    write_json(folder / "config.json", HfMtConfig().to_dict())
    history = json.loads((run / "trainer_state.json").read_text())["log_history"]
    state = {
        "log_history": [row for row in history if row["step"] <= step],
        "global_step": step,
        "best_global_step": 40,
    }
    write_json(folder / "trainer_state.json", state)
    return folder


def test_a_checkpoint_has_the_scores_of_its_own_weights(run: Path) -> None:
    kept, other = (read_run(checkpoint_of(run, step), name="user/model") for step in (40, 60))
    assert kept.results == read_run(run, name="run").results and kept.results["test_bleu"] == 30.456
    assert "test_bleu" not in other.results and other.results["eval_bleu"] == 30.0
    assert other.results["num_parameters"] == 7_612_000


def test_without_the_best_the_last_step_is_kept(run: Path) -> None:
    assert read_run(run, name="run").best_step == 40
    state = json.loads((run / "trainer_state.json").read_text())
    write_json(run / "trainer_state.json", {**state, "global_step": 60})
    settings = yaml.safe_load((run / "config_resolved.yaml").read_text())
    (run / "config_resolved.yaml").write_text(yaml.safe_dump({**settings, "load_best_model_at_end": False}))
    last = read_run(run, name="run")
    assert last.best_step == 60 and last.samples == [{**PLAIN, "step": 60}]


def test_beams_are_those_of_the_scores(run: Path) -> None:
    assert "Beam size: 5" in card_of(run) and "Length penalty: 1.0" in card_of(run)
    results = json.loads((run / "all_results.json").read_text())
    untested = {key: value for key, value in results.items() if not key.startswith("test_")}
    write_json(run / "all_results.json", {**untested, "eval_bleu": 31.25})
    card = card_of(run)
    assert "development set of" in card and "Beam size: 1" in card and "Length penalty:" not in card


def test_a_histogram_is_no_column(run: Path) -> None:
    table = json.loads((run / "data_table.json").read_text())
    table["train"]["source_tokens"]["histogram"] = [3, 777, 5]
    write_json(run / "data_table.json", table)
    assert "histogram" not in card_of(run) and "777" not in card_of(run)


SECTIONS = {
    "all_results.json": "## Results",
    "report/course-by-step.png": "![curves](report/course-by-step.png)",
    "samples.jsonl": "## Samples",
    "data_table.json": "| Pairs | read | empty | too long | kept |",
    "config.json": "## Architecture",
    "config_resolved.yaml": "## Hyperparameters",
    "trainer_state.json": "## Training log",
}


@pytest.mark.parametrize("file", SECTIONS)
def test_an_absent_file_leaves_out_its_section_alone(run: Path, file: str) -> None:
    assert all(heading in card_of(run) for heading in SECTIONS.values())
    (run / file).unlink()
    card = card_of(run)
    assert [name for name, heading in SECTIONS.items() if heading not in card] == [file]


def test_an_empty_folder_gives_a_card(tmp_path: Path) -> None:
    card = card_of(tmp_path)
    assert "## How to use" in card and "None" not in card
    with pytest.raises(InputError, match="no folder"):
        write_model_card(tmp_path / "absent")


def test_scores_and_facts_are_those_of_the_files(run: Path) -> None:
    card = card_of(run, repo_id="user/name")
    assert "from English (en) into German (de)" in card
    assert "of 7.6 million parameters with `rope` position encoding" in card
    shown = SIGNATURE.replace("|", r"\|")
    assert f"| BLEU | 30.46 | `{shown}` |" in card
    assert "| **40** | **2.00** | **4.00** | **2.50** | **31.25** | **50.00** |" in card
    assert "| 60 | 3.00 |" in card
    assert "2104.09864" in card
    assert "| learning_rate | 0.002 |" in card and "| num_beams | 5 |" not in card


def test_metadata_is_what_the_hub_reads(run: Path) -> None:
    write_model_card(run, repo_id="user/name", license="apache-2.0")
    data = ModelCard.load(run / "README.md").data
    assert data.language == ["en", "de"]
    assert (data.license, data.library_name, data.pipeline_tag) == ("apache-2.0", "transformers", "translation")
    assert {"hf_mt", "position-encoding:rope", "dataset_size:29900"} <= set(data.tags)
    assert data.datasets == ["user/corpus"] and data.metrics == ["bleu", "chrf"] and data.model_name == "name"
    bleu = data.eval_results[0]
    assert (bleu.metric_value, bleu.dataset_split, bleu.metric_args["signature"]) == (30.46, "test", SIGNATURE)
    assert data.to_dict() == metadata(read_run(run, name="user/name"), "apache-2.0").to_dict()


@pytest.mark.parametrize(("code", "shown"), [("no", ["no", "de"]), ("zh_Hant", ["zh", "de"]), ("digits", ["de"])])
def test_languages_are_codes_that_the_hub_knows(run: Path, code: str, shown: list[str]) -> None:
    path = run / "config_resolved.yaml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), "source_lang": code}))
    write_model_card(run)
    assert ModelCard.load(run / "README.md").data.language == shown


def test_each_side_is_told_with_its_own_encoding(run: Path) -> None:
    config = HfMtConfig(encoder_position_encoding="t5", decoder_position_encoding="alibi").to_dict()
    write_json(run / "config.json", config)
    card = card_of(run)
    assert "with `t5` and `alibi` position encoding" in card and "1910.10683" in card and "2108.12409" in card
    assert {"position-encoding:t5", "position-encoding:alibi"} <= set(ModelCard.load(run / "README.md").data.tags)
    assert "position-encoding:rope" not in card


def test_versions_are_those_of_the_run(run: Path) -> None:
    assert "| torch |" not in card_of(run)  # nobody knows them any more
    write_json(run / "environment.json", {"torch": "1.2.3", "transformers": "4.5.6", "Python": "3.11"})
    card = card_of(run)
    assert "| torch | 1.2.3 |" in card and "| transformers | 4.5.6 |" in card and "| hf_mt | 0.1.0 |" in card


def test_data_is_named_by_its_files_where_there_is_no_data_set(run: Path) -> None:
    settings = yaml.safe_load((run / "config_resolved.yaml").read_text())
    settings |= {"dataset_name": None, "test_file": "data/test_2016"}
    (run / "config_resolved.yaml").write_text(yaml.safe_dump(settings))
    card = card_of(run)
    assert "## Training data\n\ntrain\n" in card and "- Data: test set of test_2016\n" in card
    assert 'from_pretrained("path/to/run"' in card
    assert 'from_pretrained("user/name"' in card_of(run, repo_id="user/name")


def test_a_test_file_beside_a_data_set_is_what_was_tested(run: Path) -> None:
    path = run / "config_resolved.yaml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), "test_file": "data/test_2016"}))
    card = card_of(run)
    assert "user/corpus" in card and "- Data: test set of test_2016\n" in card
    (bleu, _) = ModelCard.load(run / "README.md").data.eval_results
    assert (bleu.dataset_name, bleu.dataset_type) == ("test_2016", "test_2016")


def test_paths_and_secrets_stay_at_home(run: Path) -> None:
    raw = (run / "config_resolved.yaml").read_text()
    leaks = ("somebody", "hf_aaaa", "private")
    assert all(leak in raw for leak in leaks)
    card = card_of(run)
    assert not [leak for leak in leaks if leak in card]
    assert "train_file: train\n" in card and "output_dir" not in card and "dataset_name: user/corpus\n" in card
    assert without_path("source_prefix", "en/de: ") == "en/de: "


def shape(tokens: list[Token] | None) -> Iterator[str]:
    """Structure of parsed Markdown, without its text."""
    for token in tokens or []:
        yield token.type
        yield from shape(token.children)


PARSER = MarkdownIt("commonmark", {"linkify": False}).enable(["table", "strikethrough"])


def shown_cells(card: str, parser: MarkdownIt = PARSER) -> list[str]:
    """The text of every table cell, as a reader sees it."""
    rendered = []
    tokens = parser.parse(card)
    for before, token in zip(tokens, tokens[1:], strict=False):
        if before.type == "td_open":
            rendered.append("".join(child.content for child in token.children or []))
    return rendered


def is_harmless(folder: Path, sentence: str) -> bool:
    """Whether a card with this sentence has the structure of any other card, and shows the sentence as it is."""
    card = card_of(write_run(folder / "with" / "run", dict.fromkeys(PLAIN, sentence)))
    other = card_of(write_run(folder / "without" / "run"))
    same = list(shape(PARSER.parse(card))) == list(shape(PARSER.parse(other)))
    return same and " ".join(sentence.split()) in [" ".join(cell.split()) for cell in shown_cells(card)]


@pytest.mark.parametrize("sentence", HOSTILE)
def test_sentences_change_nothing_but_what_is_read(tmp_path: Path, sentence: str) -> None:
    assert is_harmless(tmp_path, sentence)


def test_sentences_that_are_not_escaped_do_harm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(markdown, "escape_markdown", lambda text: text)
    harmless = [sentence for i, sentence in enumerate(HOSTILE) if is_harmless(tmp_path / str(i), sentence)]
    assert harmless == [HOSTILE[8], HOSTILE[11]]  # bare addresses, which this parser leaves alone


def test_bare_addresses_become_no_links() -> None:
    shown = markdown.escape_markdown("www.evil.example HTTP://evil.example a@evil.example")
    assert not re.search(r"www\.|://|@", shown, flags=re.IGNORECASE)


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=60))
def test_any_text_is_shown_as_it_is(text: str) -> None:
    (cell, _) = shown_cells(markdown.table(("a", "b"), [(text, "x")]))
    visible = re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]", " ", text)
    assert cell.split() == visible.split()


@settings(max_examples=100, deadline=None)
@given(st.text("`~a\n", max_size=40))
def test_no_text_ends_a_code_block(text: str) -> None:
    tokens = PARSER.parse(markdown.fenced(text, "yaml"))
    assert [token.type for token in tokens] == ["fence"]
    assert tokens[0].content.rstrip("\n") == text.rstrip().rstrip("\n")


def test_samples_can_be_kept_out(run: Path) -> None:
    assert "A dog runs" in card_of(run)
    assert "A dog runs" not in card_of(run, show_samples=False)


def test_snippets_are_python_whatever_the_sentence(tmp_path: Path) -> None:
    for number, sentence in enumerate((*HOSTILE, "quote \" and ' and \\", "brace {x}")):
        card = card_of(write_run(tmp_path / str(number), {**PLAIN, "source": sentence}))
        snippets = [token.content for token in PARSER.parse(card) if token.info == "python"]
        assert len(snippets) == 2
        for snippet in snippets:
            nodes = ast.walk(ast.parse(snippet))
            assert sentence in [node.value for node in nodes if isinstance(node, ast.Constant)]


def test_a_card_of_somebody_is_left_alone(run: Path) -> None:
    path = write_model_card(run)
    edited = path.read_text().replace(f"# {MARKER}\n", "") + "My words.\n"
    path.write_text(edited)
    assert card_of(run) == edited
    path.write_text(f"# {MARKER}\nstale\n")
    assert "stale" not in card_of(run)


def test_a_checkpoint_takes_what_is_the_runs_from_above(run: Path) -> None:
    checkpoint = run / "checkpoint-40"
    checkpoint.mkdir()
    for name in ("config.json", "trainer_state.json"):
        (run / name).rename(checkpoint / name)
    card = card_of(checkpoint, repo_id="user/name")
    assert "## Training log" in card and "## Hyperparameters" in card and "A dog runs" in card
    assert "report/course-by-step.png" not in card
    other = run / "elsewhere"
    other.mkdir()
    assert "## Hyperparameters" not in card_of(other)


def test_a_card_beside_other_cards_shows_no_image_it_cannot_reach(run: Path, tmp_path: Path) -> None:
    card = card_of(run, path=tmp_path / "model_cards" / "multi30k.md")
    assert "## Results" in card and "report/course-by-step.png" not in card
    assert not (run / "README.md").exists()


@pytest.mark.parametrize("file", ["all_results.json", "samples.jsonl", "config_resolved.yaml", "data_table.json"])
def test_a_broken_file_is_named(run: Path, file: str) -> None:
    (run / file).write_text('{"half": [')
    with pytest.raises(InputError, match=re.escape(file)):
        write_model_card(run)
    assert not (run / "README.md").exists()
