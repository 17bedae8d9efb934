"""An image as a user holds it: the same answer however it is held, or a refusal."""

import numpy as np
import pytest
import torch

from segcft.counterfactual.arrays import scaled
from tests.inference.test_answer_file import description, make

DO = {"left_size": "+20%"}


@pytest.fixture(scope="module")
def model():
    return make(description(2))


@pytest.fixture(scope="module")
def film():
    return np.random.default_rng(0).integers(0, 256, (40, 30), dtype=np.uint8)


def test_the_same_film_measures_the_same_however_it_is_held(model, film):
    wanted = model.ask(film, DO)[0]
    assert wanted.image.shape == (1, 1, 40, 30), "answers have the image's size"
    held = {
        "torch": (torch.from_numpy(film), None),
        "channel": (film[None], None),
        "batch": (film[None, None], None),
        "a view": (np.ascontiguousarray(film[::-1])[::-1], None),
        "uint16": (film.astype(np.uint16) * 257, (0, 65535)),
        "of [0, 1]": (film.astype(np.float64) / 255, (0, 1)),
        "half": (torch.from_numpy(film).half(), (0, 255)),
        "of [-1, 1]": (film.astype(np.float32) / 127.5 - 1, None),
        "a list": (film.tolist(), (0, 255)),
    }
    for name, (array, window) in held.items():
        answer = model.ask(array, DO, window=window)[0]
        for variable, value in wanted.measured.items():
            assert float(answer.measured[variable]) == pytest.approx(float(value), rel=1e-3), name
        assert (answer.image - wanted.image).abs().max() < 2e-3, name


def test_a_batch_and_several_questions(model, film):
    answers = model.ask(np.stack([film, film[:, ::-1]])[:, None], DO, {"right_size": "-10%"})
    assert [answer.image.shape for answer in answers] == [(2, 1, 40, 30)] * 2


@pytest.mark.parametrize(
    ("change", "window", "message"),
    [
        (lambda film: film / 255, None, r"may be of \[0, 1\] or \[-1, 1\]"),
        (lambda film: film.astype(np.float32), None, r"leave \[-1, 1\]: give window"),
        (lambda film: film.astype(np.int16), None, r"values of torch.int16 .* give window"),
        (lambda film: film > 9, None, "torch.bool"),
        (lambda film: np.where(film > 9, np.nan, 0.0), (0, 1), "not finite"),
        (lambda film: np.stack([film] * 3), None, r"shape \(1, 3, 40, 30\) is no image of this model"),
        (lambda film: film[0], None, "is no image of this model"),
        (lambda film: film, (9, 9), "black must lie below white"),
    ],
)
def test_what_may_be_misread_is_refused(model, film, change, window, message):
    with pytest.raises(ValueError, match=message):
        model.ask(change(film), DO, window=window)


def test_a_model_that_measures_in_mm_wants_the_spacing(film):
    model = make(description(2, percent=False))
    with pytest.raises(ValueError, match="give --spacing"):
        model.ask(film, DO)
    with pytest.raises(ValueError, match="2 positive edge lengths"):
        model.ask(film, DO, spacing=[0.0, 1.0])
    assert model.ask(film, DO, spacing=model.description.spacing)[0].image.shape == (1, 1, 40, 30)


def test_scaling_is_exact_at_black_and_white(model):
    ends = np.array([[0, 255], [128, 255]], np.uint8)
    assert scaled(ends, model).flatten().tolist()[:2] == [-1.0, 1.0]
