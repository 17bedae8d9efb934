"""Provenance of a training run, written to ``run.json`` next to its checkpoints."""

import hashlib
import json
import math
import shlex
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from segcft.core import provenance
from segcft.core.atomic_files import write_text
from segcft.core.recipes import plain
from segcft.variables.variables import DataDescription

PACKAGES = ("torch", "lightning", "torchmetrics", "monai", "segmentation-models-pytorch", "zuko", "numpy", "pandas")
RECORD = "run.json"


class RunRecord(Callback):
    """Writes ``run.json``: command, configuration, commit, versions, hardware, data fingerprint and times.

    A resumed run adds an entry to ``starts``. ``finished`` is empty until the run has ended; then the training
    ``seconds`` and the ``metrics`` of the last validation are added.

    Args:
        folder: Folder of the stage's checkpoints.
        config: The full configuration.
    """

    def __init__(self, folder: str, config: Mapping[str, Any]) -> None:
        self.path, self.config = Path(folder) / RECORD, dict(config)
        self.content: dict[str, Any] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the record before the first step."""
        if not trainer.is_global_zero:
            return
        earlier = _starts(self.path) if trainer.global_step else []
        self.content = {
            "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
            "starts": [*earlier, {"when": _now(), "step": trainer.global_step}],
            "finished": None,
            "processes": trainer.world_size,
            "data": about(trainer.datamodule),  # type: ignore[attr-defined]
            "commit": provenance.commit(),
            "packages": {name: version(name) for name in PACKAGES},
            "hardware": provenance.hardware(),
            "config": self.config,
        }
        self._write()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add end time, training time and final metrics."""
        if trainer.is_global_zero:
            found = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("val/")}
            metrics = {name: value if math.isfinite(value) else None for name, value in found.items()}
            seconds = pl_module.seconds[pl_module.stage]  # type: ignore[index,operator]
            self.content |= {"finished": _now(), "steps": trainer.global_step, "seconds": seconds, "metrics": metrics}
            self._write()

    def _write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_text(self.path, json.dumps(self.content, indent=2) + "\n")


def about(data: Any) -> dict[str, Any]:
    """Numbers of subjects, and a fingerprint of the data that changes if any of their statistics does."""
    return {
        "fingerprint": fingerprint(data.description),
        "subjects": {split: len(data.dataset(split)) for split in ("train", "val")},
    }


def surroundings(data: Any, reads_images: bool) -> dict[str, Any]:
    """Everything but the options that decides the bits of a training: data, commit and versions of packages.

    Args:
        data: Data module.
        reads_images: Whether the training does; else only the variables count.
    """
    splits = ("train", "val") if reads_images else ()
    return {
        **{f"data, {name}": str(value) for name, value in about(data).items()},
        **{f"data, images of {split}": images(data.dataset(split)) for split in splits},
        "commit": provenance.commit(),
        "edits of its code": provenance.edits(),
        **{f"package {name}": version(name) for name in PACKAGES},
    }


def images(dataset: Any, count: int = 8) -> str:
    """Hash of some images and masks, evenly spread over a split."""
    chosen = torch.linspace(0, len(dataset) - 1, min(count, len(dataset))).long()
    batch = dataset.read_unchanged(chosen)
    tensors = (batch[name].contiguous() for name in sorted(batch))
    return hashlib.sha256(b"".join(tensor.numpy().tobytes() for tensor in tensors)).hexdigest()[:16]


def fingerprint(description: DataDescription) -> str:
    """Hash of structures, spacing, and the range, moments and quantiles of every training variable."""
    return hashlib.sha256(json.dumps(plain(description), sort_keys=True).encode()).hexdigest()[:16]


def _starts(path: Path) -> list[dict[str, Any]]:
    try:
        found: list[dict[str, Any]] = json.loads(path.read_text())["starts"]
    except (OSError, ValueError, KeyError):
        return []
    return found


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
