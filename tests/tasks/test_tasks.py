"""The training stages on discs and balls, through the command line."""

import shutil
from itertools import pairwise

import pytest
import torch
from torch._dynamo.utils import counters

from segcft.cli.main import main
from segcft.core.checkpoints import load
from segcft.counterfactual.model import CounterfactualModel
from segcft.counterfactual.prediction import Gated, Transported, Warped
from segcft.guidance.guidance import EnsembleGuidance, NoGuidance
from segcft.guidance.judges import Segmentor
from segcft.guidance.losses import guidance_loss
from segcft.tasks import CounterfactualFineTuning, Optimisation, Task, finetune
from tests.balls import Balls

CONFIG = """
experiment: balls
data: {{class_path: tests.balls.Balls, init_args: {{spatial_dims: {dims}, subjects: 24}}}}
trainer:
  max_steps: 3
  logger: false
  accelerator: cpu
  devices: 1
  callbacks: [{{class_path: EMAWeightAveraging, init_args: {{decay: 0.5}}}}]
model:
  class_path: segcft.tasks.{task}
  init_args: {arguments}
"""
UNET = "{network: monai.UNet, options: {channels: [4, 8], strides: [2], norm: batch}}"
HVAE = (
    "{hvae: {class_path: segcft.hvae.HVAE, init_args: {stages: ["
    "{width: 8, blocks: 0}, {resolution: 4, width: 8, latent_channels: 2}]}}}"
)
GUIDED = (
    "{pretrained: checkpoints/balls/pretrain/last.ckpt, guidance: {class_path: SegmentorGuidance, "
    "init_args: {judge: checkpoints/balls/segmentor/last.ckpt}}}"
)
STAGES = [
    ("segmentor", "TrainSegmentor", UNET),
    ("pretrain", "PretrainHVAE", HVAE),
    ("segcft", "CounterfactualFineTuning", GUIDED),
]


def run(folder, command, dims, stage, *more):
    task, arguments = next((task, arguments) for name, task, arguments in STAGES if name == stage)
    path = folder / f"{stage}{dims}.yaml"
    path.write_text(CONFIG.format(dims=dims, task=task, arguments=arguments))
    assert main([command, f"--config={path}", *more]) == 0


