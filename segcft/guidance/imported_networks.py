"""External networks: an ``nn.Module`` by class path, a TorchScript file, or a MONAI bundle folder."""

import hashlib
import io
import json
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from segcft.core import bounded_yaml
from segcft.core.recipes import TRUSTED_PACKAGES, Recorded, imported

TRUSTED_NETWORKS = (*TRUSTED_PACKAGES, "monai.networks.nets")
MONAI = (
    *(
        "AttentionUnet",
        "BasicUNet",
        "BasicUNetPlusPlus",
        "DynUNet",
        "HighResNet",
        "MedNeXt",
        "SegResNet",
        "SegResNetDS",
    ),
    *("SegResNetDS2", "SwinUNETR", "UNet", "UNETR", "VNet"),
)
SMP = (
    *("Unet", "UnetPlusPlus", "MAnet", "Linknet", "FPN", "PSPNet", "PAN", "DeepLabV3", "DeepLabV3Plus", "UPerNet"),
    "Segformer",
)
PROGRAM = (
    "{place} holds a TorchScript program ({size} bytes, SHA-256 {hashed}...), which is opened now and runs on "
    "every image: stop here unless you trust who made it"
)
FETCHING = re.compile(r"pretrained|weights|url|repo|filename", re.IGNORECASE)  # options that download, or read files
REMOTE = re.compile(r"://|hf[-_]hub:|\.\./")


class ExternalNetwork(nn.Module, Recorded):
    """Base class of external networks, (B, channels, *S) -> (B, outputs, *S).

    Args:
        outputs: Names of the output channels in order; needed only to select structures by name.
    """

    def __init__(self, outputs: list[str] | None = None) -> None:
        super().__init__()
        self.outputs = outputs


class ImportedNetwork(ExternalNetwork):
    """An ``nn.Module`` given by class path; our checkpoints store its weights, but not its code.

    Code is imported from ``monai.networks.nets``, of which the networks in ``MONAI`` are allowed, and from packages
    that the environment variable ``SEGCFT_TRUSTED_PACKAGES`` names, here and wherever the checkpoint is opened.

    Args:
        network: Class path, for instance ``mypackage.networks.UNet``.
        options: Arguments of its constructor.
        weights: File with its ``state_dict``; read once, with ``weights_only=True``.
        outputs: See ``ExternalNetwork``.

    Raises:
        ValueError: If the class is not trusted, does not exist or rejects the options, or if the weights do not fit.
    """

    def __init__(
        self,
        network: str,
        options: dict[str, Any] | None = None,
        weights: str | None = None,
        outputs: list[str] | None = None,
    ) -> None:
        super().__init__(outputs)
        if network.startswith("monai."):
            refuse_unlisted(network.rpartition(".")[2], MONAI, network)
        refuse_fetching(options or {}, network)
        factory = imported(network, TRUSTED_NETWORKS)
        if not (isinstance(factory, type) and issubclass(factory, nn.Module)):
            raise ValueError(f"network: {network!r} is not a torch.nn.Module")
        try:
            self.module: nn.Module = factory(**(options or {}))
        except (TypeError, ValueError, KeyError, RuntimeError, AssertionError) as error:
            raise ValueError(f"network: {network} cannot be built with options {options}: {error}") from error
        if weights is not None:
            _load_weights(self.module, Path(weights))

    @property
    def recipe(self) -> dict[str, Any]:
        """Recipe without the path of the weights, which are in the checkpoint."""
        recipe = super().recipe
        return {**recipe, "init_args": {**recipe["init_args"], "weights": None}}

    def forward(self, image: Tensor) -> Any:
        """The module's output, unchanged."""
        return self.module(image)


def refuse_unlisted(name: str, listed: Sequence[str], network: str) -> None:
    """Networks of libraries are taken from a list: some functions beside them download or read files.

    Raises:
        ValueError: If it is not on the list.
    """
    if name not in listed:
        raise ValueError(f"network: {network!r} is not one of {', '.join(listed)}")


def refuse_fetching(options: Any, network: str) -> None:
    """Options that have a library download weights, or read files by itself, in nested plain data.

    Raises:
        ValueError: If there is one.
    """
    items = list(options.items()) if isinstance(options, dict) else [("", item) for item in options]
    for name, value in items:
        fetches = bool(FETCHING.search(str(name))) and value not in (None, False)
        if fetches or (isinstance(value, str) and REMOTE.search(value)):
            raise ValueError(
                f"network: {network}: option {name} = {value!r} would fetch weights: nothing is downloaded"
            )
        if isinstance(value, dict | list):
            refuse_fetching(value, network)


