"""``segcft check``: what is wrong or unwise about an experiment and its data, before hours are spent.

Nothing is trained and no cache is made: the configuration is read, the data set's table, and ten of its images.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch

from data_modules.common.data_module import DataModule
from data_modules.common.phantom import PhantomDataset
from data_modules.common.sources import Sample, Source
from data_modules.common.splits import Split, refuse_shared
from data_modules.preparation.prepared import Prepared
from segcft.core.formatting import number
from segcft.core.parsing import Parser, PlainParser, simplified
from segcft.hvae.stages import Stage, resolved
from segcft.io.readers import read_picture
from segcft.study import plan
from segcft.study.experiment import Config, data, located, stage
from segcft.study.schedule import SECONDS, minutes
from segcft.variables.plausibility import FLAT
from segcft.variables.variables import Variable

Level = Literal["wrong", "unwise", "fine"]
LOOKED_AT = 10  # images
FEW: dict[Split, int] = {"train": 100, "val": 10, "test": 20}  # patients: with fewer, results say little
LIMITS = {"years": (0, 120), "%": (0, 100), "% of image": (0, 100)}  # of what a unit can hold
EVERY_LEVEL = (-(2.0**15), 2.0**16)
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
    options, passed = parser.parse_except(arguments, "--data")
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
        jobs = plan.jobs(plan.single(folder, (), tuple(options), "test", Path("results")))
        report.add("fine", f"{len(jobs)} stages: {', '.join(job.name for job in jobs)}")
        module = _opened(data(folder), options)
        _check_stages(report, stage(folder, "pretrain"), module.frame)
        count = _check_table(report, module) if isinstance(module, Prepared) else _check_memory(report, module)
    except (ValueError, OSError) as error:
        report.add("wrong", simplified(str(error)))
        return report
    _say_costs(report, folder, module, count)
    return report


def _opened(config: Config, options: list[str]) -> DataModule:
    parser = Parser(prog="segcft check")
    parser.add_subclass_arguments(DataModule, "data", required=True)
    parsed = parser.parse_args(options, namespace=parser.parse_object({"data": config["data"]}))
    module: DataModule = parser.instantiate_classes(parsed)["data"]
    return module


def _check_stages(report: Report, pretrain: Config, frame: tuple[int, ...]) -> None:
    """The resolutions of the HVAE's stages, which follow from the frame."""
    hvae = (pretrain.get("model", {}).get("init_args", {}).get("hvae") or {}).get("init_args", {})
    if not isinstance(hvae.get("stages"), list):
        return
    try:
        stages = resolved([Stage(**entries) for entries in hvae["stages"]], len(frame), frame)
    except ValueError as error:
        report.add("wrong", f"pretrain: model.init_args.hvae.init_args.stages: {error}")
        return
    sizes = ["x".join(map(str, stage.size(len(frame)))) for stage in stages]
    latent = [size for size, stage in zip(sizes, stages, strict=True) if stage.latent_channels and stage.blocks]
    report.add("fine", f"the HVAE has stages of {', '.join(sizes)} pixels, and latents at {', '.join(latent)}")


def _check_table(report: Report, module: Prepared) -> int:
    """Subjects, patients, splits, variables and ten images of a data set on disk; the number of its images."""
    table = module.source.table()
    for split in FEW:
        here = table.loc[table["split"] == split, "patient"]
        _check_count(report, split, here.nunique(), len(here))
    try:
        refuse_shared(table)
    except ValueError as error:
        report.add("wrong", str(error))
    for name, variable in module.variables.items():
        if name in table and not variable.structure:  # what is measured is known once images are read
            _check_variable(report, name, variable, table[name])
    rows = table.iloc[_evenly(len(table))]
    samples = list(_read(report, module.source, rows))
    if samples:
        report.add("fine", f"{len(samples)} of {len(rows)} images could be read")
        used = {name: module.source.structures.index(name) for name in module.structures}
        low, high = module.source.window
        images = [sample.image / (high - low) for sample in samples]
        _check_images(report, used, images, [sample.mask for sample in samples])
    if len(samples) == len(rows) and len(module.source.frame) == 2 and module.source.unit == "% of image":
        _check_shapes(report, [_shape(row["image"]) for row in rows.to_dict("records")], module.source.frame)
    return len(table)


def _check_memory(report: Report, module: DataModule) -> int:
    """The same of data that are drawn, or held in memory; nothing is measured and no more than ten are drawn."""
    datasets = {split: module.make_dataset(split) for split in FEW}
    for split, dataset in datasets.items():
        _check_count(report, split, len(dataset), len(dataset))
    train = datasets["train"]
    for name, variable in module.variables.items():
        if name in train.attributes and not variable.structure:
            _check_variable(report, name, variable, pd.Series(train.attributes[name].numpy()))
    if isinstance(train, PhantomDataset):
        train.kept = False
    batch = train.read_unchanged(torch.from_numpy(_evenly(len(train))))
    images = list(batch["image"].numpy() / 2)
    report.add("fine", f"{len(images)} images could be read")
    _check_images(report, {name: k for k, name in enumerate(module.structures)}, images, list(batch["mask"].numpy()))
    return sum(len(dataset) for dataset in datasets.values())


