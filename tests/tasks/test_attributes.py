"""Learning how the parents of the chest phantom cause each other, against the truth, and without a film."""

import math

import pytest
import torch

from data_modules.chest_phantom import MECHANISMS, NOISE_REACH, ChestPhantom, ChestPhantomDataset
from segcft.causal.structural_causal_model import Mechanism, StructuralCausalModel
from segcft.cli.main import main
from segcft.core import checkpoints
from tests.test_experiments import QUICK, configs

HELD_OUT = 4000


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """The model fitted by the experiment's YAML, without a film being read."""
    folder = tmp_path_factory.mktemp("attributes")
    refuse = lambda *_: pytest.fail("an image was read")  # noqa: E731
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name in ("read", "draw", "_drawn"):
            patch.setattr(ChestPhantomDataset, name, refuse)
        sizes = ["--data.init_args.num_workers=1", "--trainer.logger=false"]
        assert main(["fit", *configs("chest_phantom", "attributes"), *sizes, *QUICK]) == 0
        where = "--ckpt_path=checkpoints/chest_phantom/attributes/last.ckpt"
        for command in ("validate", "test", "predict"):
            assert main([command, *configs("chest_phantom", "attributes"), *sizes, *QUICK, where]) == 0
    return folder


@pytest.fixture(scope="module")
def model(fitted):
    return checkpoints.load(fitted / "checkpoints/chest_phantom/attributes/last.ckpt", Mechanism).eval()


@pytest.fixture(scope="module")
def held_out():
    return ChestPhantomDataset("test", 16, HELD_OUT)


def test_the_checkpoint_opens_safely_and_predictions_are_values(fitted, model):
    content = torch.load(fitted / "checkpoints/chest_phantom/attributes/last.ckpt", weights_only=True)
    assert set(content["segcft"]["parts"]) == {"mechanism"}
    assert content["segcft"]["seconds"]["attributes"] > 0
    assert isinstance(model, StructuralCausalModel)
    found = torch.load(fitted / "predictions/chest_phantom/attributes/0-00000.pt", weights_only=True)
    names = set(model.parents.names)
    assert set(found) == {"index", *names, *(f"do_{name}" for name in names)}
    assert found["heart_area"].shape == (1000,)


@pytest.mark.parametrize(("cause", "low", "high"), [("sex", 0.0, 1.0), ("age", 35.0, 75.0)])
def test_total_effects_are_within_ten_per_cent_of_the_truth(model, held_out, cause, low, high):
    before, after = (
        model.counterfactual(held_out.attributes, {cause: torch.full((HELD_OUT,), at)}) for at in (low, high)
    )
    for name, mechanism in MECHANISMS.items():
        true = mechanism.sex if cause == "sex" else 2 * mechanism.age
        assert (after[name] / before[name]).log().mean().item() == pytest.approx(true, rel=0.1), name


def test_counterfactual_areas_of_the_held_out_are_those_of_the_phantom(model, held_out):
    values = held_out.attributes
    torch.manual_seed(0)
    do = {"age": values["age"][torch.randperm(HELD_OUT)], "sex": values["sex"][torch.randperm(HELD_OUT)]}
    found, true = model.counterfactual(values, do), held_out.intervened(values, do)
    for name in MECHANISMS:
        missed = (found[name] - true[name]).square().sum()
        assert 1 - missed / (true[name] - true[name].mean()).square().sum() >= 0.95
        change = true[name] - values[name]
        assert 1 - missed / (change - change.mean()).square().sum() >= 0.95, "of the change alone, too"


def test_likelihood_beats_a_linear_gaussian_and_nears_the_generating_density(model, held_out):
    values = held_out.attributes
    with torch.no_grad():
        ours = model.log_prob(values).mean()
    assert ours >= linear_gaussian(ChestPhantomDataset("train", 16, 20_000).attributes, values).mean()
    assert ours >= generating(values).mean() - 0.05


def generating(values):
    """Log density of the phantom's own causal model, (N,) in nats."""
    reach = math.erf(NOISE_REACH / 2**0.5)
    total = torch.full((HELD_OUT,), math.log(0.5 / 70), dtype=torch.float64)
    for name, mechanism in MECHANISMS.items():
        area, effect = values[name].double(), mechanism.effect(values["sex"].double(), values["age"].double())
        noise = ((area / mechanism.base).log() - effect) / mechanism.noise
        total += -0.5 * noise**2 - (area * mechanism.noise * reach * (2 * math.pi) ** 0.5).log()
    return total


def linear_gaussian(train, values):
    """Log density of Bernoulli sex, normal age and log areas linear in both, fitted by least squares, (N,) in nats."""

    def design(table):
        return torch.stack([torch.ones_like(table["age"]), table["sex"], table["age"]], 1).double()

    def normal(at, mean, std):
        return -0.5 * ((at - mean) / std) ** 2 - math.log(std * (2 * math.pi) ** 0.5)

    share = train["sex"].double().mean()
    total = torch.where(values["sex"] > 0, share, 1 - share).log()
    total = total + normal(values["age"].double(), train["age"].double().mean(), train["age"].double().std().item())
    for name in MECHANISMS:
        logs = train[name].double().log()
        weights = torch.linalg.lstsq(design(train), logs[:, None]).solution
        spread = (logs - (design(train) @ weights)[:, 0]).std().item()
        logs = values[name].double().log()
        total = total + normal(logs, (design(values) @ weights)[:, 0], spread) - logs
    return total


def test_the_data_module_gives_images_again_afterwards():
    data = ChestPhantom(size=16, subjects={"train": 8, "val": 4, "test": 4}, batch_size=4)
    data.attributes_only = True
    assert set(next(iter(data.train_dataloader()))) == {"index", *data.variables}
    assert "image" not in next(iter(data.val_dataloader()))
    data.attributes_only = False
    assert "image" in next(iter(data.train_dataloader()))
