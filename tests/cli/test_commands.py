"""Commands answer at once, and a mistake is answered in one sentence."""

import contextlib
import json
import re
import resource
import subprocess
import sys
import warnings
from pathlib import Path

import lightning
import pytest

from segcft.cli import data_commands
from segcft.cli.completion import SOURCES, WORDS, script
from segcft.cli.main import COMMANDS, main
from segcft.core.formatting import meant
from segcft.core.parsing import explained
from tests.experiments import configuration

LIGHT = (["--help"], ["--version"], ["reprot"], ["report", "--help"], ["figure", "--help"], ["inspect", "--help"],
         ["info", "--help"], ["launch", "--help"], ["completion", "bash"], ["report", "nowhere"])  # fmt: skip
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


def test_abbreviations_are_no_options(capsys):
    assert main(["fit", *CONFIGS, "--trainer.max_step=3"]) == 2
    assert "did you mean --trainer.max_steps?" in capsys.readouterr().err
    assert main(["report", "results", "--ou=a.html"]) == 2
    assert "did you mean --out?" in capsys.readouterr().err


def test_warnings_have_no_line_of_code_though_lightning_was_imported(monkeypatch):
    monkeypatch.setattr(warnings, "formatwarning", lambda *_: "Lightning's")
    main(["completion", "bash"])
    place = str(Path(lightning.__file__).parent / "pytorch/a.py")
    assert warnings.formatwarning(UserWarning("slow"), UserWarning, place, 3) == "segcft: warning: slow\n"


def test_the_version_names_what_is_installed(capsys):
    assert main(["--version"]) == 0
    said = capsys.readouterr().out
    assert re.match(r"segcft \d\S*, Python 3\.\d+\.\d+, torch \d\S*, lightning 2\.\d+\.\d+", said)
    assert not (Path(__file__).parents[2] / ".git").exists() or re.search(r"commit [0-9a-f]{40}", said)


@pytest.mark.parametrize("name", COMMANDS)
def test_completed_words_are_those_of_the_parser(name, capsys):
    with contextlib.suppress(SystemExit):
        main([name, "folder", "--help"] if name == "prepare" else [name, "--help"])
    shown = set(re.findall(r"--[a-z][\w.-]*", capsys.readouterr().out))
    offered = {word for word in WORDS[name] if word.startswith("--")}
    assert offered <= shown, "in segcft/cli/completion.py, not in the parser"
    if name in ("report", "figure", "inspect", "info", "export", "counterfactual", "init", "check"):
        assert shown - {"--help"} <= offered, "in the parser, not in segcft/cli/completion.py"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["coun"], {"counterfactual"}),
        (["fit", "--trainer.max_s"], {"--trainer.max_steps"}),
        (["completion", ""], {"bash", "zsh", "--help"}),
        (["prepare", "che"], {"chexpert"}),
    ],
)
def test_bash_completes_commands_and_options(words, expected):
    asked = f"COMP_WORDS=(segcft {' '.join(map(repr, words))}); COMP_CWORD={len(words)}; _segcft"
    text = f"{script('bash')}\n{asked}\nprintf '%s\\n' \"${{COMPREPLY[@]}}\""
    done = subprocess.run(["bash", "-c", text], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == expected
    assert script("zsh").endswith(script("bash"))
    assert set(SOURCES) == set(data_commands.SOURCES)


def test_info_of_a_folder_of_results(tmp_path, capsys):
    estimate = {"value": 3.9, "low": 3.0, "high": 5.0}
    metrics = {"seg_cft": {"left_lung_area": {"mape": estimate, "slope": estimate, "leakage": estimate}}}
    (tmp_path / "metrics.json").write_text(json.dumps({"split": "test", "subjects": 109, "metrics": metrics}))
    assert main(["info", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert "results of an evaluation" in text
    assert "seg_cft do(left_lung_area): mape 3.9" in text
    assert main(["info", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["subjects"] == 109


def test_info_of_a_folder_that_is_nothing(tmp_path, capsys):
    assert main(["info", str(tmp_path)]) == 2
    assert "is none that segcft wrote" in capsys.readouterr().err
