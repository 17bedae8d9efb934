"""Laws of the structural causal model above the image."""

import math
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from segcft.causal.mechanisms import GumbelMax, SplineFlow
from segcft.causal.structural_causal_model import Independent, Mechanism, StructuralCausalModel, opened
from segcft.core import checkpoints
from segcft.counterfactual.model import CounterfactualModel
from segcft.hvae.hvae import HVAE
from segcft.hvae.stages import Stage
from segcft.variables.variables import DataDescription, Parents, Variable

VARIABLES = {
    "area": Variable(unit="mm^2", structure="lung", low=9000, high=34000, mean=18000, std=3600),
    "view": Variable("categorical", categories=("AP", "PA", "LL"), low=0, high=2),
    "sex": Variable("binary", low=0, high=1),
    "age": Variable(unit="years", low=20, high=90, mean=55, std=20),
    "finding": Variable("binary", low=0, high=1),
}
GRAPH = {"area": ["sex", "age", "finding"], "finding": ["age", "view"], "view": ["age"]}
PARENTS = Parents(VARIABLES)
seeds = st.integers(0, 10_000)


def make(seed=0, size=1.0, graph=None):
    torch.manual_seed(seed)
    model = StructuralCausalModel(PARENTS, GRAPH if graph is None else graph)
    for weight in model.parameters():
        weight.data += size * torch.randn_like(weight) / max(1, weight.shape[-1]) ** 0.5
    return model.eval()


def cohort(count=64, seed=0):
    torch.manual_seed(seed)
    drawn = {"area": 18000 * (0.2 * torch.randn(count)).exp(), "age": 20 + 70 * torch.rand(count)}
    kinds = {"sex": 2, "finding": 2, "view": 3}
    return drawn | {name: torch.randint(kinds[name], (count,)).float() for name in kinds}


def same(found, values, names=VARIABLES):
    return all(torch.equal(found[name], values[name]) for name in names)


@settings(max_examples=25, deadline=None)
@given(seeds, st.floats(0, 3))
def test_nothing_asked_or_what_is_there_asked_changes_no_bit(seed, size):
    model, values = make(seed, size), cohort(seed=seed)
    for do in ({}, values, {"age": torch.full((64,), torch.nan)}, {"age": values["age"]}):
        assert same(model.counterfactual(values, do), values)
    twice = {name: value.double() for name, value in values.items()}
    assert same(model.counterfactual(twice, {}), twice), "and the precision stays"


@settings(max_examples=25, deadline=None)
@given(seeds, st.sampled_from(sorted(VARIABLES)))
def test_only_effects_of_what_moved_can_move(seed, asked):
    effects = {"area": [], "finding": ["area"], "view": ["finding", "area"], "sex": ["area"]}
    effects["age"] = ["view", "finding", "area"]
    model, values, other = make(seed), cohort(seed=seed), cohort(seed=seed + 1)
    do = torch.where(torch.arange(64) % 2 == 0, other[asked], torch.nan)
    found = model.counterfactual(values, {asked: do})
    assert torch.equal(found[asked][::2], other[asked][::2])
    assert same(found, values, set(VARIABLES) - {asked, *effects[asked]})
    assert all(torch.equal(found[name][1::2], values[name][1::2]) for name in VARIABLES), "each subject its own do"
    if asked in ("age", "sex"):
        assert not torch.equal(found["area"], values["area"])
    assert list(found) == list(VARIABLES)


def test_an_intervention_on_an_effect_cuts_it_from_its_causes():
    model, values, other = make(), cohort(), cohort(seed=1)
    found = model.counterfactual(values, {"age": other["age"], "view": values["view"], "finding": values["finding"]})
    assert same(found, values, ["view", "finding", "sex"])
    held = model.counterfactual(values, {"age": other["age"], "area": values["area"]})
    assert torch.equal(held["area"], values["area"])


def test_there_and_back_returns_and_noise_decides_all():
    model, values, other = make(graph={"area": ["sex", "age"], "age": ["sex"]}), cohort(), cohort(seed=1)
    there = model.counterfactual(values, {"sex": 1 - values["sex"]})
    assert (there["area"] / values["area"] - 1).abs().mean() > 0.01
    back = model.counterfactual(there, {"sex": values["sex"]})
    torch.testing.assert_close(back["area"], values["area"], rtol=1e-5, atol=0)
    torch.testing.assert_close(back["age"], values["age"], rtol=1e-5, atol=0)
    model = make()
    noise = model.abduct(values)
    assert {name: tuple(part.shape) for name, part in noise.items()} == {
        **{"sex": (64,), "age": (64,)},
        **{"view": (64, 4), "finding": (64, 3), "area": (64, 2)},
    }
    first, again = (model.predict(noise, {"age": other["age"]}) for _ in range(2))
    assert same(first, again)


