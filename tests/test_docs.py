"""The site's reference names every module, and none that is gone."""

import re
from pathlib import Path

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
