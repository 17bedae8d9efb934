"""Segmentors made elsewhere: conventions, files, refusals, and checkpoints that need neither file nor folder."""

import json
import pickle
import socket
import warnings

import pytest
import torch
from torch import nn

from segcft.cli.main import main
from segcft.core import checkpoints
from segcft.core.recipes import TRUST, build, plain
from segcft.counterfactual.model import CounterfactualModel
from segcft.guidance.external_segmentor import ExternalSegmentor, InputConvention
from segcft.guidance.guidance import CoTrainedGuidance, SegmentorGuidance
from segcft.guidance.imported_networks import MONAI, SMP, ImportedNetwork, ScriptedNetwork, opened
from segcft.guidance.judges import SegmentationModel, Segmentor
from tests.balls import Balls
from tests.inference.test_answer_file import make

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit")
CHANNELS = {"left": 0, "right": 1}
UNET = {"channels": [4, 8], "strides": [2], "norm": "batch"}


class Brightness(nn.Module):
    """Logits: the image itself, and the image upside down."""

    def forward(self, image):
        return torch.cat([image[:, :1], -image[:, :1]], 1)


class Hostile(nn.Module):
    def __reduce__(self):
        return (print, ("code ran",))


def network(dims, outputs=2):
    conv, norm = (nn.Conv2d, nn.BatchNorm2d) if dims == 2 else (nn.Conv3d, nn.BatchNorm3d)
    return nn.Sequential(conv(1, 4, 3, padding=1), norm(4), nn.ReLU(), conv(4, outputs, 1)).eval()


def script(module, path, channels=1, dims=2):
    torch.jit.trace(module, torch.zeros(1, channels, *[16] * dims)).save(str(path))
    return str(path)


def bundle(folder, dims, target="UNet", **more):
    from monai.networks.nets import UNet

    (folder / "configs").mkdir(parents=True)
    (folder / "models").mkdir()
    options = {"spatial_dims": "@dims", "in_channels": 1, "out_channels": 3, **UNET, **more}
    config = {"dims": dims, "network_def": {"_target_": target, **options}}
    (folder / "configs/inference.json").write_text(json.dumps(config))
    pred = {"channel_def": {"0": "background", "1": "left", "2": "right"}}
    metadata = {"network_data_format": {"outputs": {"pred": pred}}}
    (folder / "configs/metadata.json").write_text(json.dumps(metadata))
    made = UNet(spatial_dims=dims, in_channels=1, out_channels=3, **UNET).eval()
    torch.save(made.state_dict(), folder / "models/model.pt")
    return made


def save(path, parts):
    state = {f"{name}.{key}": value for name, part in parts.items() for key, value in part.state_dict().items()}
    torch.save({"state_dict": state, "segcft": checkpoints.describe(parts, {})}, path)
    return path


def judge(module, tmp_path, **options):
    made = ExternalSegmentor(script(module, tmp_path / "a.ts", options.pop("depth", 1)), CHANNELS, **options)
    made.attach(Balls().description)
    return made.eval()


@pytest.mark.parametrize("dims", [2, 3])
def test_torchscript_says_the_same_here_and_from_a_checkpoint_without_its_file(dims, tmp_path):
    module, image = network(dims), torch.rand(2, 1, *[16] * dims) * 2 - 1
    path = script(module, tmp_path / "a.ts", dims=dims)
    guidance = SegmentorGuidance(ExternalSegmentor(path, CHANNELS, InputConvention(size=(16,) * dims)))
    assert guidance.names == []
    guidance.attach(Balls(spatial_dims=dims).description)
    assert guidance.names == ["left_size", "right_size"]
    expected = torch.sigmoid(module(image)).flatten(2).sum(2)
    torch.testing.assert_close(torch.stack(list(guidance(image).values()), 1), expected)
    saved = save(tmp_path / "a.ckpt", {"guidance": guidance})
    (tmp_path / "a.ts").unlink()
    for found in (checkpoints.load(saved, SegmentorGuidance).judge, checkpoints.search(saved, SegmentationModel)):
        assert torch.equal(found.probabilities(image), guidance.judge.probabilities(image))
        assert not any(weight.requires_grad for weight in found.parameters())
        assert not any(each.training for each in found.modules())


