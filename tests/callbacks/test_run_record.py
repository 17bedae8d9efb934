"""A run says how it came about, and equal data have equal fingerprints."""

import json
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import torch

from segcft.callbacks.run_record import about, fingerprint
from segcft.variables.variables import DataDescription
from tests.balls import Balls
from tests.tasks.test_tasks import run


def test_a_run_can_be_repeated_from_its_record(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch, "use_deterministic_algorithms", asked := Mock())  # of all that this process does
    run(tmp_path, "fit", 2, "segmentor", "--seed_everything=7", "--experiment=one", "--deterministic")
    assert asked.call_args.args == (True,)
    record = json.loads(Path("checkpoints/one/segmentor/run.json").read_text())
    assert record["config"]["seed_everything"] == 7
    assert record["config"]["experiment"] == "one"
    assert torch.__version__.startswith(record["packages"]["torch"])
    assert {"cores", "python"} <= record["hardware"].keys()
    assert record["starts"][0]["step"] == 0
    assert record["finished"] >= record["starts"][0]["when"]
    assert record["steps"] > 0
    assert record["data"]["subjects"]["train"] > 0
    assert record["metrics"]["val/loss"] > 0
    assert record["config"]["deterministic"] is True
    assert not Path("config.yaml").exists(), "without a logger the record is the only one"
    run(tmp_path, "fit", 2, "segmentor", "--seed_everything=7", "--experiment=two", "--deterministic")
    one, two = (torch.load(f"checkpoints/{name}/segmentor/last.ckpt", weights_only=True) for name in ("one", "two"))
    assert all(torch.equal(value, two["state_dict"][name]) for name, value in one["state_dict"].items())


def test_fingerprints_tell_data_apart():
    data, same, fewer = Balls(), Balls(), Balls(subjects=40)
    assert about(data) == about(same)
    assert about(data)["fingerprint"] != about(fewer)["fingerprint"]
    described = data.description
    other = {n: replace(v, std=v.std * (1 + 1e-9)) for n, v in described.parents.variables.items()}
    changed = DataDescription(other, described.structures, described.spacing)
    assert fingerprint(changed) != fingerprint(described)
