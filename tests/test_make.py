"""The Makefile explains itself."""

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def make(*arguments):
    # -o: take the environment as it is, whichever one runs these tests
    command = ["make", "--no-print-directory", "-o", ".venv/.ready", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("target", "missing"),
    [
        ("segcft", "pretrain"),
        ("regcft", "pretrain"),
        ("nocft", "pretrain"),
        ("regcft_confounded", "pretrain"),
        ("evaluate", "evaluator"),
    ],
)
def test_a_missing_checkpoint_names_the_command_that_makes_it(target, missing, tmp_path):
    done = make(target, f"RUNS={tmp_path}")
    assert done.returncode == 2
    assert f"run 'make {missing} EXPERIMENT=chest_phantom' first" in done.stderr


def test_a_confounded_stage_is_read_after_the_one_it_differs_from():
    assert "/data.yaml --config" in (line := make("-n", "regressor_confounded").stdout)
    assert line.index("/regressor.yaml") < line.index("/regressor_confounded.yaml")
    assert make("-n", "regressor").stdout.count("--config") == 2


def test_help_lists_every_target():
    listed = make("help").stdout
    for target in (
        "setup",
        "lint",
        "test",
        "demo",
        "attributes",
        "segmentor",
        "regressor",
        "pretrain",
        "segcft",
        "regressor_confounded",
        "evaluate",
        "bench",
        "benchmark",
        "tensorboard",
        "app",
    ):
        assert target in listed


def test_pins_name_no_address():
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        name, _, version = line.partition("==")
        assert name, line
        assert version, line
        assert "/" not in line
        assert "@" not in line
