"""A bundle answers like the checkpoint it was made of, or not at all."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch

from segcft.causal.structural_causal_model import StructuralCausalModel
from segcft.cli.main import main
from segcft.core import checkpoints, manifests
from segcft.core.formatting import number
from segcft.counterfactual.model import CounterfactualModel
from segcft.guidance.guidance import RegressorGuidance, SegmentorGuidance
from segcft.guidance.judges import Regressor, Segmentor
from segcft.inference import export as bundles
from segcft.variables.variables import Variable
from tests.inference.test_answer_file import description, films, make, picture

pytestmark = pytest.mark.filterwarnings("ignore:do\\(")  # an untrained segmentor measures anything
SECONDS = {"pretrain": 3.0, "segcft": 4.5}
FILES = {"model.ckpt", "config.json", "MODEL_CARD.md", "MANIFEST.json"}


def save(path, parts):
    state = {f"{name}.{key}": value for name, part in parts.items() for key, value in part.state_dict().items()}
    bulk = {"optimizer_states": [torch.zeros(10**5)], "callbacks": {}}
    torch.save({"state_dict": state, "segcft": checkpoints.describe(parts, SECONDS), **bulk}, path)
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a Seg-CFT checkpoint, its bundle, and a segmentor's checkpoint."""
    folder, about = tmp_path_factory.mktemp("bundles"), description(2, age=True)
    torch.manual_seed(1)
    whole = make(about)
    mechanism = StructuralCausalModel(about.parents, {"left_size": ["age"]})
    for weight in mechanism.parameters():
        weight.data += 0.3 * torch.randn_like(weight)
    model = CounterfactualModel(about, whole.hvae, mechanism=mechanism)
    save(folder / "a.ckpt", {"model": model, "guidance": SegmentorGuidance(whole.segmentor)})
    save(folder / "judge.ckpt", {"judge": whole.segmentor})
    assert export(folder / "a.ckpt", folder / "bundle", "--metrics", write_metrics(folder), "--name=Two balls") == 0
    return folder


@pytest.fixture
def bundle(made, tmp_path):
    """A copy to be damaged."""
    return shutil.copytree(made / "bundle", tmp_path / "bundle")


def export(checkpoint, out, *more):
    try:
        return main(["export", f"--checkpoint={checkpoint}", f"--out={out}", *map(str, more)])
    except SystemExit as stop:
        return stop.code


def write_metrics(folder, **changes):
    sizes = ("left_size", "right_size")

    def method(mape):
        effects = {name: {"mape": mape, "mae": 1.5, "slope": 0.75} for name in sizes}
        return {"effectiveness": effects, "leakage": {"left_size": {"right_size": 6.25}, "right_size": {}}}

    results = {"experiment": "balls", "seed": 0, "split": "test", "subjects": 9, "seconds": SECONDS}
    results |= {"evaluator_floor": dict.fromkeys(sizes, 2.5), "identity": method(33.25)}
    results |= {"methods": {"no_cft": method(22.25), "seg_cft": method(11.25)}}
    path = folder / "metrics.json"
    path.write_text(json.dumps(results | changes))
    return path


def test_a_bundle_answers_as_its_checkpoint_does(made):
    batch, given = films(2), {"age": 63.0}
    answers = []
    for path in (made / "a.ckpt", made / "bundle"):
        torch.manual_seed(0)
        model = CounterfactualModel.load(path)
        answers += [model.counterfactuals(batch["image"], given, [{"age": 40.0}, {"left_size": "+20%"}], samples=2)]
    for one, other in zip(*answers, strict=True):
        assert torch.equal(one.image, other.image)
        assert torch.equal(one.posterior_deviation, other.posterior_deviation)
        for name in one.values:
            assert torch.equal(one.values[name], other.values[name])
        assert all(torch.equal(one.measured[name], other.measured[name]) for name in ("left_size", "right_size"))
    moved = answers[0][0]
    assert not torch.equal(moved.values["left_size"], moved.subject.values["left_size"]), "the mechanism came along"


def test_a_bundle_holds_what_answers_need_and_no_more(made):
    assert {path.name for path in (made / "bundle").iterdir()} == FILES
    assert sorted(path.name for path in made.iterdir()) == ["a.ckpt", "bundle", "judge.ckpt", "metrics.json"]
    held = torch.load(made / "bundle/model.ckpt", weights_only=True)
    assert set(held) == {"state_dict", "segcft"}
    assert {name.partition(".")[0] for name in held["state_dict"]} == {"model", "segmentor"}
    assert checkpoints.seconds(made / "bundle") == SECONDS
    assert isinstance(checkpoints.load(made / "bundle", Segmentor), Segmentor)
    config = json.loads((made / "bundle/config.json").read_text())
    assert config["graph"] == {"left_size": ["age"], "right_size": [], "age": []}
    assert config["variables"]["left_size"]["unit"] == "% of image"
    assert config["variables"]["left_size"]["high"] > config["variables"]["left_size"]["low"]
    assert (config["structures"], config["spacing"], config["resolution"]) == (["left", "right"], [1, 1], [16, 16])