@pytest.mark.parametrize("dims", [2, 3])
def test_monai_bundle_finds_structures_by_the_names_of_its_channels(dims, tmp_path):
    module, image = bundle(tmp_path / "b", dims), torch.rand(2, 1, *[16] * dims) * 2 - 1
    channels = {"right": "right", "left": "left"}
    judge = ExternalSegmentor(str(tmp_path / "b"), channels, output="softmax")
    judge.attach(Balls(spatial_dims=dims).description)
    expected = module(image).softmax(1)[:, 1:]
    torch.testing.assert_close(judge.probabilities(image), expected)
    saved = save(tmp_path / "a.ckpt", {"judge": judge})
    (tmp_path / "b").rename(tmp_path / "elsewhere")
    found = checkpoints.load(saved, SegmentationModel).eval()
    torch.testing.assert_close(found.probabilities(image), expected)


def test_bundle_with_torchscript_alone(tmp_path):
    (tmp_path / "models").mkdir()
    script(network(2), tmp_path / "models/model.ts")
    with pytest.warns(UserWarning, match="holds a TorchScript program"):
        assert isinstance(opened(str(tmp_path)), ScriptedNetwork)


def test_weights_learnt_since_come_back_with_the_program(tmp_path):
    made = judge(network(2), tmp_path)
    with torch.no_grad():
        for weight in made.parameters():
            weight.add_(1.0)
    image = torch.rand(1, 1, 16, 16)
    found = checkpoints.load(save(tmp_path / "a.ckpt", {"judge": made}), ExternalSegmentor).eval()
    assert torch.equal(found(image), made(image))


def test_the_same_state_leaves_the_weights_that_an_optimiser_holds(tmp_path):
    made = CoTrainedGuidance(judge(network(2), tmp_path))
    before = list(made.parameters())
    made.load_state_dict(made.state_dict())
    assert all(a is b and a.requires_grad for a, b in zip(before, made.parameters(), strict=True))


def test_a_class_by_its_path_if_its_package_is_trusted(tmp_path, monkeypatch):
    module = network(2)
    torch.save({"state_dict": module.state_dict()}, tmp_path / "w.pt")
    arguments = ("tests.guidance.test_external_segmentor.Wrapped", {"outputs": 2}, str(tmp_path / "w.pt"))
    with pytest.raises(ValueError, match=TRUST):
        ImportedNetwork(*arguments)
    monkeypatch.setenv(TRUST, "tests.guidance.test_external_segmentor")
    made = ExternalSegmentor(ImportedNetwork(*arguments), CHANNELS, description=Balls().description).eval()
    image = torch.rand(1, 1, 16, 16)
    torch.testing.assert_close(made(image), module(image))
    path = save(tmp_path / "a.ckpt", {"judge": made})
    (tmp_path / "w.pt").unlink()
    assert torch.equal(checkpoints.load(path, SegmentationModel).eval()(image), made(image))
    monkeypatch.delenv(TRUST)
    with pytest.raises(ValueError, match="outside the trusted packages"):
        checkpoints.load(path, SegmentationModel)


class Wrapped(nn.Sequential):
    def __init__(self, outputs):
        super().__init__(*network(2, outputs))


class Activated(nn.Module):
    """The same outlines said in another way."""

    def __init__(self, how):
        super().__init__()
        self.how = how

    def forward(self, image):
        left, right = image[:, :1], -image[:, :1]
        if self.how == "sigmoid":
            return torch.cat([left, right], 1)
        if self.how == "probabilities":
            return torch.sigmoid(torch.cat([left, right], 1))
        # exclusive classes: odds of left to all others are exp(left), and of right exp(right)
        return torch.cat([left, torch.zeros_like(left)], 1)


@pytest.mark.parametrize("how", ["sigmoid", "softmax", "probabilities"])
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_conventions_of_the_output_agree(how, temperature, tmp_path):
    image = torch.rand(2, 1, 8, 8) * 2 - 1
    made = judge(Activated(how), tmp_path, output=how, temperature=temperature)
    expected = torch.sigmoid(torch.cat([image, -image], 1) / temperature)
    torch.testing.assert_close(made.probabilities(image), expected)


