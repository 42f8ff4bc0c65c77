"""Files of settings with any content, and any value of any key, are understood or refused."""

import json
from pathlib import Path

import pytest
from fuzzing import EXAMPLES, accepted, broken, fuzz
from hypothesis import strategies as st

from hf_mt.errors import InputError
from hf_mt.experiment import parse_experiment, typed_values, valid_keys
from hf_mt.key_rules import BOUNDS
from hf_mt.settings import COMMAND_LINE, Setting, read_options, read_yaml
from hf_mt.trainer_keys import NESTED


WHOLE = b"""# a comment
source_lang: en
target_lang: 'de'
dataset_name: cldr
learning_rate: 2e-3
rope_parameters: {rope_type: yarn, factor: 4, x: [1, a, null]}
report_to: [wandb, "none"]
source_prefix: "a \\u2028 b"
betas:
  - 1
  - {k: v}
text: |
  two
  lines
"""
TEXTS = [
    "*alias",
    "&anchor",
    "<<: *x",
    "!!python/object/apply:os.system ['true']",
    "!!binary aGk=",
    "!x",
    "%YAML 9.9\n---",
]
TEXTS += [
    "---\n",
    "...\n",
    "? ",
    "- ",
    ": ",
    "\t",
    "{",
    "}",
    "[",
    "]",
    "|",
    ">",
    "'",
    '"',
    "#",
    "\n",
    "\\U7fffffff",
    "\\ud800",
]
TEXTS += [
    "source_lang: en\n",
    "9" * 5000,
    "1e999",
    ".nan",
    ".inf",
    "0x1F",
    "1_000",
    "null",
    "~",
    "[" * 300,
    "{a: " * 300,
]
WORDS = [text.encode() for text in TEXTS] + [b"\xff", b"\0", b"\xef\xbb\xbf", b"\r\n"]
ODD = [
    "",
    " ",
    "0",
    "-1",
    "1",
    "1e999",
    "-1e999",
    "nan",
    "inf",
    "-inf",
    "10000000000",
    "9" * 400,
    "1" * 5000,
    "1e-400",
]
ODD += ["0x1F", "1_0", "１２", "true", "False", "null", "~", "None", "[", "[]", "{}", "[1, 2", '{"a": 1e999}', "[NaN]"]
ODD += [
    "[" * 100_000,
    '{"a":' * 50_000,
    "a\0b",
    "\ud800",
    "\udcff",
    "\u202e",
    "\x1b[31m",
    "🏳️‍🌈",
    "x" * 10_000,
    "/dev/null",
    "/",
]
ODD += [
    "..",
    "no/such/file",
    "--",
    "-",
    "=",
    "*",
    "!!python/object:x",
    "$(touch x)",
    "%s",
    "{0}",
    "\n",
    "auto",
    "all",
    "no",
    "steps",
]
LANGUAGES = ["--source_lang=en", "--target_lang=de", "--dataset_name=cldr"]


def test_any_file_is_read_or_refused(tmp_path: Path) -> None:
    path, taken = tmp_path / "x.yaml", 0
    for content in broken("yaml", [WHOLE], WORDS):
        path.write_bytes(content)
        taken += accepted(lambda: read_yaml(path))
    assert EXAMPLES["yaml"] / 20 < taken < EXAMPLES["yaml"] * 19 / 20, "both happen"


