"""Short trainings that must learn: on phantoms, and on real radiographs where they are at hand."""

import json
from pathlib import Path

import pytest

from segcft.cli.main import main
from tests.experiments import configuration

STAGES = ("segmentor", "evaluator", "pretrain", "nocft", "segcft")
UNET = '{"channels": [16, 32, 64, 96], "strides": [2, 2, 2], "norm": "batch", "act": "relu"}'


def chain(experiment, options, *more):
    """Train every stage of Seg-CFT for a few steps, ``options`` stage by stage, and evaluate; returns metrics.json."""
    shared = ["--trainer.accelerator=cpu", "--trainer.logger=false", "--trainer.limit_val_batches=0"]
    for stage in STAGES:
        assert main(["fit", configuration(experiment, stage), *shared, *options[stage], *more]) == 0, stage
    methods = {"no_cft": "nocft", "seg_cft": "segcft"}
    paths = {name: f"checkpoints/{experiment}/{stage}/last.ckpt" for name, stage in methods.items()}
    table = [configuration(experiment, "evaluate"), f"--methods={json.dumps(paths)}", "--out=out"]
    assert main(["evaluate", *table, *more, "--subjects=64", "--split=val"]) == 0
    return json.loads(Path("out/metrics.json").read_text())


def check(found, floor, gain, outside):
    """Effective, local, and reversible; ``gain`` is the share of the unchanged image's error that may be left."""
    seg, no, identity = found["methods"]["seg_cft"], found["methods"]["no_cft"], found["identity"]
    for name in ("left_lung_area", "right_lung_area"):
        assert found["evaluator_floor"][name] < floor, "the evaluator can judge"
        effect = {k: r["effectiveness"][name] for k, r in {"seg": seg, "no": no, "identity": identity}.items()}
        assert effect["seg"]["mape"] < gain * effect["identity"]["mape"]
        assert effect["seg"]["slope"] > effect["no"]["slope"] + 0.05
        assert seg["locality"][name] < outside
        assert seg["reversibility"][name] < 0.06
    assert seg["composition"] < 1e-4


def steps(count, *more):
    return [f"--trainer.max_steps={count}", *more]


@pytest.mark.slow
def test_seg_cft_moves_the_lungs_of_phantoms_towards_the_truth(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = {"segmentor": steps(150), "evaluator": steps(250), "pretrain": steps(200), "nocft": steps(1)}
    options |= {"segcft": steps(80)}
    found = chain("chest_phantom", options, "--data.init_args.subjects={train: 800, val: 64, test: 8}")
    outside = found["true_counterfactual"]["locality"]  # tissue gives way: the truth itself changes beyond the lungs
    check(found, floor=8, gain=0.75, outside=1.5 * min(outside["left_lung_area"], outside["right_lung_area"]))
    truth, unchanged = found["methods"]["seg_cft"]["truth"], found["identity"]["truth"]
    for name in ("left_lung_area", "right_lung_area"):
        assert truth[name]["mae_neighbourhood"] < unchanged[name]["mae_neighbourhood"]


@pytest.mark.slow
def test_seg_cft_moves_the_lungs_of_real_radiographs(real_tree, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root, masks = real_tree
    # the gate's gradient vanishes where both worlds agree, so its start is slow; so few steps are for ``Standard``
    quick = [
        "--model.prediction=segcft.counterfactual.Standard",
        "--model.optimisation.lr=1.0e-3",
        "--model.minimality=1",
        "--model.soft=false",
    ]
    options = {
        "segmentor": steps(200),
        "evaluator": steps(200, "--model.network=monai.UNet", f"--model.options={UNET}"),
    }
    options |= {"pretrain": steps(250), "nocft": steps(1), "segcft": steps(260, *quick)}
    where = [f"--data.source.root={root}", f"--data.source.masks={masks}", "--data.batch_size=16"]
    check(chain("chexpert", options, *where), floor=14, gain=0.85, outside=0.12)
