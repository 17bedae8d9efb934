"""What is done for speed changes no result; and the scripts that measure it run."""

import json
import os

import pytest
import torch
import yaml
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch import nn
from torch.optim.swa_utils import AveragedModel

from benchmarks import clock, overhead, paths, public, quality, savings, scaling, speed
from data_modules.morphomnist import MorphoMNIST
from segcft.callbacks.ema import Average
from segcft.hvae import convolutions
from segcft.hvae.causal_gen import ParityHVAE
from segcft.hvae.hvae import HVAE
from segcft.hvae.latents import Normal
from segcft.hvae.likelihoods import DiscretisedGaussian
from segcft.hvae.stages import Stage
from segcft.tasks.base import Optimisation, lay_out
from tests import trees

STAGES = [Stage(8, 1, resolution=8), Stage(12, 2, 3), Stage(16, 2, 3)]
TINY = {"chest64": paths.Preset("chest64", 16, 2, 8)}


def gradients(kind, dims, recompute):
    torch.manual_seed(0)
    model = kind(dims, 1, 3, STAGES, conditional_prior=True, recompute=recompute)
    for weight in model.parameters():
        weight.data += 0.05 * torch.randn_like(weight)
    image, pa = torch.rand(2, 1, *[8] * dims) * 2 - 1, torch.randn(2, 3)
    found = model.abduct(image, pa)
    (found.elbo.nelbo().sum() + model.predict(found, pa + 1).loc.sum()).backward()
    return [weight.grad for weight in model.parameters() if weight.grad is not None]


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("kind", [HVAE, ParityHVAE])
@pytest.mark.parametrize("recompute", [4, "activations"])
def test_what_is_computed_anew_gives_the_same_gradient(kind, dims, recompute, monkeypatch):
    monkeypatch.setattr(convolutions, "LARGE", 0)
    plain, again = gradients(kind, dims, 0), gradients(kind, dims, recompute)
    for one, other in zip(plain, again, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
        assert recompute == "activations" or torch.equal(one, other)


@pytest.mark.parametrize("kind", [HVAE, ParityHVAE])
def test_an_exogenous_prior_need_not_be_asked_again(kind):
    found = []
    for way in ("predict", "_decode"):
        torch.manual_seed(0)
        model = kind(2, 1, 3, STAGES)
        for weight in model.parameters():
            weight.data += 0.05 * torch.randn_like(weight)
        image, pa = torch.rand(2, 1, 8, 8) * 2 - 1, torch.randn(2, 3)
        known = model.abduct(image, pa)
        loc = getattr(model, way)(known if way == "predict" else known.latents, pa + 1).loc
        (known.elbo.nelbo().sum() + loc.square().sum()).backward()
        found.append([loc, *(weight.grad for weight in model.parameters() if weight.grad is not None)])
    assert torch.equal(found[0][0], found[1][0])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("recompute", [4, "activations"])
def test_recomputing_keeps_fewer_activations(recompute, monkeypatch):
    monkeypatch.setattr(convolutions, "LARGE", 0)
    kept = []
    for way in (0, recompute):
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x, sizes=sizes: sizes.append(x.numel()) or x, lambda x: x):
            HVAE(2, 1, 3, STAGES, recompute=way).abduct(torch.zeros(2, 1, 8, 8), torch.zeros(2, 3))
        kept.append(sum(sizes))
    assert kept[1] < 0.85 * kept[0]


def step_of_the_systems_allocator():
    assert "LD_PRELOAD" not in os.environ
    return lambda: None


def test_who_is_timed_as_it_comes_has_the_systems_allocator(monkeypatch):
    monkeypatch.setenv("LD_PRELOAD", "libc.so.6")
    side = clock.Side(step_of_the_systems_allocator, hastened=False)
    assert side.ask("step").wall >= 0
    side.close()
    assert os.environ["LD_PRELOAD"] == "libc.so.6"


def test_the_divergence_is_that_of_normals():
    torch.manual_seed(0)
    one, other = (Normal(*torch.randn(2, 4, 3, 5, 5)) for _ in range(2))
    q, p = (torch.distributions.Normal(each.mean, each.log_std.exp()) for each in (one, other))
    torch.testing.assert_close(one.kl(other), torch.distributions.kl_divergence(q, p).flatten(1).sum(1))
    torch.testing.assert_close(one.kl(other), savings.divergence(one, other))
    given = [x.double().requires_grad_() for x in (*one, *other)]
    assert torch.autograd.gradcheck(lambda a, b, c, d: Normal(a, b).kl(Normal(c, d)), given)


