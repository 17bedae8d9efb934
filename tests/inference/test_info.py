"""What a file or folder is, in words and as JSON, without a network being built."""

import json
import shutil
import subprocess
import sys

import pytest
import torch

from segcft.causal.structural_causal_model import StructuralCausalModel
from segcft.cli.main import main
from segcft.core.formatting import NO_BREAK
from segcft.counterfactual.model import CounterfactualModel
from segcft.guidance.guidance import SegmentorGuidance
from tests.inference.test_answer_file import description, make
from tests.inference.test_export import SECONDS, export, save

RECORD = {
    "command": "segcft fit", "starts": [{"when": "2026-01-02T03:04:05+00:00", "step": 0}], "steps": 12345,
    "finished": "2026-01-02T04:04:05+00:00", "seconds": 4.5, "metrics": {"val/loss": 0.25}, "commit": "abc",
    "data": {"subjects": {"train": 4321, "val": 10}}, "packages": {"torch": "2.9"}, "config": {"seed_everything": 17},
}  # fmt: skip
ESTIMATE = {"value": 1.25, "low": 1.0, "high": 2.0}
VALUES = {name: ESTIMATE for name in ("mape", "mae_sd", "slope", "leakage")}
RESULTS = {
    "experiment": "balls", "split": "test", "subjects": 8, "training": {"mine": SECONDS, "other": {"pretrain": 1.0}},
    "health": {"threshold": 3, "warnings": ["other, do(left_size): gamed"]},
    "metrics": {name: {"left_size": VALUES} for name in ("identity", "mine", "other")},
}  # fmt: skip
CACHE = {
    "plan": {"source": "folder", "structures": ["heart"], "frame": [8, 8], "spacing": [2.0, 2.0], "channels": 1,
             "unit": "mm^2"},
    "counts": {"train": 2}, "patients": {"train": 2}, "quarantined": 1,
    "variables": {"age": {"known": 2, "missing": 1, "mean": 40, "std": 1, "min": 30, "max": 64.04}},
}  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A run with its record and results, a bundle of it, results of two seeds, and what a prepared data set says."""
    folder = tmp_path_factory.mktemp("info")
    about = description(2, age=True)
    whole = make(about)
    mechanism = StructuralCausalModel(about.parents, {"left_size": ["age"]})
    model = CounterfactualModel(about, whole.hvae, mechanism=mechanism)
    for name in ("checkpoints/balls/segcft", "results/balls", "pooled/seed3", "cache"):
        (folder / name).mkdir(parents=True)
    run = folder / "checkpoints/balls/segcft"
    save(run / "last.ckpt", {"model": model, "guidance": SegmentorGuidance(whole.segmentor)})
    (run / "run.json").write_text(json.dumps(RECORD))
    (folder / "results/balls/metrics.json").write_text(json.dumps(RESULTS))
    (folder / "pooled/benchmark.json").write_text(json.dumps({**RESULTS, "seeds": [3, 4], "warnings": []}))
    (folder / "pooled/seed3/metrics.json").write_text(json.dumps({"settings": {"structures": ["left"]}}))
    (folder / "cache/dataset.json").write_text(json.dumps(CACHE))
    assert export(run / "last.ckpt", folder / "bundle", "--name=Two balls") == 0
    return folder


def told(capsys, path, *more):
    capsys.readouterr()
    assert main(["info", str(path), *more]) == 0
    return capsys.readouterr().out


def facts(capsys, path):
    return json.loads(told(capsys, path, "--json"))


def test_a_checkpoint_says_what_may_be_asked_how_it_was_trained_and_judged(place, capsys):
    path = place / "checkpoints/balls/segcft/last.ckpt"
    found, about = facts(capsys, path), description(2, age=True)
    assert (found["what"], found["stage"]) == ("checkpoint", "segcft")
    assert list(found["variables"]) == about.parents.names
    age = about.parents["age"]
    shown = [found["variables"]["age"][key] for key in ("kind", "unit", "low", "high")]
    assert shown == [age.kind, age.unit, age.low, age.high]
    assert (found["structures"], found["spacing"]) == (about.structures, about.spacing)
    assert found["graph"] == ["age -> left_size"]
    assert found["training_seconds"] == SECONDS
    assert (found["seed"], found["steps"]) == (17, 12345)
    assert found["metrics"] == {"mine do(left_size)": dict.fromkeys(VALUES, 1.25)}
    words = told(capsys, path)
    for part in ("stage: segcft", "age -> left_size", "area of left", "seed: 17", f"train 4{NO_BREAK}321", "torch 2.9",
                 "mine do(left_size): mape 1.25", f"age: {age.range}"):  # fmt: skip
        assert part in words, words


def test_a_run_is_its_last_checkpoint_and_an_experiment_its_stages(place, capsys):
    run = place / "checkpoints/balls/segcft"
    found = facts(capsys, run)
    assert found["what"] == "folder of a run"
    assert found["variables"] == facts(capsys, run / "last.ckpt")["variables"]
    assert list(facts(capsys, run.parent)["stages"]) == ["segcft"]
    assert f"steps 12{NO_BREAK}345" in told(capsys, run.parent)


def test_no_network_is_built(place, capsys, monkeypatch):
    def refuse(*given, **more):
        raise AssertionError("a network was built")

    monkeypatch.setattr(torch.nn.Module, "__init__", refuse)
    told(capsys, place / "checkpoints/balls/segcft")


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("bundle", ("Two balls", "age -> left_size", "stage: segcft", "performance: Not evaluated")),
        ("results/balls", ("subjects: 8", "gamed", "identity do(left_size): mape 1.25")),
        ("pooled", ("several training seeds", "seeds: 3, 4", "structures: left")),
        ("cache", ("frame: 8, 8", "unit: mm²", "age: 30 to 64, 1 missing")),
    ],
)
def test_bundles_results_and_data_sets_are_read_without_torch(name, parts, place):
    script = f"import sys; from segcft.cli.main import main; main(['info', {str(place / name)!r}]); "
    script += "print([each for each in ('torch', 'lightning', 'pandas') if each in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr
    assert all(part in done.stdout for part in parts), done.stdout


def test_a_bundle_says_the_same_as_its_checkpoint_and_a_damaged_one_nothing(place, tmp_path, capsys):
    found, checkpoint = facts(capsys, place / "bundle"), facts(capsys, place / "checkpoints/balls/segcft/last.ckpt")
    assert all(found[key] == checkpoint[key] for key in ("variables", "structures", "graph", "stage"))
    damaged = shutil.copytree(place / "bundle", tmp_path / "bundle")
    (damaged / "config.json").write_text("{}")
    assert main(["info", str(damaged)]) == 2
    assert "config.json" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("nowhere", None, "nowhere does not exist"),
        ("file.ckpt", b"no checkpoint", "file.ckpt is not a checkpoint"),
        ("folder/notes.txt", b"", "is none that segcft wrote"),
        ("folder/metrics.json", b"{", "metrics.json cannot be read"),
        ("folder/dataset.json", b"{}", "is damaged, or of another version"),
        ("folder/run.json", b"7", "run.json cannot be read"),
    ],
)
def test_what_is_nothing_of_ours_is_named(name, content, message, tmp_path, capsys):
    path = tmp_path / name
    if content is not None:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    assert main(["info", str(path.parent if "/" in name else path)]) == 2
    assert message in capsys.readouterr().err