@pytest.mark.parametrize(
    ("convention", "low", "high"),
    [
        ({}, -1, 1),
        ({"range": (0, 1)}, 0, 1),
        ({"range": (0, 255)}, 0, 255),
        ({"levels": (-200, 600), "range": (-200, 600)}, -200, 600),
        ({"levels": (-200, 600), "window": (0, 400), "range": (0, 1)}, 0, 1),
    ],
)
def test_input_conventions_map_both_ends(convention, low, high):
    image = torch.tensor([-1.0, 1.0]).view(1, 1, 1, 2)
    assert InputConvention(**convention)(image).flatten().tolist() == [low, high]


def test_window_zscore_channels_and_size():
    ct = InputConvention(levels=(-200, 600), window=(0, 400), range=(0, 1))
    assert ct(torch.zeros(1, 1, 2, 2)).unique().tolist() == [0.5]  # 200 HU
    image = torch.rand(3, 1, 8, 8, 8)
    scored = InputConvention(range="zscore", channels=3, size=(4, 4, 4))
    assert scored(image).shape == (3, 3, 4, 4, 4)
    found = InputConvention(range="zscore")(image)
    torch.testing.assert_close(found.mean((1, 2, 3, 4)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(found.std((1, 2, 3, 4)), torch.ones(3))


def test_another_size_comes_back_in_the_size_of_the_image(tmp_path):
    made = judge(Brightness(), tmp_path, input=InputConvention(size=(32, 32)))
    image = torch.rand(1, 1, 16, 16, requires_grad=True)
    logits = made(image)
    assert logits.shape == (1, 2, 16, 16)
    logits[:, 0].sum().backward()
    assert image.grad.abs().sum() > 0


def test_errors_name_field_and_value(tmp_path):
    path, about = script(network(2), tmp_path / "a.ts"), Balls().description

    def refused(message, network=path, channels=CHANNELS, **options):
        with pytest.raises(ValueError, match=message):
            ExternalSegmentor(network, channels, **options).attach(about)

    refused("nowhere.ts does not exist", network="nowhere.ts")
    refused("channels: no output is named for right", channels={"left": 0})
    refused("channels: heart is no structure", channels={**CHANNELS, "heart": 1})
    refused(r"channels: right: 2: the network returns 2 channels", channels={"left": 0, "right": 2})
    refused("channels: right: 'lung': the network's outputs have no names", channels={"left": 0, "right": "lung"})
    refused("returns 2 channels, but outputs names 3: a, b, c", network=ScriptedNetwork(path, ["a", "b", "c"]))
    refused("'lung': the network outlines a, b", ScriptedNetwork(path, ["a", "b"]), {"left": 0, "right": "lung"})
    refused(r"cannot read images of shape \(1, 3, 128, 128\)", input=InputConvention(channels=3))
    refused(r"input.size: \[8\]", input=InputConvention(size=(8,)))
    with pytest.raises(ValueError, match=r"input.window: \[1, 0\]: the first value must be below the second"):
        InputConvention(window=(1, 0))


@pytest.fixture
def no_network(monkeypatch):
    def connect(*given, **more):
        raise AssertionError(f"a connection to {given}")

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, connect)
    monkeypatch.setattr(socket, "getaddrinfo", connect)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("smp.from_pretrained", {}),
        ("smp.Unet", {"encoder_weights": "imagenet"}),
        ("smp.Unet", {"encoder_name": "tu-hf-hub:someone/something"}),
        ("smp.create_model", {"arch": "unet"}),
        ("monai.FlexibleUNet", {"backbone": "resnet18", "pretrained": True}),
        ("monai.HoVerNet", {"pretrained_url": "https://example.org/a.pt"}),
        ("monai.TorchVisionFCModel", {"use_conv": True}),
        ("monai.Transchex", {}),
        ("monai.UNet", {**UNET, "act": ["relu", {"weights": "file:///a"}]}),
        ("monai.resnet50", {"pretrained": True}),
    ],
)
def test_networks_of_libraries_are_listed_and_fetch_nothing(name, options, no_network):
    """In a configuration or a stranger's checkpoint: nothing is downloaded, no file is read."""
    about = Balls().description
    with pytest.raises(ValueError, match=r"is not one of|unknown network|nothing is downloaded"):
        Segmentor(about, name, options)
    with pytest.raises(ValueError, match=r"is not one of|unknown network|nothing is downloaded"):
        build({"class_path": "segcft.guidance.judges.Segmentor",
               "init_args": {"description": plain(about), "network": name, "options": options}})  # fmt: skip
    if name.startswith("monai."):
        with pytest.raises(ValueError, match=r"is not one of|nothing is downloaded"):
            ImportedNetwork(name.replace("monai.", "monai.networks.nets."), options)


