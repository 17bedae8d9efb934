"""An experiment's configuration: recipe, data, what differs; and one training of it."""

import inspect
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from segcft.cli.main import main
from segcft.core.interruption import Interrupted
from segcft.core.recipes import imported
from segcft.study import plan, schedule
from segcft.study.experiment import located, offered, pointed, stage

ROOT = Path(__file__).parents[2]


def write(folder, **files):
    for name, content in files.items():
        path = folder / f"{name}.yaml".replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(content))
    return folder


@pytest.fixture
def experiments(tmp_path):
    return write(
        tmp_path / "experiments",
        recipes__films__pretrain={"model": {"init_args": {"rate": 1, "width": 2}}, "trainer": {"max_steps": 9}},
        recipes__films__segcft={"model": {"init_args": {"pretrained": "pretrain", "judge": "segmentor"}}},
        recipes__films__segmentor={"model": {}},
        mine__data={"recipe": "films", "data": {"class_path": "D"}},
        mine__pretrain={"model": {"init_args": {"rate": 3}}},
        mine__wider={"like": "pretrain", "model": {"init_args": {"width": 5}}},
        yours__data={"recipe": "mine", "data": {"class_path": "E"}},
        yours__segmentor={"model": {"width": 7}},
    )


def test_a_stage_is_the_recipes_and_what_differs(experiments):
    mine = experiments / "mine"
    assert stage(mine, "pretrain") == {"model": {"init_args": {"rate": 3, "width": 2}}, "trainer": {"max_steps": 9}}
    assert stage(mine, "wider")["model"]["init_args"] == {"rate": 3, "width": 5}
    assert offered(mine) == ["pretrain", "segcft", "segmentor", "wider"]
    assert stage(mine, "nothing") == {}


def test_an_experiment_can_be_a_recipe(experiments):
    yours = experiments / "yours"
    assert stage(yours, "pretrain") == stage(experiments / "mine", "pretrain")
    assert stage(yours, "segmentor") == {"model": {"width": 7}}
    assert "wider" in offered(yours)


def test_what_cannot_be_is_named(experiments):
    write(experiments, mine__pretrain={"like": "pretrain"}, broken__data={"recipe": "film"})
    with pytest.raises(ValueError, match="a stage is like itself"):
        stage(experiments / "mine", "pretrain")
    with pytest.raises(ValueError, match=r"broken.data\.yaml: recipe = 'film'"):
        stage(experiments / "broken", "pretrain")
    with pytest.raises(ValueError, match=r"mint is no experiment.*did you mean mine\?"):
        located("mint", experiments)
    (experiments / "mine/segcft.yaml").write_text("- a list")
    with pytest.raises(ValueError, match=r"segcft\.yaml: entries of the form NAME: VALUE"):
        stage(experiments / "mine", "segcft")


def test_inputs_that_name_stages_become_their_checkpoints():
    config = {"a": {"pretrained": "pretrain", "judge": "elsewhere/x.ckpt", "stage": "segcft"},
              "methods": {"m": "nocft", "n": {"checkpoint": "segcft", "confined": True}}}  # fmt: skip
    found, needs = pointed(config, "checkpoints/mine")
    assert needs == ("pretrain", "nocft", "segcft")
    assert found["a"] == {"pretrained": "checkpoints/mine/pretrain/last.ckpt", "judge": "elsewhere/x.ckpt",
                          "stage": "segcft"}  # fmt: skip
    assert found["methods"]["m"] == "checkpoints/mine/nocft/last.ckpt"
    assert found["methods"]["n"] == {"checkpoint": "checkpoints/mine/segcft/last.ckpt", "confined": True}


def test_one_training_of_a_shipped_experiment():
    chosen = plan.single(ROOT / "experiments/chest_phantom", (), (), "test", Path("results/chest_phantom"))
    jobs = {job.name: job for job in plan.jobs(chosen)}
    assert set(jobs) == {"evaluator", "nocft", "regcft", "segcft", "pretrain", "regressor", "segmentor", "evaluate"}
    assert set(jobs["segcft"].needs) == {"pretrain", "segmentor"}
    assert jobs["segcft"].config["model"]["init_args"]["pretrained"] == "checkpoints/chest_phantom/pretrain/last.ckpt"
    assert jobs["evaluate"].config["evaluator"] == "checkpoints/chest_phantom/evaluator/last.ckpt"
    assert jobs["evaluate"].product == Path("results/chest_phantom/metrics.json")


