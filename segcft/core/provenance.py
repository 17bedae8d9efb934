"""Provenance of results: hardware, package versions and git commit."""

import hashlib
import os
import platform
import subprocess
from pathlib import Path
from typing import Any


def hardware() -> dict[str, Any]:
    """Processor, number of cores, GPU if there is one, and the Python and torch versions."""
    import torch  # lazily: slow to import

    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    device = {"accelerator": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    return {"processor": names[0] if names else platform.processor() or "unknown", "cores": cores, **device, **versions}


def commit(root: Path | None = None) -> str | None:
    """Git commit of the checkout that segcft runs from, with ``+`` appended if tracked files differ; None without one.

    Args:
        root: Folder of the checkout; by default the one that holds this file.
    """
    root = root or Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        head = _git(root, "rev-parse", "HEAD")
        return head + ("+" if _git(root, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def edits(root: Path | None = None) -> str | None:
    """Hash of how Python files of the checkout differ from its commit; None without a checkout, or a difference.

    Args:
        root: As of ``commit``.
    """
    root = root or Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        text = _git(root, "diff", "HEAD", "--", "*.py")
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None
    return hashlib.sha256(text.encode()).hexdigest()[:12] if text else None


def _git(root: Path, *arguments: str) -> str:
    asked = ["git", "-C", str(root), *arguments]
    return subprocess.run(asked, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
