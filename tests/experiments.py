"""The configuration of a stage as one file, for ``segcft fit --config``."""

import tempfile
from pathlib import Path

import yaml

from segcft.study import plan

ROOT = Path(__file__).parents[1] / "experiments"


def configuration(experiment: str, stage: str, **changes: str) -> str:
    """``--config=FILE`` of a stage of ``experiments/EXPERIMENT``; of a ``declaration``, if one is given."""
    folder = ROOT / experiment
    if "declaration" in changes:
        chosen = plan.study(folder, (0,), (), "test", Path("results") / experiment, declaration=changes["declaration"])
    else:
        chosen = plan.single(folder, (stage,), (), "test", Path("results") / experiment)
    job = next(job for job in plan.jobs(chosen) if job.stage == stage)
    with tempfile.NamedTemporaryFile("w", suffix=f"-{experiment}-{stage}.yaml", delete=False) as file:
        yaml.safe_dump(job.config, file, sort_keys=False)
    return f"--config={file.name}"
