"""Tests of hf_mt.settings: what is written in a file or on the command line, and what is made of it."""

import json

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hf_mt import experiment
from hf_mt.errors import InputError
from hf_mt.experiment import parse_experiment
from hf_mt.settings import COMMAND_LINE, Quoted, Setting, convert, read_yaml, yaml_value


LANGUAGES = ["--source_lang", "en", "--target_lang", "de"]
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
NUMBERS = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
WITH_FOLDER = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def write(folder, text, name="x.yaml"):
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def message_of(*words):
    with pytest.raises(InputError) as caught:
        parse_experiment(list(words))
    return str(caught.value)


def yaml_message(folder, text):
    return message_of(str(write(folder, text)))


# Types, the same from both sources


VALUES = [
    ("learning_rate", "2e-3", 0.002),
    ("learning_rate", "1", 1.0),
    ("d_model", "1_000", 1000),
    ("num_train_epochs", "1" + "0" * 30, 1e30),
    ("source_column", "no", "no"),
    ("fp16", "no", False),
    ("drop_duplicates", "False", False),
    ("trust_remote_code", "true", True),
    ("max_train_samples", "None", None),
    ("max_train_samples", "null", None),
    ("max_train_samples", "7", 7),
    ("tf32", "null", None),
    ("position_encoding", "none", "none"),
    ("init_std", "None", None),
    ("eval_strategy", "no", "no"),
    ("include_num_input_tokens_seen", "no", "no"),
    ("include_num_input_tokens_seen", "true", True),
    ("trackio_static_space_id", "false", False),
    ("trackio_static_space_id", "me/space", "me/space"),
    ("fsdp", "true", True),
    ("report_to", "wandb", "wandb"),
    ("encoder_position_encoding", "none", "none"),
    ("encoder_position_encoding", "null", None),
    ("report_to", '["wandb", "tensorboard"]', ["wandb", "tensorboard"]),
    ("rope_parameters", '{"rope_type": "yarn", "factor": 4.0}', {"rope_type": "yarn", "factor": 4.0}),
    ("deepspeed", "ds.json", "ds.json"),
    ("deepspeed", '{"zero_optimization": {"stage": 2}}', {"zero_optimization": {"stage": 2}}),
    ("lr_scheduler_type", "cosine", "cosine"),
]


@pytest.mark.parametrize("key, text, value", VALUES)
def test_file_and_command_line_read_the_same_value(tmp_path, key, text, value):
    (setting,) = read_yaml(write(tmp_path, f"{key}: {text}")).values()
    for source in (setting, Setting(text, COMMAND_LINE)):
        (found,) = experiment.typed_values({key: source}).values()
        assert found == value and type(found) is type(value)


def test_why_values_are_read_as_text():
    """Negative control: PyYAML alone would get these wrong."""
    assert yaml.safe_load("2e-3") == "2e-3" and yaml.safe_load("no") is False


@pytest.mark.parametrize(
    "key, text, wanted",
    [
        ("learning_rate", "fast", "found 'fast', wanted a number"),
        ("learning_rate", "nan", "wanted a finite number"),
        ("learning_rate", "-inf", "wanted a finite number"),
        ("learning_rate", "1e999", "wanted a finite number"),
        ("d_model", "64.0", "found '64.0', wanted a whole number"),
        ("d_model", "None", "wanted a whole number"),
        ("max_train_samples", "many", "wanted a whole number or null"),
        ("fp16", "maybe", "wanted true or false"),
        ("position_encoding", "rop", "did you mean 'rope'?"),
        ("tokenizer_type", "bep", "wanted one of bpe, unigram, byte_bpe"),
        ("lr_scheduler_type", "cosin", "did you mean 'cosine'?"),
        ("eval_strategy", "epochs", "wanted one of no, steps, epoch; did you mean 'epoch'?"),
        ("log_level", "infos", "did you mean 'info'?"),
        ("rope_parameters", "yarn", "wanted a mapping or null"),
        ("rope_parameters", '{"factor": NaN}', "finite number"),
        ("max_source_length", "0", "found 0, wanted at least 1"),
        ("bpe_dropout", "1.0", "wanted at least 0 and below 1"),
        ("ema_decay", "-0.1", "wanted at least 0 and below 1"),
        ("average_checkpoints", "-1", "wanted at least 0"),
    ],
)
def test_wrong_values_are_refused_from_both_sources(tmp_path, key, text, wanted):
    in_file = yaml_message(tmp_path, f"source_lang: en\ntarget_lang: de\n{key}: {text}\n")
    assert f"x.yaml:3: {key}: " in in_file and wanted in in_file
    assert f"command line: {key}: " in (on_line := message_of(*LANGUAGES, f"--{key}={text}")) and wanted in on_line


def test_broken_json_is_refused():
    assert "not valid JSON" in message_of(*LANGUAGES, "--deepspeed", "{stage: 2")


def test_nested_values_of_a_file_have_json_types(tmp_path):
    text = "rope_parameters:\n  rope_type: yarn\n  factor: 2e0\n  a: [1, true, null, 'null', \"1\", no]\n"
    (setting,) = read_yaml(write(tmp_path, text)).values()
    found = convert(setting.raw, dict)
    assert found == {"rope_type": "yarn", "factor": 2.0, "a": [1, True, None, "null", "1", "no"]}
    assert type(found["a"][0]) is int and type(found["a"][3]) is str