def test_noise_does_not_depend_on_the_memory_format():
    statistics = torch.randn(2, 6, 4, 4)
    drawn = []
    for layout in (torch.contiguous_format, torch.channels_last):
        torch.manual_seed(0)
        drawn.append(Normal(*statistics.contiguous(memory_format=layout).chunk(2, 1)).sample(1.0))
    assert torch.equal(*drawn)


def test_posteriors_of_a_stage_share_one_convolution():
    model = ParityHVAE(2, 1, 3, STAGES)
    features = torch.randn(2, 12, 4, 4)
    for block, seen in zip(model.decoder[1], model._look(features, 1), strict=True):
        torch.testing.assert_close(block.look(nn.functional.gelu(features)), seen)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("kind", [HVAE, ParityHVAE])
def test_gradients_are_laid_out_as_their_weights_which_a_fused_step_takes_for_granted(kind, dims):
    layout = torch.channels_last if dims == 2 else torch.channels_last_3d
    model = kind(dims, 1, 3, STAGES)
    for weight in model.parameters():
        if weight.dim() == dims + 2:
            weight.data = weight.data.to(memory_format=layout)
    image = torch.zeros(2, 1, *[8] * dims)
    for _ in range(2):  # gradients may accumulate
        found = model.abduct(image, torch.randn(2, 3))
        (found.elbo.nelbo().mean() + model.predict(found, torch.randn(2, 3)).loc.sum()).backward()
    assert Optimisation().optimiser(model.parameters()).defaults["fused"]
    learning = {name: weight for name, weight in model.named_parameters() if weight.grad is not None}
    assert len(learning) > 40
    for name, weight in learning.items():
        axes = [axis for axis, size in enumerate(weight.shape) if size > 1]
        strides = [[tensor.stride(axis) for axis in axes] for tensor in (weight, weight.grad)]
        assert strides[0] == strides[1], name


def test_a_run_goes_on_with_weights_in_another_layout():
    start, moved = torch.arange(36.0).view(1, 4, 3, 3), []
    for layout in (torch.contiguous_format, torch.channels_last):
        weight = nn.Parameter(start.clone())
        optimiser = Optimisation(lr=0.1).optimiser([weight])
        for _ in range(2):
            weight.grad = torch.sin(weight.detach())
            optimiser.step()
            weight.data = weight.data.to(memory_format=layout)
            lay_out(optimiser)
        moved.append(weight.detach())
    torch.testing.assert_close(*moved)


def test_the_average_is_lightnings():
    averages = []
    for made in (
        lambda model: Average(model, 0.9),
        lambda model: AveragedModel(model, **EMAWeightAveraging(decay=0.9)._kwargs, use_buffers=True),
    ):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4))
        average = made(model)
        for _ in range(3):
            for weight in model.parameters():
                weight.data += torch.randn_like(weight)
            model(torch.randn(2, 1, 5, 5))  # moves what BatchNorm counts
            model[1].running_var = 2 * model[1].running_var  # another tensor in its place
            average.update_parameters(model)
        averages.append(average.state_dict())
    assert averages[0].keys() == averages[1].keys()
    for name, value in averages[0].items():
        torch.testing.assert_close(value, averages[1][name], msg=name)


