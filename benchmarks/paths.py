"""Our hot paths over one batch, by preset and setting: what ``speed.py`` times."""

import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.clock import Step
from data_modules.chest_phantom import ChestPhantom
from segcft.callbacks.ema import Average
from segcft.core import checkpoints
from segcft.counterfactual.model import CounterfactualModel
from segcft.counterfactual.prediction import Prediction, Standard, Transported
from segcft.guidance.guidance import Guidance, RegressorGuidance, SegmentorGuidance
from segcft.guidance.judges import Regressor, Segmentor
from segcft.hvae.causal_gen import ParityHVAE
from segcft.hvae.hvae import HVAE
from segcft.hvae.likelihoods import Gaussian, Likelihood
from segcft.hvae.stages import Stage
from segcft.study.experiment import read
from segcft.tasks import CounterfactualFineTuning
from segcft.tasks.base import Optimisation, compiled
from segcft.variables.variables import DataDescription, Variable

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
UNET = {"channels": [16, 32, 64, 96], "strides": [2, 2, 2], "norm": "batch", "act": "relu"}
PATHS = ("train", "finetune", "generate", "sweep", "read")
SWEEP = 8  # questions of one abduction
WORDS = ("plain", "nchw", "bf16", "compile", "graphs", "lean", "recompute")


class Preset(NamedTuple):
    """What is timed: shapes of a model."""

    name: str
    size: int
    batch: int
    recompute: int  # pixels from which the setting of that name recomputes activations


PRESETS = {
    preset.name: preset
    for preset in (
        Preset("morphomnist32", 32, 32, 8),
        Preset("mimic192", 192, 2, 24),
        Preset("chest64", 64, 32, 16),
        Preset("chest192", 192, 4, 48),
    )
}


class Setting(NamedTuple):
    """How it is run.

    Attributes:
        channels_last: Memory format of weights and images.
        bf16: Autocast to bfloat16.
        compile: ``default`` or ``reduce-overhead`` (CUDA graphs); empty for none.
        recompute: See ``HVAE``: ``lean`` of activations, ``recompute`` of blocks from the preset's pixels.
    """

    channels_last: bool = True
    bf16: bool = False
    compile: str = ""
    recompute: str = ""

    @classmethod
    def read(cls, text: str) -> "Setting":
        """Words joined by +, of ``WORDS``.

        Raises:
            SystemExit: If one is unknown.
        """
        words = text.split("+")
        for word in words:
            if word not in WORDS:
                raise SystemExit(f"unknown setting {word!r}; there are {', '.join(WORDS)}, joined by +")
        mode = "reduce-overhead" if "graphs" in words else "default" if "compile" in words else ""
        again = next((word for word in ("lean", "recompute") if word in words), "")
        return cls("nchw" not in words, "bf16" in words, mode, again)


def describe(preset: Preset) -> DataDescription:
    """Parents as many as the public model's of the same name, or those of the chest phantom."""
    if preset.name == "morphomnist32":
        grey = {name: Variable(visible=True, low=-2, high=2) for name in ("thickness", "intensity")}
        digit = Variable(kind="categorical", categories=tuple("0123456789"))
        return DataDescription({**grey, "digit": digit}, [], [1.0, 1.0])
    if preset.name == "mimic192":
        seen = {name: Variable(visible=True, low=-2, high=2) for name in ("age", "sex", "finding")}
        return DataDescription({**seen, "race": Variable(kind="categorical", categories=tuple("abc"))}, [], [1.0, 1.0])
    return ChestPhantom(size=preset.size, subjects=dict.fromkeys(("train", "val", "test"), 64)).description