class ScriptedNetwork(ExternalNetwork):
    """A TorchScript file; our checkpoints store both its program and its weights. Frozen unless it is co-trained.

    Opening TorchScript executes no Python code, but running it executes its graph: only open TorchScript files, and
    checkpoints that contain one, from people you trust.

    Args:
        file: File written by ``torch.jit.save``; None if the program will come from a checkpoint's state.
        outputs: See ``ExternalNetwork``.

    Raises:
        ValueError: If the file is missing or is not TorchScript; a pickled module is refused.
    """

    def __init__(self, file: str | None = None, outputs: list[str] | None = None) -> None:
        super().__init__(outputs)
        self._program = b""
        self.module: nn.Module | None = None
        if file is not None:
            if not Path(file).is_file():
                raise ValueError(f"{file} does not exist")
            self._open(Path(file).read_bytes(), file)

    @property
    def recipe(self) -> dict[str, Any]:
        """Recipe without the file's path, since the program is in the checkpoint."""
        recipe = super().recipe
        return {**recipe, "init_args": {**recipe["init_args"], "file": None}}

    def forward(self, image: Tensor) -> Any:
        """The program's output, unchanged."""
        assert self.module is not None, "load the state first"
        return self.module(image)

    def get_extra_state(self) -> Tensor:
        """The program as bytes, (N,) uint8; extra state, because the EMA would average a buffer."""
        return torch.frombuffer(bytearray(self._program), dtype=torch.uint8) if self._program else torch.empty(0)

    def set_extra_state(self, state: Tensor) -> None:
        """Load a program from bytes; its weights are then loaded as parameters."""
        program = state.cpu().numpy().tobytes()
        if program != self._program:  # reopening would replace parameters that optimisers hold
            announce(program, "the checkpoint")
            self._open(program, "the checkpoint's TorchScript")

    def _open(self, program: bytes, source: str) -> None:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # torch's deprecation notice is for the program's author
                module: nn.Module = torch.jit.load(io.BytesIO(program), map_location="cpu")  # type: ignore[no-untyped-call]
        except RuntimeError as error:
            raise ValueError(
                f"{source} is not TorchScript. A pickled module is refused because opening it may run code: "
                "save it with torch.jit.save, or give ImportedNetwork its class path and its state_dict"
            ) from error
        self._program, self.module = program, module.train(self.training)
        self.requires_grad_(False)


def announce(program: bytes, place: str) -> None:
    """Warn that a file which was not given as a program holds one, before it is opened."""
    hashed = hashlib.sha256(program).hexdigest()[:16]
    warnings.warn(PROGRAM.format(place=place, size=len(program), hashed=hashed), stacklevel=2)


def opened(path: str) -> ExternalNetwork:
    """Open a TorchScript file or a MONAI bundle folder.

    Raises:
        ValueError: If the path is neither.
    """
    if Path(path).is_dir():
        return _bundle(Path(path))
    if not Path(path).exists():
        raise ValueError(f"network: {path} does not exist; for a class, give ImportedNetwork its class path")
    return ScriptedNetwork(path)


def _bundle(folder: Path) -> ExternalNetwork:
    """``network_def`` of configs/inference.json or .yaml with models/model.pt, or models/model.ts alone."""
    outputs, weights, script = _output_names(folder), folder / "models/model.pt", folder / "models/model.ts"
    if not weights.is_file() and script.is_file():
        announce(script.read_bytes(), str(folder))
        return ScriptedNetwork(str(script), outputs)
    found = [path for path in (folder / f"configs/inference.{kind}" for kind in ("json", "yaml")) if path.is_file()]
    if not found:
        raise ValueError(f"{folder} is not a MONAI bundle; no configs/inference.json or .yaml, no models/model.ts")
    config = _read(found[0])
    network = config.get("network_def")
    if not isinstance(network, dict) or "_target_" not in network:
        raise ValueError(f"{found[0]}: network_def: a dictionary with _target_ is needed")
    options = {key: _plain(value, config, found[0]) for key, value in network.items() if not key.startswith("_")}
    target = network["_target_"] if "." in network["_target_"] else f"monai.networks.nets.{network['_target_']}"
    return ImportedNetwork(target, options, str(weights), outputs)


def _output_names(folder: Path) -> list[str] | None:
    path = folder / "configs/metadata.json"
    if not path.is_file():
        return None
    try:
        channels = _read(path)["network_data_format"]["outputs"]["pred"]["channel_def"]
        return [channels[key] for key in sorted(channels, key=int)]
    except (KeyError, TypeError, AttributeError, ValueError):
        return None  # optional metadata without a fixed format


def _plain(value: Any, config: dict[str, Any], path: Path, depth: int = 8) -> Any:
    """A value of a bundle's configuration with references resolved; ``$`` expressions are code and refused."""
    if isinstance(value, dict):
        if "_target_" not in value:
            return {key: _plain(item, config, path) for key, item in value.items()}
    elif isinstance(value, list):
        return [_plain(item, config, path) for item in value]
    elif isinstance(value, str) and value.startswith("@") and value[1:] in config and depth:
        return _plain(config[value[1:]], config, path, depth - 1)
    elif not (isinstance(value, str) and value[:1] in ("$", "@", "%")):
        return value
    raise ValueError(f"{path}: network_def: {value!r} is an expression that would run code; write its value instead")


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text) if path.suffix == ".json" else bounded_yaml.read(text)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} does not hold a dictionary")
    return content


def _load_weights(module: nn.Module, path: Path) -> None:
    """Load a file that holds a ``state_dict``, or a dictionary with one under ``state_dict`` or ``model``."""
    if not path.is_file():
        raise ValueError(f"{path} does not exist")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises all kinds of errors on damaged files
        raise ValueError(f"{path} holds more than a state_dict, or is damaged; it is refused as unsafe") from error
    if not isinstance(state, dict):
        raise ValueError(f"{path} holds {type(state).__name__}, not a state_dict")
    state = next((state[key] for key in ("state_dict", "model") if key in state), state)
    try:
        module.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"{path} does not fit {type(module).__name__}: {reason}") from error
