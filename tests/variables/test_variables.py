import pytest
import torch

from segcft.causal.structural_causal_model import Independent
from segcft.core.recipes import build
from segcft.variables.variables import DataDescription, Parents, Variable

VALUES = {
    "age": torch.tensor([20.0, 40.0, 90.0]),
    "sex": torch.tensor([0.0, 1.0, 1.0]),
    "view": torch.tensor([2.0, 0.0, 1.0]),
}
DECLARED = {
    "age": Variable(unit="years"),
    "sex": Variable("binary"),
    "view": Variable("categorical", categories=("AP", "PA", "LL")),
}


@pytest.fixture
def parents():
    return Parents({name: variable.fitted(VALUES[name]) for name, variable in DECLARED.items()})


def test_vector_is_standardised_signed_and_one_hot(parents):
    pa = parents.encode(VALUES)
    assert pa.shape == (3, 5) == (3, parents.dim)
    assert pa[:, 0].mean().abs() < 1e-6
    assert pa[:, 0].std(correction=0) == pytest.approx(1)
    assert pa[:, 1].tolist() == [-1, 1, 1]
    assert pa[:, 2:].tolist() == [[0, 0, 1], [1, 0, 0], [0, 1, 0]]


def test_recipe_keeps_the_training_statistics(parents):
    assert build(parents.recipe) == parents


@pytest.mark.parametrize(
    ("do", "message"),
    [
        ({"heart_area": torch.tensor([1.0])}, "unknown variable 'heart_area'; this model knows age, sex, view"),
        ({"view": torch.tensor([3.0])}, r"do\(view = 3\) leaves"),
        ({"sex": torch.tensor([2.0])}, r"do\(sex = 2\) leaves"),
    ],
)
def test_impossible_interventions_are_refused(parents, do, message):
    with pytest.raises(ValueError, match=message):
        parents.check(do)


def test_values_outside_the_training_range_warn_and_are_refused_when_strict(parents):
    do = {"age": torch.tensor([50.0, 200.0, torch.nan])}
    with pytest.warns(UserWarning, match=r"do\(age = 200.years\) leaves the training range, 20 to 90.years"):
        parents.check(do)
    with pytest.raises(ValueError, match="age = 200"):
        parents.check(do, strict=True)
    parents.check({"age": torch.tensor([torch.nan, 30.0])}, strict=True)


def test_missing_parents_are_named(parents):
    with pytest.raises(ValueError, match="lacks view"):
        parents.take({"age": VALUES["age"], "sex": VALUES["sex"]})


@pytest.mark.parametrize(
    ("variable", "values", "message"),
    [
        (Variable(), [1.0, float("nan")], "1 values are not finite"),
        (Variable(), [3.0, 3.0], "all 2 values equal 3"),
        (Variable("binary"), [0.0, 2.0], "binary variable must be 0 or 1"),
    ],
)
def test_useless_training_columns_are_refused(variable, values, message):
    with pytest.raises(ValueError, match=message):
        variable.fitted(torch.tensor(values))


def test_a_variable_cannot_measure_a_structure_that_is_not_there():
    with pytest.raises(ValueError, match="'liver_area' measures 'liver', but the masks hold: left_lung"):
        DataDescription({"liver_area": Variable(structure="liver")}, ["left_lung"], [1.0, 1.0])


def test_independent_do_moves_one_variable_and_nan_moves_none():
    do = {"age": torch.tensor([50.0, torch.nan, torch.nan])}
    moved = Independent().counterfactual(VALUES, do)
    assert moved["age"].tolist() == [50, 40, 90]
    assert torch.equal(moved["sex"], VALUES["sex"])
    assert VALUES["age"].tolist() == [20, 40, 90], "the caller's values are not changed"


def test_quantiles_are_those_of_the_training_split():
    torch.manual_seed(0)
    values = torch.randn(5000).exp()
    variable = Variable().fitted(values)
    for share in (0, 0.1, 0.5, 0.93, 1):
        assert variable.quantile(share) == pytest.approx(float(values.quantile(share)), rel=0.03)
    with pytest.raises(ValueError, match="between 0 and 1"):
        variable.quantile(1.1)
    with pytest.raises(ValueError, match="continuous variables alone"):
        Variable(kind="binary").fitted(torch.tensor([0.0, 1.0])).quantile(0.5)


def test_what_an_image_shows_need_not_be_a_structure():
    thickness, digit = Variable(visible=True), Variable(kind="categorical", categories=("0", "1"))
    area = Variable(structure="heart")
    parents = Parents({"thickness": thickness, "digit": digit, "heart_area": area})
    assert parents.visible == parents.askable == ["thickness", "heart_area"]
    assert list(parents.structural) == ["heart_area"]
    assert Parents({"digit": digit, "age": Variable()}).askable == ["digit", "age"]
    with pytest.raises(ValueError, match="a regressor reads numbers, no categories"):
        Variable(kind="categorical", categories=("0", "1"), visible=True)