def _check_count(report: Report, split: Split, patients: int, images: int) -> None:
    level: Level = "wrong" if not patients else "unwise" if patients < FEW[split] else "fine"
    more = "" if level == "fine" else f": {FEW[split]} or more tell methods apart"
    report.add(level, f"{split}: {patients} patients, {images} images{more}")


def _check_variable(report: Report, name: str, variable: Variable, column: "pd.Series[Any]") -> None:
    known = pd.to_numeric(column, errors="coerce").dropna()
    if not len(known):
        report.add("wrong", f"{name}: no subject has a value")
        return
    if known.nunique() == 1:
        report.add("wrong", f"{name}: all subjects have {number(float(known.iloc[0]))}: nothing can be learnt of it")
    if len(known) < len(column) / 2:
        report.add("unwise", f"{name}: {len(column) - len(known)} of {len(column)} subjects lack it and are left out")
    codes = {"binary": 2, "categorical": len(variable.categories)}.get(variable.kind)
    if codes is not None and not known.isin(range(codes)).all():
        odd = number(float(known[~known.isin(range(codes))].iloc[0]))
        report.add(
            "wrong", f"{name}: a {variable.kind} variable has the values 0 to {codes - 1}, and here {odd} as well"
        )
    low, high = LIMITS.get(variable.unit, (-np.inf, np.inf))
    if codes is None and not known.between(low, high).all():
        found = f"{number(float(known.min()))} to {number(float(known.max()))}"
        report.add("unwise", f"{name}: {found} in {variable.unit}: is it the unit of the table?")


def _evenly(count: int) -> "np.ndarray[Any, Any]":
    return np.unique(np.linspace(0, count - 1, LOOKED_AT).astype(np.int64))


def _read(report: Report, source: Source, rows: pd.DataFrame) -> Iterator[Sample]:
    for row in rows.to_dict("records"):
        try:
            yield source.read({str(key): value for key, value in row.items()})
        except (ValueError, OSError) as error:
            report.add("wrong", str(error))


def _shape(image: str) -> tuple[int, ...]:
    """Shape of the pixels in a file."""
    return read_picture(Path(image), EVERY_LEVEL).levels.shape


def _check_shapes(report: Report, shapes: list[tuple[int, ...]], frame: tuple[int, ...]) -> None:
    """Images that are resized against the frame."""
    small = sum(max(shape) < max(frame) for shape in shapes)
    long = sum(max(shape) > 2 * min(shape) for shape in shapes)
    if small:
        report.add("unwise", f"{small} of {len(shapes)} images are smaller than the frame {list(frame)}: enlarged")
    if long:
        report.add("unwise", f"{long} of {len(shapes)} images are over twice as long as wide: half the frame is black")
    low, high = (number(end(max(shape) for shape in shapes)) for end in (min, max))
    report.add("fine", f"images have {low} to {high} pixels along their longest side, the frame {max(frame)}")


def _check_images(report: Report, used: Mapping[str, int], images: list[Any], masks: list[Any]) -> None:
    """Images in units of the range from black to white, and the structures in use by their channels in the masks."""
    flat = sum(float(np.std(image)) < FLAT for image in images)
    if flat:
        report.add("unwise", f"{flat} of {len(images)} images are nearly constant: is the window right?")
    for name, place in used.items():
        _check_structure(report, name, np.array([mask[place].mean() for mask in masks]))


def _check_structure(report: Report, name: str, shares: "np.ndarray[Any, Any]") -> None:
    empty = int((shares == 0).sum())
    level: Level = "wrong" if empty == len(shares) else "unwise" if empty > len(shares) / 4 else "fine"
    if level != "fine":
        report.add(level, f"{name}: its mask is empty in {empty} of {len(shares)} images: are labels or columns right?")
        return
    low, high = (number(100 * float(end)) for end in (shares.min(), shares.max()))
    report.add("unwise" if shares.max() > 0.9 else "fine", f"{name}: {low} to {high} % of the images' pixels")


def _say_costs(report: Report, folder: Path, module: DataModule, count: int) -> None:
    """Memory, and time of two cores, by the chest phantom's."""
    pixels, prepared = int(np.prod(module.frame)), isinstance(module, Prepared)
    level = np.dtype(module.source.dtype).itemsize if isinstance(module, Prepared) else 1
    size = number(count * pixels * (level + 1) / 2**20)  # a byte for all masks
    report.add("fine", f"prepared data: about {size} MiB {'on disk, mapped into memory' if prepared else 'of memory'}")
    steps, area, batch = PHANTOM
    pretrain = stage(folder, "pretrain").get("trainer", {}).get("max_steps", steps)
    total = pretrain / steps * pixels / area * module.batch_size / batch * sum(SECONDS.values())
    report.add("fine", f"all stages: roughly {minutes(total / 2)} on two cores, by the chest phantom's; less on a GPU")
