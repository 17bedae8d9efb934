"""Commands answer at once, and a mistake is answered in one sentence."""

import json
import resource
import subprocess
import sys

import pytest

from segcft.cli.main import COMMANDS, main
from segcft.core.formatting import meant
from segcft.core.parsing import explained
from tests.experiments import configuration

LIGHT = (["--help"], ["--version"], ["reprot"], ["report", "--help"], ["figure", "--help"], ["inspect", "--help"],
         ["info", "--help"], ["completion", "bash"], ["report", "nowhere"])  # fmt: skip
CONFIGS = [configuration("chest_phantom", "segmentor")]
HEAVY = ("torch", "lightning", "monai", "albumentations", "segmentation_models_pytorch", "matplotlib")


@pytest.mark.parametrize("words", LIGHT, ids=" ".join)
def test_light_commands_import_no_heavy_library(words):
    script = (
        "import sys; from segcft.cli.main import main\n"
        f"try: main({words})\n"
        "except SystemExit: pass\n"
        f"print('LOADED', [name for name in {HEAVY} if name in sys.modules])"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.stdout.splitlines()[-1] == "LOADED []"
    if words[-1] != "nowhere":  # that one reads tables
        assert after.ru_utime - before.ru_utime < 1.5, "seconds; a fifth of one on an idle machine"


def test_every_command_of_the_table_exists():
    for name, command in COMMANDS.items():
        module, _, function = command.function.partition(":")
        source = subprocess.run(
            [sys.executable, "-c", f"import importlib.util as u; print(u.find_spec({module!r}).origin)"],
            capture_output=True, text=True, check=True,
        ).stdout.strip()  # fmt: skip
        with open(source, encoding="utf-8") as file:
            assert f"def {function}(" in file.read(), name


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["reprot"], "unknown command 'reprot'; did you mean report?"),
        (["report", "results", "--outt=a.html"], "did you mean --out?"),
        (["info", "nowhere"], "nowhere does not exist"),
        (["completion", "fish"], "invalid choice: 'fish'"),
    ],
)
def test_a_mistake_is_one_line(words, wanted, capsys):
    assert main(words) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("segcft: error: ")
    assert wanted in lines[0]


def test_lightnings_options_are_suggested_too(capsys):
    assert main(["fit", *CONFIGS, "--trainer.max_stpes=3"]) == 2
    error = capsys.readouterr().err
    assert "did you mean --trainer.max_steps?" in error
    assert len(error.strip().splitlines()) == 1


def test_an_error_within_a_class_is_told_without_its_union(capsys):
    assert main(["fit", *CONFIGS, "--model.optimisation.lrr=3"]) == 2
    error = capsys.readouterr().err
    assert "did you mean --optimisation.lr?" in error
    assert "Union" not in error
    assert "NoneType" not in error


def test_a_missing_folder_of_a_configuration_is_one_line(capsys, tmp_path, monkeypatch):
    config = configuration("chexpert", "segmentor")
    monkeypatch.chdir(tmp_path)
    assert main(["fit", config]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("segcft: ")]
    assert lines == [
        "segcft: error: data/CheXpert-v1.0-small: train.csv is needed here or in one folder below, found 0 such folders"
    ]


def test_near_names_alone_are_suggested():
    assert meant("counterfactul", COMMANDS) == "; did you mean counterfactual?"
    assert meant("xyzzy", COMMANDS) == ""
    assert explained("unrecognized arguments: --sead 1", "segcft fit", ["--seed"]).startswith(
        "unrecognized arguments: --sead 1; did you mean --seed?"
    )


def test_completion_is_a_script_that_a_shell_accepts(capsys):
    assert main(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    offered = subprocess.run(
        ["bash", "-c", f"{script}\nCOMP_WORDS=(segcft coun); COMP_CWORD=1; _segcft; echo ${{COMPREPLY[@]}}"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert offered.stdout.strip() == "counterfactual"


def test_info_of_a_folder_of_results(tmp_path, capsys):
    estimate = {"value": 3.9, "low": 3.0, "high": 5.0}
    metrics = {"seg_cft": {"left_lung_area": {"mape": estimate, "slope": estimate, "leakage": estimate}}}
    (tmp_path / "metrics.json").write_text(json.dumps({"split": "test", "subjects": 109, "metrics": metrics}))
    assert main(["info", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert "results of an evaluation" in text
    assert "seg_cft do(left_lung_area) (mape 3.9" in text
    assert main(["info", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["subjects"] == 109


def test_info_of_a_folder_that_is_nothing(tmp_path, capsys):
    assert main(["info", str(tmp_path)]) == 2
    assert "is none that segcft wrote" in capsys.readouterr().err