def test_quotes_make_words(tmp_path):
    read = read_yaml(write(tmp_path, "train_file: 'null'\ntest_file: null\nvalidation_file:\n"))
    assert experiment.typed_values(read) == {"train_file": "null", "test_file": None, "validation_file": None}


# The YAML file


@pytest.mark.parametrize(
    "text, wanted",
    [
        (
            "seed: 1\npositon_encoding: rope\n",
            "x.yaml:2: unknown key 'positon_encoding'; did you mean 'position_encoding'?",
        ),
        ("seed: 1\n\n# again\nseed: 2\n", "x.yaml:4: 'seed' is given a second time; first on line 1"),
        ("rope_parameters:\n  factor: 1\n  factor: 2\n", "x.yaml:3: 'factor' is given a second time; first on line 2"),
        ("seed: [1\nd_model: 2\n", "x.yaml:2:8: not valid YAML: expected ',' or ']'"),
        ("seed: 1\n\td_model: 2\n", "x.yaml:2:1: not valid YAML"),
        ("seed: 1\x00", "x.yaml: not valid YAML"),
        ("a: 1\n---\nb: 1\n", "x.yaml:2:1: not valid YAML"),
        ("", "x.yaml: the file holds no settings"),
        ("# nothing\n", "the file holds no settings"),
        ("- seed\n- 1\n", "x.yaml:1: wanted one `key: value`"),
        ("seed 1\n", "x.yaml:1: wanted one `key: value`"),
        ("? [a, b]\n: 1\n", "x.yaml:1: a key must be a word"),
        ("a: &x [1]\nb: [*x, *x]\n", "x.yaml:2: aliases (*name) are refused"),
        ("warmup_ratio: 0.1\n", "x.yaml:1: warmup_ratio is not used here: use warmup_steps"),
    ],
)
def test_a_bad_file_names_the_line(tmp_path, text, wanted):
    assert wanted in yaml_message(tmp_path, text)


def test_missing_and_binary_files(tmp_path):
    assert "cannot read" in message_of(str(tmp_path / "none.yaml"))
    assert "cannot read" in message_of(str(tmp_path.joinpath("folder.yaml").mkdir() or tmp_path / "folder.yaml"))
    (tmp_path / "latin.yaml").write_bytes("source_lang: é".encode("latin-1"))
    assert "not UTF-8" in message_of(str(tmp_path / "latin.yaml"))


def test_a_missing_file_is_told_with_what_is_near(tmp_path):
    write(tmp_path, "seed: 1\n", name="quickstart.yaml")
    write(tmp_path, "seed: 1\n", name="z.yaml")
    told = message_of(str(tmp_path / "quikstart.yaml"))
    assert "quikstart.yaml: No such file" in told and told.endswith(f"in {tmp_path} there is quickstart.yaml.")
    assert "there is no folder no." in message_of("no/quickstart.yaml")


def test_byte_order_mark_is_no_part_of_the_first_key(tmp_path):
    assert list(read_yaml(write(tmp_path, "\ufeffseed: 1\n"))) == ["seed"]


# There and back


@WITH_FOLDER
@given(value=TEXT.filter(lambda text: "\0" not in text))
def test_any_text_survives_file_and_command_line(tmp_path, value):
    (setting,) = read_yaml(write(tmp_path, f"source_prefix: {yaml_value(value)}  # comment\n")).values()
    assert convert(setting.raw, str) == convert(setting.raw, str | None) == value
    assert convert(value, str) == value


@WITH_FOLDER
@given(value=st.recursive(TEXT | NUMBERS | st.booleans() | st.none(), lambda inner: st.lists(inner, max_size=3)))
def test_any_nested_value_survives_file_and_command_line(tmp_path, value):
    nested = {"a": value, "null": [value]}
    (setting,) = read_yaml(write(tmp_path, f"rope_parameters: {yaml_value(nested)}\n")).values()
    assert convert(setting.raw, dict) == convert(json.dumps(nested), dict | None) == nested


@pytest.mark.parametrize("text", ["\x7f", "a\x85b", "a\u2028b", "\ufeff", "\U0001f600", "null", ""])
def test_text_that_plain_json_would_break(tmp_path, text):
    """Negative control of the escapes: some of these do not survive `json.dumps` alone."""
    path = write(tmp_path, f"a: {yaml_value(text)}")
    assert read_yaml(path)["a"].raw == text and isinstance(read_yaml(path)["a"].raw, Quoted)
    if text in ("\x7f", "a\x85b"):
        write(tmp_path, f"a: {json.dumps(text, ensure_ascii=False)}")
        with pytest.raises((InputError, AssertionError)):
            assert read_yaml(path)["a"].raw == text


@given(value=NUMBERS.filter(lambda number: isinstance(number, float) or abs(number) < 2**63))
def test_any_number_survives(value):
    assert convert(yaml_value(value), type(value)) == value == yaml.safe_load(yaml_value(value))


def test_other_readers_of_yaml_get_numbers_too():
    written = yaml_value({"1e-8": "1e-8", "x": [1e-8, -2e22, 1.5e-9, "\\"]})
    assert yaml.safe_load(written) == json.loads(written) == {"1e-8": "1e-8", "x": [1e-8, -2e22, 1.5e-9, "\\"]}
    assert yaml.safe_load(json.dumps(1e-8)) == "1e-08", "negative control: JSON alone is read as text"