@settings(max_examples=50, deadline=None)
@given(seeds, st.floats(0, 3), st.booleans())
def test_flows_are_monotone_and_invert_even_beyond_the_splines_box(seed, size, positive):
    torch.manual_seed(seed)
    flow = SplineFlow(VARIABLES["area"] if positive else VARIABLES["age"], 2, positive, 16, 8)
    for weight in flow.parameters():
        weight.data += size * torch.randn_like(weight)
    causes = torch.randn(1, 2).expand(201, 2)
    z = torch.linspace(-12, 12, 201, dtype=torch.float64)
    value = (z * flow.std + flow.mean).exp() if positive else z * flow.std + flow.mean
    noise = flow.abduct(value, causes)
    assert (noise[:, 0].diff() > 0).all()
    torch.testing.assert_close(flow.predict(noise, causes), value, rtol=1e-5, atol=1e-5)


def test_an_untrained_flow_is_the_log_normal_of_the_training_split():
    flow, causes = SplineFlow(VARIABLES["area"], 0, True, 16, 8), torch.empty(200_000, 0)
    torch.manual_seed(0)
    drawn = flow.predict(flow.prior(causes), causes)
    assert drawn.mean().item() == pytest.approx(18000, rel=0.01)
    assert drawn.std().item() == pytest.approx(3600, rel=0.02)
    assert (drawn > 0).all()


@pytest.mark.parametrize(("name", "low", "high"), [("area", 100.0, 200_000.0), ("age", -300.0, 500.0)])
def test_densities_integrate_to_one_in_real_units(name, low, high):
    flow = SplineFlow(VARIABLES[name], 1, name == "area", 16, 8)
    torch.manual_seed(3)
    for weight in flow.parameters():
        weight.data += 0.5 * torch.randn_like(weight)
    at = torch.linspace(low, high, 400_001, dtype=torch.float64)
    density = flow.log_prob(at, torch.full((len(at), 1), 0.7)).exp()
    assert torch.trapezoid(density, at).item() == pytest.approx(1, abs=1e-4)


def test_categories_probabilities_sum_to_one_and_impossible_sizes_have_none():
    model, values = make(), cohort(3)
    total = sum(model.log_probs(values | {"view": torch.full((3,), float(k))})["view"].exp() for k in range(3))
    torch.testing.assert_close(total, torch.ones_like(total))
    empty = model.log_probs(values | {"area": torch.tensor([0.0, -1.0, 17000.0])})["area"]
    assert empty.isinf().tolist() == [True, True, False]


def test_missing_values_count_nothing_and_pass_no_gradient_of_nan():
    model, values = make(), cohort(4)
    whole = model.log_probs(values)
    holes = values | {"age": torch.tensor([torch.nan, 30.0, 40.0, 50.0])}
    holes["area"] = torch.where(torch.arange(4) == 1, torch.nan, values["area"])
    found = model.log_probs(holes | {"age": torch.where(holes["age"].isnan(), torch.nan, values["age"])})
    assert [found[name][0].item() for name in ("age", "view", "finding", "area")] == [0, 0, 0, 0]
    assert torch.equal(found["sex"], whole["sex"])
    assert found["area"][1] == 0
    for name in VARIABLES:
        assert torch.equal(found[name][2:], whole[name][2:])
    assert torch.equal(model.log_prob(values), torch.stack(list(whole.values())).sum(0))
    model.log_prob(holes).sum().backward()
    assert all(torch.isfinite(weight.grad).all() for weight in model.parameters() if weight.grad is not None)


