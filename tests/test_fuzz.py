"""Files and requests of strangers: five thousand inputs, of which none runs code, reaches a network or crashes."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.test_launch import environment


@pytest.mark.slow
def test_nothing_that_a_stranger_gives_runs_code_or_crashes(tmp_path):
    """5000 configurations, images, requests and checkpoints; memory below 1.5 GB; about two minutes."""
    script = Path(__file__).parent / "fuzz.py"
    done = subprocess.run([sys.executable, script, tmp_path, "--inputs=5000"], env=environment(), capture_output=True,
                          text=True, check=False, timeout=900)  # fmt: skip
    assert done.returncode == 0, done.stdout[-20000:] + done.stderr[-1000:]
