"""Files of others run no code that the user did not name."""

import os
import sys

import pytest

from segcft.cli.main import main
from segcft.core.recipes import TRUST
from segcft.core.trusted_code import admit

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