def batch_of(preset: Preset, about: DataDescription) -> dict[str, Tensor]:
    """Images (B, 1, H, W) of 8 bits with a black margin, and parents."""
    image = torch.randint(256, (preset.batch, 1, preset.size, preset.size)).float() / 127.5 - 1
    image[..., : preset.size // 3, :] = -1
    values = {
        name: torch.randint(variable.dim, (preset.batch,)).float()
        if variable.kind != "continuous"
        else variable.mean + variable.std * torch.randn(preset.batch).clamp(-1.5, 1.5)
        for name, variable in about.parents.variables.items()
    }
    return {"image": image, "index": torch.arange(preset.batch), **values}


class Ours:
    """Our steps over one batch.

    Args:
        preset: Shapes.
        setting: How to run them.
        device: Where.
    """

    def __init__(self, preset: Preset, setting: Setting, device: torch.device) -> None:
        self.preset, self.setting, self.device = preset, setting, device
        self.about = describe(preset)
        self.format = torch.channels_last if setting.channels_last else torch.contiguous_format
        self.model = CounterfactualModel(self.about, self._hvae(), self._prediction()).to(device)
        self.model.to(memory_format=self.format)
        batch = {name: value.to(device) for name, value in batch_of(preset, self.about).items()}
        self.batch = {**batch, "image": batch["image"].contiguous(memory_format=self.format)}

    def step(self, path: str) -> Step:
        """One of ``PATHS``."""
        if path == "read":
            return self._read()
        if path == "train":
            return self._train()
        if path == "finetune":
            return self._finetune()
        return self._generate(SWEEP if path == "sweep" else 1)

    def _train(self) -> Step:
        """As ``PretrainHVAE`` with clipping and an average: the loop alone."""

        def loss() -> Tensor:
            return self.model.abduct(self.batch["image"], self.batch).elbo.nelbo().mean()

        return self._descent(compiled(loss, self.setting.compile), self.model)

    def _finetune(self) -> Step:
        """As ``CounterfactualFineTuning``, by its own training step, with logging left out."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "pretrain.ckpt")
            state = {f"model.{name}": value for name, value in self.model.state_dict().items()}
            torch.save({"segcft": checkpoints.describe({"model": self.model}, {}), "state_dict": state}, path)
            free = {"minimality": 0.0} if self.about.structures == [] else {}
            task = CounterfactualFineTuning(self.about, str(path), self._guidance(), soft=True, **free)
        task.to(self.device).to(memory_format=self.format)
        task.show = lambda *_: None  # type: ignore[method-assign]
        task.constraint.measure(torch.ones((), device=self.device))
        if task.guidance.shape is not None:
            self._fit_shape(task)
        task.terms = compiled(task.terms, self.setting.compile)  # type: ignore[method-assign]
        return self._descent(lambda: task.training_step(self.batch, 0), task.model)

    def _generate(self, questions: int) -> Step:
        """Abduct once, answer ``questions`` times."""
        parents = self.about.parents
        asked = self.model.act(parents.take(self.batch), {name: self.batch[name] + 0.5 for name in parents.askable[:1]})

        def answers() -> list[Tensor]:  # returned, or the compiler would find that nobody wants them
            image = self.batch["image"]
            found = self.model.abduct(image, self.batch)
            return [self.model.answer(image, found, asked).image for _ in range(questions)]

        self.model.eval().requires_grad_(False)
        answers = compiled(answers, self.setting.compile)

        @torch.no_grad()
        def step() -> None:
            with self._autocast():
                answers()

        return step

    def _read(self) -> Step:
        """A shuffled batch of phantoms, drawn before."""
        data = ChestPhantom(size=self.preset.size, subjects=dict.fromkeys(("train", "val", "test"), 64))
        dataset = data.dataset("train")
        return lambda: dataset.read(torch.randperm(len(dataset))[: self.preset.batch])

    def _descent(self, loss: Any, model: nn.Module) -> Step:
        optimiser = Optimisation().optimiser(weight for weight in model.parameters() if weight.requires_grad)
        average = Average(model, 0.999)
        learning = [weight for group in optimiser.param_groups for weight in group["params"]]

        def step() -> None:
            with self._autocast():
                value = loss()
            value.backward()
            nn.utils.clip_grad_norm_(learning, 350.0, foreach=True)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
            average.update_parameters(model)

        return step

    def _hvae(self) -> HVAE:
        ways = {"": 0, "lean": "activations", "recompute": self.preset.recompute}
        options: dict[str, Any] = {"recompute": ways[self.setting.recompute]}
        parity, dim = self.preset.name in ("morphomnist32", "mimic192"), self.about.parents.dim
        if parity:
            return ParityHVAE(2, 1, dim, self.preset.name, **options)
        return HVAE(2, 1, dim, *_default(self.preset), frame=(self.preset.size,) * 2, **options)

    def _prediction(self) -> Prediction:
        return Transported() if self.about.structures else Standard()

    def _guidance(self) -> Guidance:
        if self.about.structures:
            return SegmentorGuidance(Segmentor(self.about, "monai.UNet", UNET), shape=True)
        return RegressorGuidance(Regressor(self.about))

    def _fit_shape(self, task: CounterfactualFineTuning) -> None:
        shape, subjects = task.guidance.shape, 64
        assert shape is not None
        measured = {name: torch.randn(subjects, device=self.device) for name in shape.names}
        shape.fit(measured, {n: torch.randn(subjects, device=self.device) for n in self.about.parents.names})

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.setting.bf16)


def build(preset: Preset, setting: Setting, path: str, device: torch.device) -> Step:
    """One step of ours."""
    return Ours(preset, setting, device).step(path)


def _default(preset: Preset) -> tuple[list[Stage], Likelihood]:
    """Of the experiment of this preset, as its YAML says."""
    if preset.name == "chest192":
        config = read(EXPERIMENTS / "chexpert/size_192.yaml")["variations"]["pretrain"]
    else:
        config = read(EXPERIMENTS / "chest_phantom/pretrain.yaml")
    stages = config["model"]["init_args"]["hvae"]["init_args"]["stages"]
    return [Stage(**stage) for stage in stages], Gaussian(0.1)