def test_missing_values_are_drawn_and_samples_follow_the_density():
    model, values = make(size=0.5), cohort(50)
    holes = values | {"finding": torch.where(torch.arange(50) < 25, torch.nan, values["finding"])}
    found = model.counterfactual(holes, {})
    assert same({n: v[25:] for n, v in found.items()}, {n: v[25:] for n, v in values.items()})
    assert set(found["finding"][:25].tolist()) <= {0.0, 1.0}
    drawn = model.sample(50_000)
    assert all(torch.isfinite(value).all() for value in drawn.values())
    expected = model.conditionals[list(model.graph).index("sex")].logits(torch.empty(1, 0)).exp()[0, 1]
    assert drawn["sex"].mean().item() == pytest.approx(expected.item(), abs=0.01)
    entropy = -model.log_probs(drawn)["age"].mean()
    grid = torch.linspace(-200, 300, 100_001)
    density = model.log_probs(cohort(100_001) | {"age": grid})["age"]
    assert entropy.item() == pytest.approx(-torch.trapezoid(density.exp() * density, grid.double()).item(), abs=0.02)


LOGITS = [(-0.69, -0.69), (-0.1, -2.35), (1.0, -1.0), (3.0, 0.0, -3.0), (0.2, -20.0, 0.1)]


def gumbel(logits):
    mechanism = GumbelMax(len(logits), 1, 4)
    mechanism.reader.base.data = torch.tensor(logits)
    return mechanism


@pytest.mark.parametrize("logits", LOGITS)
def test_gumbel_replay_always_returns_what_was_observed(logits):
    """Inverting the wrong truncation misses up to 63 % of these."""
    torch.manual_seed(0)
    mechanism, causes = gumbel(logits), torch.zeros(100_000, 1)
    for category in range(len(logits)):
        observed = torch.full((len(causes),), float(category))
        assert torch.equal(mechanism.predict(mechanism.abduct(observed, causes), causes).float(), observed)


@pytest.mark.parametrize("logits", LOGITS)
def test_gumbel_posteriors_of_observed_categories_mix_to_the_prior(logits):
    """Noise abducted from draws of the model is again standard Gumbel: mean 0.5772, variance pi^2 / 6, independent."""
    torch.manual_seed(0)
    mechanism, causes = gumbel(logits), torch.zeros(200_000, 1)
    noise = mechanism.abduct(mechanism.predict(mechanism.prior(causes), causes), causes)
    torch.testing.assert_close(noise.mean(0), torch.full_like(noise[0], 0.57722), atol=0.015, rtol=0)
    expected = math.pi**2 / 6 * torch.eye(len(logits), dtype=torch.float64)
    torch.testing.assert_close(noise.T.cov(), expected, atol=0.04, rtol=0)


def test_gumbel_counterfactual_frequencies_are_those_of_the_posterior():
    """P(y* = 1 | y = 1) = min(1, ...) of two categories in closed form: the difference of Gumbels is logistic."""
    torch.manual_seed(0)
    before, after, causes = gumbel((0.0, 0.4)), gumbel((0.0, -0.8)), torch.zeros(400_000, 1)
    one = torch.ones(len(causes))
    # y = 1 iff L > -logit with L logistic; of those, y* = 1 iff L > -logit*
    kept = torch.sigmoid(torch.tensor(-0.8)) / torch.sigmoid(torch.tensor(0.4))
    found = after.predict(before.abduct(one, causes), causes).mean()
    assert found.item() == pytest.approx(kept.item(), abs=0.004)
    assert after.predict(before.abduct(0 * one, causes), causes).sum() == 0, "less likely now: nobody turns to 1"


def test_counterfactual_frequencies_of_three_categories_match_rejection_sampling():
    torch.manual_seed(0)
    before, after, causes = gumbel((0.5, 0.0, -1.0)), gumbel((-1.0, 0.3, 0.8)), torch.zeros(600_000, 1)
    noise = before.prior(causes)
    observed = before.predict(noise, causes)
    for category in range(3):
        kept = noise[observed == category]
        wanted = after.predict(kept, causes[: len(kept)]).long().bincount(minlength=3) / len(kept)
        found = after.predict(
            before.abduct(torch.full((200_000,), float(category)), causes[:200_000]), causes[:200_000]
        )
        torch.testing.assert_close(found.long().bincount(minlength=3) / 200_000, wanted, atol=0.006, rtol=0)


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        ({"age": ["view"], "view": ["finding"], "finding": ["age"]}, "cycle: .*(age|view|finding) -> "),
        ({"area": ["area"]}, "'area' cannot cause itself"),
        ({"area": ["height"]}, "unknown variable 'height' in the graph; the data have area, view"),
        ({"height": ["age"]}, "unknown variable 'height'"),
    ],
)
def test_impossible_graphs_are_refused(graph, message):
    with pytest.raises(ValueError, match=message):
        StructuralCausalModel(PARENTS, graph)


