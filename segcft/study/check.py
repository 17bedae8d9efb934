"""``segcft check``: what is wrong or unwise about an experiment and its data, before hours are spent.

Nothing is trained and no cache is made: the configuration is read, the data set's table, and ten of its images.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from jsonargparse import ArgumentParser

from data_modules.common.data_module import DataModule
from data_modules.common.sources import Sample, Source
from data_modules.common.splits import shared_patients
from data_modules.preparation.prepared import Prepared
from segcft.core.formatting import number
from segcft.core.parsing import PlainParser, simplified
from segcft.study import plan
from segcft.study.experiment import Config, data, located, stage
from segcft.study.schedule import SECONDS, minutes

Level = Literal["wrong", "unwise", "fine"]
LOOKED_AT = 10  # images
FEW = {"train": 100, "val": 10, "test": 20}  # patients: with fewer, results say little
FLAT = 4.0  # levels of 255: deviation of an image in which nothing is seen
PHANTOM = (850, 64 * 64, 32)  # steps, pixels and images a step of the pretraining that SECONDS are of


@dataclass
class Report:
    """What was found, in order.

    Attributes:
        lines: Level and sentence.
    """

    lines: list[tuple[Level, str]] = field(default_factory=list)

    def add(self, level: Level, text: str) -> None:
        """One more sentence."""
        self.lines.append((level, text))

    @property
    def status(self) -> int:
        """Exit status: 2 if something is wrong."""
        return 2 * any(level == "wrong" for level, _ in self.lines)


def check(arguments: list[str]) -> int:
    """Run the command.

    Raises:
        ValueError: If there is no such experiment.
    """
    parser = PlainParser("check", "Read an experiment, its data's table and ten images: what is wrong or unwise?")
    parser.add_argument("experiment", help="folder under experiments/")
    parser.add_argument("--experiments", type=Path, default=Path("experiments"), help="folder of the experiments")
    passed = [word for word in arguments if word.startswith("--data")]
    options = parser.parse_args([word for word in arguments if word not in passed])
    found = examine(located(options.experiment, options.experiments), passed)
    for level, text in found.lines:
        print(f"{level:>6}  {text}")
    return found.status


def examine(folder: Path, options: list[str]) -> Report:
    """All checks of one experiment.

    Args:
        folder: ``experiments/NAME``.
        options: ``--data...``, as of ``segcft study``.
    """
    report = Report()
    try:
        jobs = plan.jobs(plan.single(folder, (), (), "test", Path("results")))
        report.add("fine", f"{len(jobs)} stages: {', '.join(job.name for job in jobs)}")
        module = _opened(data(folder), options)
    except (ValueError, OSError) as error:
        report.add("wrong", simplified(str(error)))
        return report
    _check_stages(report, stage(folder, "pretrain"), module)
    if not isinstance(module, Prepared):
        report.add("fine", f"{type(module).__name__} draws or holds its images in memory; they are not looked at")
        return report
    table = _check_table(report, module)
    if table is not None:
        _check_images(report, module, table)
        _say_costs(report, folder, module, table)
    return report


def _opened(config: Config, options: list[str]) -> DataModule:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(DataModule, "data", required=True)
    parsed = parser.parse_object({"data": config["data"]})
    if options:
        parsed = parser.parse_args(options, namespace=parsed)
    module: DataModule = parser.instantiate_classes(parsed)["data"]
    return module


def _check_stages(report: Report, pretrain: Config, module: DataModule) -> None:
    """The HVAE's finest stage has the frame's sides."""
    shape = (pretrain.get("model", {}).get("init_args", {}).get("hvae") or {}).get("init_args", {})
    stages = shape.get("stages")
    frame = getattr(getattr(module, "source", module), "frame", None) or (getattr(module, "size", None),)
    if not isinstance(stages, list) or frame[0] is None:
        return
    finest = stages[0]["resolution"]
    sides = tuple(finest) if isinstance(finest, list) else (finest,) * max(len(frame), 1)
    if sides != tuple(frame) and set(sides) != set(frame):
        text = f"pretrain: the HVAE's finest stage has {list(sides)} pixels, images have {list(frame)}"
        report.add("wrong", f"{text}: give the first of model.init_args.hvae.init_args.stages that resolution")


def _check_table(report: Report, module: Prepared) -> pd.DataFrame | None:
    """Subjects, patients, splits and variables; None if the table cannot be read."""
    try:
        table = module.source.table()
    except (ValueError, OSError) as error:
        report.add("wrong", str(error))
        return None
    for split, least in FEW.items():
        patients = table.loc[table["split"] == split, "patient"].nunique()
        level: Level = "wrong" if not patients else "unwise" if patients < least else "fine"
        more = "" if level == "fine" else f": {least} or more tell methods apart"
        report.add(level, f"{split}: {patients} patients, {(table['split'] == split).sum()} images{more}")
    if shared := shared_patients(table):
        report.add("wrong", f"patients in more than one split: {shared}")
    for name in module.variables:
        if name in table and name not in _sizes(module):
            _check_variable(report, name, table[name])
    return table


def _check_variable(report: Report, name: str, column: "pd.Series[Any]") -> None:
    known = pd.to_numeric(column, errors="coerce").dropna()
    if not len(known):
        report.add("wrong", f"{name}: no subject has a value")
    elif known.nunique() == 1:
        report.add("wrong", f"{name}: all subjects have {number(float(known.iloc[0]))}: nothing can be learnt of it")
    elif len(known) < len(column) / 2:
        report.add("unwise", f"{name}: {len(column) - len(known)} of {len(column)} subjects lack it and are left out")


def _check_images(report: Report, module: Prepared, table: pd.DataFrame) -> None:
    """Ten images, evenly from the table."""
    rows = table.iloc[np.unique(np.linspace(0, len(table) - 1, LOOKED_AT).astype(int))]
    samples = list(_read(report, module.source, rows))
    if not samples:
        return
    report.add("fine", f"{len(samples)} of {len(rows)} images could be read")
    flat = sum(float(np.std(sample.image)) < FLAT for sample in samples)
    if flat:
        report.add("unwise", f"{flat} of {len(samples)} images are nearly constant: is the window right?")
    for place, name in enumerate(module.source.structures):
        if name in module.structures:
            _check_structure(report, name, np.array([sample.mask[place].mean() for sample in samples]))


def _read(report: Report, source: Source, rows: pd.DataFrame) -> Iterator[Sample]:
    for row in rows.to_dict("records"):
        try:
            yield source.read({str(key): value for key, value in row.items()})
        except (ValueError, OSError) as error:
            report.add("wrong", str(error))


def _check_structure(report: Report, name: str, shares: "np.ndarray[Any, Any]") -> None:
    empty = int((shares == 0).sum())
    level: Level = "wrong" if empty == len(shares) else "unwise" if empty > len(shares) / 4 else "fine"
    if level != "fine":
        report.add(level, f"{name}: its mask is empty in {empty} of {len(shares)} images: are labels or columns right?")
        return
    low, high = (number(100 * float(end)) for end in (shares.min(), shares.max()))
    report.add("unwise" if shares.max() > 0.9 else "fine", f"{name}: {low} to {high} % of the images' pixels")


def _say_costs(report: Report, folder: Path, module: Prepared, table: pd.DataFrame) -> None:
    """Memory and time of one core, by the chest phantom's."""
    pixels = int(np.prod(module.source.frame))
    size = len(table) * pixels * (np.dtype(module.source.dtype).itemsize + 1) / 2**20
    report.add("fine", f"prepared data: about {number(size)} MiB on disk, mapped into memory")
    steps, area, batch = PHANTOM
    pretrain = stage(folder, "pretrain").get("trainer", {}).get("max_steps", steps)
    share = pretrain / steps * pixels / area * module.batch_size / batch
    total = share * sum(SECONDS.values())
    report.add("fine", f"all stages: roughly {minutes(total / 2)} on two cores, by the chest phantom's; less on a GPU")


def _sizes(module: DataModule) -> set[str]:
    """Variables that are measured while images are read."""
    return {name for name, variable in module.variables.items() if variable.structure}
