"""Files of others run no code that the user did not name."""

import os
import sys

import pytest

from segcft.cli.main import main
from segcft.core.recipes import TRUST
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
@pytest.mark.parametrize("command", ["fit", "evaluate", "predict"])
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


def test_file_names_and_our_own_classes_are_no_foreign_code(folder):
    (folder / "plain.yaml").write_text(
        "a: data.csv\nb: checkpoints/x/last.ckpt\nc: evil\nd: segcft.tasks.PretrainHVAE\ne: monai.UNet\n"
        "f: lightning.pytorch.callbacks.Timer\ng: no_such_thing.py\nh: 1.5"
    )
    assert admit(["fit", "--config=plain.yaml"]) == ["fit", "--config=plain.yaml"]
    assert not (folder / "ran").exists()


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
    "a walk to a class": ("a.yaml", "model: {class_path: segcft.core.atomic_files.Path}", ["--config=a.yaml"]),
}


@pytest.mark.parametrize("way", WAYS)
def test_no_way_of_naming_foreign_code_runs_it(folder, way, capsys):
    name, text, options = WAYS[way]
    (folder / name).write_text(text)
    assert main(["fit", *options]) == 2
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


def test_a_file_that_would_fill_the_memory_is_refused(folder, capsys):
    bomb = "a: &a [x, x]\n" + "".join(f"b{n}: &b{n} [{', '.join(['*a'] * 12)}]\n" for n in range(12))
    (folder / "bomb.yaml").write_text(bomb)
    assert main(["fit", "--config=bomb.yaml"]) == 2
    assert "144 YAML aliases" in capsys.readouterr().err
    (folder / "deep.yaml").write_text("a: " + "[" * 5000 + "]" * 5000)
    assert main(["fit", "--config=deep.yaml"]) == 2
    assert "not a valid YAML file" in capsys.readouterr().err
