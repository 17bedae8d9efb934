"""What users write, and what they are told when it cannot be."""

import pytest
import torch

from segcft.core.formatting import NO_BREAK
from segcft.variables.requests import beyond, once, parse, sweep, targets
from segcft.variables.variables import Parents, Variable

PARENTS = Parents(
    {
        "area": Variable(unit="mm^2", structure="lung", low=50.0, high=200.0, quantiles=(50.0, 80.0, 200.0)),
        "shift": Variable(unit="mm", low=-9.0, high=9.0),
        "sex": Variable(kind="binary"),
        "view": Variable(kind="categorical", categories=("AP", "PA"), low=0, high=1),
    }
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        *(("area=+20%", 120), ("area=-20%", 80), ("area=+0%", 100), ("area=12000", 12000), (" area = 1.5e2 ", 150)),
        *(("area=+5", 105), ("area=-5", 95), ("shift=-5", 95), ("shift==-5", -5), ("shift==5", 5), ("sex=1", 1)),
        *(("view=PA", 1), ("area=q0", 50), ("area=q0.25", 65), ("area=q.5", 80), ("area=q1", 200)),
        *(("area=120..150", 120), ("area=20..1e2", 100), ("area=60..90.5", 90.5), ("shift=-9..-3", -3)),
    ],
)
def test_requests_become_targets(text, expected):
    assert parse(text, PARENTS).target(torch.full((2,), 100.0)).tolist() == pytest.approx([expected] * 2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("liver=+20%", "'liver=\\+20%': unknown variable 'liver'; this model knows area"),
        *(("area", "no request"), ("=5", "no request"), ("area=", "no request"), ("area=large", "write area=\\+20%")),
        ("area=20%", "a share needs a sign \\(area=\\+20%\\)"),
        *(("area==+20%", "a share needs a sign"), ("area=+-5", "write area"), ("area=nan", "write area")),
        *(("area=1e999", "too large"), ("area=-100%", "nothing would be left")),
        *(("area=q1.5", "'area=q1.5': a quantile lies between 0 and 1"), ("shift=q0.5", "not to older checkpoints")),
        *(("area=9..5", "from the smaller"), ("area=5..", "write area"), ("sex=0..1", "one of female, male")),
        *(
            ("sex=+20%", "one of female, male is needed"),
            ("sex=0.5", "one of female, male"),
            ("view=lateral", "one of AP, PA"),
        ),
    ],
)
def test_wrong_requests_are_quoted(text, message):
    with pytest.raises(ValueError, match=message):
        parse(text, PARENTS)


def test_sweeps_go_from_one_factor_to_the_other():
    found = sweep("area=0.8:1.2:5", PARENTS)
    assert [float(request.target(torch.tensor(100.0))) for request in found] == pytest.approx([80, 90, 100, 110, 120])
    for wrong in ("area=0.8:1.2", "area=0.8:1.2:1", "area=0.8:1.2:9999999", "sex=0:1:2", "area=+1:2:3", "area=0:1:3"):
        with pytest.raises(ValueError, match=f"'{wrong}|nothing would be left".replace("+", "\\+")):
            sweep(wrong, PARENTS)


def test_an_intervention_takes_text_numbers_and_tensors():
    factual = {"area": torch.tensor([100.0, 120.0]), "shift": torch.zeros(2)}
    found = targets({"area": "+10%", "shift": torch.tensor([torch.nan, 2.0])}, factual, PARENTS)
    assert found["area"].tolist() == pytest.approx([110, 132])
    assert found["shift"].isnan().tolist() == [True, False]
    assert targets({"shift": -5}, factual, PARENTS)["shift"].tolist() == [-5, -5]
    with pytest.raises(ValueError, match="unknown variable 'liver'"):
        targets({"liver": 5.0}, factual, PARENTS)
    with pytest.raises(ValueError, match="'area=3' contradicts 'area=\\+20%'"):
        once([parse("area=+20%", PARENTS), parse("area=3", PARENTS)])


def test_values_beyond_the_training_range_are_named():
    (sentence,) = beyond({"area": torch.tensor([40.0]), "shift": torch.tensor([1.0])}, PARENTS)
    assert sentence.replace(NO_BREAK, " ") == "area = 40 mm², but in training it lay between 50 mm² and 200 mm²"


def test_a_binary_variable_with_names_takes_names_and_numbers():
    parents = Parents({"sex": Variable("binary", categories=("female", "male"))})
    assert [parse(f"sex={word}", parents).number for word in ("female", "male", "0", "1")] == [0, 1, 0, 1]
    with pytest.raises(ValueError, match="did you mean male"):
        parse("sex=mail", parents)
    with pytest.raises(ValueError, match="two categories"):
        Variable("binary", categories=("female", "male", "other"))


def test_a_near_name_of_a_variable_is_suggested():
    with pytest.raises(ValueError, match="unknown variable 'aera'; did you mean area"):
        parse("aera=5", PARENTS)


@pytest.mark.parametrize(
    ("name", "asked"),
    [("area", "+1e40"), ("area", "12000"), ("area", torch.tensor([1e9, 100.0])), ("shift", "=-200"),
     ("shift", float("inf")), ("area", "+1e9%")],
)  # fmt: skip
def test_absurd_targets_are_refused(name, asked):
    """A black image and a success otherwise; what only leaves the training range is warned of."""
    factual = {"area": torch.full((2,), 100.0), "shift": torch.zeros(2)}
    with pytest.raises(ValueError, match=f"{name} = .* is absurd: in training it lay between"):
        targets({name: asked}, factual, PARENTS)
    assert targets({"area": 900.0}, factual, PARENTS)["area"].tolist() == [900, 900]
    assert targets({"area": torch.tensor([torch.nan, 90.0])}, factual, PARENTS)["area"][1] == 90, (
        "NaN: not this subject"
    )


SIZED = Parents(
    {
        "area": Variable(unit="mm^2", structure="lung", low=50.0, high=200.0),
        "plaque": Variable(unit="mm^2", structure="plaque", low=0.0, high=9.0),
        "x": Variable(unit="mm", structure="lung", measure="centroid_x", low=-9.0, high=9.0),
        "shift": Variable(unit="mm", low=1.0, high=9.0),
    }
)


@pytest.mark.parametrize("text", ["area=0", "area==-5", "area==0", "area=-9..0", "area=-9..-3", "plaque==-1"])
def test_sizes_are_above_0(text):
    with pytest.raises(ValueError, match=r"'area.*a size is above 0|'plaque.*a size is above 0"):
        parse(text, SIZED)


@pytest.mark.parametrize("text", ["area=1", "plaque=0", "x==-5", "x=0", "shift==-5", "shift=0", "area=-9..3"])
def test_what_may_be_0_or_negative_is_not_refused(text):
    parse(text, SIZED)


def test_neither_are_changes_but_for_what_they_come_to():
    factual = {name: torch.tensor([100.0, 300.0]) for name in SIZED.names}
    assert targets({"area": "-99"}, factual, SIZED)["area"].tolist() == [1, 201]
    assert targets({"x": "-200"}, factual, SIZED)["x"].tolist() == [-100, 100]
    nobody = targets({"area": torch.tensor([float("nan"), 5.0])}, factual, SIZED)["area"]
    assert nobody[0].isnan(), "NaN is no value"
    for asked in ("-100", "-200", torch.tensor([0.0, 5.0])):
        with pytest.raises(ValueError, match=r"area = .* a size is above 0"):
            targets({"area": asked}, factual, SIZED)
