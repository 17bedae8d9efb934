"""The Makefile explains itself."""

import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]


def make(*arguments):
    # -o: take the environment as it is, whichever one runs these tests
    command = ["make", "--no-print-directory", "-o", ".venv/.ready", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_stages_and_all_of_an_experiment_are_left_to_segcft_study():
    assert (
        make("-n", "regressor_confounded").stdout.strip().endswith("study chest_phantom --stages regressor_confounded")
    )
    assert make("-n", "all", "EXPERIMENT=folder").stdout.strip().endswith("study folder")
    assert "--seeds 0 1" in make("-n", "benchmark", "SEEDS=0 1").stdout


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
