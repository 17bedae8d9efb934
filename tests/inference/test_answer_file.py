"""From files to counterfactual files: same grid, same depth, and every untouched pixel as it was."""

import shutil
from dataclasses import replace

import nibabel
import numpy as np
import pandas as pd
import pydicom
import pytest
import torch
from PIL import Image

from data_modules.folder import Folder
from segcft.app.opened_image import Question
from segcft.app.responses import show
from segcft.app.service import CounterfactualService
from segcft.causal.structural_causal_model import Mechanism, intervene
from segcft.cli.main import main
from segcft.core.checkpoints import describe
from segcft.counterfactual.model import CounterfactualModel
from segcft.counterfactual.prediction import Gated, Warped, painted
from segcft.counterfactual.refinement import Refinement
from segcft.evaluation.protocol import EvaluatedMethod, Method, predict
from segcft.guidance.guidance import SegmentorGuidance
from segcft.guidance.judges import Segmentor
from segcft.hvae.hvae import HVAE
from segcft.hvae.stages import Stage
from segcft.io.readers import read_picture
from segcft.io.writers import suffix, write_changed
from segcft.plots import panels
from segcft.variables.variables import DataDescription
from tests.balls import Balls
from tests.dicoms import write_dicom

pytestmark = pytest.mark.filterwarnings("ignore:do\\(")  # an untrained segmentor measures anything
UNET = {"channels": [4, 8], "strides": [2], "norm": "batch"}


class Chain(Mechanism):
    """right_size = left_size + noise."""

    def abduct(self, values):
        return {**values, "right_size": values["right_size"] - values["left_size"]}

    def predict(self, noise, do):
        left = intervene(noise["left_size"], do.get("left_size"))
        right = intervene(noise["right_size"] + left, do.get("right_size"))
        return {"left_size": left, "right_size": right, "age": intervene(noise["age"], do.get("age"))}


def description(dims, percent=True, age=False):
    about = Balls(spatial_dims=dims).description
    variables = {
        name: replace(variable, unit="% of image" if percent else variable.unit)
        for name, variable in about.parents.variables.items()
        if age or name != "age"
    }
    return DataDescription(variables, about.structures, about.spacing)


def make(about, mechanism=None, prediction=None):
    torch.manual_seed(0)
    hvae = HVAE(about.spatial_dims, 1, about.parents.dim, [Stage(8, 0, resolution=16), Stage(16, 2, 4, resolution=4)])
    for weight in hvae.parameters():
        weight.data += 0.05 * torch.randn_like(weight)
    model = CounterfactualModel(about, hvae, prediction, mechanism).eval()
    model.segmentor = Segmentor(about, "monai.UNet", UNET).eval()
    return model


def save(path, model, judged=True):
    parts = {"model": CounterfactualModel(model.description, model.hvae, model.prediction)}
    if judged:
        parts["guidance"] = SegmentorGuidance(model.segmentor)
    state = {f"{name}.{key}": value for name, part in parts.items() for key, value in part.state_dict().items()}
    torch.save({"state_dict": state, "segcft": describe(parts, {})}, path)
    return str(path)


def films(dims, count=2):
    return Balls(spatial_dims=dims).dataset("test").read(torch.arange(count))


@pytest.mark.parametrize("dims", [2, 3])
def test_one_encoder_pass_however_much_is_asked(dims):
    model, batch = make(description(dims, age=True)), films(dims)
    passes = []
    model.hvae.stem.register_forward_hook(lambda _, given, __: passes.append(len(given[0])))
    questions = [{"left_size": f"+{share}%"} for share in (0, 10, 20)]
    answers = model.counterfactuals(batch["image"], {"age": 63}, questions, samples=5)
    assert passes == [2]
    assert [answer.image.shape for answer in answers] == [batch["image"].shape] * 3
    assert torch.allclose(answers[2].values["left_size"], 1.2 * answers[2].subject.values["left_size"])
    assert answers[2].posterior_deviation.shape == batch["image"].shape
    assert answers[2].posterior_deviation.max() > 0
    assert set(answers[2].measured) == {"left_size", "right_size"}
    assert answers[0].difference.abs().max() < 1e-5
    assert answers[0].posterior_deviation.max() < 1e-5, "what does not change is certain"