def test_only_positive_variables_have_logarithms():
    with pytest.raises(ValueError, match="'sex' is not positive: its smallest training value is 0"):
        StructuralCausalModel(PARENTS, {}, positive=["sex"])
    assert StructuralCausalModel(PARENTS, {}, positive=["age"]).sample(100)["age"].min() > 0


def test_the_order_in_which_a_graph_is_written_does_not_matter():
    shuffled = {name: GRAPH[name][::-1] for name in ("view", "finding", "area")} | {"sex": []}
    assert list(make().graph) == list(make(graph=shuffled).graph)
    values, do = cohort(), {"age": cohort(seed=1)["age"]}
    torch.manual_seed(0)
    first = make().counterfactual(values, do)
    torch.manual_seed(0)
    assert same(make(graph=shuffled).counterfactual(values, do), first)


def test_unknown_variables_in_do_are_refused():
    with pytest.raises(ValueError, match="unknown variable 'liver'"):
        make().counterfactual(cohort(), {"liver": torch.ones(64)})


def image_model(mechanism, variables=VARIABLES):
    about = DataDescription(variables, ["lung"], [1.0, 1.0])
    return CounterfactualModel(
        about, HVAE(2, 1, about.parents.dim, [Stage(4, 0, resolution=8), Stage(4, 1, 2)]), None, mechanism
    )


def test_a_checkpoint_brings_it_back_alone_and_inside_the_image_model(tmp_path):
    mechanism, values, path = make(), cohort(), tmp_path / "a.ckpt"
    for name, part in {"mechanism": mechanism, "model": image_model(mechanism)}.items():
        state = {f"{name}.{key}": value for key, value in part.state_dict().items()}
        torch.save({"state_dict": state, "segcft": checkpoints.describe({name: part}, {})}, path)
        assert torch.load(path, weights_only=True)
        kind = Mechanism if name == "mechanism" else CounterfactualModel
        loaded = checkpoints.load(path, kind)
        loaded = loaded if name == "mechanism" else loaded.mechanism
        assert loaded.parents == PARENTS
        assert loaded.graph == mechanism.graph
        assert torch.equal(loaded.log_prob(values), mechanism.log_prob(values))
    with pytest.raises(ValueError, match=r"a Mechanism is needed, it holds segcft\.counterfactual"):
        opened(str(path))
    assert opened(mechanism) is mechanism
    assert opened(None) is None


def test_the_image_model_follows_it_and_never_trains_it():
    mechanism, values = make(), cohort(4)
    model = image_model(mechanism)
    answer = model(torch.zeros(4, 1, 8, 8), values, {"age": values["age"].flip(0)})
    assert not torch.equal(answer.values["area"], values["area"])
    assert answer.values["area"].dtype == torch.float32
    assert not any(value.requires_grad for value in answer.values.values()), "a target cannot be moved"
    assert not any(weight.requires_grad for weight in model.mechanism.parameters())
    assert isinstance(model.replaced(None, Independent()).mechanism, Independent)
    assert model.replaced(None, None).mechanism is mechanism


def test_to_intervene_on_every_parent_is_to_predict_directly():
    values, asked = cohort(4), cohort(4, seed=1)
    model, image = image_model(make()).eval(), torch.rand(4, 1, 8, 8) - 0.5
    answer = model(image, values, asked, temperature=0.0)
    assert same(answer.values, asked)
    pixels = model.hvae.predict(model.abduct(image, values, temperature=0.0), PARENTS.encode(asked))
    expected = model.prediction(image, answer.abduction.pixels, pixels).image
    torch.testing.assert_close(answer.image, expected, atol=0, rtol=0)


def test_a_mechanism_of_other_variables_is_refused():
    fewer = {name: VARIABLES[name] for name in ("area", "age")}
    with pytest.raises(ValueError, match=r"relates area \(continuous\), .*; the image's parents are area"):
        image_model(make(), fewer)


def test_ten_thousand_subjects_take_less_than_two_seconds():
    model, values, other = make(), cohort(10_000), cohort(10_000, seed=1)
    started = time.process_time()
    model.counterfactual(values, {"age": other["age"]})
    assert time.process_time() - started < 2
