"""Files of others run no code that the user did not name."""

import os
import sys

import pytest
import torch
import yaml

from segcft.cli.main import main
from segcft.core import bounded_yaml
from segcft.core.recipes import TRUST, imported
from segcft.core.trusted_code import admit, guard
from tests.experiments import configuration

EVIL = "from pathlib import Path\nPath('ran').touch()\nclass Task: ...\n"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "evil.py").write_text(EVIL)
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare/evil.py").write_text(EVIL)
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delenv(TRUST, raising=False)
    yield tmp_path
    for name in ("evil", "bare.evil", "bare"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize(
    "text",
    [
        "model: {class_path: evil.Task}",
        "model: evil.Task",
        "trainer: {callbacks: [{class_path: LambdaCallback, init_args: {setup: os.system}}]}",
        "data: {class_path: bare.evil.Data}",
        "model: inner.yaml",
    ],
)
@pytest.mark.parametrize("command", ["fit", "predict"])
def test_a_file_that_names_foreign_code_is_refused_before_it_is_imported(folder, command, text, capsys):
    (folder / "inner.yaml").write_text("class_path: evil.Task")
    (folder / "outer.yaml").write_text(text)
    assert main([command, "--config=outer.yaml"]) == 2
    assert "--trust" in capsys.readouterr().err
    assert main([command, "--config", "outer.yaml"]) == 2
    assert not (folder / "ran").exists()


def test_what_the_user_names_is_let_through(folder, monkeypatch):
    (folder / "mine.yaml").write_text("model: {class_path: evil.Task}")
    for given in (["--trust", "evil"], ["--trust=evil"]):
        monkeypatch.setenv(TRUST, "other")
        assert admit(["fit", *given, "--config=mine.yaml"]) == ["fit", "--config=mine.yaml"]
        assert os.environ[TRUST] == "other,evil"
    with pytest.raises(ValueError, match="needs the name"):
        admit(["fit", "--trust"])


def test_broken_files_are_named(folder, capsys):
    (folder / "broken.yaml").write_text("a: [")
    assert main(["fit", "--config=broken.yaml"]) == 2
    assert "broken.yaml is not a valid YAML file" in capsys.readouterr().err


WAYS = {
    "another ending": ("a.txt", "model: {class_path: evil.Task}", ["--config=a.txt"]),
    "no ending": ("a", "model: {class_path: evil.Task}", ["--config", "a"]),
    "JSON": ("a.json", '{"model": {"class_path": "evil.Task"}}', ["--config=a.json"]),
    "a string of JSON": ("a.yaml", 'model: \'{"class_path": "evil.Task"}\'', ["--config=a.yaml"]),
    "an option": ("a.yaml", "trainer: {max_steps: 1}", ["--config=a.yaml", "--model=evil.Task"]),
    "a file of a part": ("part.cfg", "class_path: evil.Task", ["--model=part.cfg"]),
    "a walk to the system": (
        "a.yaml",
        "trainer: {callbacks: [{class_path: segcft.core.recipes.os.system}]}",
        ["--config=a.yaml"],
    ),
    "a library that imports": (
        "a.yaml",
        "trainer: {callbacks: [{class_path: LambdaCallback, init_args: {setup: "
        "{class_path: monai.transforms.LoadImage, init_args: {reader: evil.Task}}}}]}",
        ["--config=a.yaml"],
    ),
    "an address of a file": ("a.yaml", "model: {class_path: evil.Task}", ["--config=file://{folder}/a.yaml"]),
    "a walk to a class": ("a.yaml", "model: {class_path: segcft.core.atomic_files.Path}", ["--config=a.yaml"]),
}


@pytest.mark.parametrize("way", WAYS)
def test_no_way_of_naming_foreign_code_runs_it(folder, way, capsys):
    name, text, options = WAYS[way]
    (folder / name).write_text(text)
    assert main(["fit", *(option.replace("{folder}", str(folder)) for option in options)]) == 2
    assert not (folder / "ran").exists()
    assert capsys.readouterr().err.startswith("segcft: error: ")


def test_evaluate_and_serve_are_guarded_as_well(folder, capsys):
    (folder / "a").write_text("data: {class_path: evil.Task}")
    for command in (
        ["evaluate", "--config=a", "--evaluator=x", "--methods={}", "--out=o"],
        ["serve", "x", "--config=a"],
    ):
        assert main(command) == 2
        assert "evil" in capsys.readouterr().err
    assert not (folder / "ran").exists()


def test_our_own_code_is_let_through_by_name_and_by_trust(folder, monkeypatch):
    from jsonargparse import _actions

    guard()
    assert _actions.import_object("segcft.tasks.PretrainHVAE").__name__ == "PretrainHVAE"
    assert _actions.import_object("torch.optim.AdamW").__name__ == "AdamW"
    with pytest.raises(ValueError, match="--trust evil"):
        _actions.import_object("evil.Task")
    monkeypatch.setenv(TRUST, "evil")
    assert _actions.import_object("evil.Task").__name__ == "Task"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--experiment=../../elsewhere"], "leads out of its folder"),
        (["--experiment=/tmp/x"], "leads out of its folder"),
        (["--model.init_args.stage=../../elsewhere"], "leads out of its folder"),
        (["--trainer.default_root_dir=memory://x"], "is an address"),
        (["--ckpt_path=https://example.org/a.ckpt"], "is an address"),
        (["--ckpt_path=file:///etc/passwd"], "is an address"),
        (["--weights_only=false"], "weights_only = false would run code"),
    ],
)
def test_places_outside_are_refused(tmp_path, monkeypatch, options, message, capsys):
    config = configuration("chest_phantom", "regressor")
    monkeypatch.chdir(tmp_path)
    few = "--data.init_args.subjects={train: 8, val: 4, test: 4}"
    assert main(["fit", config, few, "--trainer.accelerator=cpu", *options]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def bomb(depth=12, width=12):
    lines = ["a0: &a0 [x]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * width)}]" for n in range(1, depth))]
    return "\n".join(lines)