@pytest.mark.parametrize("name", MONAI)
def test_every_listed_network_of_monai_exists(name):
    import monai.networks.nets as nets

    assert issubclass(getattr(nets, name), nn.Module)


@pytest.mark.parametrize("name", SMP)
def test_every_listed_network_of_smp_exists(name):
    import segmentation_models_pytorch as smp

    assert issubclass(getattr(smp, name), nn.Module)


@pytest.mark.parametrize("kind", ["checkpoint", "bundle", "bundle of MONAI"])
def test_a_checkpoint_with_a_program_says_so_before_it_is_opened(kind, tmp_path, monkeypatch):
    (tmp_path / "models").mkdir()
    judge = ExternalSegmentor(script(network(2), tmp_path / "models/model.ts"), CHANNELS)
    judge.attach(Balls().description)
    model = CounterfactualModel(Balls().description, make(Balls().description).hvae)
    parts = {"model": model, "guidance": SegmentorGuidance(judge)}
    saved = save(tmp_path / "a.ckpt", parts)
    if kind == "bundle":
        assert main(["export", f"--checkpoint={saved}", f"--out={tmp_path / 'bundle'}"]) == 0
        saved = tmp_path / "bundle"
        assert "Its segmentor is a TorchScript program" in (saved / "MODEL_CARD.md").read_text()

    def opened_already(*_, **__):
        raise AssertionError("opened before a word was said")

    monkeypatch.setattr(torch.jit, "load", opened_already)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match=r"holds a TorchScript program \(\d+ bytes, SHA-256 .*unless you trust"):
            opened(str(tmp_path)) if kind == "bundle of MONAI" else CounterfactualModel.load(saved)


def test_pickled_modules_are_refused_by_name(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv(TRUST, "torch.nn")
    torch.save(network(2), tmp_path / "module.pt")
    torch.save(Hostile(), tmp_path / "hostile.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Hostile()))
    (tmp_path / "text.pt").write_text("no network")
    for name in ("module.pt", "hostile.pt", "plain.pt", "text.pt"):
        with pytest.raises(ValueError, match=f"{name} is not TorchScript"):
            opened(str(tmp_path / name))
        with pytest.raises(ValueError, match=f"{name} holds more than a state_dict, or is damaged"):
            ImportedNetwork("torch.nn.Identity", weights=str(tmp_path / name))
    assert "code ran" not in capsys.readouterr().out


def test_bundles_that_would_run_code_or_do_not_fit_are_refused(tmp_path):
    bundle(tmp_path / "a", 2, act="$print('code ran')")
    with pytest.raises(ValueError, match=r"inference.json: network_def: .*is an expression that would run code"):
        opened(str(tmp_path / "a"))
    bundle(tmp_path / "b", 2, target="scripts.networks.Mine")
    with pytest.raises(ValueError, match=r"'scripts.networks.Mine' lies outside the trusted packages"):
        opened(str(tmp_path / "b"))
    bundle(tmp_path / "c", 2, num_res_units=2)
    with pytest.raises(ValueError, match=r"model.pt does not fit UNet"):
        opened(str(tmp_path / "c"))
    bundle(tmp_path / "d", 2, colour="blue")
    with pytest.raises(ValueError, match=r"cannot be built with options.*colour"):
        opened(str(tmp_path / "d"))
    (tmp_path / "d/configs/inference.json").unlink()
    with pytest.raises(ValueError, match="is not a MONAI bundle"):
        opened(str(tmp_path / "d"))
