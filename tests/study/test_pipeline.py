"""`make demo` announces its stages, says how long all will take, and a stage says how far it is."""

import json
import re

import pytest

from benchmarks.pipeline import STAGES, Pipeline, Stage, earlier

THREE = {"one": Stage("is first", 100), "two": Stage("runs beside it", 50), "last": Stage("waits", 50, ("one", "two"))}


def ran(scripts):
    lines = []
    done = Pipeline(THREE, lambda name: ["sh", "-c", scripts.get(name, "true")], {"two": 80}, lines.append).run(0.01)
    return done, lines


def test_every_stage_is_announced_and_progress_says_what_is_left_of_all():
    step = "echo '       one     50/100     10 s spent    10 s left  train/loss 1.000'; sleep 0.1"
    status, lines = ran({"one": step, "two": "echo hello >&2"})
    assert status == 0
    assert lines[0] == "==== 1 of 3: one is first; about 2 min; all: 2 min left"
    assert any(line.startswith("==== 2 of 3: two runs beside it; about 80 s; all: ") for line in lines)
    assert "hello" in lines
    assert any(re.search(r"train/loss 1\.000  \| all: \d+ s left$", line) for line in lines), lines
    last = next(place for place, line in enumerate(lines) if line.startswith("==== 3 of 3: last waits"))
    assert {"==== one done after 0 s", "==== two done after 0 s"} <= set(lines[:last]), "it waits for both"
    assert lines[-1] == "==== all done after 0 s"


def test_a_stage_that_fails_stops_what_follows_and_not_what_runs_beside_it():
    status, lines = ran({"one": "echo no room; exit 3", "two": "sleep 0.1; echo finished"})
    assert status == 3
    assert {"no room", "==== one failed after 0 s", "finished", "==== two done after 0 s"} <= set(lines)
    assert not any("last waits" in line for line in lines)
    assert lines[-1] == "==== stopped after 0 s"


def test_what_is_left_is_corrected_by_the_pace_so_far():
    work = Pipeline(THREE, lambda name: [], {}, print)
    assert work.left() == 100
    work.waiting, work.took = ["last"], {"one": 200.0, "two": 100.0}
    assert work.left() == pytest.approx(50), "half as fast as expected, two at a time"


def test_earlier_runs_say_how_long_stages_take(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, content in (("pretrain", {"seconds": 12.5}), ("segcft", {"finished": None})):
        (tmp_path / "checkpoints/mine" / name).mkdir(parents=True)
        (tmp_path / "checkpoints/mine" / name / "run.json").write_text(json.dumps(content))
    assert earlier("mine") == {"pretrain": 12.5}
    assert all(set(stage.needs) <= set(STAGES) for stage in STAGES.values())