def test_particles_of_one_image_are_its_own():
    model, batch = make(description(2)), films(2)
    values = model.open(batch["image"]).values
    one = model.abduct(batch["image"], values, 0.0)
    many = model.abduct(batch["image"], values, 0.0, samples=3)
    for few, all_of_them in zip(one.latents, many.latents, strict=True):
        torch.testing.assert_close(few.repeat_interleave(3, 0), all_of_them)
    torch.testing.assert_close(one.elbo.kl.repeat_interleave(3, 0), many.elbo.kl)


def test_a_question_agrees_with_training_and_evaluation():
    model, batch = make(description(2)), films(2)
    values = model.open(batch["image"]).values
    with torch.no_grad():
        expected = model(batch["image"], values, {"left_size": 1.2 * values["left_size"]}, temperature=0.0)
    found = model.counterfactual(batch["image"], do={"left_size": "+20%"}, corrections=0, confined=False)
    torch.testing.assert_close(found.image, expected.image, atol=1e-4, rtol=0)
    assert found.posterior_deviation is None
    evaluated = EvaluatedMethod(model, None, Method("", corrections=2, confined=True))
    (evaluated,), _ = predict(evaluated, batch["image"], values, [expected.values])
    by_default = model.counterfactual(batch["image"], do={"left_size": "+20%"})
    torch.testing.assert_close(by_default.image, evaluated, atol=1e-6, rtol=0)
    assert not torch.allclose(by_default.image, found.image)


class Counted:
    """How many images the segmentors of this process outline, call by call."""

    def __init__(self, monkeypatch):
        self.calls, forward = [], Segmentor.forward
        monkeypatch.setattr(
            Segmentor, "forward", lambda judge, image: self.calls.append(len(image)) or forward(judge, image)
        )


@pytest.mark.parametrize("prediction", [Gated, lambda: Warped(stage=1)], ids=["painted", "moved"])
@pytest.mark.parametrize("size", [(16, 16), (1000, 700)], ids=["frame", "large"])
def test_one_question_with_two_corrections_outlines_five_images(tmp_path, monkeypatch, prediction, size):
    """By command line, Python and app; the factual image once."""
    model, count = make(description(2), prediction=prediction()), Counted(monkeypatch)
    levels = np.random.default_rng(0).integers(0, 255, size).astype(np.uint8)
    Image.fromarray(levels).save(tmp_path / "film.png")
    save(tmp_path / "a.ckpt", model)
    assert ask(tmp_path, "--do=left_size=+20%", "--manifest", image="film.png") == 0
    assert count.calls == [1] * 5, "command line"
    count.calls.clear()
    image = torch.from_numpy(levels / np.float32(127.5) - 1)[None, None]
    one, other = model.counterfactuals(image, {}, [{"left_size": "+20%"}, {"right_size": "-20%"}])
    assert one.measured.keys() == other.measured.keys() == {"left_size", "right_size"}
    assert count.calls == [1] * 9, "Python: of the second question all but the factual image"
    count.calls.clear()
    service = CounterfactualService(model)
    reply = service.ask(service.open_file(tmp_path / "film.png", "film.png", {}), Question(("left_size=+20%",)))
    show(reply)
    assert [row["measured"] for row in reply.rows]
    assert count.calls == [1] * 5, "app"


def refined(model, image, wanted, draw, turns):
    subject = model.open(image)
    pa = model.parents.encode(subject.values)
    refinement = Refinement(model.segmentor, subject.canvas, subject.masks, model.parents, pa, wanted)
    return refinement.edit(draw, turns, confined=False)


