"""``segcft evaluate`` and ``segcft prepare``: options made of what the classes and functions take."""

import importlib
import os
from typing import Literal

from data_modules.common.data_module import DataModule
from data_modules.preparation.prepare import prepare as prepare_source
from segcft.core.parsing import Parser
from segcft.evaluation.command import evaluate as compare

SOURCES = {
    "chexpert": "data_modules.chexpert.CheXpert",
    "mimic_cxr": "data_modules.mimic_cxr.MimicCXR",
    "padchest": "data_modules.padchest.PadChest",
    "folder": "data_modules.folder.Folder",
    "coronary_cta": "data_modules.coronary_cta.CoronaryCTA",
}


def evaluate(arguments: list[str]) -> None:
    """Compare trained models on the same interventions."""
    parser = Parser(prog="segcft evaluate", description=compare.__doc__)
    parser.add_argument("--config", action="config", help="YAML file; later ones override")
    parser.add_argument("--seed_everything", type=int, default=0, help="as in fit; unused")
    parser.add_subclass_arguments(DataModule, "data", required=True)
    parser.add_function_arguments(compare, skip={"data"})
    config = parser.instantiate_classes(parser.parse_args(arguments))
    config.pop("config", None)
    config.pop("seed_everything", None)
    compare(**config.as_dict())


def prepare(arguments: list[str]) -> None:
    """Read a data set once and keep it for fast reading."""
    name = arguments[0] if arguments else ""
    if name not in SOURCES:
        print(f"usage: segcft prepare {{{','.join(SOURCES)}}} --out FOLDER [options], see segcft prepare NAME --help")
        if name in ("-h", "--help"):
            return
        raise ValueError(f"unknown data set {name!r}; one of {', '.join(SOURCES)} is needed")
    module, _, kind = SOURCES[name].rpartition(".")
    source = getattr(importlib.import_module(module), kind)
    parser = Parser(prog=f"segcft prepare {name}", description=prepare_source.__doc__)
    parser.add_argument("--config", action="config", help="YAML file; later ones override")
    options = set(parser.add_class_arguments(source))
    parser.add_argument("--out", type=str, required=True, help="folder of the cache")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes that read")
    parser.add_argument(
        "--on-error", "--on_error", type=Literal["fail", "skip"], default="fail", help="at a subject that can't be read"
    )
    parser.add_argument("--overwrite", type=bool, default=False, help="replace a cache made of something else")
    config = parser.instantiate_classes(parser.parse_args(arguments[1:]))
    cache = prepare_source(
        source(**{key: config[key] for key in options}), config.out, config.workers, config.on_error, config.overwrite
    )
    counts = ", ".join(f"{name} {count}" for name, count in cache.facts["counts"].items())
    print(f"{cache.folder}: {counts}; {cache.facts['quarantined']} left out; see segcft inspect {cache.folder}")
