"""Short trainings that must learn: on phantoms, and on real radiographs where they are at hand."""

import json
from pathlib import Path

import pytest

from segcft.cli import main

ROOT = Path(__file__).parents[1] / "experiments"
STEPS = {"segmentor": 150, "evaluator": 120, "pretrain": 200, "nocft": 1, "segcft": 80}


def chain(experiment, *more):
    """Train every stage of Seg-CFT for a few steps and evaluate; returns metrics.json."""
    shared = [f"--config={ROOT / experiment}/data.yaml", "--trainer.accelerator=cpu", "--trainer.logger=false", *more]
    for stage, steps in STEPS.items():
        options = [f"--config={ROOT / experiment / stage}.yaml", f"--trainer.max_steps={steps}"]
        assert main(["fit", *shared[:1], *options, *shared[1:], "--trainer.limit_val_batches=0"]) == 0, stage
    methods = {"no_cft": "nocft", "seg_cft": "segcft"}
    paths = {name: f"checkpoints/{experiment}/{stage}/last.ckpt" for name, stage in methods.items()}
    options = [f"--config={ROOT / experiment}/evaluate.yaml", f"--methods={json.dumps(paths)}", "--out=out"]
    assert main(["evaluate", *shared[:1], *options, *more, "--subjects=64", "--split=val"]) == 0
    return json.loads(Path("out/metrics.json").read_text())


def check(found, floor, gain):
    """Effective, local, and reversible; ``gain`` is the share of the unchanged image's error that may be left."""
    seg, no, identity = found["methods"]["seg_cft"], found["methods"]["no_cft"], found["identity"]
    for name in ("left_lung_area", "right_lung_area"):
        assert found["evaluator_floor"][name] < floor, "the evaluator can judge"
        effect = {k: r["effectiveness"][name] for k, r in {"seg": seg, "no": no, "identity": identity}.items()}
        assert effect["seg"]["mape"] < gain * effect["identity"]["mape"]
        assert effect["seg"]["slope"] > effect["no"]["slope"] + 0.05
        assert seg["locality"][name] < 0.03
        assert seg["reversibility"][name] < 0.06
    assert seg["composition"] < 1e-4


@pytest.mark.slow
def test_seg_cft_moves_the_lungs_of_phantoms_towards_the_truth(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = chain("chest_phantom", "--data.init_args.subjects={train: 800, val: 64, test: 8}")
    check(found, floor=4, gain=0.75)
    truth, unchanged = found["methods"]["seg_cft"]["truth"], found["identity"]["truth"]
    for name in ("left_lung_area", "right_lung_area"):
        assert truth[name]["mae_neighbourhood"] < unchanged[name]["mae_neighbourhood"]


@pytest.mark.slow
def test_seg_cft_moves_the_lungs_of_real_radiographs(real_tree, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root, masks = real_tree
    check(chain("chexpert", f"--data.source.root={root}", f"--data.source.masks={masks}"), floor=14, gain=0.95)
