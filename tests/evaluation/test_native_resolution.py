"""Answers are measured on the images that are handed out, at their own size."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from data_modules.chest_phantom import ChestPhantom
from data_modules.chexpert import CheXpert
from data_modules.coronary_phantom import CoronaryPhantom
from data_modules.folder import Folder
from data_modules.preparation.prepared import Prepared
from segcft.cli.main import main
from segcft.core.checkpoints import describe
from segcft.counterfactual.model import CounterfactualModel
from segcft.counterfactual.native_resolution import Edit
from segcft.counterfactual.prediction import Warped
from segcft.counterfactual.subject import OpenedSubject
from segcft.evaluation import detectability, metrics, native_resolution
from segcft.evaluation.bootstrap import Estimate
from segcft.evaluation.command import _resized
from segcft.evaluation.detectability import JITTER, MARGIN, Crops, auc, compared, crop, lateral, others, resampled
from segcft.evaluation.protocol import EvaluatedMethod, Method
from segcft.evaluation.summary import NATIVE_COLUMNS, summarise
from segcft.guidance.guidance import SegmentorGuidance
from segcft.guidance.judges import Segmentor
from segcft.hvae.hvae import HVAE
from segcft.hvae.stages import Stage
from segcft.variables.variables import Variable
from tests.balls import Balls
from tests.evaluation.test_evaluation import Seeing

SIZE, FRAME = 256, 32


class Mover:
    """Shrinks the left ball by a flow around its centre, as it would be known from the label."""

    def __init__(self, data):
        self.parents, self.segmentor, self.frame = data.description.parents, None, (FRAME, FRAME)

    def open(self, image, values, geometry):
        return OpenedSubject(self, image, values, geometry)

    def abduct(self, image, values, temperature, samples):
        return SimpleNamespace(values=values)

    def act(self, values, do):
        return {**values, **do}

    def draw(self, image, abduction, pa, mediation):
        unit, variable = SIZE / FRAME, self.parents["left_size"]
        factual = abduction.values["left_size"]
        asked = pa[:, list(self.parents.variables).index("left_size")] * variable.std + variable.mean
        radius = (factual / math.pi).sqrt() / unit
        log = 0.5 * (asked / factual).log()
        axes = [torch.arange(FRAME) + 0.5 - FRAME * centre for centre in (0.7, 0.5)]
        place = torch.stack(torch.meshgrid(*axes, indexing="ij"))[None]  # (1, 2, S, S)
        distance = place.square().sum(1, keepdim=True).sqrt() / radius.view(-1, 1, 1, 1)
        window = ((1.9 - distance) / 0.7).clamp(0, 1)
        edit = Edit(torch.zeros_like(image), -place * log.view(-1, 1, 1, 1) * window * window * (3 - 2 * window))
        return SimpleNamespace(edit=edit)


@pytest.fixture(scope="module")
def balls():
    data = Balls(size=SIZE, subjects=8)
    dataset = data.dataset("test")
    renderer = native_resolution.NativeRenderer(
        {"mover": EvaluatedMethod(Mover(data), None, Method(""))}, dataset, Seeing(data.description), (FRAME, FRAME)
    )
    values = dict(dataset.attributes)
    do = {"left_size": 0.7 * values["left_size"]}
    asked = native_resolution.Interventions(torch.arange(8), values, do, frozenset({"left_size"}))
    return data, renderer, asked


@pytest.fixture(scope="module")
def found(balls):
    data, renderer, asked = balls
    with torch.no_grad():
        frame, pictures = native_resolution.rows(renderer, asked, data.description, {"mover": "off"})
    how = {"columns": NATIVE_COLUMNS, "prepare": native_resolution.moments}
    summary = summarise(frame, count=100, **how)["metrics"]
    return frame, pictures, {method: every["left_size"] for method, every in summary.items()}


def test_the_old_border_shows_through_paint_and_not_through_a_flow(found):
    _, _, found = found
    assert list(found) == ["identity", "true_counterfactual", "mover_painted", "mover"]
    assert found["identity"]["old_edge"].value == pytest.approx(1)
    assert found["true_counterfactual"]["old_edge"].value == pytest.approx(0, abs=0.05)
    assert found["true_counterfactual"]["new_edge"].value == pytest.approx(1)
    assert found["mover"]["old_edge"].value == pytest.approx(0, abs=0.1)
    assert found["mover"]["new_edge"].value > 0.6
    assert found["mover_painted"]["old_edge"].value > 0.6
    assert found["mover_painted"]["new_edge"].value < 0.5
    assert found["mover_painted"]["detail"].value > 0.9, "the old detail is still there"
    assert found["mover"]["detail"].value < 0.5


def test_nothing_is_free_of_folds_and_strain_and_the_truth_is_true(found):
    _, _, found = found
    nothing, truth = found["identity"], found["true_counterfactual"]
    assert nothing["energy"].value == 1
    assert nothing["folded"].value == nothing["strain"].value == 0
    assert math.isnan(nothing["painted"].value)
    assert math.isnan(truth["strain"].value), "nobody edited it"
    for key in ("truth_ratio", "truth_near", "truth_smooth", "truth_smooth_near", "edge_error"):
        assert nothing[key].value == pytest.approx(1)
        assert truth[key].value == 0
        bound = (
            1.3 if key == "edge_error" else 0.8
        )  # edges count the detector's grain, which moves along, as sharp as it was
        assert found["mover"][key].value < bound
    assert found["mover"]["folded"].value == found["mover"]["painted"].value == 0
    assert found["mover"]["strain"].value > 0.05
    assert found["mover_painted"]["painted"].value == pytest.approx(100)


def test_pictures_are_the_images_pixel_by_pixel(balls, found, tmp_path):
    from segcft.evaluation.result_tables import GAP, LINE, write_mosaic

    data = balls[0]
    _, pictures, _ = found
    assert len(pictures) == 1, "all were asked to shrink: one median"
    write_mosaic(tmp_path / "native.png", pictures)
    drawn = np.asarray(Image.open(tmp_path / "native.png"))
    factual = data.dataset("test").read(torch.tensor([pictures[0]["subject"]]))["image"][0, 0]
    wanted = ((factual + 1) * 127.5).round().numpy()
    assert (drawn[2 * LINE : 2 * LINE + SIZE, :SIZE] == wanted).all()
    assert drawn.shape == (SIZE + 2 * LINE + GAP, 4 * (SIZE + GAP))


def test_without_a_truth_edges_are_compared_with_the_factual_ones(balls):
    data, renderer, asked = balls
    blind = native_resolution.Interventions(asked.index, asked.values, asked.do)
    with torch.no_grad():
        frame, _ = native_resolution.rows(renderer, blind, data.description, {})
    found = summarise(frame, count=50, columns=NATIVE_COLUMNS, prepare=native_resolution.moments)["metrics"]
    assert list(found) == ["identity", "mover_painted", "mover"]
    assert math.isnan(found["identity"]["left_size"]["old_edge"].value), "it has left no border"
    assert found["mover"]["left_size"]["old_edge"].value == pytest.approx(0, abs=0.1)
    assert found["mover"]["left_size"]["new_edge"].value > 0.6
    assert found["mover_painted"]["left_size"]["old_edge"].value > 0.6
    assert math.isnan(found["mover"]["left_size"]["truth_ratio"].value)


def test_measures_of_detail_and_flows_know_their_ends():
    torch.manual_seed(0)
    image = torch.randn(2, 1, 64, 64)
    step = torch.zeros_like(image)
    step[..., 20:40] = 1
    assert metrics.detail_correlation(image, image + step)[0] > 0.95
    assert abs(metrics.detail_correlation(image, torch.randn(2, 1, 64, 64) + step)[0]) < 0.1
    assert metrics.detail_correlation(image, image).isnan().all()
    everywhere = torch.ones(2, 64, 64, dtype=torch.bool)
    smooth = metrics.gaussian(image, 2.0)
    assert (metrics.fine_energy(smooth, everywhere) < 0.05 * metrics.fine_energy(image, everywhere)).all()
    assert metrics.gaussian(torch.full((1, 1, 9, 9, 9), 0.3), 2.0).sub(0.3).abs().max() < 1e-6
    ramp = torch.arange(16.0).view(1, 1, 16, 1).expand(1, 1, 16, 16)
    for slope, folded in ((-0.5, 0.0), (-1.5, 1.0)):
        shape = metrics.flow_shape(torch.cat([slope * (ramp + 1), torch.zeros(1, 1, 16, 16)], 1))
        assert shape["folded"].item() == folded
        assert shape["strain"].item() == pytest.approx(abs(slope))


def noise(count, side=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 1, side + 2 * MARGIN, side + 2 * MARGIN, generator=generator)


def test_auc_is_half_for_the_same_and_one_for_an_obvious_fake():
    subjects = [torch.arange(0, 40), torch.arange(40, 80), torch.arange(80, 230), torch.arange(230, 380)]
    images = [noise(len(each), seed=place) for place, each in enumerate(subjects)]
    untouched = compared(
        (Crops(images[0], subjects[0]), Crops(images[1], subjects[1])),
        (Crops(images[2], subjects[2]), Crops(images[3], subjects[3])),
        steps=15,
    )
    for found in untouched.values():
        assert found.value == pytest.approx(0.5, abs=0.12)
        assert found.low < found.value < found.high
    fakes = [metrics.gaussian(images[place], 1.0) for place in (1, 3)]
    fake = compared(
        (Crops(images[0], subjects[0]), Crops(fakes[0], subjects[1])),
        (Crops(images[2], subjects[2]), Crops(fakes[1], subjects[3])),
        steps=15,
    )
    assert fake["auc"].value > 0.95


def test_auc_is_the_share_of_pairs_in_order():
    subjects = (torch.arange(3), torch.arange(3, 6))
    assert auc(torch.tensor([0.0, 1.0, 2.0]), torch.tensor([3.0, 4.0, 5.0]), subjects) == (1, 1, 1)
    assert auc(torch.zeros(3), torch.zeros(3), subjects).value == 0.5
    mixed = auc(torch.tensor([0.0, 2.0, 4.0]), torch.tensor([1.0, 3.0, 5.0]), subjects)
    assert mixed.value == pytest.approx(6 / 9)
    assert mixed.low < mixed.value < mixed.high


def test_crops_are_centred_on_the_border_away_from_the_middle():
    mask = torch.zeros(3, 64, 64, dtype=torch.bool)
    mask[0, 20:41, 35:50], mask[1, 10:21, 10:30] = True, True
    assert lateral(mask[0]) == (30, 49)
    assert lateral(mask[1]) == (15, 10)
    image = torch.arange(64.0).expand(3, 1, 64, 64)
    pieces, there = crop(image, mask, 20)
    assert there.tolist() == [True, True, False], "who has no such structure has no crop"
    assert pieces.shape == (2, 1, 20, 20)
    assert pieces[0, 0, 0, 10] == 49
    assert pieces[1, 0, 0, 0] == 0, "moved inside"
    assert JITTER < MARGIN


def test_classifiers_see_every_method_and_both_controls(balls):
    data, renderer, _ = balls
    train_renderer = native_resolution.NativeRenderer(
        renderer.methods, data.dataset("train"), renderer.judge, renderer.frame
    )
    subjects = [others(each.dataset, ["left_size"], data.description, 8, seed=0) for each in (train_renderer, renderer)]
    sizes = subjects[0].values["left_size"]
    assert sorted(subjects[0].do["left_size"].tolist()) == sorted(sizes.tolist()), "nobody's size gives an answer away"
    assert set(
        others(train_renderer.dataset, ["left_size"], data.description, 3, 0, after=3).index.tolist()
    ).isdisjoint(subjects[0].index[:3].tolist())
    found = detectability.detect((train_renderer, renderer), tuple(subjects), data.description, steps=2)
    assert list(found) == ["untouched", "resampled", "mover", "mover_painted"]
    assert all(0 <= found[method]["left_size"][key].value <= 1 for method in found for key in ("auc", "auc_blurred"))
    native = next(renderer.batches(subjects[1]))
    moved = resampled(native, 0)
    assert 0 < (moved - native.canvas.image).abs().mean() < 0.1


def test_the_control_is_the_mean_of_several_halvings_of_the_untouched(monkeypatch, balls):
    data, renderer, _ = balls
    subjects = tuple(others(renderer.dataset, ["left_size"], data.description, 8, seed=0) for _ in range(2))
    seen = []

    def compared(train, test, steps, seed):
        seen.append((len(seen), frozenset(test[1].subjects.tolist())))
        return {"auc": Estimate(len(seen) / 10, 0.0, 1.0)}

    monkeypatch.setattr(detectability, "compared", compared)
    found = detectability.detect((renderer, renderer), subjects, data.description, steps=1)
    assert found["untouched"]["left_size"]["auc"].value == pytest.approx(0.25), "of .1, .2, .3 and .4"
    halves = {half for _, half in seen[:4]}
    assert len(halves) > 1, "not always the same subjects"
    assert {len(half) for half in halves} == {4}


def test_phantoms_are_the_same_subjects_at_any_size():
    data = ChestPhantom(size=32, subjects={"train": 3, "val": 2, "test": 4})
    large = data.resized(128)
    one, other = (each.dataset("test").read(torch.tensor([2, 0])) for each in (data, large))
    assert other["image"].shape == (2, 1, 128, 128)
    for name in data.variables:
        assert torch.equal(one[name], other[name])
    assert (one["mask"].mean((2, 3)) - other["mask"].mean((2, 3))).abs().max() < 0.02
    assert large.spacing == [step / 4 for step in data.spacing]
    assert "observed" not in large.dataset("test").__dict__, "films are drawn as they are read"
    whole = CoronaryPhantom(frame=(24, 12), subjects={"train": 3, "val": 2, "test": 4}).resized(48)
    assert whole.dataset("val").read(torch.tensor([1]))["image"].shape == (1, 1, 48, 24)


def test_values_of_a_resized_data_set_are_the_original_ones():
    place = {"heart_x": Variable(unit="mm", structure="heart", measure="centroid_x")}
    data = ChestPhantom(variables=place, size=32, subjects={"train": 6, "val": 2, "test": 2})
    large = data.resized(64)
    assert torch.equal(data.dataset("train").attributes["heart_x"], large.dataset("train").attributes["heart_x"])
    assert large.dataset("test").can_draw("heart_x")
    assert large.description.parents == data.description.parents


def test_films_are_prepared_again_beside_the_first_cache(chexpert_tree, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root, masks = chexpert_tree()
    lung = {"left_lung_area": Variable(unit="% of image", structure="left_lung")}
    source = CheXpert(str(root), str(masks), size=16)
    data = Prepared(source, lung, ["left_lung"], cache=str(tmp_path / "mine"), augment=True, workers=1)
    large = data.resized(48)
    assert large.source.size == 48
    assert large.augmentation is None
    assert large.folder == tmp_path / "mine-48"
    one, other = (each.dataset("train").read_unchanged(torch.arange(5)) for each in (data, large))
    assert other["image"].shape == (5, 1, 48, 48)
    assert torch.equal(one["left_lung_area"], other["left_lung_area"])
    assert (one["mask"].mean((2, 3)) - other["mask"].mean((2, 3))).abs().max() < 0.03
    usual = Prepared(source, lung, ["left_lung"]).resized(48)
    assert usual.folder != Prepared(source, lung, ["left_lung"]).folder
    assert usual.folder.parent.name == "cache"


def test_a_source_keeps_its_field_of_view_and_one_size_is_refused(tmp_path):
    source = Folder(str(tmp_path / "m.csv"), ["heart"], frame=[32, 16], spacing=[2.0, 3.0])
    large = source.resized(64)
    assert large.frame == (64, 32)
    assert large.resolution == [1.0, 1.5]
    with pytest.raises(ValueError, match="Balls offers its images in one size only"):
        Balls().resized(32)


@pytest.mark.filterwarnings("ignore:do\\(")
def test_the_command_writes_what_it_measured_at_native_size(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    data = ChestPhantom(size=16, subjects={"train": 6, "val": 2, "test": 5})
    about = data.description
    hvae = HVAE(2, 1, about.parents.dim, [Stage(8, 0, resolution=16), Stage(8, 1, 2), Stage(8, 1, 2)])
    for weight in hvae.parameters():
        weight.data += 0.05 * torch.randn_like(weight)
    unet = {"channels": [4, 8], "strides": [2], "norm": "batch"}
    judge = Segmentor(about, "monai.UNet", unet)
    parts = {"model": CounterfactualModel(about, hvae, Warped()), "guidance": SegmentorGuidance(judge)}
    for name, held in (("model", parts), ("judge", {"judge": judge})):
        state = {f"{part}.{key}": value for part, each in held.items() for key, value in each.state_dict().items()}
        torch.save({"state_dict": state, "segcft": describe(held, {})}, f"{name}.ckpt")
    arguments = [
        "evaluate", "--data=data_modules.chest_phantom.ChestPhantom", "--data.size=16",
        "--data.subjects={train: 6, val: 2, test: 5}", "--evaluator=judge.ckpt",
        "--methods={warp: {checkpoint: model.ckpt, corrections: 1, confined: true}}", "--out=out", "--sweeps=0",
    ]  # fmt: skip
    assert main([*arguments, "--native=64", "--detect=1", "--references=4"]) == 0
    results = json.loads((tmp_path / "out/metrics.json").read_text())["native"]
    assert results["size"] == 64
    methods = ["identity", "true_counterfactual", "warp_painted", "warp"]
    assert [name for name in results["metrics"] if name in methods] == methods
    frame = pd.read_csv(tmp_path / "out/native.csv")
    assert len(frame) == len(methods) * 3 * 5
    assert frame[frame["method"] == "warp"]["refinement"].eq("1 rounds, confined").all()
    text = (tmp_path / "out/native.md").read_text()
    assert "| method | refinement | do | old edge |" in text
    assert "truth ratio" in text
    assert Image.open(tmp_path / "out/native.png").height > 6 * 64 - 1
    assert main(arguments) == 0
    assert not (tmp_path / "out/native.md").exists(), "it was of an earlier evaluation"
    assert "native" not in json.loads((tmp_path / "out/metrics.json").read_text())
    assert main([*arguments, "--native=8"]) == 2
    assert "size must be at least 16 pixels, got 8" in capsys.readouterr().err


def test_native_is_no_smaller_than_what_models_read():
    data = CoronaryPhantom(frame=(48, 24), subjects={"train": 2, "val": 1, "test": 1})
    with pytest.raises(ValueError, match="native is 24 pixels along the longest side, the models read more"):
        _resized(data, 24, 0)
    volume = CoronaryPhantom(frame=(24, 12, 12), subjects={"train": 2, "val": 1, "test": 1})
    with pytest.raises(ValueError, match="not of volumes"):
        _resized(volume, 48, 160)
    assert _resized(volume, 48, 0).frame == (48, 24, 24)
    assert _resized(data, None, 160) is None
