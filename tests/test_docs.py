"""The site's reference names every module, and none that is gone."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_every_public_module_is_on_one_page_of_the_reference():
    listed = [
        name
        for page in (ROOT / "docs/reference").glob("*.md")
        for name in re.findall(r"^::: (\S+)", page.read_text(), re.M)
    ]
    files = [path for package in ("segcft", "data_modules") for path in (ROOT / package).rglob("*.py")]
    modules = {".".join(path.relative_to(ROOT).with_suffix("").parts) for path in files if path.stem[:2] != "__"}
    assert sorted(listed) == sorted(modules)


@pytest.mark.slow
def test_the_page_of_commands_is_that_of_the_parsers():
    made = subprocess.run(
        [sys.executable, "-m", "segcft.cli.reference"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    wanted = "run python -m segcft.cli.reference > docs/commands.md"
    assert made.stdout == (ROOT / "docs/commands.md").read_text(), wanted