def test_a_weight_of_a_variable_that_the_data_lack_is_refused_before_anything_is_trained(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["init", "mine", "--like", "chexpert"]) == 0
    path = tmp_path / "experiments/mine/data.yaml"
    path.write_text(path.read_text().replace("left_lung", "liver"))
    assert main(["study", "mine", "--dry-run"]) == 2
    error = capsys.readouterr().err
    assert "mine, stage regcft: weights name 'left_lung_area'" in error
    assert "liver_area, right_lung_area" in error
    assert main(["study", "mine", "--dry-run", "--model.weights={liver_area: 2}"]) == 0
    none = {"model": {"init_args": {"weights": {}}}}
    write(tmp_path / "experiments", mine__regcft=none, mine__segcft=none)
    assert main(["study", "mine", "--dry-run"]) == 0


def test_your_own_images_need_no_weights(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["init", "mine", "--like", "folder"]) == 0
    path = tmp_path / "experiments/mine/data.yaml"
    path.write_text(path.read_text().replace("left_lung", "liver").replace("right_lung", "spleen"))
    assert main(["study", "mine", "--dry-run"]) == 0


def test_options_go_to_the_stages_that_are_asked_for():
    folder = ROOT / "experiments/chest_phantom"
    chosen = plan.single(folder, ("segcft",), ("--trainer.max_steps=3",), "test", Path("r"))
    jobs = {job.name: job for job in plan.jobs(chosen)}
    assert {name: job.asked for name, job in jobs.items()} == {"pretrain": False, "segmentor": False, "segcft": True}
    assert jobs["pretrain"].arguments == ()
    assert jobs["segcft"].arguments == ("--trainer.max_steps=3",)
    with pytest.raises(ValueError, match=r"unknown option --trainr.max_steps=3; did you mean --trainer"):
        plan.single(folder, (), ("--trainr.max_steps=3",), "test", Path("r"))
    with pytest.raises(ValueError, match="unknown stage 'segfct'; did you mean segcft"):
        plan.single(folder, ("segfct",), (), "test", Path("r"))


WORKER = """
import sys, pathlib, yaml
config = yaml.safe_load(open(sys.argv[2].removeprefix("--config=")))
print("      train     50/100     10 s spent    10 s left  train/loss 1.000", flush=True)
path = pathlib.Path(config["product"]); path.parent.mkdir(parents=True, exist_ok=True); path.write_text("made")
"""


def queue(folder, asked=("b",), said=None, steps=1):
    made = []
    for name, needs in {"a": (), "b": ("a",), "c": ("b",)}.items():
        config = {"product": str(folder / name / "last.ckpt"), "steps": steps}
        product = folder / name / "last.ckpt"
        made.append(plan.Job(name, name, "fit", config, needs, product, (), name in asked))
    (folder / "worker.py").write_text(WORKER)
    program = (sys.executable, str(folder / "worker.py"))
    return schedule.Schedule(made[:2], folder / "logs", 2, program, [].append if said is None else said.append)


def test_what_is_only_needed_is_made_if_it_is_missing_and_kept_if_it_is_there(tmp_path):
    work = queue(tmp_path)
    assert work.waiting == ["a", "b"]
    work.run(poll=0.01)
    assert queue(tmp_path).waiting == []
    assert queue(tmp_path, steps=2).waiting == ["b"], "its own configuration has changed; a is used as it is"
    differs = "(again: made by another configuration)"
    assert queue(tmp_path, steps=2).plan().splitlines() == ["kept a", f"run  b  after a  {differs}"]
    both = queue(tmp_path, asked=("a", "b"), steps=2)
    assert both.plan().splitlines() == [f"run  a  {differs}", "run  b  after a  (again: after a)"]
    (tmp_path / "a/last.ckpt").unlink()
    assert queue(tmp_path).waiting[0] == "a"
    (tmp_path / "b/study.stamp").unlink()
    assert queue(tmp_path).plan().splitlines() == ["run  a", "run  b  after a  (again: no study has finished it)"]


def test_stages_are_announced_and_time_left_is_said(tmp_path):
    said = []
    queue(tmp_path, said=said).run(poll=0.01)
    assert said[0].startswith("==== 1 of 2: a; about 3 min; all: ")
    assert any(line.startswith("==== a done after 0 s; all: ") for line in said)
    assert said[-1].startswith("==== all done after ")


def test_a_stage_that_was_asked_to_stop_can_go_on(tmp_path):
    work = queue(tmp_path)
    work.program = ["sh", "-c", "exit 75"]
    with pytest.raises(Interrupted, match="a was asked to stop and has saved"):
        work.run(poll=0.01)


STOPPED = '''
import sys
from segcft.cli.main import main
from segcft.study import schedule
schedule.Schedule.plan = lambda self: setattr(self, "program", [sys.executable, "-c", WORK]) or ""
WORK = """
import pathlib, signal, sys, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
signal.signal(signal.SIGTERM, lambda *_: (pathlib.Path("saved").touch(), sys.exit(75)))
pathlib.Path("begun").touch()
time.sleep(120)
"""
sys.exit(main(["study", "chest_phantom", "--stages", "segmentor"]))
'''


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_study_that_is_asked_to_stop_leaves_no_stage_at_work(number, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    work = subprocess.Popen(
        [sys.executable, "-c", STOPPED],
        cwd=tmp_path,
        env=environment,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),  # shells have background jobs ignore SIGINT
    )
    deadline = time.monotonic() + 60
    while not (tmp_path / "begun").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    work.send_signal(number)
    assert b"asked to stop" in work.communicate(timeout=60)[1]
    assert work.returncode == 75
    assert (tmp_path / "saved").exists(), "it was waited for"


