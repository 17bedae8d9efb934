"""Numbers and words for people: read back, they are what they were."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segcft.core.formatting import NO_BREAK, number, resolving
from segcft.variables.requests import parse
from segcft.variables.variables import Parents, Variable

AREA = Variable(unit="mm^2", structure="heart", low=9000, high=30000)
BINARY, STATE = Variable(kind="binary"), Variable(kind="binary", categories=("well", "ill"))
RACE = Variable(kind="categorical", categories=("asian", "black", "white"), high=2)
PARENTS = Parents({"area": AREA, "sex": BINARY, "state": STATE, "race": RACE, "smoker": BINARY})


def back(text):
    return float(text.replace(NO_BREAK, ""))


@given(st.floats(-1e12, 1e12), st.sampled_from([0.0, 0.3, 6.0, 90.0, 20000.0]))
def test_numbers_have_no_exponent_and_read_back(value, span):
    text = number(value, resolving(span) if span else None)
    assert not set("e,") & set(text)
    if span:
        assert abs(back(text) - value) <= max(0.5, 0.005 * span) + 1e-9
    elif abs(value) > 1e-9:
        assert back(text) == pytest.approx(value, rel=6e-3)


@given(st.integers(-(10**15), 10**15))
def test_whole_numbers_are_told_whole(value):
    text = number(value)
    assert back(text) == value
    assert all(len(part) == 3 for part in text.split(NO_BREAK)[1:])


def test_what_is_no_number():
    assert [number(value) for value in (math.nan, math.inf, -0.0)] == ["-", "inf", "0"]


@given(st.floats(1e-6, 1e3))
def test_a_value_beyond_the_range_is_told_apart_from_its_end(beyond):
    variable = Variable(unit="mm", low=0, high=120)
    assert variable.shown(120 + beyond) != variable.shown(120.0)
    assert variable.shown(-beyond) != variable.shown(0.0)


def test_categories_are_told_and_asked_by_name():
    told = {"sex": ("female", "male"), "state": ("well", "ill"), "race": RACE.categories}
    for name, names in told.items():
        for place, level in enumerate(names):
            assert PARENTS[name].shown(float(place)) == level
            assert parse(f"{name}={level}", PARENTS).number == place
            assert parse(f"{name}={level.upper()}", PARENTS).number == place
    assert parse("sex=1", PARENTS).number == parse("smoker=1", PARENTS).number == 1
    with pytest.raises(ValueError, match="one of female, male is needed; did you mean female"):
        parse("sex=femal", PARENTS)


def test_naming_the_sexes_changes_no_recipe():
    assert PARENTS.recipe["init_args"]["variables"]["sex"]["init_args"]["categories"] == []
    assert Parents(PARENTS.variables) == PARENTS


def test_numbers_as_they_are_printed_can_be_asked_for():
    assert parse(f"area=19{NO_BREAK}885", PARENTS).number == parse("area=19 885", PARENTS).number == 19885
    assert parse("area=\N{MINUS SIGN}20 %", PARENTS).number == parse("area=-20%", PARENTS).number