def test_the_card_says_what_it_is(made):
    card = (made / "bundle/MODEL_CARD.md").read_text()
    age = CounterfactualModel.load(made / "bundle").parents["age"]
    for text in (
        "# Two balls\n",
        f"| age | continuous | % of image | {number(age.low)} to {number(age.high)} | - |",
        "- age -> left_size",
        "Method `seg_cft` of experiment `balls`: 9 subjects",
        "| left_size | 11.2 | 33.2 | 2.5 | 1.5\N{NO-BREAK SPACE}% of image | 0.75 | 6.2 |",
        "pretrain 3 s, segcft 4.5 s",
        "Not for diagnosis",
        "It draws 16 x 16",
    ):
        assert text in card
    assert "22.2" not in card, "of another method"


def test_equal_exports_have_equal_bytes(made, tmp_path):
    more = ["--metrics", made / "metrics.json", "--name=Two balls"]
    assert export(made / "bundle", tmp_path / "again", *more) == 0, "a bundle can be exported, too"
    for name in FILES:
        assert (tmp_path / "again" / name).read_bytes() == (made / "bundle" / name).read_bytes()


def test_without_a_segmentor_the_parents_must_be_given(tmp_path, capsys):
    about = description(2)
    model = CounterfactualModel(about, make(about).hvae)
    save(tmp_path / "a.ckpt", {"model": model, "guidance": RegressorGuidance(Regressor(about, (4, 8)))})
    assert export(tmp_path / "a.ckpt", tmp_path / "out", "--intended-use=Teaching.") == 0
    card = (tmp_path / "out/MODEL_CARD.md").read_text()
    assert all(text in card for text in ("# out\n", "Teaching.", "holds no segmentor", "No arrows", "Not evaluated"))
    assert CounterfactualModel.load(tmp_path / "out").segmentor is None
    assert manifests.digest(tmp_path / "out/MANIFEST.json") in capsys.readouterr().out