@pytest.mark.parametrize("change", [0.0, 1e-3, 10.0])
def test_a_correction_is_at_most_half_of_what_was_asked_and_undone_where_it_does_not_help(change):
    model, batch = make(description(2)), films(2)
    values, image, asked = model.open(batch["image"]).values, batch["image"], []
    pa, wanted = model.parents.encode(values), values | {"left_size": values["left_size"] * (1 + change)}

    def draw(parents):
        asked.append(parents)
        return painted(image, image).edit  # whatever is asked, nothing happens

    refined(model, image, wanted, draw, turns=2)
    most = (0.5 * (asked[0] - pa).abs()).clamp(max=1)
    torch.testing.assert_close((asked[1] - asked[0]).abs(), most, msg=f"an unchanged image lacks all of {change}")
    torch.testing.assert_close((asked[2] - asked[0]).abs(), most / 2)


def test_no_correction_leaves_an_answer_worse_by_the_segmentor():
    model, batch = make(description(2)), films(2)
    values, image = model.open(batch["image"]).values, batch["image"]
    wanted = values | {"left_size": values["left_size"] * 1.3}
    answers = iter([image, image.roll(3, -1), image.flip(-1), -image, 0.5 * image])
    drawn = []

    def draw(parents):
        drawn.append(next(answers))
        return painted(image, drawn[-1]).edit

    kept = refined(model, image, wanted, draw, turns=4).apply(image)

    def apart(answer):
        return (model.segmentor.measure(answer, image)["left_size"] - wanted["left_size"]).abs()

    assert len(drawn) == 5
    torch.testing.assert_close(apart(kept), torch.stack([apart(each) for each in drawn]).amin(0))


def test_direct_effect_holds_descendants_and_is_total_where_there_are_none():
    about, batch = description(2, age=True), films(2)
    given = {name: batch[name] for name in about.parents.names}

    def ask(mechanism, name, effect):
        model = make(about, mechanism)
        return model.counterfactual(batch["image"], given, {name: "+20%"}, effect=effect, corrections=0, confined=False)

    total, direct = ask(Chain(), "left_size", "total"), ask(Chain(), "left_size", "direct")
    torch.testing.assert_close(total.values["right_size"], batch["right_size"] + 0.2 * batch["left_size"])
    assert torch.equal(direct.values["right_size"], batch["right_size"])
    assert not torch.allclose(total.image, direct.image)
    for mechanism, name in ((Chain(), "age"), (None, "left_size")):
        torch.testing.assert_close(ask(mechanism, name, "total").image, ask(mechanism, name, "direct").image)


def test_missing_parents_are_measured_or_asked_for(tmp_path):
    model, batch = make(description(2, age=True)), films(2)
    path = save(tmp_path / "a.ckpt", model)
    found = CounterfactualModel.load(path).counterfactual(batch["image"], {"age": 63.0}, {"left_size": "+20%"})
    torch.testing.assert_close(found.subject.values["left_size"], model.segmentor.measure(batch["image"])["left_size"])
    with pytest.raises(ValueError, match="age: not given, and cannot be measured"):
        model.counterfactual(batch["image"], {}, {"left_size": "+20%"})
    with pytest.raises(ValueError, match="age = nan is not a finite number"):
        model.counterfactual(batch["image"], {"age": float("nan")}, {})
    with pytest.raises(ValueError, match="leaves the training range"):
        model.counterfactual(batch["image"], {"age": 63}, {"left_size": 100.0}, strict=True)
    blind = CounterfactualModel.load(save(tmp_path / "b.ckpt", model, judged=False))
    with pytest.raises(ValueError, match="left_size, right_size: not given, and the checkpoint holds no segmentor"):
        blind.counterfactual(batch["image"], {"age": 63.0}, {"left_size": "+20%"})


