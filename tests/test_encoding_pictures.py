"""Pictures show what the classes compute: each scheme its own, and none the same everywhere."""

from io import BytesIO

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
