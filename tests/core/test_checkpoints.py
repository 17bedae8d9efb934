"""Checkpoints explain themselves and cannot run code."""

import pickle

import pytest
import torch

from segcft.core import checkpoints
from segcft.core.recipes import build, plain
from segcft.counterfactual.model import CounterfactualModel
from segcft.guidance.judges import Regressor, Segmentor
from segcft.hvae.hvae import HVAE
from segcft.hvae.stages import Stage
from tests.balls import Balls


class Hostile:
    def __reduce__(self):
        return (print, ("code ran",))


def model():
    about = Balls().description
    return CounterfactualModel(
        about, HVAE(2, 1, about.parents.dim, [Stage(8, 0, resolution=16), Stage(8, 1, 2, resolution=4)])
    )


def write(path, parts):
    state = {f"{name}.{key}": value for name, part in parts.items() for key, value in part.state_dict().items()}
    torch.save({"state_dict": state, "segcft": checkpoints.describe(parts, {"pretrain": 1.5})}, path)
    return path


def test_round_trip_restores_weights_parents_and_units(tmp_path):
    original = model()
    path = write(tmp_path / "a.ckpt", {"model": original, "judge": Regressor(Balls().description, (4, 8))})
    loaded = checkpoints.load(path, CounterfactualModel)
    assert loaded.parents == original.parents
    assert loaded.parents["left_size"].unit == "mm^2"
    assert all(
        torch.equal(a, b) for a, b in zip(original.state_dict().values(), loaded.state_dict().values(), strict=True)
    )
    assert checkpoints.load(path, Regressor).names == ["left_size", "right_size"]
    assert checkpoints.seconds(path) == {"pretrain": 1.5}


def test_wrong_kind_is_named(tmp_path):
    path = write(tmp_path / "a.ckpt", {"model": model()})
    with pytest.raises(ValueError, match=r"wrong kind.*a Segmentor is needed, it holds segcft.counterfactual.model"):
        checkpoints.load(path, Segmentor)


def test_missing_broken_foreign_and_hostile_files_are_refused(tmp_path, capsys):
    (tmp_path / "text.ckpt").write_text("not a checkpoint")
    (tmp_path / "empty.ckpt").write_bytes(b"")
    torch.save({"state_dict": {}}, tmp_path / "foreign.ckpt")
    torch.save({"segcft": Hostile()}, tmp_path / "hostile.ckpt")
    (tmp_path / "pickle.ckpt").write_bytes(pickle.dumps(Hostile()))
    whole = write(tmp_path / "whole.ckpt", {"model": model()}).read_bytes()
    for eighth in range(1, 8):
        (tmp_path / f"cut{eighth}.ckpt").write_bytes(whole[: eighth * len(whole) // 8])
    for name, message in {
        "missing": "does not exist",
        "text": "can be opened safely",
        "empty": "can be opened safely",
        "foreign": "not written by segcft",
        "hostile": "can be opened safely",
        "pickle": "can be opened safely",
        **{f"cut{eighth}": "can be opened safely" for eighth in range(1, 8)},
    }.items():
        with pytest.raises(ValueError, match=message) as caught:
            checkpoints.read(tmp_path / f"{name}.ckpt")
        assert f"{name}.ckpt" in str(caught.value)
    assert "code ran" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("class_path", "message"),
    [
        ("os.system", "outside the trusted packages"),
        ("segcft.hvae.NoSuchThing", "does not exist"),
        ("segcft.core.recipes.importlib", "outside the trusted packages"),
        ("segcft.core.recipes.TRUST", "outside the trusted packages"),
    ],
)
def test_recipes_build_only_our_own_parts(class_path, message):
    with pytest.raises(ValueError, match=message):
        build({"class_path": class_path, "init_args": {}})


def test_recipes_hold_plain_data_only():
    with pytest.raises(TypeError, match="plain data or a recorded part, not Tensor"):
        plain({"a": [torch.zeros(1)]})