def test_time_left_follows_what_was_said_and_what_took_place(tmp_path):
    work = queue(tmp_path)
    assert work.left() == (200 + 200) / 2, "nothing is known of such stages"
    work.waiting, work.took = ["b"], {"a": 100.0}
    assert work.left() == 50, "twice as fast as expected, two at a time"
    (tmp_path / "a").mkdir()
    (tmp_path / "a/run.json").write_text(json.dumps({"seconds": 12.5}))
    assert queue(tmp_path).expected["a"] == 12.5


def test_options_of_stages_may_hold_blanks_and_others_must_exist(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    few = "--data.init_args.subjects={train: 16, val: 8, test: 8}"
    assert main(["study", "chest_phantom", "--stages", "segmentor", few, "--dry-run"]) == 0
    assert capsys.readouterr().out == "run  segmentor\n"
    assert main(["study", "chest_phantom", "--stages", "evaluate", "--methods.mine=x.ckpt", "--dry-run"]) == 0
    assert main(["study", "chest_phantom", "--stage", "segmentor"]) == 2
    assert "did you mean --stages?" in capsys.readouterr().err


def test_init_writes_one_file_that_can_be_planned(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["init", "mine", "--like", "chest_phantom"]) == 0
    assert [path.name for path in (tmp_path / "experiments/mine").iterdir()] == ["data.yaml"]
    capsys.readouterr()
    assert main(["study", "mine", "--dry-run"]) == 0
    assert "run  segcft  after pretrain, segmentor" in capsys.readouterr().out
    assert main(["init", "mine"]) == 2
    assert "exists already" in capsys.readouterr().err
    assert main(["init", "films", "--like", "folder"]) == 0
    assert yaml.safe_load((tmp_path / "experiments/films/data.yaml").read_text())["recipe"] == "chest_films"


SHIPPED = sorted(path.parent.name for path in (ROOT / "experiments").glob("*/data.yaml"))


@pytest.mark.parametrize("name", SHIPPED)
def test_init_says_every_choice_of_the_data_set(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["init", "mine", "--like", name]) == 0
    text = (tmp_path / "experiments/mine/data.yaml").read_text()
    found = yaml.safe_load(text)
    assert found["data"] == yaml.safe_load((ROOT / "experiments" / name / "data.yaml").read_text())["data"]
    for part in filter(None, (found["data"], found["data"]["init_args"].get("source"))):
        for argument in inspect.signature(imported(part["class_path"])).parameters:
            said = re.search(rf"^#   {argument} \((needed|default .*?)\):\s*(.*)", text, re.M)
            assert said, argument
            assert len(said[2]) > 5, f"{argument} is not explained"
    assert '#   measure (default "area")' in text


@pytest.mark.slow
def test_a_wheel_in_an_empty_folder_trains(tmp_path):
    build = "from setuptools import build_meta; print(build_meta.build_wheel(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", f"import sys; {build}", str(tmp_path)], cwd=ROOT, check=True)
    subprocess.run([sys.executable, "-m", "zipfile", "-e", str(next(tmp_path.glob("*.whl"))), str(tmp_path / "w")],
                   check=True)  # fmt: skip
    (tmp_path / "empty").mkdir()

    def segcft(*words):
        script = f"import sys; sys.path.insert(0, {str(tmp_path / 'w')!r}); from segcft.cli.main import main; "
        script += f"import segcft; assert segcft.__file__.startswith({str(tmp_path)!r}); sys.exit(main({list(words)}))"
        environment = {"PYTHONPATH": str(tmp_path / "w"), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
        subprocess.run([sys.executable, "-c", script], cwd=tmp_path / "empty", check=True, env=environment)

    segcft("init", "films", "--like", "chexpert")
    segcft("study", "films", "--dry-run")  # of a recipe that is over another
    segcft("init", "mine", "--like", "chest_phantom")
    segcft("study", "mine", "--dry-run")
    few = "--data.init_args.subjects={train: 16, val: 8, test: 8}"
    quick = ["--trainer.max_steps=2", "--trainer.accelerator=cpu", "--trainer.logger=false"]
    segcft("study", "mine", "--stages", "segmentor", few, "--data.init_args.batch_size=8", *quick)
    assert (tmp_path / "empty/checkpoints/mine/segmentor/last.ckpt").is_file()