def test_every_path_is_timed(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(speed, "PRESETS", TINY)
    monkeypatch.setattr(clock, "PEAK_SHAPES", {"cpu": ((1, 8, 8),)})
    given = ["--presets", "chest64", "--settings", "plain", "nchw+bf16+lean", "--rounds", "2", "--warmup", "0"]
    speed.main([*given, "--out", str(tmp_path / "found")])
    rows = json.loads((tmp_path / "found.json").read_text())["rows"]
    assert [row["path"] for row in rows] == ["train"] * 2 + ["finetune"] * 2 + ["generate"] * 2 + ["sweep"] * 2 + [
        "read"
    ]
    for row in rows:
        assert row["cpu_seconds"][1] <= row["cpu_seconds"][0] <= row["cpu_seconds"][2]
        assert row["gflop"] > 0 or row["path"] == "read"
    assert "| chest64 | sweep | 2 | plain |" in (tmp_path / "found.md").read_text()
    capsys.readouterr()
    with pytest.raises(SystemExit, match="unknown setting 'fast'"):
        speed.main(["--settings", "fast"])
    with pytest.raises(SystemExit, match="a checkout of causal-gen is needed"):
        public.imported(tmp_path, "vae")


def test_ratios_are_of_paired_rounds():
    assert clock.ratio([2.0, 6.0, 4.0], [1.0, 2.0, 4.0]) == (2.0, 1.0, 3.0, 2.0)
    asked = []
    steps = {name: lambda name=name: asked.append(name) for name in "ab"}
    spent = clock.alternate(steps, rounds=2, device=torch.device("cpu"))
    assert asked == list("ababab"), "one round warms up"
    assert [len(each) for each in spent.values()] == [2, 2]


def test_runs_take_each_step_in_turn_and_go_on_if_one_ends():
    turns, taken = overhead.Turns(), []

    def run(name, steps):
        for _ in range(steps):
            turns.step()
            taken.append(name)

    spent = turns.all({name: lambda name=name: run(name, 21) for name in "abc"})
    assert taken == list("abc") * 21
    assert {name: len(each) for name, each in spent.items()} == dict.fromkeys("abc", 1)
    with pytest.raises(ZeroDivisionError):
        turns.all({"a": lambda: 1 / 0, "b": lambda: run("b", 21)})
    assert taken[63:] == ["b"] * 21


@pytest.mark.slow
def test_overhead_and_scaling_are_measured(monkeypatch, tmp_path, capsys):
    overhead.main(["--rounds", "1", "--size", "16", "--batch-size", "2"])
    assert "| segcft fit |" in capsys.readouterr().out
    small = ["--batches", "1", "2", "--sizes", "16", "32", "--subjects", "8", "16", "--steps", "10", "--rounds", "1"]
    scaling.main([*small, "--out", str(tmp_path / "cost.png")])
    assert "resident memory" in capsys.readouterr().out
    assert (tmp_path / "cost.png").stat().st_size > 0


@pytest.mark.slow
def test_every_saving_is_undone_and_timed(monkeypatch, capsys):
    small = {name: preset._replace(batch=2) for name, preset in paths.PRESETS.items()}
    monkeypatch.setattr(savings, "PRESETS", small | TINY)
    savings.main(["--rounds=1"])
    rows = capsys.readouterr().out.splitlines()[2:]
    assert [row.split(" | ")[0].strip("| ") for row in rows] == [saving.what for saving in savings.SAVINGS]


def test_the_model_that_races_is_that_of_the_experiment(tmp_path):
    trees.morphomnist(tmp_path, "t10k")
    about = MorphoMNIST(str(tmp_path), held_out=8).description
    file = paths.EXPERIMENTS / "morphomnist/pretrain.yaml"
    declared = yaml.safe_load(file.read_text())["model"]["init_args"]["hvae"]["init_args"]
    stages, levels = [Stage(**stage) for stage in declared["stages"]], DiscretisedGaussian()
    wanted = HVAE(2, 1, about.parents.dim, **(declared | {"stages": stages, "likelihood": levels}), frame=(32, 32))
    assert quality.Ours(about, 2).task.model.hvae.recipe == wanted.recipe


@pytest.mark.slow
def test_quality_for_cost_is_measured(monkeypatch, tmp_path, capsys):
    trees.morphomnist(tmp_path, "t10k")
    about = MorphoMNIST(str(tmp_path), held_out=8).description
    monkeypatch.setattr(quality, "Theirs", lambda *_: quality.Ours(about, 2))
    short = ["--their-steps=2", "--our-steps=4", "--judge-steps=2", "--batch-size=4", "--every=2", "--seeds", "0", "1"]
    quality.main(["--against=.", f"--data={tmp_path}", "--held-out=8", *short, f"--out={tmp_path / 'found'}"])
    found = json.loads((tmp_path / "found.json").read_text())
    assert set(found["judge"]) == {"thickness", "intensity"}
    for one in found["seeds"]:
        assert [step for step, *_ in one["segcft"]["curve"]] == [2, 4]
        goal = one[quality.THEIRS]["curve"][-1][2]
        equal = [step for step, _, nelbo in one["segcft"]["curve"] if nelbo <= goal]
        assert (one["share"] is not None) is bool(equal)
        assert [one[quality.EQUAL]["steps"]] == equal[:1] if equal else quality.EQUAL not in one
        assert 0 < one["segcft"]["curve"][0][1] < one["segcft"]["curve"][1][1] == one["segcft"]["seconds"]
    assert "Share of its CPU seconds" in capsys.readouterr().out
    assert (tmp_path / "found.png").stat().st_size > 0
