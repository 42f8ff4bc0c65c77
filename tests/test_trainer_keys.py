"""Settings of transformers and Accelerate are refused where they are read, by the names of our keys."""

import json
from pathlib import Path

import pytest
from transformers import TrainingArguments

from hf_mt.errors import InputError
from hf_mt.experiment import parse_experiment, valid_keys
from hf_mt.key_rules import BOUNDS


LANGUAGES = ["--source_lang=en", "--target_lang=de", "--dataset_name=cldr"]
REFUSED = [
    (["--report_to=x"], "report_to: found 'x', wanted none, all, or some of .*tensorboard"),
    (["--report_to=wandbb"], "did you mean 'wandb'"),
    (['--report_to=["wandb", "none"]'], "report_to: found 'none'"),
    (["--torch_compile_backend=x"], "torch_compile_backend: found 'x', wanted one of .*inductor"),
    (["--torch_compile_mode=x"], "torch_compile_mode: found 'x', wanted one of default"),
    (["--data_seed=-1"], "data_seed: found -1, wanted at least 0 and below 4294967296"),
    (["--dataloader_num_workers=-1"], "dataloader_num_workers: found -1, wanted at least 0"),
    (["--dataloader_num_workers=2", "--dataloader_prefetch_factor=0"], "dataloader_prefetch_factor: found 0"),
    (["--ddp_timeout=9223372036854775807"], "ddp_timeout: found .* below 2147483648"),
    (["--preprocessing_num_workers=1000000000"], "preprocessing_num_workers: found .* below 1025"),
    (["--accelerator_config=no/file"], "accelerator_config: no/file can't be read: No such file"),
    (["--accelerator_config=/dev/null"], "accelerator_config: Expecting value"),
    (['--accelerator_config={"x": 1}'], "accelerator_config: .*unexpected keyword argument 'x'"),
    (
        ['--accelerator_config={"split_batches": "x"}'],
        "accelerator_config: split_batches is 'x', wanted true or false",
    ),
    (['--accelerator_config={"gradient_accumulation_kwargs": 5}'], "accelerator_config: TypeError"),
    (['--accelerator_config={"gradient_accumulation_kwargs": {"x": 5}}'], "accelerator_config: .*argument 'x'"),
    (["--fsdp=true", "--fsdp_config=no/file"], "fsdp_config: no/file can't be read: No such file"),
    (
        ["--fsdp=true", '--fsdp_config={"xla": true, "xla_fsdp_settings": 5}'],
        r"AttributeError.*fsdp and fsdp_config\)",
    ),
    (["--fsdp_config=no/file"], "fsdp_config has no effect without fsdp"),
]


@pytest.fixture(autouse=True)
def same_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "false")  # which transformers sets, and leaves behind


@pytest.mark.parametrize(("words", "message"), REFUSED, ids=[" ".join(words) for words, _ in REFUSED])
def test_what_no_program_can_use_is_refused_by_its_name(words: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_experiment([*LANGUAGES, *words])


def test_transformers_alone_takes_them_or_fails_in_its_own_way() -> None:
    taken = {"report_to": "x", "torch_compile_backend": "x", "data_seed": -1, "dataloader_num_workers": -1}
    for key, value in taken.items():
        assert TrainingArguments(**{key: value, "use_cpu": True})
    with pytest.raises(FileNotFoundError):
        TrainingArguments(accelerator_config="no/file")
    with pytest.raises(TypeError):
        TrainingArguments(accelerator_config={"x": 1})


@pytest.mark.parametrize("name", ["tensorboard", "mlflow"])
def test_a_tracker_that_is_not_installed_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "transformers.integrations.integration_utils.get_available_reporting_integrations", lambda: ["wandb"]
    )
    with pytest.raises(InputError, match=f"report_to: {name} is not installed here; there is wandb"):
        parse_experiment([*LANGUAGES, f"--report_to={name}"])
    assert parse_experiment([*LANGUAGES, "--report_to=wandb"]).training.report_to == ["wandb"]


def test_deepspeed_needs_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_mt.trainer_keys.find_spec", lambda name: None)
    with pytest.raises(InputError, match="deepspeed: the package is not installed"):
        parse_experiment([*LANGUAGES, "--deepspeed=x"])


def test_steps_of_accumulation_have_one_name(tmp_path: Path) -> None:
    """transformers would take four steps for one, and say nothing; a step sees what its own key says."""
    inside = '{"gradient_accumulation_kwargs": {"num_steps": 4}}'
    (tmp_path / "x.json").write_text(inside)
    for value in (inside, str(tmp_path / "x.json")):
        with pytest.raises(InputError, match="accelerator_config: num_steps .* gradient_accumulation_steps"):
            parse_experiment([*LANGUAGES, f"--accelerator_config={value}"])
    other = '{"gradient_accumulation_kwargs": {"sync_each_batch": true}, "even_batches": false}'
    training = parse_experiment([*LANGUAGES, f"--accelerator_config={other}"]).training
    assert training.accelerator_config.gradient_accumulation_kwargs == {"sync_each_batch": True}
    assert training.accelerator_config.even_batches is False


def test_what_is_given_is_kept_as_it_is() -> None:
    """transformers writes defaults into the mapping that it gets."""
    given = {"min_num_params": 3}
    experiment = parse_experiment([*LANGUAGES, "--fsdp=true", f"--fsdp_config={json.dumps(given)}"])
    assert experiment.resolved["fsdp_config"] == given
    assert experiment.training.fsdp_config.keys() > given.keys(), "the control"


def test_bounds_are_those_of_keys() -> None:
    assert BOUNDS.keys() <= valid_keys().keys()
    assert all(valid_keys()[name].metadata["least"] == bounds["least"] for name, bounds in BOUNDS.items())