def picture(path, kind):
    """A file of some kind, its stored pixels, and the window it needs."""
    noise = np.random.default_rng(0)
    small, deep = noise.integers(0, 256, (31, 40)).astype(np.uint8), noise.integers(0, 4096, (31, 40))
    if kind in ("png", "jpg", "rgb", "png16"):
        path = path.with_suffix(".jpg" if kind == "jpg" else ".png")
        pixels = {"rgb": np.stack([small] * 3, 2), "png16": deep.astype(np.uint16)}.get(kind, small)
        Image.fromarray(pixels).save(path, dpi=(300, 300))
        return path, np.asarray(Image.open(path)), (0.0, 4095.0) if kind == "png16" else None
    if kind == "nii":
        path = path.with_suffix(".nii.gz")
        affine = np.array([[0, -0.5, 0, 3], [0.5, 0, 0, 4], [0, 0, 2, 5], [0, 0, 0, 1.0]])
        image = nibabel.Nifti1Image(noise.integers(-900, 900, (20, 17, 9)).astype(np.int16), affine)
        image.header.set_slope_inter(0.5, 3)
        nibabel.save(image, path)
        return path, np.array(nibabel.load(path).dataobj.get_unscaled()), (-400.0, 400.0)
    tags = {
        "dcm": {"WindowCenter": 2000, "WindowWidth": 3000, "RescaleSlope": 2, "RescaleIntercept": -100},
        "mono1": {"WindowCenter": 2000, "WindowWidth": 3000, "PhotometricInterpretation": "MONOCHROME1"},
        "hu": {"RescaleSlope": 2, "RescaleIntercept": -1000},
    }[kind]
    tags |= {"PatientName": "A^B", "PatientID": "7", "PixelSpacing": [0.5, 0.5], "SeriesInstanceUID": "1.2.3"}
    path = write_dicom(path.with_suffix(".dcm"), deep.astype(np.uint16), **tags)
    return path, pydicom.dcmread(path).pixel_array, (-1000.0, 3000.0) if kind == "hu" else None


def stored(path):
    if path.suffix == ".dcm":
        return pydicom.dcmread(path).pixel_array
    return np.array(nibabel.load(path).dataobj.get_unscaled()) if ".nii" in path.name else np.asarray(Image.open(path))


