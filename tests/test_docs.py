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


@pytest.mark.parametrize("page", ["reliability.md", "security.md"])
def test_every_promise_has_a_test_that_exists(page):
    """A row a promise: promise, attack, and the tests that repeat it, as FILE::NAME, or the beginning of a name."""
    files = {path.name: path.read_text() for path in (ROOT / "tests").rglob("test_*.py")}
    names = [f"{file}::{name}" for file, text in files.items() for name in re.findall(r"^def (test_\w+)", text, re.M)]
    text = (ROOT / "docs" / page).read_text()
    rows = [
        row for table in re.findall(r"^\| promise .*\n\|---.*\n((?:\|.*\n)+)", text, re.M) for row in table.splitlines()
    ]
    assert len(rows) > 10
    for row in rows:
        named = re.findall(r"`(test_\S+)`", row.split(" | ")[-1])
        assert named or row.endswith("| the same |"), f"no test: {row}"
        for name in (each.removesuffix("...") for each in named):
            known = [each for each in names if each.startswith(name) or each.partition("::")[2].startswith(name)]
            assert name in files or known, f"{name} does not exist: {row}"