def test_any_file_of_keys_that_exist_is_an_experiment_or_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("source_lang: en\ntarget_lang: de\n")
    assert accepted(lambda: parse_experiment([str(path)])), "the whole one"
    for content in broken(
        "yaml settings", [path.read_bytes(), b"source_lang: en\ntarget_lang: de\nmax_steps: 5\n"], WORDS
    ):
        path.write_bytes(content)
        accepted(lambda: parse_experiment([str(path)]))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: " + "[" * 100_000, "nested too deeply"),
        ("a: !!python/object/apply:os.system ['touch x']", "1: tags are refused.*python"),
        ("a: !!str 5", "1: tags are refused"),
        ('a: "\\U7fffffff"', "not valid YAML"),
        ("a: &x 1\nb: *x", "2: aliases"),
        ("a: 1\nb: 2\na: 3", "3: 'a' is given a second time"),
        ("a: {k: 1, k: 2}", "1: 'k' is given a second time"),
        ("%YAML 9.9\n---\na: 1", "not valid YAML"),
        ("a: 1\n---\na: 2", "not valid YAML"),
    ],
)
def test_a_file_that_says_more_than_keys_and_values(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(InputError, match=message):
        read_yaml(tmp_path / "x.yaml")


@pytest.mark.parametrize("name", ["a\0.yaml", "x" * 5000 + ".yaml", "/dev/null", "", ".", "no/such.yaml"])
def test_a_name_of_no_file_is_refused(name: str) -> None:
    with pytest.raises(InputError):
        read_yaml(Path(name))


def test_any_value_of_any_key_is_typed_or_refused() -> None:
    raw = st.sampled_from(ODD) | st.text(max_size=20) | st.integers().map(str) | st.floats().map(str) | st.booleans()
    raw |= st.lists(st.text(max_size=5) | st.none() | st.floats(), max_size=3).map(json.dumps)
    keys = st.sampled_from(sorted(valid_keys()))

    def check(drawn: tuple[str, str | bool]) -> None:
        key, value = drawn
        accepted(lambda: typed_values({key: Setting(value, COMMAND_LINE)}))

    fuzz("values", st.tuples(keys, raw), check)


def test_every_key_meets_every_odd_value() -> None:
    seen = refused = 0
    for key in valid_keys():
        for value in ODD:
            seen += 1
            refused += not accepted(lambda: typed_values({key: Setting(value, COMMAND_LINE)}))  # noqa: B023
    assert seen >= EXAMPLES["odd values"] and refused > len(valid_keys()) * 5


def test_any_command_line_is_an_experiment_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole experiments: values that fit their types may still clash, in transformers too."""
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "false")  # which transformers sets, and leaves behind
    keys = st.sampled_from(sorted(valid_keys())) | st.sampled_from(sorted({*NESTED, *BOUNDS, "report_to"}))
    values = st.sampled_from([value for value in ODD if "\0" not in value and len(value) < 500])
    word = st.tuples(keys, values).map("--{0[0]}={0[1]}".format)
    odd_word = st.sampled_from(["--", "--=", "-x", "x.yaml", "x", "--num_b=3", "--config=", "--learning-rate=1", ""])

    def check(words: list[str]) -> None:
        accepted(lambda: parse_experiment([*LANGUAGES, *words]))

    fuzz("command lines", st.lists(word | odd_word, max_size=3), check)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--num_beams=1000000000"], "num_beams: found 1000000000, wanted at least 1 and below 1001"),
        (["--length_penalty=1000"], "length_penalty"),
        (["--max_steps=" + "9" * 400], r"max_steps: .*\.\.\. \(402 characters\).*below 2 \*\* 63"),
        (['--rope_parameters={"factor": 1e999}'], "1e999 is not a finite number"),
        (["--rope_parameters=" + '{"a":' * 50_000], "nested too deeply"),
        (["--run_name=a\ud800b"], "run_name: found .* not UTF-8"),
        (["--train_file=a\0b"], "train_file: found .*without NUL"),
    ],
)
def test_values_that_no_run_can_have(words: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_experiment([*LANGUAGES, *words])


def test_words_in_any_order_are_options_or_refused() -> None:
    words = st.lists(
        st.text(max_size=6) | st.sampled_from(["--a", "--a=1", "--", "-", "x.yaml", "--config", "=", "--A-b"])
    )
    fuzz("words", words, lambda drawn: accepted(lambda: read_options(drawn, {"a": True}.get)))
