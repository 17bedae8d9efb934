"""What TensorBoard is promised is in the event file, of every stage."""

import math

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from segcft.cli import main
from segcft.hvae import HVAE, Stage
from segcft.tasks.board import flat, memory
from segcft.tasks.pictures import grid, scatter, used
from tests.tasks.test_tasks import CONFIG, STAGES

PACE = {"pace/images_per_second", "pace/memory_gib", "health/waiting", "health/gradient", "lr-AdamW"}
BOUND = {f"train/{name}" for name in ("nelbo", "nll", "kl", "kl_4x4", "loss")} | {"val/nelbo", "latents/used_4x4"}
PROMISED = {
    "segmentor": ({"train/loss", "val/loss"}, {"asked_and_measured"}),
    "pretrain": (BOUND, {"counterfactuals", "samples"}),
    "segcft": (
        BOUND | {f"train/{name}" for name in ("guidance", "shape", "change", "multiplier")} | {"val/guidance"},
        {"counterfactuals", "samples", "asked_and_measured"},
    ),
}


@pytest.fixture(scope="module")
def logged(tmp_path_factory):
    folder = tmp_path_factory.mktemp("board")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for stage, task, arguments in STAGES:
            text = CONFIG.format(dims=2, task=task, arguments=arguments).replace("  logger: false\n", "")
            (folder / f"{stage}.yaml").write_text(text)
            options = ["--trainer.log_every_n_steps=1", f"--model.init_args.stage={stage}"]
            assert main(["fit", f"--config={folder / f'{stage}.yaml'}", *options]) == 0
    return folder


@pytest.mark.parametrize("stage", list(PROMISED))
def test_every_promised_tag_is_there(logged, stage):
    scalars, images = PROMISED[stage]
    found = EventAccumulator(str(logged / f"logs/balls/{stage}/version_0"))
    found.Reload()
    tags = found.Tags()
    assert scalars | PACE <= set(tags["scalars"])
    assert images <= set(tags["images"])
    assert {"custom_scalars__config__", "config/text_summary", "causal_graph/text_summary"} <= set(tags["tensors"])
    for name in scalars | PACE:
        assert all(math.isfinite(event.value) for event in found.Scalars(name)), name
    assert [event.step for event in found.Scalars("pace/images_per_second")] == [1, 2, 3]
    assert len(found.Scalars("health/gradient")) == 3
    assert all(0 <= event.value <= 1 for event in found.Scalars("health/waiting"))
    text = found.Tensors("causal_graph/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "left_size, right_size, age → image" in text
    assert "optimisation" in found.Tensors("config/text_summary")[0].tensor_proto.string_val[0].decode()
    starts = found.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    assert b"trainer.max_steps" in starts
    assert b"val/" in found.SummaryMetadata("_hparams_/experiment").plugin_data.content


def test_pictures_take_nothing_from_the_training_generator(logged, monkeypatch):
    monkeypatch.chdir(logged)
    options = ["--trainer.max_steps=6", "--trainer.check_val_every_n_epoch=1", "--experiment=again"]
    weights = []
    for logger in ("null", "false"):
        assert main(["fit", "--config=pretrain.yaml", *options, f"--trainer.logger={logger}"]) == 0
        content = torch.load("checkpoints/again/pretrain/last.ckpt", weights_only=True)
        weights.append(content["current_model_state"])
    for name, value in weights[0].items():
        assert torch.equal(value, weights[1][name]), name


def test_parts():
    assert flat({"a": {"b": True}, "c": list(range(100)), "d": "x"}) == {"a.b": True, "d": "x"}
    assert 0.01 < memory(torch.device("cpu")) < 1000
    assert grid([torch.zeros(3, 1, 4, 5), torch.ones(3, 1, 4, 5)]).shape == (1, 8, 15)
    assert grid([torch.zeros(2, 1, 3, 4, 5)]).shape == (1, 4, 10)
    picture = scatter({"a": (torch.rand(5), torch.rand(5)), "b": (torch.zeros(0), torch.zeros(0))})
    assert picture.shape[2] == 3
    hvae = HVAE(2, 1, 1, [Stage(16, 8, 0), Stage(4, 8, latent_channels=2)])
    with torch.no_grad():
        same = hvae.abduct(torch.zeros(4, 1, 16, 16), torch.zeros(4, 1), 0.0, 1)
    assert used(same) == {"4x4": 0.0}, "equal images, equal latents"