@pytest.fixture(scope="module", params=[2, 3], ids=["2d", "3d"])
def trained(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("balls")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for stage, _, _ in STAGES:
            run(folder, "fit", request.param, stage)
    return folder, request.param


def test_the_whole_chain_trains_in_two_and_three_dimensions(trained):
    folder, dims = trained
    content = torch.load(folder / "checkpoints/balls/segcft/last.ckpt", weights_only=True)
    assert set(content["segcft"]["seconds"]) == {"segmentor", "pretrain", "segcft"}
    assert torch.isfinite(content["state_dict"]["constraint.bound"]), "the bound is stored"
    before, after = (
        load(folder / f"checkpoints/balls/{s}/last.ckpt", CounterfactualModel) for s in ("pretrain", "segcft")
    )
    assert after.description.spatial_dims == dims
    moved = [n for n, w in before.state_dict().items() if not torch.equal(w, after.state_dict()[n])]
    assert any("head" in name for name in moved)
    judge = torch.load(folder / "checkpoints/balls/segmentor/last.ckpt", weights_only=True)["state_dict"]
    for name, weight in judge.items():
        assert torch.equal(weight, content["state_dict"][f"guidance.{name}"]), "the judge never learns"


def test_what_a_change_costs_rises_over_the_annealing(trained, monkeypatch):
    folder, dims = trained
    monkeypatch.chdir(folder)
    gates, others = [], []

    def judged(*given):
        others.append(float(given[-1]))
        return guidance_loss(*given)

    monkeypatch.setattr(Gated, "anneal", lambda gate, share: gates.append(share))
    monkeypatch.setattr(finetune, "guidance_loss", judged)
    new = ("--experiment=annealed", "--trainer.max_steps=5", "--trainer.limit_val_batches=0")
    run(folder, "fit", dims, "segcft", *new, "--model.init_args.annealing=0.8", "--model.init_args.specificity=2")
    assert gates == pytest.approx([0.25, 0.5, 0.75, 1, 1])
    assert others == pytest.approx([1 + share for share in gates])
    with pytest.raises(ValueError, match="annealing is a fraction of all steps, between 0 and 1, got 2"):
        CounterfactualFineTuning(Balls().description, "any.ckpt", NoGuidance(), annealing=2)


def test_carried_masks_guide_the_flow_alone_and_only_where_one_carries_the_image(trained):
    """A flow that moves nothing misses its target by what was asked; its gradient reaches the velocity."""
    folder, dims = trained
    data = Balls(spatial_dims=dims)
    path = str(folder / "checkpoints/balls/pretrain/last.ckpt")
    batch = next(iter(data.loader("train")))
    do = {"left_size": 1.2 * batch["left_size"]}
    for prediction, flows in ((Warped(stage=1, fade=0), True), (Gated(), False), (Transported(stage=1), False)):
        task = CounterfactualFineTuning(
            data.description, path, NoGuidance(), prediction, carried=1.0, elsewhere=1.0, optimisation=Optimisation()
        )
        terms, _ = task.terms(batch, do)
        assert ("carried" in terms) is ("elsewhere" in terms) is flows
        if flows:
            terms["carried"].backward()
            assert terms["carried"] > 0
            reached = [weight.grad is not None for weight in task.model.prediction.velocity.parameters()]
            assert all(reached)
    quiet = CounterfactualFineTuning(data.description, path, NoGuidance(), Warped(stage=1))
    assert "carried" not in quiet.terms(batch, do)[0], "nobody asked"


def test_the_last_step_is_kept_even_if_it_was_not_validated(trained, monkeypatch):
    folder, dims = trained
    monkeypatch.chdir(folder)
    for option in ("--trainer.check_val_every_n_epoch=2", "--trainer.limit_val_batches=0"):
        run(folder, "fit", dims, "segmentor", "--experiment=unseen", "--trainer.max_steps=4", option)
        content = torch.load(folder / "checkpoints/unseen/segmentor/last.ckpt", weights_only=True)
        assert content["global_step"] == 4


def test_validate_test_and_predict_read_a_checkpoint(trained, monkeypatch):
    folder, dims = trained
    monkeypatch.chdir(folder)
    checkpoint = "--ckpt_path=checkpoints/balls/segcft/last.ckpt"
    for command in ("validate", "test", "predict"):
        run(folder, command, dims, "segcft", checkpoint)
    run(folder, "predict", dims, "segmentor", "--ckpt_path=checkpoints/balls/segmentor/last.ckpt")
    images = torch.load(folder / "predictions/balls/segcft/0-00000.pt", weights_only=True)
    assert images["image"].shape == (8, 1, *[16] * dims)
    assert images["do_left_size"].isnan().sum() + images["do_right_size"].isnan().sum() == 8
    assert set(torch.load(folder / "predictions/balls/segmentor/0-00002.pt")) == {"index", "left_size", "right_size"}


def test_resuming_goes_on_from_the_bound_and_the_clock(trained, monkeypatch):
    folder, dims = trained
    monkeypatch.chdir(folder)
    path = folder / "checkpoints/balls/segcft/last.ckpt"
    before = torch.load(path, weights_only=True)
    run(folder, "fit", dims, "segcft", f"--ckpt_path={path}", "--trainer.max_steps=5")
    after = torch.load(path, weights_only=True)
    assert after["global_step"] == 5
    assert after["current_model_state"]["constraint.bound"] == before["current_model_state"]["constraint.bound"]
    assert after["segcft"]["seconds"]["segcft"] > before["segcft"]["seconds"]["segcft"]


def test_learning_rate_warms_up_from_the_first_step_stays_and_falls_to_zero():
    plan = Optimisation(lr=1.0, warmup_steps=10, flat=0.5)
    factors = [plan.factor(step, 100) for step in range(101)]
    assert 0 < factors[0] < factors[5] < factors[9] == 1
    assert set(factors[9:51]) == {1}
    assert all(late < early for early, late in pairwise(factors[51:]))
    assert factors[100] == pytest.approx(0)


def guided(folder, dims, experiment, guidance, *more):
    run(folder, "fit", dims, "segcft", f"--experiment={experiment}", f"--model.init_args.guidance={guidance}", *more)
    path = folder / f"checkpoints/{experiment}/segcft/last.ckpt"
    return path, torch.load(path, weights_only=True)["state_dict"]


def test_a_co_trained_segmentor_learns_beside_the_model_and_travels_with_it(trained, monkeypatch):
    folder, dims = trained
    monkeypatch.chdir(folder)
    judge = "checkpoints/balls/segmentor/last.ckpt"
    guidance = f"{{class_path: CoTrainedGuidance, init_args: {{judge: {judge}}}}}"
    path, state = guided(folder, dims, "cotrained", guidance)
    before = torch.load(judge, weights_only=True)["state_dict"]
    for name, value in before.items():
        learns = not name.endswith(("running_mean", "running_var", "num_batches_tracked"))
        assert torch.equal(value, state[f"guidance.{name}"]) != learns, "weights learn, statistics stay"
    found = CounterfactualModel.load(path).segmentor
    assert all(torch.equal(value, state[f"guidance.judge.{name}"]) for name, value in found.state_dict().items())
    run(folder, "fit", dims, "segcft", "--experiment=cotrained", f"--model.init_args.guidance={guidance}",
        f"--ckpt_path={path}", "--trainer.max_steps=4")  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_an_ensemble_with_a_segmentor_made_elsewhere_guides_and_evaluates(trained, monkeypatch):
    folder, dims = trained
    monkeypatch.chdir(folder)
    network = load("checkpoints/balls/segmentor/last.ckpt", Segmentor).eval().network
    torch.jit.trace(network, torch.zeros(1, 1, *[16] * dims)).save("elsewhere.ts")
    judge = (
        "{class_path: segcft.guidance.ExternalSegmentor, init_args: {network: elsewhere.ts, "
        "channels: {left: 0, right: 1}, input: {window: [-1, 1], range: [-1, 1]}}}"
    )
    members = (
        "{class_path: SegmentorGuidance, init_args: {judge: checkpoints/balls/segmentor/last.ckpt}}",
        f"{{class_path: SegmentorGuidance, init_args: {{judge: {judge}}}}}",
    )
    guidance = f"{{class_path: EnsembleGuidance, init_args: {{members: [{', '.join(members)}]}}}}"
    path, _ = guided(folder, dims, "ensemble", guidance)
    data = ["--data=tests.balls.Balls", f"--data.spatial_dims={dims}", "--data.subjects=24"]
    options = ["--out=out", "--subjects=4", f"--methods={{both: {path}}}", f"--evaluator={judge}"]
    assert main(["evaluate", *data, *options]) == 0
    guided(folder, dims, "ensemble", guidance, f"--ckpt_path={path}", "--trainer.max_steps=4")
    (folder / "elsewhere.ts").unlink()
    assert load(path, EnsembleGuidance).names == ["left_size", "right_size"]


def test_an_unknown_way_to_compile_is_refused():
    with pytest.raises(ValueError, match="compile must be default or reduce-overhead, or empty, got 'fast'"):
        Optimisation(compile="fast")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_steps_learn_what_steps_learn(tmp_path, monkeypatch):
    learnt = {}
    for mode in ("", "default"):
        folder = tmp_path / (mode or "plain")
        folder.mkdir()
        monkeypatch.chdir(folder)
        run(folder, "fit", 2, "segmentor")
        for stage in ("pretrain", "segcft"):
            before = counters["stats"]["unique_graphs"]
            run(folder, "fit", 2, stage, "--seed_everything=0", f"--model.optimisation.compile={mode}")
            assert (counters["stats"]["unique_graphs"] > before) == bool(mode), stage
            content = torch.load(f"checkpoints/balls/{stage}/last.ckpt", weights_only=True)
            learnt[stage, mode] = content["state_dict"]
    for stage in ("pretrain", "segcft"):
        for name, weight in learnt[stage, ""].items():
            torch.testing.assert_close(learnt[stage, "default"][name], weight, rtol=1e-3, atol=1e-4)


def test_validation_does_not_depend_on_how_subjects_share_batches(trained, monkeypatch):
    """As several processes share them out unevenly; every task with chance, partners or a loss of whole batches."""
    folder, dims = trained
    monkeypatch.chdir(folder)
    for stage, _, _ in STAGES:
        found = []
        for size in (24, 5):
            seen = {}
            with monkeypatch.context() as patch:
                patch.setattr(
                    Task, "on_validation_end", lambda self, seen=seen: seen.update(self.trainer.callback_metrics)
                )
                checkpoint = f"--ckpt_path=checkpoints/balls/{stage}/last.ckpt"
                run(folder, "validate", dims, stage, checkpoint, f"--data.init_args.batch_size={size}")
            found.append({name: float(value) for name, value in seen.items() if name.startswith("val/")})
        assert found[0], stage
        assert found[1] == pytest.approx(found[0], rel=1e-5, abs=1e-6), stage
