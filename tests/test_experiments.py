"""Every YAML under experiments/ runs, and the command line says clearly what is wrong with bad input."""

import json
from pathlib import Path

import pandas as pd
import pytest
import torch
from PIL import Image

from data_modules.coronary.volumes import write_volumes
from segcft.cli.main import main
from tests import trees
from tests.experiments import configuration

ROOT = Path(__file__).parents[1] / "experiments"
STAGES = ["segmentor", "evaluator", "regressor", "pretrain", "nocft", "regcft", "segcft"]
ALL = ["attributes", *STAGES]
CONFOUNDED = ["segmentor_confounded", "regressor_confounded", "regcft_confounded", "segcft_confounded"]  # chest phantom
DECLARATIONS = {  # of benchmarks
    "chest_phantom": ["ablations", "carried", "guides", "location"],
    "chexpert": ["size_128", "size_192", "smaller"],
    "coronary_phantom": ["regions"],
    "cxr_heart": ["ctr"],
}
OTHER_CHEST_SETS = [
    ("mimic_cxr", trees.mimic),
    ("padchest", trees.padchest),
    ("folder", trees.folder),
    ("cxr_heart", trees.folder),
]
QUICK = ["--trainer.accelerator=cpu", "--trainer.devices=1"]
ONE_STEP = ["--trainer.max_steps=1", "--trainer.limit_val_batches=1", "--trainer.check_val_every_n_epoch=1"]


def configs(experiment, stage, **changes):
    return [configuration(experiment, stage, **changes)]


