"""Laws of the evaluation, with balls whose truth is known and an evaluator that sees perfectly."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pandas as pd
import pytest
import torch

from segcft.evaluation.bootstrap import Estimate
from segcft.evaluation.command import conclusions
from segcft.evaluation.protocol import (
    Answers,
    EvaluatedMethod,
    Method,
    gather,
    perfect,
    predict,
    refuse_exchanged,
    unchanged,
)
from segcft.evaluation.result_tables import cell, markdown, plain
from segcft.evaluation.rows import is_size, rows
from segcft.evaluation.summary import health, off_target, summarise
from segcft.guidance.judges import Segmentor
from segcft.variables.regions import Region
from segcft.variables.variables import Variable
from tests.balls import Balls


class Seeing(Segmentor):
    """Finds bright pixels in either half of the first axis: no mistakes on balls."""

    def __init__(self, description):
        super().__init__(description, "monai.UNet", {"channels": [2, 4], "strides": [2]})

    def forward(self, image):
        bright = image[:, 0] > 0
        side = (torch.linspace(-1, 1, bright.shape[1]) > 0).view(1, -1, *[1] * (bright.dim() - 2)).expand_as(bright)
        return 40 * torch.stack([bright & side, bright & ~side], 1).float() - 20


@pytest.fixture(scope="module", params=[2, 3], ids=["2d", "3d"])
def cohort(request):
    data = Balls(subjects=24, spatial_dims=request.param)
    judge = Seeing(data.description)
    with torch.inference_mode():
        return gather(data, data.dataset("test"), judge, 16, seed=0), judge


def frame_of(cohort, judge, **answers):
    return pd.concat([rows(given, cohort, judge).assign(method=name) for name, given in answers.items()])


def test_all_are_asked_the_same_if_a_question_is_given(cohort):
    usual, judge = cohort
    data = Balls(subjects=24, spatial_dims=usual.batch["image"].dim() - 2)
    with torch.inference_mode():
        asked = gather(data, data.dataset("test"), judge, 16, seed=0, ask="-25%")
        with pytest.raises(ValueError, match=r"_size=25%'"):
            gather(data, data.dataset("test"), judge, 16, seed=0, ask="25%")
    assert torch.equal(asked.batch["image"], usual.batch["image"]), "the same subjects"
    for name, target in asked.do.items():
        assert torch.allclose(target, 0.75 * usual.batch[name])
        assert not torch.allclose(target, usual.do[name])


def test_doing_nothing_and_the_truth_score_as_they_must(cohort):
    cohort, judge = cohort
    found = summarise(frame_of(cohort, judge, identity=unchanged(cohort), truth=perfect(cohort)), count=200)["metrics"]
    for name in cohort.do:
        nothing, truth = found["identity"][name], found["truth"][name]
        for metric in ("leakage", "change", "outside", "reversibility", "composition", "nearer", "slope"):
            assert nothing[metric] == (0, 0, 0), metric
        for metric in ("truth_ratio", "truth_ratio_neighbourhood"):
            assert nothing[metric] == pytest.approx((1, 1, 1))
        assert truth["truth_ratio"] == (0, 0, 0)
        assert truth["nearer"].value > 0.7, "some targets are their own value, to the pixel"
        assert truth["mape"].value < 0.5 * nothing["mape"].value
        assert truth["slope"].value == pytest.approx(1, abs=0.2)
        assert truth["mask_ratio"].value < 0.5 * nothing["mask_ratio"].value
        assert math.isnan(nothing["gap"].value)


def test_the_order_of_subjects_changes_no_number(cohort):
    cohort, judge = cohort
    frame = frame_of(cohort, judge, identity=unchanged(cohort), truth=perfect(cohort))
    shuffled = pd.concat([part.sample(frac=1, random_state=0) for _, part in frame.groupby("method", sort=False)])
    one, other = (summarise(table, count=50)["metrics"] for table in (frame, shuffled))
    for name in cohort.do:
        for metric, value in one["truth"][name].items():
            assert other["truth"][name][metric] == pytest.approx(value, nan_ok=True), metric


def test_a_change_that_follows_the_request_is_amplification(cohort):
    cohort, judge = cohort
    frame = rows(perfect(cohort), cohort, judge)
    part = frame[frame["do"] == "left_size"].copy()
    noise = torch.randn(len(part), generator=torch.Generator().manual_seed(0)).numpy()
    part["shift_right_size"] = 0.3 * part["asked_sd"] + 0.5
    assert off_target(part)["right_size"]["amplification"] == pytest.approx(0.3)
    part["shift_right_size"] = part["asked_sd"].abs() * 0 + 0.5
    assert off_target(part)["right_size"]["amplification"] == pytest.approx(0, abs=1e-9)
    part["change_right_size"] = noise
    found = off_target(part)["right_size"]
    assert found["leakage"] == pytest.approx(abs(noise).mean(), rel=1e-5)
    assert found["signed"] == pytest.approx(noise.mean(), rel=1e-5)


def test_spill_is_what_moved_by_the_way_for_what_moved_on_purpose(cohort):
    cohort, judge = cohort
    frame = rows(perfect(cohort), cohort, judge).assign(method="some")
    frame = frame[frame["target"] != frame["factual"]].reset_index(drop=True)
    deviation = cohort.description.parents["left_size"].std
    frame["measured"] = frame["before"] + 2 * deviation
    frame["shift_right_size"] = 0.5
    assert summarise(frame, count=20)["metrics"]["some"]["left_size"]["spill"] == pytest.approx((0.25, 0.25, 0.25))
    frame["measured"] = frame["before"]
    assert math.isnan(summarise(frame, count=20)["metrics"]["some"]["left_size"]["spill"].value), "nothing moved"


def test_a_gamed_guide_is_reported_loudly(cohort):
    cohort, judge = cohort
    right = dict(cohort.do)
    honest, gamed = unchanged(cohort), Answers(unchanged(cohort).images, {}, None, None, right)
    frame = frame_of(cohort, judge, identity=honest, gamed=gamed)
    floor = dict.fromkeys(cohort.do, 1.0)
    found = conclusions(frame, {}, floor, 3.0, ["gamed"])
    assert len(found["health"]["warnings"]) == len(cohort.do)
    assert "gamed, do(left_size)" in found["health"]["warnings"][0]
    text = markdown(found["metrics"], {}, floor, found["health"]["warnings"], found["differences"])
    assert text.startswith("🔴 **WARNING: gamed")
    assert health(found["metrics"], floor, 1000.0)["warnings"] == []


def test_per_cent_make_sense_of_sizes_alone(cohort):
    cohort, judge = cohort
    assert is_size(Variable(structure="left", low=3.0))
    assert not is_size(Variable(structure="left", low=-3.0, high=3.0))
    cohort.description.parents.variables["left_size"] = Variable(unit="mm", structure="left", low=-5, high=5, std=2.0)
    frame = rows(unchanged(cohort), cohort, judge)
    left, right = (frame[frame["do"] == name] for name in ("left_size", "right_size"))
    assert left["error_percent"].isna().all()
    assert right["error_percent"].notna().all()
    assert left["error_sd"].mean() == pytest.approx(50 * left["error"].mean())
    cohort.description.parents.variables["left_size"] = Balls(subjects=24).description.parents["left_size"]


def test_a_region_holds_that_share_of_the_change_which_lies_in_it(cohort):
    cohort, judge = cohort
    before = judge.description.parents["left_size"]
    image = cohort.batch["image"]
    half = (torch.arange(16) < 8).expand_as(image)
    try:
        judge.description.parents.variables["left_size"] = replace(before, region=Region(0, 0.5, "x"))
        for where, share in ((half, 1.0), (~half, 0.0), (torch.ones_like(half), 0.5)):
            answer = Answers(dict.fromkeys(cohort.do, image + 0.1 * where), {}, None, None, {})
            frame = rows(answer, cohort, judge).assign(method="some")
            found = summarise(frame, count=20)["metrics"]["some"]
            assert found["left_size"]["in_region"].value == pytest.approx(share, abs=1e-6)
            assert math.isnan(found["right_size"]["in_region"].value), "it is no regional variable"
            # what lies beyond the half is outside the structure's part
            assert (frame[frame["do"] == "left_size"]["outside"] > 0).all()
        still = summarise(rows(unchanged(cohort), cohort, judge).assign(method="none"), count=20)["metrics"]["none"]
        assert math.isnan(still["left_size"]["in_region"].value)
    finally:
        judge.description.parents.variables["left_size"] = before


def test_the_loop_is_asked_for_only_where_it_is_on(cohort):
    cohort, _ = cohort

    class Model:
        def open(self, image, values):
            def answer(cf_values, corrections, confined):
                return SimpleNamespace(seen=image + corrections)

            return SimpleNamespace(answer=answer, abduction=lambda: SimpleNamespace(pixels=SimpleNamespace(loc=image)))

    image = cohort.batch["image"]
    for rounds in (0, 2):
        (found,), loc = predict(EvaluatedMethod(Model(), None, Method("", rounds)), image, cohort.do, [cohort.do])
        torch.testing.assert_close(found, image + rounds)
        assert loc is not None


def test_cells_and_json_hold_no_nonsense():
    assert cell(Estimate(1.92, 1.71, 2.2), "{:.1f}") == "1.9 (1.7-2.2)"
    assert cell(Estimate(0.0, -0.1, 0.1), "{:.1f}") == "0.0 (-0.1 to 0.1)"
    assert cell(Estimate(-0.01, -0.01, -0.01), "{:.1f}") == "0.0"
    assert cell(Estimate(math.nan, math.nan, math.nan), "{:.1f}") == "-"
    assert cell(Estimate(17712.4, 0.2134, 1e5), "") == "17\N{NO-BREAK SPACE}712 (0.213-100\N{NO-BREAK SPACE}000)"
    assert plain({"a": [math.nan, Estimate(1.0, 0.0, math.inf)]}) == {"a": [None, {"value": 1, "low": 0, "high": None}]}
    assert Method("x.ckpt").refinement == "off"
    assert Method("x.ckpt", 2, True).refinement == "2 rounds, confined"


def test_an_evaluator_whose_structures_are_exchanged_is_refused(cohort):
    found, judge = cohort
    refuse_exchanged(found, judge)
    with pytest.raises(ValueError, match="outlines left where the data have right: are they exchanged"):
        refuse_exchanged(replace(found, masks=found.masks.flip(1)), judge)
    refuse_exchanged(replace(found, masks=torch.zeros_like(found.masks)), judge)  # a bad one is no exchanged one
