"""Devices by name: those of this machine, or one sentence."""

import pytest
import torch

from segcft.core.devices import available, device


def test_every_device_of_this_machine_is_taken():
    assert available()[0] == "cpu"
    for name in available():
        assert device(name) == torch.device(name)


@pytest.mark.parametrize("name", ["nonsense", "", "meta", "cuda:99", "cpu:1"])
def test_others_are_refused_with_what_there_is(name):
    with pytest.raises(ValueError, match=rf"--device {name}: .*cpu"):
        device(name)


@pytest.mark.parametrize(("kind", "module"), [("cuda", torch.cuda), ("mps", torch.backends.mps)])
def test_a_gpu_that_is_not_there_is_refused(kind, module, monkeypatch):
    monkeypatch.setattr(module, "is_available", lambda: False)
    with pytest.raises(ValueError, match=f"--device {kind}: this machine, as torch .* sees it, has cpu"):
        device(kind)
