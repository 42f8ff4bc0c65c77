"""What all tests share: one thread, no network, and models small enough to build in milliseconds."""

import os
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings


# a slow machine or a rare draw is no failure; where nobody watches, the draws are the same each time
_SLOW = [HealthCheck.too_slow, HealthCheck.filter_too_much]
settings.register_profile("suite", deadline=None, derandomize="CI" in os.environ, suppress_health_check=_SLOW)
settings.load_profile("suite")

# read when torch, tokenizers and huggingface_hub are first imported, so set before any of them is
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

if TYPE_CHECKING:
    from hf_mt import HfMtConfig, HfMtForConditionalGeneration

TINY = {
    "vocab_size": 40,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "dropout": 0.0,
    "max_position_embeddings": 32,
    "max_relative_position": 4,
}


@pytest.fixture(autouse=True)
def whole_numbers() -> Iterator[None]:
    """A script that trains takes the smallest numbers for zero, which its process keeps."""
    yield
    if "torch" in sys.modules:
        sys.modules["torch"].set_flush_denormal(False)


@pytest.fixture(scope="session")
def tiny_config() -> "Callable[..., HfMtConfig]":
    """`tiny_config(**changes)`: a configuration of 2 layers, width 32 and 40 subwords, without dropout."""
    from hf_mt import HfMtConfig

    return lambda **changes: HfMtConfig(**(TINY | changes))


@pytest.fixture(scope="session")
def tiny_model(tiny_config: "Callable[..., HfMtConfig]") -> "Callable[..., HfMtForConditionalGeneration]":
    """`tiny_model(**changes)`: a model in evaluation mode, the same one for the same changes.

    Every parameter is moved off its initial value, so that a bias of zero or a norm of one hides no mistake.
    """
    import torch

    from hf_mt import HfMtForConditionalGeneration

    def build(**changes: Any) -> HfMtForConditionalGeneration:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = HfMtForConditionalGeneration(tiny_config(**changes)).eval()
            for parameter in model.parameters():
                parameter.data += 0.2 * torch.randn_like(parameter)
        return model

    return build


@pytest.fixture(autouse=True)
def seeded() -> None:
    """No test depends on which tests ran before it."""
    import torch

    torch.manual_seed(0)