@pytest.mark.parametrize("name", sorted(FILES - {"MANIFEST.json"}))
def test_one_changed_byte_is_refused(name, bundle):
    content = bytearray((bundle / name).read_bytes())
    content[len(content) // 2] ^= 1
    (bundle / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name} does not have the size and SHA-256"):
        CounterfactualModel.load(bundle)


def relist(bundle, change):
    manifest = json.loads((bundle / "MANIFEST.json").read_text())
    change(manifest["files"])
    (bundle / "MANIFEST.json").write_text(json.dumps(manifest))


def swap_for_link(bundle):
    (bundle / "config.json").rename(bundle.parent / "config.json")
    (bundle / "config.json").symlink_to(bundle.parent / "config.json")


DAMAGES = {
    "removed": (lambda b: (b / "config.json").unlink(), "config.json is missing"),
    "no model": (lambda b: (b / "model.ckpt").unlink(), "model.ckpt is missing"),
    "added": (lambda b: (b / "more.txt").write_text(""), "more.txt is not listed"),
    "added folder": (lambda b: (b / "more").mkdir(), "more is not listed"),
    "cut": (lambda b: (b / "model.ckpt").write_bytes(b""), "model.ckpt does not have the size"),
    "folder": (lambda b: ((b / "config.json").unlink(), (b / "config.json").mkdir()), "config.json is no plain file"),
    "link": (swap_for_link, "config.json is no plain file"),
    "unlisted": (lambda b: relist(b, lambda f: f.pop("model.ckpt")), "model.ckpt is not listed"),
    "neither": (lambda b: ((b / "model.ckpt").unlink(), relist(b, lambda f: f.pop("model.ckpt"))), "model.ckpt is not"),
    "mismatched": (lambda b: relist(b, lambda f: f["model.ckpt"].update(bytes=1)), "model.ckpt does not have the size"),
    "no facts": (lambda b: relist(b, lambda f: f.update({"model.ckpt": "?"})), "model.ckpt does not have the size"),
    "no manifest": (lambda b: (b / "MANIFEST.json").unlink(), "is a folder without MANIFEST.json"),
    "text": (lambda b: (b / "MANIFEST.json").write_text("{"), "MANIFEST.json cannot be read"),
    "bytes": (lambda b: (b / "MANIFEST.json").write_bytes(b"\xff"), "MANIFEST.json cannot be read"),
    "list": (lambda b: (b / "MANIFEST.json").write_text("[]"), "MANIFEST.json cannot be read"),
    "format": (lambda b: (b / "MANIFEST.json").write_text('{"format": 2, "files": {}}'), "has format 2"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_bundle_is_refused(damage, bundle):
    harm, message = DAMAGES[damage]
    harm(bundle)
    with pytest.raises(ValueError, match=message) as caught:
        CounterfactualModel.load(bundle)
    assert str(bundle) in str(caught.value)


@pytest.mark.parametrize(
    "name", ["../a.ckpt", "/etc/passwd", "..", ".", "", "deep/a.ckpt", "..\\a", "C:a", "MANIFEST.json"]
)
def test_a_manifest_that_leaves_its_folder_is_refused(name, bundle, made):
    shutil.copy(made / "a.ckpt", bundle.parent)
    facts = {"bytes": (made / "a.ckpt").stat().st_size, "sha256": manifests.digest(made / "a.ckpt")}
    relist(bundle, lambda files: files.update({name: facts}))
    with pytest.raises(ValueError, match="which is not a file of this folder"):
        CounterfactualModel.load(bundle)


def test_wrong_kinds_are_refused(made, tmp_path, capsys, bundle):
    assert export(made / "judge.ckpt", tmp_path / "out") == 2
    assert "wrong kind of checkpoint: a CounterfactualModel is needed" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    shutil.copy(made / "judge.ckpt", bundle / "model.ckpt")
    (bundle / "MANIFEST.json").unlink()
    manifests.write(bundle)
    with pytest.raises(ValueError, match="wrong kind of checkpoint"):
        CounterfactualModel.load(bundle)


def test_weights_that_are_not_finite_are_not_exported(made, tmp_path, capsys):
    content = torch.load(made / "a.ckpt", weights_only=True)
    content["state_dict"]["model.hvae.stem.weight"][0] = torch.nan
    torch.save(content, tmp_path / "nan.ckpt")
    assert export(tmp_path / "nan.ckpt", tmp_path / "out") == 2
    assert "model.hvae.stem.weight of" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_target_must_be_free(made, tmp_path, capsys):
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for name in ("full", "file"):
        assert export(made / "a.ckpt", tmp_path / name) == 2
        assert f"{name} exists and is not an empty folder" in capsys.readouterr().err
    assert export(made / "a.ckpt", tmp_path / "file/below") == 2
    assert "cannot be written" in capsys.readouterr().err
    assert {path.name for path in tmp_path.rglob("*")} == {"full", "mine.txt", "file"}
    (tmp_path / "empty").mkdir()
    assert export(made / "a.ckpt", tmp_path / "empty") == 0
    assert {path.name for path in (tmp_path / "empty").iterdir()} == FILES


def test_what_fails_half_way_leaves_nothing(made, tmp_path, monkeypatch):
    def full(folder):
        raise OSError("disk full")

    monkeypatch.setattr(manifests, "write", full)
    assert export(made / "a.ckpt", tmp_path / "out") == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "more", "message"),
    [
        ({"seconds": {"segcft": 5.0}}, [], "of another run: its stage 'segcft' took 5.0 s, the checkpoint's 4.5 s"),
        ({}, ["--method=mine"], "say with --method which of no_cft, seg_cft"),
        ({"methods": {"a": {}, "b": {}}}, [], "say with --method which of a, b"),
        ({"methods": {"a": {}}}, [], "no 'effectiveness'"),
        ({"methods": {"a": {"effectiveness": {"heart": {}}}}}, [], "no 'heart'"),
        ({"methods": []}, [], "metrics.json"),
        ({}, ["--metrics=nowhere.json"], "--metrics nowhere.json"),
    ],
)
def test_metrics_of_something_else_are_refused(changes, more, message, made, tmp_path, capsys):
    metrics = write_metrics(tmp_path, **changes)
    assert export(made / "a.ckpt", tmp_path / "out", f"--metrics={metrics}", *more) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_command_line_answers_from_a_bundle(bundle, tmp_path, capsys):
    source, _, _ = picture(tmp_path / "a", "png")
    ask = ["counterfactual", f"--checkpoint={bundle}", f"--image={source}", f"--out={tmp_path / 'out'}"]
    ask += ["--do=left_size=+20%", "--parent=age=63"]
    assert main(ask) == 0
    assert (tmp_path / "out/0001/counterfactual.png").is_file()
    (bundle / "notes.txt").write_text("mine")
    assert main(ask) == 2
    assert "notes.txt is not listed in MANIFEST.json" in capsys.readouterr().err
    assert export("nowhere", tmp_path / "none") == 2
    assert export("nowhere", tmp_path / "none", "--colour") == 2
    assert export("nowhere", tmp_path / "none", "--help") == 0


def test_a_variable_that_is_no_size_has_no_per_cent():
    def method(mae):
        return {"effectiveness": {"shift": {"mape": None, "mae": mae, "slope": 0.5}}, "leakage": {"shift": {}}}

    results = {"experiment": "balls", "seed": 0, "split": "test", "subjects": 9, "evaluator_floor": {"shift": 2.5}}
    results |= {"identity": method(3.0)}
    bundle = SimpleNamespace(model=SimpleNamespace(parents={"shift": Variable(unit="mm")}))
    table = bundles._table(results, method(1.5), "mine", bundle)
    assert "| shift | - | - | 2.5 | 1.5\N{NO-BREAK SPACE}mm | 0.50 | 0.0 |" in table