@pytest.mark.parametrize("text", [bomb(), "a: " + "[" * 5000 + "]" * 5000, "a: &a [*a]", "a: &a 1\nb: &a [*a]"])
def test_a_file_that_would_fill_the_memory_is_refused(folder, text, capsys):
    """As a configuration, as a file that an option names, as a plan."""
    (folder / "bomb").write_text(text)
    options = (["--config=bomb"], ["--model=bomb"], ["--trainer.callbacks", "bomb"])
    for command in (*(["fit", *each] for each in options), ["sweep", "bomb", "--out=out"]):
        assert main(command) == 2
        assert len(capsys.readouterr().err) < 2500
    with pytest.raises(yaml.YAMLError):
        bounded_yaml.read(text)


@pytest.mark.parametrize(
    "text", ["a: [", "a:\n  b: 1\n c: 2", "a: 2001-99-99", "a: !!python/name:os.system x", "a: \0"]
)
def test_errors_of_yaml_are_one_line(folder, text, capsys):
    with pytest.raises(yaml.YAMLError) as caught:
        bounded_yaml.read(text)
    assert "\n" not in str(caught.value)
    (folder / "plan").write_text(text)
    assert main(["sweep", "plan", "--out=out"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_plain_files_are_read_as_ever():
    text = "a: &a {b: [1, 2.5, x], c: null}\nd: {<<: *a, b: *a}\n" + "\n".join(f"k{n}: [1, 2]" for n in range(5000))
    assert bounded_yaml.read(text) == yaml.safe_load(text)


def test_a_sweep_cannot_trust_for_its_user(folder, capsys):
    (folder / "fit.yaml").write_text("model: {class_path: evil.Task}")
    plan = "configs: [fit.yaml]\nobjective: val/loss\nspace: {trust: {choices: [evil]}}\n"
    (folder / "plan.yaml").write_text(plan)
    assert main(["sweep", "plan.yaml", "--out=out"]) == 2
    assert "'trust' is no option that may be searched" in capsys.readouterr().err
    assert not (folder / "ran").exists()


@pytest.mark.parametrize(
    "path", ["segcft.core.atomic_files.Path", "segcft.tasks.base.LightningModule", "segcft.core.provenance.subprocess"]
)
def test_a_recipe_names_what_was_made_where_it_lies(path):
    with pytest.raises(ValueError, match="outside the trusted packages"):
        imported(path)


def test_hyper_parameters_of_a_checkpoint_build_nothing(folder, capsys):
    """Lightning would have them override the configuration; a checkpoint without a recipe is not opened at all."""
    torch.save({"hyper_parameters": {"_class_path": "evil.Task"}, "state_dict": {}}, "plain.ckpt")
    config = configuration("chest_phantom", "regressor")
    few = "--data.init_args.subjects={train: 8, val: 4, test: 4}"
    command = ["validate", config, few, "--trainer.accelerator=cpu", "--trainer.logger=false", "--ckpt_path=plain.ckpt"]
    assert main(command) == 2
    assert "plain.ckpt was not written by segcft" in capsys.readouterr().err
    assert not (folder / "ran").exists()
