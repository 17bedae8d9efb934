"""``segcft evaluate`` and ``segcft prepare``: options made of what the classes and functions take."""

import importlib
import os
from pathlib import Path
from typing import Any, Literal

from data_modules.common.data_module import DataModule
from data_modules.preparation.prepare import prepare as prepare_source
from data_modules.preparation.prepared import default_folder
from segcft.core.parsing import Parser
from segcft.evaluation.command import evaluate as compare
from segcft.study.experiment import read

SOURCES = {
    "chexpert": "data_modules.chexpert.CheXpert",
    "mimic_cxr": "data_modules.mimic_cxr.MimicCXR",
    "padchest": "data_modules.padchest.PadChest",
    "folder": "data_modules.folder.Folder",
    "coronary_cta": "data_modules.coronary_cta.CoronaryCTA",
}


def evaluate(arguments: list[str]) -> None:
    """Compare trained models on the same interventions."""
    parser = evaluation_parser()
    config = parser.instantiate_classes(parser.parse_args(arguments))
    config.pop("config", None)
    config.pop("seed_everything", None)
    compare(**config.as_dict())


def evaluation_parser() -> Parser:
    """Options of ``segcft evaluate``."""
    parser = Parser(prog="segcft evaluate", description=compare.__doc__)
    parser.add_argument("--config", action="config", help="YAML file; later ones override")
    parser.add_argument("--seed_everything", type=int, default=0, help="as in fit; unused")
    parser.add_subclass_arguments(DataModule, "data", required=True)
    parser.add_function_arguments(compare, skip={"data"})
    return parser


def prepare(arguments: list[str]) -> None:
    """Read a data set once and keep it for fast reading."""
    name = arguments[0] if arguments else ""
    if name not in SOURCES:
        print(f"usage: segcft prepare {{{','.join(SOURCES)}}} [--out FOLDER] [options], see segcft prepare NAME --help")
        if name in ("-h", "--help"):
            return
        raise ValueError(f"unknown data set {name!r}; one of {', '.join(SOURCES)} is needed")
    module, _, kind = SOURCES[name].rpartition(".")
    source = getattr(importlib.import_module(module), kind)
    parser = Parser(prog=f"segcft prepare {name}", description=prepare_source.__doc__)
    parser.add_argument(
        "--config", action="config", help="YAML file, such as an experiment's data.yaml; later override"
    )
    options = set(parser.add_class_arguments(source))
    parser.add_argument("--out", type=str, help="folder of the cache; by default the one where fit looks for it")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes that read")
    parser.add_argument(
        "--on-error", "--on_error", type=Literal["fail", "skip"], default="fail", help="at a subject that can't be read"
    )
    parser.add_argument("--overwrite", type=bool, default=False, help="replace a cache made of something else")
    words, declared = _declared(arguments[1:], SOURCES[name])
    parser.set_defaults(declared)
    config = parser.instantiate_classes(parser.parse_args(words))
    made = source(**{key: config[key] for key in options})
    cache = prepare_source(made, config.out or default_folder(made), config.workers, config.on_error, config.overwrite)
    counts = ", ".join(f"{name} {count}" for name, count in cache.facts["counts"].items())
    print(f"{cache.folder}: {counts}; {cache.facts['quarantined']} left out; see segcft inspect {cache.folder}")


def _declared(words: list[str], kind: str) -> tuple[list[str], dict[str, Any]]:
    """Options without the ``--config`` that are declarations of experiments, and what those say of the source.

    Raises:
        ValueError: If one declares another source.
    """
    rest, found = list(words), dict[str, Any]()
    for place, word in enumerate(words):
        name, _, file = word.partition("=")
        spelt = [word] if file else words[place : place + 2]
        if name != "--config" or not Path(spelt[-1].removeprefix("--config=")).is_file():
            continue
        path = Path(spelt[-1].removeprefix("--config="))
        data = (read(path).get("data") or {}).get("init_args") or {}
        if "source" not in data:
            continue
        if data["source"]["class_path"] != kind:
            raise ValueError(f"{path}: data.source is {data['source']['class_path']}, not {kind}")
        found |= data["source"].get("init_args") or {}
        found |= {"out": data["cache"]} if data.get("cache") else {}
        for each in spelt:
            rest.remove(each)
    return rest, found