KINDS = ["png", "jpg", "rgb", "png16", "dcm", "mono1", "hu", "nii"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_changed_file_has_the_grid_and_depth_of_its_source(kind, tmp_path):
    source, pixels, window = picture(tmp_path / "a", kind)
    target = tmp_path / f"b{suffix(source)}"
    before = read_picture(source, window)
    change = np.zeros(before.levels.shape, np.float32)
    write_changed(source, change, target, window, "nothing")
    assert stored(target).dtype == pixels.dtype
    assert np.array_equal(stored(target), pixels), "no change keeps every pixel"
    middle = tuple(slice(side // 4, side // 2) for side in change.shape)
    change[middle] = 20
    write_changed(source, change, target, window, "brighter")
    after = read_picture(target, window)
    moved = after.levels.astype(float) - before.levels
    assert np.array_equal(moved[change == 0], np.zeros((change == 0).sum()))
    free = (change > 0) & (before.levels > 0) & (before.levels < 230 if window is None else before.levels < 3000)
    assert np.abs(moved[free] - 20).max() <= 1
    assert after.spacing == before.spacing
    if kind == "nii":
        assert np.array_equal(nibabel.load(target).affine, nibabel.load(source).affine)
        assert nibabel.load(target).get_data_dtype() == np.int16
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_changed_dicom_says_that_it_is_derived(tmp_path):
    source, _, _ = picture(tmp_path / "a", "dcm")
    write_changed(source, np.ones((31, 40), np.float32), tmp_path / "b.dcm", None, "left lung", identity=True)
    old, new = pydicom.dcmread(source), pydicom.dcmread(tmp_path / "b.dcm")
    assert new.SOPInstanceUID != old.SOPInstanceUID
    assert new.file_meta.MediaStorageSOPInstanceUID == new.SOPInstanceUID
    assert new.SeriesInstanceUID != old.SeriesInstanceUID
    assert list(new.ImageType)[:2] == ["DERIVED", "SECONDARY"]
    assert new.SourceImageSequence[0].ReferencedSOPInstanceUID == old.SOPInstanceUID
    assert (new.PatientName, new.PatientID, new.DerivationDescription) == ("A^B", "7", "left lung")


def test_a_changed_dicom_names_nobody_unless_asked_to(tmp_path):
    source, _, _ = picture(tmp_path / "a", "dcm")
    with_secrets = pydicom.dcmread(source)
    secrets = {
        "InstitutionName": "Clinic-X",
        "StudyDate": "20200131",
        "OperatorsName": "C^D",
        "ImageComments": "of A B",
    }
    for name, value in secrets.items():
        setattr(with_secrets, name, value)
    block = with_secrets.private_block(0x0011, "MAKER", create=True)
    block.add_new(1, "LO", "private A B")
    with_secrets.StudyInstanceUID = "1.2.3.4.5"
    with_secrets.preamble = b"A B was here".ljust(128, b"\0")
    with_secrets.save_as(source, enforce_file_format=True)
    change = np.ones((31, 40), np.float32)
    write_changed(source, change, tmp_path / "b.dcm", None, "left lung")
    write_changed(source, change, tmp_path / "c.dcm", None, "right lung")
    content = (tmp_path / "b.dcm").read_bytes()
    for secret in (*secrets.values(), "A^B", "A B", "1.2.3.4.5", str(with_secrets.SOPInstanceUID), "private"):
        assert secret.encode() not in content, secret
    one, other, old = (pydicom.dcmread(path) for path in (tmp_path / "b.dcm", tmp_path / "c.dcm", source))
    assert one.StudyInstanceUID == other.StudyInstanceUID != old.StudyInstanceUID
    assert one.SeriesInstanceUID != other.SeriesInstanceUID
    assert (one.PatientIdentityRemoved, one.PatientName, one.PatientID) == ("YES", "", "")
    assert (one.PixelSpacing, one.SOPClassUID) == (old.PixelSpacing, old.SOPClassUID)
    write_changed(source, change, tmp_path / "d.dcm", None, "left lung", identity=True)
    assert np.array_equal(pydicom.dcmread(tmp_path / "d.dcm").pixel_array, one.pixel_array)
    assert read_picture(tmp_path / "b.dcm", None).levels.shape == (31, 40)


@pytest.fixture
def work(tmp_path):
    """A checkpoint and a folder of films of several kinds."""
    save(tmp_path / "a.ckpt", make(description(2)))
    (tmp_path / "in/deep").mkdir(parents=True)
    for kind, place in (("png", "in/a"), ("jpg", "in/a"), ("dcm", "in/deep/c")):
        picture(tmp_path / place, kind)
    (tmp_path / "in/notes.txt").write_text("no image")
    return tmp_path


def ask(work, *more, image="in"):
    fixed = [f"--checkpoint={work / 'a.ckpt'}", f"--image={work / image}", f"--out={work / 'out'}"]
    try:
        return main(["counterfactual", *fixed, *more])
    except SystemExit as stop:
        return stop.code


def test_a_folder_of_files_is_answered(work):
    assert ask(work, "--do=left_size=+20%", "--samples=2") == 0
    for name, file in (("0001", "png"), ("0002", "png"), ("0003", "dcm")):
        assert (work / f"out/{name}/counterfactual.{file}").is_file()
        assert Image.open(work / f"out/{name}/panel.png").width > 800
    table = pd.read_csv(work / "out/answers.csv")
    assert len(table) == 3 * 2
    left = table[table["variable"] == "left_size"]
    assert np.allclose(left["target"], 1.2 * left["factual"])
    assert set(table["source"]) == {"measured"}


def test_nothing_asked_of_a_file_gives_its_pixels(work):
    assert ask(work, "--do=left_size=+0%", f"--out={work / 'in/out'}") == 0
    assert ask(work, "--do=left_size=+0%", f"--out={work / 'in/out'}") == 0
    assert not (work / "in/out/out").exists(), "answers are not asked again"
    (work / "in/out").rename(work / "out")
    for old, new in (("a.png", "0002/counterfactual.png"), ("deep/c.dcm", "0003/counterfactual.dcm")):
        assert np.array_equal(stored(work / "in" / old), stored(work / "out" / new))


def test_a_sweep_draws_a_strip_and_an_animation(work):
    assert ask(work, "--sweep=left_size=0.8:1.2:3", "--do=right_size=+10%", image="in/a.png") == 0
    folder = work / "out/0001"
    assert {path.name for path in folder.iterdir()} == {"000.png", "001.png", "002.png", "strip.png", "sweep.gif"}
    assert Image.open(folder / "sweep.gif").size == (40, 31)


def test_a_volume_is_answered_on_its_own_grid(tmp_path):
    save(tmp_path / "a.ckpt", make(description(3, percent=False)))
    source, pixels, _ = picture(tmp_path / "v", "nii")
    window = ["--window", "-400", "400"]
    assert ask(tmp_path, "--do=left_size=+30%", *window, "--manifest", image=source.name) == 0
    mask = nibabel.load(tmp_path / "out/0001/counterfactual_left.nii.gz")
    assert np.array_equal(mask.affine, nibabel.load(source).affine)
    assert mask.shape == pixels.shape
    found = nibabel.load(tmp_path / "out/0001/counterfactual.nii.gz")
    assert np.array_equal(found.affine, nibabel.load(source).affine)
    assert found.shape == pixels.shape
    assert (tmp_path / "out/0001/panel.png").is_file()


def test_answers_become_a_data_set(work):
    assert ask(work, "--do=left_size=+20%", "--manifest") == 0
    source = Folder(str(work / "out/manifest.csv"), ["left", "right"], frame=[16, 16])
    table = source.table()
    assert table["id"].tolist() == [
        f"{n}/counterfactual.{e}" for n, e in (("0001", "png"), ("0002", "png"), ("0003", "dcm"))
    ]
    assert table["patient"].nunique() == 3
    for row in table.to_dict("records"):
        assert source.read(row).mask.shape == (2, 16, 16)


def test_bad_files_among_good_ones_are_reported(work, capsys):
    (work / "in/b.png").write_bytes(b"no image")
    picture(work / "in/d", "png16")
    assert ask(work, "--do=left_size=+20%") == 1
    printed = capsys.readouterr()
    assert "3 of 5 files answered" in printed.out
    assert "in/b.png cannot be read" in printed.err
    assert "d.png holds uint16 levels" in printed.err
    assert {path.name for path in (work / "out").iterdir()} == {"0001", "0002", "0005", "answers.csv"}, "a, a, deep/c"
    assert pd.read_csv(work / "out/answers.csv")["image"].nunique() == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--do=liver=+20%"], "'liver=+20%': unknown variable 'liver'"),
        (["--do=left_size=much"], "'left_size=much'"),
        ([], "nothing is asked"),
        (["--do=left_size=+1%", "--do=left_size=5"], "contradicts"),
        (["--do=left_size=+1%", "--sweep=left_size=1:2:3"], "contradicts"),
        (["--do=left_size=1e6", "--strict"], "leaves the training range"),
        (["--do=left_size=+1%", "--parent=left_size=+20%"], "has no sign"),
        (["--do=left_size=+1%", "--parents=nowhere.csv"], "nowhere.csv"),
        (["--do=left_size=+1%", "--window", "5", "5"], "black must lie below white"),
        (["--do=left_size=+1%", "--image=nowhere"], "no image at nowhere"),
        (["--do=left_size=+1%", "--checkpoint=nowhere"], "does not exist"),
        (["--do=left_size=+1%", "--samples=0"], "at least one"),
        (
            ["--do=left_size=+1%", "--device=nonsense"],
            "--device nonsense: cpu, cuda or mps is needed; this machine has",
        ),
        (["--do=left_size=+1%", "--device=meta"], "--device meta: cpu, cuda or mps is needed"),
        (["--do=left_size=+1%", "--device=cuda:99"], "--device cuda:99: this machine"),
        (["--do=left_size=0"], "a size is above 0"),
        (["--do=left_size==-5"], "a size is above 0"),
        (["--do=left_size=-9..0"], "a size is above 0"),
        (["--do=left_size=+1%", "--parent=left_size=0"], "a size is above 0"),
        (["--do=left_size=+1%", "--effect=indirect"], "invalid choice"),
    ],
)
def test_wrong_requests_stop_before_any_work(arguments, message, work, capsys):
    assert ask(work, *arguments) == 2
    assert message in capsys.readouterr().err
    assert not (work / "out").exists()


def test_an_age_that_nobody_reaches_is_doubted_and_one_beyond_reason_refused(work, capsys):
    """480 years lie within ten widths of the training range, 4800 do not; neither do 1e40 of a size."""
    save(work / "a.ckpt", make(description(2, age=True)))
    assert ask(work, "--do=left_size=+20%", "--parent=age=480") == 0
    assert "doubtful" in capsys.readouterr().err
    warnings = pd.read_csv(work / "out/answers.csv")["warning"]
    assert warnings.str.contains("age = 480.*, but in training it lay between").all()
    for wrong in (["--parent=age=4800", "--do=left_size=+20%"], ["--parent=age=40", "--do=left_size=+1e40"]):
        assert ask(work, *wrong) == 1
        said = capsys.readouterr()
        assert "0 of 3 files answered" in said.out
        assert said.err.count("is absurd: in training it lay between") == 3


def test_factual_values_come_from_options_and_tables(tmp_path, capsys):
    save(tmp_path / "a.ckpt", make(description(2, percent=False, age=True)))
    (tmp_path / "in").mkdir()
    for name in ("a", "b"):
        picture(tmp_path / "in" / name, "png")
    (tmp_path / "in/ages.csv").write_text("image,age,left_size\na.png,40,\n")
    do = ["--do=left_size=+20%", "--spacing", "2.5", "2.5"]
    assert ask(tmp_path, *do) == 2
    assert "factual age cannot be measured: give --parent age=..." in capsys.readouterr().err
    assert ask(tmp_path, do[0]) == 2
    told = capsys.readouterr().err
    assert "factual age cannot be measured" in told
    assert "a.png: the image does not say its spacing" in told, "all that lacks is said at once"
    assert ask(tmp_path, *do, "--parent=age=63", "--parent=age=64") == 2
    assert "contradicts" in capsys.readouterr().err
    assert ask(tmp_path, *do, f"--parents={tmp_path / 'in/ages.csv'}") == 1
    assert "b.png: age: not given" in capsys.readouterr().err
    assert ask(tmp_path, *do, f"--parents={tmp_path / 'in/ages.csv'}", "--parent=age=63") == 0
    table = pd.read_csv(tmp_path / "out/answers.csv")
    assert table[table["variable"] == "age"]["factual"].tolist() == [40, 63]
    (tmp_path / "in/ages.csv").write_text("image,age\na.png,old\n")
    assert ask(tmp_path, *do, f"--parents={tmp_path / 'in/ages.csv'}") == 2
    assert "row 2, age = 'old'" in capsys.readouterr().err
    for text, message in (
        ("image,aeg\na.png,40\n", "column 'aeg' is no variable of this model; did you mean age?"),
        ("image,age\na.png,40\na.png,50\n", "row 3, image = 'a.png'"),
        ("image,age\na.png,40\n./a.png,50\n", "row 3, image = './a.png': this image occurs twice"),
        ("image,age\na.png,40\nc.png,40\n", "row 3, image = 'c.png': this is none of the files"),
        ("image,age,left_size\na.png,40,-3\n", "row 2, left_size = '-3'"),
        ("image,age,left_size\na.png,40,0\n", "row 2, left_size = '0'"),
    ):
        (tmp_path / "in/ages.csv").write_text(text)
        assert ask(tmp_path, *do, f"--parents={tmp_path / 'in/ages.csv'}") == 2
        assert message in capsys.readouterr().err
    assert ask(tmp_path, do[0], "--parent=age=63") == 1
    assert "give --spacing" in capsys.readouterr().err


def test_the_app_names_at_once_all_that_a_file_lacks(tmp_path):
    service = CounterfactualService(make(description(2, percent=False, age=True)))
    file, _, _ = picture(tmp_path / "film", "png")
    with pytest.raises(
        ValueError, match=r"say the edge lengths of a pixel; factual age cannot be measured either: say"
    ):
        service.open_file(file, "film.png", {})
    with pytest.raises(ValueError, match=r"say the edge lengths of a pixel$"):
        service.open_file(file, "film.png", {"age": 63.0})


def test_a_foreign_picture_is_doubted_in_file_table_and_panel(work, monkeypatch):
    """Noise is answered, but nobody reads its numbers without being told."""
    noise = np.random.default_rng(0).integers(0, 256, (40, 30)).astype(np.uint8)
    Image.fromarray(noise).save(work / "noise.png")
    drawn, numbers = panels.panel, []
    monkeypatch.setattr(panels, "panel", lambda *given: numbers.append(given[-1]) or drawn(*given))
    assert ask(work, "--do=left_size=+5%", image="noise.png") == 0
    sentence = "looks like noise"
    assert pd.read_csv(work / "out/answers.csv")["warning"].str.contains(sentence).all()
    with Image.open(work / "out/0001/counterfactual.png") as written:
        assert sentence in written.info["Description"]
    assert numbers[0].startswith("DOUBTFUL: ")
    assert sentence in " ".join(numbers[0].split())


def test_a_dicom_without_an_orientation_is_doubted_in_file_and_table(work):
    film = np.random.default_rng(0).integers(0, 256, (20, 20)).astype(np.uint8)
    for name, tags in (("a.dcm", {}), ("b.dcm", {"PatientOrientation": ["R", "F"]})):
        assert ask(work, "--do=left_size=+5%", image=write_dicom(work / name, film, **tags)) == 0
        warnings = pd.read_csv(work / "out/answers.csv")["warning"].fillna("")
        (written,) = (work / "out").glob("*/counterfactual.dcm")
        note = pydicom.dcmread(written).DerivationDescription
        assert warnings.str.contains("states no orientation").all() == (not tags)
        assert ("states no orientation" in note) == (not tags)
        shutil.rmtree(work / "out")
        service = CounterfactualService(make(description(2)))
        reasons = " ".join(service.open_file(work / name, name, {}).opened.doubts)
        assert ("states no orientation" in reasons) == (not tags), "in the app as well"


def test_given_values_do_not_hide_what_is_measured():
    model, image = make(description(2)), films(2, 1)["image"]
    about = model.parents
    given = {name: (about[name].low + about[name].high) / 2 for name in about.names}
    found = model.open(image, given).measured["left_size"]
    subject = model.open(image, given)
    assert not about["left_size"].low <= found <= about["left_size"].high, "an untrained segmentor measures anything"
    assert any(each.startswith("left_size = ") for each in subject.doubts)
    with pytest.raises(ValueError, match=r"left_size = 0 .*a size is above 0"):
        model.open(image, {"left_size": 0.0})


def test_help_lists_the_options(capsys):
    assert main(["--help"]) == 0
    assert "counterfactual" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        main(["counterfactual", "--help"])
    assert stop.value.code == 0
    assert "+20%" in capsys.readouterr().out
