"""``segcft report``."""

from pathlib import Path

from segcft.core.atomic_files import write_text
from segcft.reporting.findings import Findings
from segcft.reporting.load_results import read
from segcft.reporting.markdown import markdown
from segcft.reporting.page import page


def report(results: list[str], out: str = "report.html") -> Path:
    """One page from results folders: who is best, by how much, at what cost, and may one trust it.

    Args:
        results: Folders that ``segcft evaluate`` or ``segcft study`` wrote; several are put side by side.
        out: File to write: ``.html``, complete in itself, or ``.md``.

    Raises:
        ValueError: If a folder lacks something, or the file has another ending.
    """
    path = Path(out).expanduser()
    if path.suffix not in (".html", ".md"):
        raise ValueError(f"a report ends in .html or .md, not {out}")
    if not results:
        raise ValueError("segcft report needs at least one results folder")
    found = [Findings(read(Path(folder).expanduser())) for folder in results]
    text = page(found) if path.suffix == ".html" else markdown(found, path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text)
    return path
