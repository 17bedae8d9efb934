"""Every task through the command line, one after the other in the same processes: what launchers start in tests.

    torchrun --nproc_per_node=2 tests/stages.py --trainer.accelerator=cpu

Reads NAME.yaml of every stage where it is started; ``write`` puts them there.
"""

import sys
from pathlib import Path

from segcft.cli.main import main

HVAE = (
    "hvae: {class_path: segcft.hvae.HVAE, init_args: {stages: ["
    "{width: 8, blocks: 0}, {resolution: 4, width: 8, latent_channels: 2}]}}"
)


def tuned(guidance, judge=""):
    given = f"init_args: {{judge: checkpoints/balls/{judge}/last.ckpt}}" if judge else "init_args: {}"
    return f"pretrained: checkpoints/balls/pretrain/last.ckpt, guidance: {{class_path: {guidance}, {given}}}"


STAGES = {  # each finds the checkpoints that it needs
    "attributes": ("TrainAttributes", "graph: {left_size: [age]}"),
    "segmentor": ("TrainSegmentor", "network: monai.UNet, options: {channels: [4, 8], strides: [2], norm: batch}"),
    "regressor": ("TrainRegressor", "widths: [4, 8]"),
    "pretrain": ("PretrainHVAE", HVAE),
    "nocft": ("CounterfactualFineTuning", tuned("NoGuidance")),
    "regcft": ("CounterfactualFineTuning", tuned("RegressorGuidance", "regressor")),
    "segcft": ("CounterfactualFineTuning", tuned("SegmentorGuidance", "segmentor")),
    "cotrained": ("CounterfactualFineTuning", tuned("CoTrainedGuidance", "segmentor")),
}
CONFIG = """
experiment: balls
data: {{class_path: tests.balls.Balls, init_args: {{subjects: {subjects}, batch_size: 4}}}}
trainer: {{max_steps: {steps}, logger: false, callbacks: [
  {{class_path: segcft.callbacks.EMA, init_args: {{decay: 0.5}}}}]}}
model: {{class_path: segcft.tasks.{task}, init_args: {{stage: {name}, {arguments}}}}}
"""


def write(folder, names=tuple(STAGES), subjects=24, steps=3):
    """A configuration a stage."""
    for name in names:
        task, arguments = STAGES[name]
        text = CONFIG.format(name=name, task=task, arguments=arguments, subjects=subjects, steps=steps)
        Path(folder, f"{name}.yaml").write_text(text)


if __name__ == "__main__":
    for stage in STAGES:
        if code := main(["fit", f"--config={stage}.yaml", *sys.argv[1:]]):
            sys.exit(code)
