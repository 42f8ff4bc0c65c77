"""Pictures show what the classes compute: each scheme its own, and none the same everywhere."""

import re
from io import BytesIO
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import torch

from hf_mt.encoding_pictures import LENGTH, WIDTH, _scheme, _scores, encoding_figure
from hf_mt.model import POSITION_ENCODINGS


WORD = torch.randn(WIDTH, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def pictures() -> dict[str, np.ndarray]:
    found = {}
    for name in POSITION_ENCODINGS:
        file = BytesIO()
        encoding_figure(name).savefig(file, format="png")
        found[name] = matplotlib.image.imread(BytesIO(file.getvalue()))
    return found


def test_every_scheme_has_a_picture_of_its_own(pictures: dict[str, np.ndarray]) -> None:
    shown = {name: picture.tobytes() for name, picture in pictures.items()}
    assert len(set(shown.values())) == len(POSITION_ENCODINGS)
    assert all(picture.std() > 0 for picture in pictures.values())


def test_scores_of_equal_words_differ_by_position_alone() -> None:
    for name in POSITION_ENCODINGS:
        scores = _scores(_scheme(name, bidirectional=True), WORD)
        assert scores.shape == (LENGTH, LENGTH)
        assert (scores.std() > 1e-3) == (name != "none"), name
    falling = _scores(_scheme("alibi", bidirectional=True), WORD)[0]
    assert (falling.diff() < 0).all()
    relative = _scores(_scheme("rope", bidirectional=False), WORD)
    assert torch.allclose(relative[20:40, 20:40], relative[:20, :20], atol=1e-4)
    absolute = _scores(_scheme("sinusoidal", bidirectional=True), WORD)
    assert not torch.allclose(absolute[20:40, 20:40], absolute[:20, :20], atol=1e-1)


PAGE = Path(__file__).parents[1] / "model_cards" / "positional_encodings.md"
# Parameters of an encoder's scheme as the page counts them, at width 64 with 4 heads
COUNTED = {"sinusoidal": 0, "learned": 512 * 64, "none": 0, "shaw": 2 * 33 * 16, "t5": 32 * 4, "rope": 0, "alibi": 0}
COUNTED |= {"kerple": 2 * 4, "fire": 33 * 4 + 66, "xpos": 0, "pope": 64, "deberta": 2 * 33 * 64, "cope": 2 * 17 * 16}


def test_the_page_has_picture_and_cost_of_every_scheme() -> None:
    sections = dict(re.findall(r"(?ms)^### `(\w+)`\n(.*?)(?=^##|\Z)", PAGE.read_text("utf-8")))
    assert sections.keys() == POSITION_ENCODINGS.keys()
    for name, text in sections.items():
        assert f"![{name}](positional_encodings/{name}.png)" in text
        assert (PAGE.parent / "positional_encodings" / f"{name}.png").is_file()
        assert re.search(r"(?m)^Cost: |no cost", text), name


@pytest.mark.parametrize("name", POSITION_ENCODINGS)
def test_parameters_are_as_many_as_the_page_says(name: str) -> None:
    assert sum(weight.numel() for weight in _scheme(name, bidirectional=True).parameters()) == COUNTED[name]


def test_speeds_on_the_page_are_those_of_the_table() -> None:
    told = re.findall(r"([\d,]+)(?: target tokens a second)?\s\(`(\w+)`\)", PAGE.read_text("utf-8"))
    table = (PAGE.parents[1] / "README.md").read_text("utf-8")
    speeds = dict(re.findall(r"(?m)^\| hf_mt (\w+) \| ([\d,]+) \|", table))
    assert speeds.keys() == POSITION_ENCODINGS.keys()
    ranked = sorted(speeds, key=lambda name: int(speeds[name].replace(",", "")))
    assert [(speeds[name], name) for name in (ranked[0], ranked[-1])] == told
