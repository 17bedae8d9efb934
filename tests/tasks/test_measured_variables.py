"""Places, ratios and regions guide fine-tuning and are evaluated as areas are, from YAML alone."""

import json
import re
from pathlib import Path

import pytest
import torch
import yaml

from segcft.cli.main import main
from segcft.core.checkpoints import load
from segcft.guidance.guidance import SegmentorGuidance
from segcft.variables.measurements import MEASUREMENTS
from segcft.variables.regions import Region
from segcft.variables.variables import Variable

DATA = """
data:
  class_path: data_modules.chest_phantom.ChestPhantom
  init_args:
    size: 32
    subjects: {train: 16, val: 4, test: 4}
    batch_size: 4
    variables:
      heart_area: {structure: heart, unit: mm^2}
      heart_x: {structure: heart, measure: centroid_x}
      cardiothoracic_ratio: {structure: heart, measure: width, over: left_lung+right_lung}
      upper_left_lung: {structure: left_lung, region: {low: 0, high: 0.5, axis: y, of: structure}}
"""
STAGE = """
experiment: measured
trainer: {{max_steps: 2, logger: false, accelerator: cpu, devices: 1}}
model:
  class_path: segcft.tasks.{task}
  init_args: {arguments}
"""
JUDGE = "network: monai.UNet, options: {channels: [4, 8], strides: [2], norm: batch}"
STAGES = {
    "segmentor": ("TrainSegmentor", f"{{{JUDGE}}}"),
    "evaluator": ("TrainSegmentor", f"{{{JUDGE}, stage: evaluator}}"),
    "pretrain": (
        "PretrainHVAE",
        "{hvae: {class_path: segcft.hvae.HVAE, init_args: {stages: ["
        "{width: 8, blocks: 0}, {resolution: 4, width: 8, latent_channels: 2}]}}}",
    ),
    "segcft": (
        "CounterfactualFineTuning",
        "{pretrained: checkpoints/measured/pretrain/last.ckpt, guidance: {class_path: SegmentorGuidance, "
        "init_args: {judge: checkpoints/measured/segmentor/last.ckpt}}}",
    ),
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("measured")
    (folder / "data.yaml").write_text(DATA)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for stage, (task, arguments) in STAGES.items():
            (folder / f"{stage}.yaml").write_text(STAGE.format(task=task, arguments=arguments))
            assert main(["fit", "--config=data.yaml", f"--config={stage}.yaml"]) == 0, stage
    return folder


def test_checkpoints_carry_what_is_measured(trained):
    guidance = load(trained / "checkpoints/measured/segcft/last.ckpt", SegmentorGuidance)
    about = guidance.judge.description
    assert guidance.names == ["heart_area", "heart_x", "cardiothoracic_ratio", "upper_left_lung"]
    assert about.parents["upper_left_lung"].region == Region(0, 0.5, "y", "structure")
    assert about.parents["heart_x"].unit == "mm"
    image = torch.rand(2, 1, 32, 32).requires_grad_()
    measured = guidance(image, torch.rand(2, 1, 32, 32))
    for name in guidance.names:
        (gradient,) = torch.autograd.grad(measured[name].sum(), image, retain_graph=True)
        assert gradient.isfinite().all(), name


def test_evaluation_knows_the_truth_where_the_phantom_can_draw_it(trained, monkeypatch):
    monkeypatch.chdir(trained)
    methods = "{seg_cft: checkpoints/measured/segcft/last.ckpt}"
    evaluator = "--evaluator=checkpoints/measured/evaluator/last.ckpt"
    arguments = ["--config=data.yaml", evaluator, f"--methods={methods}", "--subjects=4", "--out=out"]
    assert main(["evaluate", *arguments]) == 0
    found = json.loads((trained / "out/metrics.json").read_text())
    assert set(found["methods"]["seg_cft"]["effectiveness"]) == {
        "heart_area", "heart_x", "cardiothoracic_ratio", "upper_left_lung",
    }  # fmt: skip
    assert set(found["identity"]["truth"]) == {"heart_area", "heart_x"}


def test_a_segmentor_reports_how_much_softness_adds(trained, monkeypatch, capsys):
    monkeypatch.chdir(trained)
    checkpoint = "--ckpt_path=checkpoints/measured/segmentor/last.ckpt"
    assert main(["validate", "--config=data.yaml", "--config=segmentor.yaml", checkpoint]) == 0
    shown = capsys.readouterr().out
    assert "soft_bias_heart_x" in shown
    assert "soft_bias_upper_left_lung" in shown


def test_every_measure_is_documented_with_a_line_that_works():
    text = (Path(__file__).parents[2] / "docs/measurements.md").read_text()
    for line in re.findall(r"`(\w+: \{structure: .*\})`", text):
        ((name, given),) = yaml.safe_load(line).items()
        assert Variable(**given).measure in MEASUREMENTS, name
    for name in MEASUREMENTS:
        stem, _, axis = name.partition("_")
        assert f"`{stem}_x`" in text if axis else f"| `{name}`" in text, name
