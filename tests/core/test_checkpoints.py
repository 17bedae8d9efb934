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
from tests.hostile import archives, nested


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


def expanded(content):
    content["state_dict"]["model.more"] = torch.zeros(1).expand(2**40)


def often(content):
    content["segcft"]["parts"]["model"]["init_args"]["profile"] = nested()


def wide(content):
    content["segcft"]["parts"]["model"]["init_args"]["hvae"]["init_args"]["stages"][1]["init_args"]["width"] = 5000


def unnamed(content):
    content["segcft"]["parts"]["model"]["init_args"]["what"] = 1


def of_text(content):
    content["segcft"]["parts"] = "model"


def short(content):
    content["state_dict"].popitem()


def of_meta(content):
    content["state_dict"]["model.more"] = torch.zeros(2**40, device="meta")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (expanded, "claims more numbers than the file has"),
        (of_meta, "claims more numbers than the file has"),
        (often, "more than 60 levels or 1000000 values"),
        (wide, "far larger than the weights that the file holds"),
        (unnamed, "model cannot be rebuilt, TypeError"),
        (of_text, "is damaged: its parts, seconds or weights"),
        (short, "model cannot be rebuilt, RuntimeError: .*Missing key"),
    ],
)
def test_a_checkpoint_that_asks_for_too_much_or_does_not_fit_is_refused_in_one_line(change, message, tmp_path):
    """A file of 100 kB that would fill the memory, or end in an error of torch."""
    content = torch.load(write(tmp_path / "a.ckpt", {"model": model()}))
    change(content)
    torch.save(content, tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match=rf"a\.ckpt.*{message}") as caught:
        checkpoints.load(tmp_path / "a.ckpt", CounterfactualModel)
    assert "\n" not in str(caught.value)


def test_a_compressed_archive_is_refused(tmp_path):
    """Sixteen million zeros in 64 kB."""
    (tmp_path / "a.ckpt").write_bytes(next(archives()))
    assert (tmp_path / "a.ckpt").stat().st_size < 10**5
    with pytest.raises(ValueError, match=r"a\.ckpt .*its entries are compressed"):
        checkpoints.read(tmp_path / "a.ckpt")


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
