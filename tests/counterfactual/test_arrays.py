"""An image as a user holds it: the same answer however it is held, or a refusal."""

import numpy as np
import pytest
import torch

from segcft.core import checkpoints
from segcft.counterfactual.arrays import scaled
from segcft.variables.variables import DataDescription
from tests.inference.test_answer_file import description, make

DO = {"left_size": "+20%"}


@pytest.fixture(scope="module")
def model():
    return make(description(2))


@pytest.fixture(scope="module")
def film():
    return np.random.default_rng(0).integers(0, 256, (40, 30), dtype=np.uint8)


def test_the_same_film_measures_the_same_however_it_is_held(model, film):
    wanted = model.ask(film, do=DO)[0]
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
    answers = model.ask(np.stack([film, film[:, ::-1]])[:, None], [DO, {"right_size": "-10%"}])
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
    aged = make(description(2, percent=False, age=True))
    for given, also in (({}, "factual age cannot be measured either: give --parent age"), ({"age": 60.0}, "$")):
        with pytest.raises(ValueError, match=f"measures in mm: give --spacing(; )?{also}"):
            aged.ask(film, DO, parents=given)
    with pytest.raises(ValueError, match="2 edge lengths between"):
        model.ask(film, DO, spacing=[0.0, 1.0])
    assert model.ask(film, DO, spacing=model.description.spacing)[0].image.shape == (1, 1, 40, 30)


def test_scaling_is_exact_at_black_and_white(model):
    ends = np.array([[0, 255], [128, 255]], np.uint8)
    assert scaled(ends, model).flatten().tolist()[:2] == [-1.0, 1.0]


def test_nothing_that_is_not_finite_or_absurd_succeeds(model, film, tmp_path):
    image = torch.from_numpy(film).float().view(1, 1, 40, 30) / 127.5 - 1
    parents = {"left_size": 30.0, "right_size": 30.0}
    for change, message in ((torch.nan, "image holds values that are not finite"), (torch.inf, "not finite")):
        spoilt = image.clone()
        spoilt[0, 0, 3, 3] = change
        with pytest.raises(ValueError, match=message):
            model.open(spoilt)
    with pytest.raises(ValueError, match=r"left_size = 1e\+06 is absurd"):
        model.open(image, parents | {"left_size": 1e6})
    about = model.description
    known = about.parents["left_size"]
    old = known.high + 2 * (known.high - known.low)
    subject = model.open(image, parents | {"left_size": old})
    assert any(text.startswith("left_size = ") for text in subject.doubts), (
        "a factual value beyond the training is said"
    )
    for edge in (0.0, float("inf"), 1e300, 1e-300):
        with pytest.raises(ValueError, match=r"spacing .*: 2 edge lengths between 1e-6 and 1000 mm are needed"):
            model.ask(film, spacing=(edge, 1.0), do={"left_size": "+5%"}, parents=parents)
    for spacing in ([1.0, 0.0], [1.0, float("nan")], [-1.0, 1.0]):
        with pytest.raises(ValueError, match="positive edge lengths"):
            DataDescription(about.parents.variables, about.structures, spacing)
    spoilt = make(description(2))
    with torch.no_grad():
        next(spoilt.hvae.parameters()).fill_(torch.nan)
    with pytest.raises(ValueError, match="answer is not finite"):
        spoilt.open(image, parents).answer(parents_of(subject), corrections=0, confined=False).image  # noqa: B018
    state = {f"model.{name}": value for name, value in spoilt.state_dict().items()}
    content = {"state_dict": state, "segcft": checkpoints.describe({"model": spoilt}, {})}
    torch.save(content, tmp_path / "nan.ckpt")
    with pytest.raises(ValueError, match=r"model\.hvae\..* of .*nan.ckpt is not finite"):
        checkpoints.load(tmp_path / "nan.ckpt", type(spoilt))


def parents_of(subject):
    return {name: 1.1 * value for name, value in subject.values.items()}
