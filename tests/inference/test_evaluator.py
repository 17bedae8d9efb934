"""Answers of a bundle are judged by an evaluator as well, which guided nothing."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from segcft.app.opened_image import Question
from segcft.app.responses import show
from segcft.app.service import CounterfactualService
from segcft.cli.main import main
from segcft.core import checkpoints
from segcft.counterfactual.model import CounterfactualModel
from segcft.guidance.judges import SegmentationModel, Segmentor
from segcft.inference.answer_file import missed
from segcft.inference.info import read
from segcft.plots import panels
from segcft.variables.variables import DataDescription
from tests.inference.test_answer_file import UNET, ask, description, films, make
from tests.inference.test_answer_file import save as save_model

pytestmark = pytest.mark.filterwarnings("ignore:do\\(")  # an untrained segmentor measures anything


def save(path, judge):
    state = {f"judge.{key}": value for key, value in judge.state_dict().items()}
    torch.save({"state_dict": state, "segcft": checkpoints.describe({"judge": judge}, {"evaluator": 3.0})}, path)


def export(folder, name, *more):
    return main(["export", f"--checkpoint={folder / name}", f"--out={folder / 'bundle'}", *map(str, more)])


@pytest.fixture
def made(tmp_path):
    """A model, an evaluator, and their bundle."""
    save_model(tmp_path / "a.ckpt", make(description(2)))
    torch.manual_seed(7)
    save(tmp_path / "judge.ckpt", Segmentor(description(2), "monai.UNet", UNET))
    assert export(tmp_path, "a.ckpt", f"--evaluator={tmp_path / 'judge.ckpt'}") == 0
    return tmp_path


def test_the_share_is_of_the_evaluators_own_measurements(made):
    model = CounterfactualModel.load(made / "bundle")
    judge = checkpoints.load(made / "judge.ckpt", SegmentationModel).eval()
    answer = model.counterfactual(films(2)["image"], do={"left_size": "+20%"})
    with torch.no_grad():
        before, after = (judge.measure(image)["left_size"] for image in (films(2)["image"], answer.seen))
    asked = 0.2 * answer.subject.values["left_size"]
    torch.testing.assert_close(answer.share("left_size", evaluator=True), (after - before) / asked)
    own = (answer.measured["left_size"] - answer.subject.measured["left_size"]) / asked
    torch.testing.assert_close(answer.share("left_size"), own)
    assert not torch.allclose(own, answer.share("left_size", evaluator=True)), "another judge"


def test_table_panel_and_app_show_both_shares_and_warn(made, monkeypatch):
    film = np.random.default_rng(0).integers(0, 256, (16, 16)).astype(np.uint8)
    Image.fromarray(film).save(made / "film.png")
    drawn, told = panels.panel, []
    monkeypatch.setattr(panels, "panel", lambda *given: told.append(given[-1]) or drawn(*given))
    assert ask(made, "--do=left_size=+20%", f"--checkpoint={made / 'bundle'}", image="film.png") == 0
    table = pd.read_csv(made / "out/answers.csv").set_index("variable")
    row = table.loc["left_size"]
    change = row["target"] - row["factual"]
    assert row["share"] == pytest.approx((row["measured"] - row["factual"]) / change)
    assert table.loc["right_size", ["share", "evaluator_share"]].isna().all(), "nothing was asked of it"
    sentence = "left_size: the evaluator measures "
    assert (sentence in row["warning"]) == (row["evaluator_share"] < 0.75)
    assert row["evaluator_share"] < 0.75, "an untrained one does not agree"
    assert "% by the segmentor, " in told[0]
    assert "% by the evaluator" in told[0]
    service = CounterfactualService(CounterfactualModel.load(made / "bundle"))
    reply = show(service.ask(service.open_file(made / "film.png", "film.png", {}), Question(("left_size=+20%",))))
    assert reply["rows"][0]["evaluator_share"] == pytest.approx(row["evaluator_share"], abs=1e-4)
    assert any(reason.startswith(sentence) for reason in reply["reasons"])


@pytest.mark.parametrize(("moved", "warned"), [(0.0, True), (0.74, True), (0.76, False), (1.0, False), (1.4, False)])
def test_less_than_three_quarters_is_warned_of(moved, warned, made):
    """An evaluator that measures a given share."""
    model = CounterfactualModel.load(made / "bundle")
    answer = model.counterfactual(films(2, 1)["image"], do={"left_size": "+20%"})
    was, asked = (values["left_size"] for values in (answer.subject.values, answer.values))
    vars(answer.subject)["judged"] = {"left_size": was + 3}  # a bias is no change
    vars(answer)["judged"] = {"left_size": was + 3 + moved * (asked - was)}
    vars(answer)["measured"] = {"left_size": asked}
    assert bool(missed(answer, ["left_size"])) is warned


def test_without_an_evaluator_nothing_is_said(tmp_path):
    save_model(tmp_path / "a.ckpt", make(description(2)))
    Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).save(tmp_path / "film.png")
    assert ask(tmp_path, "--do=left_size=+20%", image="film.png") == 0
    table = pd.read_csv(tmp_path / "out/answers.csv")
    assert table["evaluator_share"].isna().all()
    assert not table["warning"].fillna("").str.contains("evaluator").any()


def test_an_evaluator_is_taken_for_no_guide(made):
    """A model without a segmentor has none, though an evaluator lies in its bundle."""
    save_model(made / "b.ckpt", make(description(2)), judged=False)
    (made / "bundle").rename(made / "former")
    assert export(made, "b.ckpt", f"--evaluator={made / 'judge.ckpt'}") == 0
    model = CounterfactualModel.load(made / "bundle")
    assert model.segmentor is None
    assert model.evaluator is not None
    with pytest.raises(ValueError, match="wrong kind of checkpoint"):
        checkpoints.load(made / "bundle", SegmentationModel)
    with pytest.raises(ValueError, match="holds no segmentor to measure"):
        model.counterfactual(films(2)["image"], do={"left_size": "+20%"})


def test_a_bundle_keeps_its_evaluator_and_says_so(made):
    assert main(["export", f"--checkpoint={made / 'bundle'}", f"--out={made / 'again'}", "--name=bundle"]) == 0
    for name in ("model.ckpt", "config.json", "MODEL_CARD.md"):
        assert (made / "again" / name).read_bytes() == (made / "bundle" / name).read_bytes()
    assert set(json.loads((made / "bundle/config.json").read_text())["parts"]) == {"model", "segmentor", "evaluator"}
    assert "evaluator guided nothing" in (made / "bundle/MODEL_CARD.md").read_text()
    assert set(read(made / "bundle")["parts"]) == {"model", "segmentor", "evaluator"}


def test_what_cannot_judge_is_refused(made, capsys):
    about = description(2)
    save(made / "guide.ckpt", make(about).segmentor)
    other = DataDescription(about.parents.variables, ["right", "left"], about.spacing)
    save(made / "other.ckpt", Segmentor(other, "monai.UNet", UNET))
    deep = {"channels": [2] * 6, "strides": [2] * 5, "norm": "batch"}
    save(made / "deep.ckpt", Segmentor(about, "monai.UNet", deep))
    (made / "bundle").rename(made / "former")
    for name, message in (
        ("guide", "--evaluator is the segmentor that guided the training"),
        ("other", "--evaluator outlines ['right', 'left'] in 2-D, not ['left', 'right']"),
        ("deep", "images of 16 x 16 pixels do not fit monai.UNet"),
        ("nowhere", "nowhere.ckpt does not exist"),
        ("a", "a.ckpt is the wrong kind of checkpoint: a SegmentationModel is needed"),
    ):
        assert export(made, "a.ckpt", f"--evaluator={made / name}.ckpt") == 2
        assert message in capsys.readouterr().err
        assert not (made / "bundle").exists()