SMALL = ["--data.init_args.subjects={train: 24, val: 8, test: 8}", "--data.init_args.batch_size=8"]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder in which every stage of the chest phantom took one step."""
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for stage in (*ALL, *CONFOUNDED):
            arguments = ["fit", *configs("chest_phantom", stage), *SMALL, *QUICK, *ONE_STEP]
            assert main([*arguments, "--trainer.logger=false"]) == 0, stage
    return folder


@pytest.fixture
def at_work(workplace, monkeypatch):
    monkeypatch.chdir(workplace)
    return workplace


def test_every_stage_left_a_checkpoint_that_opens_anywhere(at_work, tmp_path, monkeypatch):
    for stage in (*ALL, *CONFOUNDED):
        content = torch.load(at_work / f"checkpoints/chest_phantom/{stage}/last.ckpt", weights_only=True)
        assert content["global_step"] == 1
        assert content["segcft"]["seconds"][stage] > 0
    moved = tmp_path / "elsewhere.ckpt"
    (at_work / "checkpoints/chest_phantom/segcft/last.ckpt").rename(moved)
    monkeypatch.chdir(tmp_path)  # no pretrained model, no segmentor, no data here
    from segcft.core.checkpoints import load
    from segcft.counterfactual.model import CounterfactualModel
    from segcft.guidance.guidance import SegmentorGuidance

    model, guidance = load(moved, CounterfactualModel).eval(), load(moved, SegmentorGuidance)
    assert guidance.judge.description.structures == ["left_lung", "right_lung", "heart"]
    image = torch.zeros(1, 1, 64, 64)
    values = {name: torch.tensor([model.parents[name].mean]) for name in model.parents.names}
    torch.testing.assert_close(model(image, values, {}).image, image, atol=1e-4, rtol=0)
    moved.rename(at_work / "checkpoints/chest_phantom/segcft/last.ckpt")


@pytest.mark.parametrize("stage", [*ALL, *CONFOUNDED])
def test_every_stage_of_the_phantom_runs_from_its_yaml(stage, at_work):
    before = sorted(at_work.rglob("*"))
    assert main(["fit", *configs("chest_phantom", stage), *SMALL, *QUICK, "--trainer.fast_dev_run=true"]) == 0
    assert sorted(at_work.rglob("*")) == before, "fast_dev_run leaves nothing behind"


@pytest.mark.slow
def test_every_stage_of_chexpert_runs_from_its_yaml(chexpert_tree, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root, masks = chexpert_tree(patients=24, heart=False)
    where = [f"--data.source.root={root}", f"--data.source.masks={masks}", "--data.batch_size=8"]
    for stage in ALL:
        assert main(["fit", *configs("chexpert", stage), *where, *QUICK, *ONE_STEP, "--trainer.logger=false"]) == 0, (
            stage
        )
    assert main(["evaluate", *configs("chexpert", "evaluate"), *where, "--out=out"]) == 0
    found = json.loads((tmp_path / "out/metrics.json").read_text())
    assert set(found["methods"]["seg_cft"]["effectiveness"]) == {"left_lung_area", "right_lung_area"}
    assert found["identity"]["truth"] == {}, "nobody knows the truth of a real film"
    assert set(found["evaluator_floor"]) == {"left_lung_area", "right_lung_area"}


@pytest.mark.slow
def test_the_recipe_for_larger_films_runs(chexpert_tree, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root, masks = chexpert_tree(patients=24, heart=False)
    where = [
        f"--data.source.root={root}",
        f"--data.source.masks={masks}",
        "--data.num_workers=0",
        "--data.batch_size=4",
    ]
    for stage in ("segmentor", "pretrain", "segcft"):
        options = [*configs("chexpert", stage, declaration="size_192"), *where, *QUICK, *ONE_STEP]
        assert main(["fit", *options, "--trainer.logger=false"]) == 0, stage


@pytest.mark.slow
@pytest.mark.parametrize(("experiment", "tree"), OTHER_CHEST_SETS)
def test_every_stage_of_the_other_chest_sets_runs_from_its_yaml(experiment, tree, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_all(experiment, tree(tmp_path))


def run_all(experiment, where):
    for stage in ALL:
        arguments = ["fit", *configs(experiment, stage), *where, "--data.batch_size=8", *QUICK, *ONE_STEP]
        assert main([*arguments, "--trainer.logger=false"]) == 0, stage
    assert main(["evaluate", *configs(experiment, "evaluate"), *where, "--subjects=8", "--out=out"]) == 0


@pytest.mark.slow
def test_phantoms_on_disk_pass_every_stage_of_coronary_cta(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    manifest = write_volumes(tmp_path / "volumes", 12)
    splits = ["train"] * 8 + ["val", "val", "test", "test"]
    pd.read_csv(manifest, dtype=str).assign(split=splits).to_csv(manifest, index=False)
    run_all("coronary_cta", [f"--data.source.manifest={manifest}"])
    assert main(["inspect", str(next(Path("data/cache").iterdir())), "--out=seen"]) == 0
    assert Path("seen/inspection.png").is_file()


def test_chest_experiments_differ_in_their_data_alone():
    assert {path.name for path in (ROOT / "mimic_cxr").iterdir()} == {"data.yaml"}
    assert {path.name for path in (ROOT / "folder").iterdir()} == {"data.yaml"}
    assert {path.name for path in (ROOT / "padchest").iterdir()} == {"data.yaml", "attributes.yaml"}


@pytest.mark.parametrize(("experiment", "tree"), OTHER_CHEST_SETS)
def test_other_chest_sets_train_from_their_data_yaml(experiment, tree, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = [*tree(tmp_path), "--data.batch_size=8", *QUICK, "--trainer.fast_dev_run=true"]
    for stage in ("attributes", "regressor"):
        assert main(["fit", *configs(experiment, stage), *options]) == 0, stage


def test_prepare_makes_what_training_reads(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    manifest = trees.folder(tmp_path)[0].split("=")[1]
    prepare = ["prepare", "folder", f"--manifest={manifest}", "--structures=[left_lung, right_lung]"]
    assert main([*prepare, "--frame=[64, 64]", "--out=cache", "--workers=2"]) == 0
    assert "cache: test 4, train 16, val 4; 0 left out" in capsys.readouterr().out
    before = (tmp_path / "cache/dataset.json").read_bytes()
    where = [f"--data.source.manifest={manifest}", "--data.cache=cache", "--data.batch_size=8"]
    assert main(["fit", *configs("folder", "regressor"), *where, *QUICK, "--trainer.fast_dev_run=true"]) == 0
    assert (tmp_path / "cache/dataset.json").read_bytes() == before
    refused(capsys, [*prepare, "--frame=[32, 32]", "--out=cache"], "cache is stale", "frame: [64, 64] -> [32, 32]")
    (tmp_path / "my images/3.png").write_bytes(b"no image")
    refused(capsys, [*prepare, "--frame=[32, 32]", "--out=other"], "manifest.csv, row 5", "3.png", "on_error=skip")
    assert main([*prepare, "--frame=[32, 32]", "--out=other", "--on-error", "skip"]) == 0
    assert "1 left out" in capsys.readouterr().out
    assert main(["inspect", "other", "--verify", "--out=seen"]) == 0
    assert (tmp_path / "seen/inspection.png").is_file()
    refused(capsys, ["prepare", "folders", "--out=x"], "unknown data set 'folders'", "chexpert, mimic_cxr")
    refused(capsys, ["inspect", "nowhere"], "nowhere is not a prepared data set")


FEW = ["--data.init_args.subjects={train: 8, val: 4, test: 4}", "--data.init_args.batch_size=4"]


def coronary(stage, *more):
    return main(["fit", *configs("coronary_phantom", stage), *FEW, *QUICK, *more])


def test_every_stage_of_the_coronary_phantom_runs_from_its_yaml(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for stage in ALL:
        assert coronary(stage, *ONE_STEP, "--trainer.logger=false") == 0, stage
    assert main(["evaluate", *configs("coronary_phantom", "evaluate"), *FEW, "--out=out"]) == 0
    found = json.loads((tmp_path / "out/metrics.json").read_text())
    sizes = {"lumen_area", "calcified_plaque_area", "noncalcified_plaque_area"}
    assert set(found["methods"]["seg_cft"]["truth"]) == sizes, "the phantom knows every true counterfactual"


@pytest.mark.slow
def test_every_stage_of_the_coronary_phantom_passes_fast_dev_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for stage in ("pretrain", "segmentor", "regressor"):
        assert coronary(stage, *ONE_STEP, "--trainer.logger=false") == 0, stage
    for stage in STAGES:
        assert coronary(stage, "--trainer.fast_dev_run=true") == 0, stage


MORPHOMNIST = ["attributes", "regressor", "pretrain", "pretrain_parity", "nocft", "regcft"]  # it has no structures


@pytest.mark.slow
def test_every_stage_of_morphomnist_runs_from_its_yaml(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    where = trees.morphomnist(tmp_path, "t10k")
    for stage in MORPHOMNIST:
        arguments = [*configs("morphomnist", stage), *where, *QUICK]
        assert main(["fit", *arguments, *ONE_STEP, "--trainer.logger=false"]) == 0, stage
    for name in ("nocft", "regcft"):
        later = ["--model.init_args.pretrained=checkpoints/morphomnist/pretrain_parity/last.ckpt"]
        arguments = [*configs("morphomnist", name), *where, *QUICK, *later]
        assert main(["fit", *arguments, *ONE_STEP, "--experiment=later"]) == 0, f"{name} of the parity preset, logged"
    assert main(["predict", *arguments, "--ckpt_path=checkpoints/later/regcft/last.ckpt"]) == 0
    written = torch.load(next((tmp_path / "predictions").rglob("*.pt")), weights_only=True)
    assert written["image"].shape == (4, 1, 32, 32)
    assert {"do_thickness", "do_intensity"} < set(written)


def test_no_yaml_is_forgotten():
    from segcft.study.experiment import offered, read

    known = {"chest_phantom": {*ALL, *CONFOUNDED}, "morphomnist": set(MORPHOMNIST)}
    for folder in sorted(path.parent for path in ROOT.glob("*/data.yaml")):
        stages = known.get(folder.name, set(ALL))
        assert {name for name in offered(folder) if name != "evaluate"} == stages, folder
        others = {"data", "evaluate", "benchmark", *DECLARATIONS.get(folder.name, [])}
        assert {path.stem for path in folder.glob("*.yaml")} <= stages | others, folder
    recipes = {read(path).get("recipe") for path in ROOT.glob("*/data.yaml")} - {None}
    assert {path.name for path in (ROOT / "recipes").iterdir()} == recipes


@pytest.mark.slow
def test_confounded_judges_guide_fine_tuning_and_all_are_compared(at_work, tmp_path):
    """Guides of confounded data; the fine-tuned models and the evaluator saw independent areas."""
    from segcft.core.checkpoints import load, seconds
    from segcft.guidance.guidance import Guidance

    methods = {}
    for stage in ("regcft", "segcft"):
        path = f"checkpoints/chest_phantom/{stage}_confounded/last.ckpt"
        judge = {"regcft": "regressor", "segcft": "segmentor"}[stage]
        assert {f"{judge}_confounded", "pretrain"} <= set(seconds(path))
        assert judge not in seconds(path)
        clean = load(f"checkpoints/chest_phantom/{stage}/last.ckpt", Guidance)
        guided = load(path, Guidance)
        assert type(clean) is type(guided)
        assert clean.judge.description != guided.judge.description, "it saw other areas"
        methods[f"{stage}_confounded"] = path
    options = [f"--methods.{name}={path}" for name, path in methods.items()]
    arguments = [*configs("chest_phantom", "evaluate"), *SMALL, f"--out={tmp_path / 'out'}", *options]
    assert main(["evaluate", *arguments]) == 0
    found = json.loads((tmp_path / "out/metrics.json").read_text())
    assert set(found["methods"]) == {"no_cft", "reg_cft", "seg_cft_refined", "seg_cft", *methods}


def test_evaluate_writes_numbers_tables_and_a_picture(at_work, tmp_path):
    out = tmp_path / "results"
    arguments = ["evaluate", *configs("chest_phantom", "evaluate"), *SMALL, f"--out={out}"]
    assert main(arguments) == 0
    found = json.loads((out / "metrics.json").read_text())
    areas = {"left_lung_area", "right_lung_area", "heart_area"}
    assert set(found["seconds"]) == set(STAGES)
    assert set(found["methods"]) == {"no_cft", "reg_cft", "seg_cft_refined", "seg_cft"}
    assert set(found["evaluator_floor"]) == areas
    for result in (found["identity"], *found["methods"].values()):
        assert set(result) == set(found["identity"])
        assert set(result["amplification"]["heart_area"]) == areas - {"heart_area"}
        for part in ("effectiveness", "leakage", "locality", "reversibility", "truth"):
            assert set(result[part]) == areas
        assert set(result["effectiveness"]["heart_area"]) == {"mape", "mae", "slope"}
        assert set(result["leakage"]["heart_area"]) == areas - {"heart_area"}
        assert set(result["truth"]["heart_area"]) == {"mae", "mae_neighbourhood", "psnr", "ssim"}
        assert result["composition"] <= 1e-4
    assert found["identity"]["effectiveness"]["heart_area"]["slope"] == 0
    assert found["identity"]["locality"]["heart_area"] == 0
    identity, perfect = (found["metrics"][name]["heart_area"] for name in ("identity", "true_counterfactual"))
    for metric, value in {"truth_ratio": 1, "mask_ratio": 1, "nearer": 0, "leakage": 0, "change": 0}.items():
        assert identity[metric] == {"value": value, "low": value, "high": value}
    assert perfect["truth_ratio"]["value"] == 0
    assert perfect["mape"]["value"] == pytest.approx(found["evaluator_floor"]["heart_area"])
    assert found["guides"] == {
        "no_cft": None, "reg_cft": "Regressor", "seg_cft_refined": "Segmentor", "seg_cft": "Segmentor"
    }  # fmt: skip
    assert found["refinement"]["seg_cft_refined"] == "2 rounds, confined"
    assert found["metrics"]["no_cft"]["heart_area"]["gap"]["value"] is None
    assert set(found["differences"]) == {"identity", "true_counterfactual", "no_cft", "reg_cft", "seg_cft_refined"}
    assert len(pd.read_csv(out / "table.csv")) == 6 * 3
    subjects = pd.read_csv(out / "subjects.csv")
    assert len(subjects) == 6 * 3 * 8
    mape = subjects.groupby(["method", "do"])["error_percent"].mean()["seg_cft", "heart_area"]
    assert mape == pytest.approx(found["methods"]["seg_cft"]["effectiveness"]["heart_area"]["mape"], rel=1e-4)
    asked = pd.read_csv(out / "interventions.csv")
    assert set(asked["variable"]) == areas
    assert "| method | refinement | do | MAPE %" in (out / "table.md").read_text()
    assert Image.open(out / "figure.png").size[0] > 600
    assert not list(out.glob(".*")), "no temporary file is left"
    assert main(arguments) == 0
    again = json.loads((out / "metrics.json").read_text())
    assert again == found, "the same seed gives the same numbers"


def test_a_fitted_causal_model_travels_with_the_images_model(at_work, tmp_path, monkeypatch):
    """Given by path once, it is part of every later checkpoint; evaluate can swap it for another."""
    from segcft.core.checkpoints import load, seconds
    from segcft.counterfactual.model import CounterfactualModel

    path = "checkpoints/chest_phantom/attributes/last.ckpt"
    own = ["--experiment=causal", "--trainer.logger=false"]
    assert main(fit("pretrain", *own, f"--model.init_args.mechanism={path}")) == 0
    assert main(fit("segcft", *own, "--model.init_args.pretrained=checkpoints/causal/pretrain/last.ckpt")) == 0
    assert main(fit("nocft", *own, f"--model.init_args.mechanism={path}")) == 0
    fitted = torch.load(path, weights_only=True)["state_dict"]
    for stage in ("pretrain", "segcft", "nocft"):
        content = torch.load(f"checkpoints/causal/{stage}/last.ckpt", weights_only=True)["state_dict"]
        assert all(torch.equal(content[f"model.{name}"], weight) for name, weight in fitted.items()), "it never learns"
        assert "attributes" in seconds(f"checkpoints/causal/{stage}/last.ckpt")
        mechanism = load(f"checkpoints/causal/{stage}/last.ckpt", CounterfactualModel).mechanism
        assert mechanism.graph["heart_area"] == ["sex", "age"]
    out = tmp_path / "results"
    options = ["evaluate", *configs("chest_phantom", "evaluate"), *SMALL, f"--out={out}", f"--mechanism={path}"]
    assert main(options) == 0
    assert set(json.loads((out / "metrics.json").read_text())["seconds"]) == set(ALL)


def test_wrong_graphs_and_mechanisms_are_named(at_work, capsys):
    refused(capsys, fit("attributes", "--model.init_args.graph={heart_area: [height]}"), "'height'", "left_lung_area")
    refused(capsys, fit("attributes", "--model.init_args.graph={sex: [age], age: [sex]}"), "cycle", "age -> sex")
    wrong = "--model.init_args.mechanism=checkpoints/chest_phantom/segmentor/last.ckpt"
    refused(capsys, fit("pretrain", wrong), "segmentor/last.ckpt", "Mechanism is needed")
    evaluate = ["evaluate", *configs("chest_phantom", "evaluate"), *SMALL, "--out=out", "--mechanism=nowhere.ckpt"]
    refused(capsys, evaluate, "nowhere.ckpt", "does not exist")


def refused(capsys, arguments, *parts):
    """The command exits with 2 and one message that names what is wrong."""
    try:
        code = main(arguments)
    except SystemExit as stop:
        code = stop.code
    message = capsys.readouterr().err
    assert code == 2, message
    for part in parts:
        assert part in message, message
    assert "Traceback" not in message


def fit(stage, *more):
    return ["fit", *configs("chest_phantom", stage), *SMALL, *QUICK, *ONE_STEP, *more]


def test_config_typos_name_the_key(at_work, capsys):
    refused(capsys, fit("pretrain", "--model.init_args.betta=2"), "betta")
    refused(capsys, fit("pretrain", "--trainer.max_stepps=2"), "max_stepps")
    refused(capsys, fit("pretrain", "--data.init_args.sise=32"), "sise")


def test_unknown_names_are_listed_beside_the_known_ones(at_work, capsys):
    refused(
        capsys,
        fit("pretrain", "--data.init_args.variables={liver_area: {unit: mm^2}}"),
        "liver_area",
        "heart_area",
    )
    wrong = "--data.init_args.variables={heart_area: {structure: liver}}"
    refused(capsys, fit("pretrain", wrong), "liver", "left_lung, right_lung, heart")
    refused(capsys, fit("segcft", "--model.init_args.weights={liver_area: 2}"), "liver_area", "heart_area")


def test_missing_and_wrong_checkpoints_are_named(at_work, capsys):
    refused(capsys, fit("segcft", "--model.init_args.pretrained=nowhere.ckpt"), "nowhere.ckpt", "does not exist")
    wrong = "--model.init_args.pretrained=checkpoints/chest_phantom/segmentor/last.ckpt"
    refused(capsys, fit("segcft", wrong), "segmentor/last.ckpt", "CounterfactualModel is needed")
    swapped = "--model.init_args.guidance.init_args.judge=checkpoints/chest_phantom/regressor/last.ckpt"
    refused(capsys, fit("segcft", swapped), "regressor/last.ckpt", "SegmentationModel is needed")
    evaluate = ["evaluate", *configs("chest_phantom", "evaluate"), *SMALL, "--out=out"]
    refused(capsys, [*evaluate, "--evaluator=nowhere.ckpt"], "nowhere.ckpt", "does not exist")
    assert not (at_work / "out").exists(), "nothing half-written"


def test_other_variables_than_the_pretrained_models_are_refused(at_work, capsys):
    fewer = "--data.init_args.variables={heart_area: {structure: heart}}"
    refused(capsys, fit("segcft", fewer), "trained with variables", "'age'", "['heart_area']")


def test_help_and_nothing_to_do(capsys):
    assert main(["--help"]) == 0
    assert "evaluate" in capsys.readouterr().out
    assert main([]) == 2
