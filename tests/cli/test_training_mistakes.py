"""What may be wrong about a stage stops it in one line, before any step."""

import pytest
import torch
import yaml

from segcft.cli.main import main
from tests.stages import write

FIT = ["--trainer.max_steps=1", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]


@pytest.fixture
def stages(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, ("segmentor", "pretrain"))
    return tmp_path


@pytest.fixture
def segmentor(stages):
    assert main(["fit", "--config=segmentor.yaml", *FIT]) == 0
    return "checkpoints/balls/segmentor/last.ckpt"


@pytest.mark.parametrize("command", ["fit", "validate"])
def test_a_checkpoint_of_another_stage_names_both(command, segmentor, capsys):
    assert main([command, "--config=pretrain.yaml", f"--ckpt_path={segmentor}"]) == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert "is of the stage 'segmentor' and holds judge = segcft.guidance.judges.Segmentor" in told
    assert "'pretrain' needs model = segcft.counterfactual.model.CounterfactualModel" in told


def test_so_does_one_of_another_architecture(segmentor, capsys):
    options = "--model.options={channels: [8, 8], strides: [2], norm: batch}"
    assert main(["validate", "--config=segmentor.yaml", options, f"--ckpt_path={segmentor}"]) == 2
    assert "(4, 1, 3, 3) there, (8, 1, 3, 3) here" in capsys.readouterr().err
    assert main(["validate", "--config=segmentor.yaml", f"--ckpt_path={segmentor}", "--trainer.logger=false"]) == 0


def test_weights_that_are_not_finite_and_models_alone_do_not_go_on(segmentor, capsys):
    content = torch.load(segmentor, weights_only=True)
    next(iter(content["state_dict"].values())).fill_(torch.nan)
    torch.save(content, "nan.ckpt")
    for command in ("fit", "validate"):
        assert main([command, "--config=segmentor.yaml", *FIT[:2], "--ckpt_path=nan.ckpt"]) == 2
        assert "nan.ckpt is not finite" in capsys.readouterr().err
    assert main(["fit", "--config=segmentor.yaml", *FIT, "--resume=nan.ckpt"]) == 2
    assert "nan.ckpt is not finite" in capsys.readouterr().err
    torch.save({name: content[name] for name in ("segcft", "state_dict")}, "alone.ckpt")
    assert main(["fit", "--config=segmentor.yaml", *FIT, "--resume=alone.ckpt"]) == 2
    assert "it holds a model alone" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--ckpt_path=nowhere.ckpt", "checkpoint nowhere.ckpt does not exist"),
        ("--trainer.profiler=none.Such", "the `profiler` parameter of `Trainer`, it can only be one of"),
        ("--trainer.overfit_batches=2", "trainer.overfit_batches = 2 is not supported"),
        ("--trainer.overfit_batches=0.5", "trainer.overfit_batches = 0.5 is not supported"),
        ("--data.size=15", "images of 15 x 15 pixels do not fit monai.UNet: sides have to be multiples of 2"),
    ],
)
def test_what_cannot_be_is_said_before_the_first_step(option, message, stages, capsys):
    assert main(["fit", "--config=segmentor.yaml", *FIT, option]) == 2
    assert message in capsys.readouterr().err
    assert not list(stages.rglob("*.ckpt"))


@pytest.mark.parametrize(("left_out", "named"), [(["root"], ".root is"), (["root", "masks"], ": root and masks are")])
def test_an_argument_that_a_file_lacks_is_named_with_the_file(left_out, named, stages, capsys):
    arguments = {name: "x" for name in ("root", "masks") if name not in left_out}
    source = {"class_path": "data_modules.chexpert.CheXpert", "init_args": {**arguments, "size": 16}}
    variables = {"left_lung_area": {"unit": "% of image", "structure": "left_lung"}}
    data = {"class_path": "data_modules.preparation.prepared.Prepared",
            "init_args": {"source": source, "variables": variables}}  # fmt: skip
    config = yaml.safe_load((stages / "segmentor.yaml").read_text()) | {"data": data}
    (stages / "mine.yaml").write_text(yaml.safe_dump(config))
    assert main(["fit", "--config=mine.yaml", *FIT]) == 2
    told = capsys.readouterr().err
    assert f"data.source{named} missing: neither mine.yaml nor an option gives a value" in told
    assert "Union subtypes" not in told
    assert main(["fit", "--config", "mine.yaml", *FIT]) == 2
    assert "missing: neither mine.yaml nor an option gives a value" in capsys.readouterr().err


def test_pretraining_notes_what_its_images_look_like(stages):
    assert main(["fit", "--config=pretrain.yaml", *FIT]) == 0
    checkpoint = torch.load("checkpoints/balls/pretrain/last.ckpt", weights_only=True)
    ranges = checkpoint["segcft"]["parts"]["model"]["init_args"]["profile"]["init_args"]["ranges"]
    assert ranges["left: whole"] == [1, 1]
    low, high = ranges["right: size"]
    assert 0 < low < high < 0.3


def test_settings_before_the_class_of_the_data_say_what_comes_first(stages, capsys):
    config = yaml.safe_load((stages / "segmentor.yaml").read_text())
    data = config.pop("data")
    (stages / "stage.yaml").write_text(yaml.safe_dump(config | {"data": {"init_args": data["init_args"]}}))
    assert main(["fit", "--config=stage.yaml", f"--data={data['class_path']}", *FIT]) == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert "data: settings of a DataModule are given before its class_path: put the file or option" in told
    assert main(["fit", f"--data={data['class_path']}", "--config=stage.yaml", *FIT]) == 0
