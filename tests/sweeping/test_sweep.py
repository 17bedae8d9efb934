"""Sweeps: several settings and seeds of real trainings, interrupted at will, with one table at the end."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import yaml

from segcft.cli.main import main
from segcft.sweeping import command
from segcft.sweeping.search_space import Plan, distribution, read
from segcft.sweeping.workers import TrialWorkers
from tests.cli.test_launch import environment
from tests.tasks.test_tasks import CONFIG, UNET

LR = "model.init_args.optimisation.lr"
OK = {"configs": ["base.yaml"], "objective": "val/loss"}


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base.yaml").write_text(CONFIG.format(dims=2, task="TrainSegmentor", arguments=UNET))
    return tmp_path


def plan(**more):
    Path("plan.yaml").write_text(yaml.safe_dump(OK | more))
    return Path("plan.yaml")


class Answers(TrialWorkers):
    """Trainings that are a function of their options: no network, everything else is real."""

    asked: list = []  # noqa: RUF012

    def _call(self, command, log, lock):
        given = dict(word[2:].split("=", 1) for word in command if "=" in word)
        self.asked.append(given)
        value = self.answer(float(given.get("x", 0)), int(given["seed_everything"]))
        if value == "crash":
            return 2
        folder = Path("checkpoints", given["experiment"], "stage")
        folder.mkdir(parents=True)
        (folder / "run.json").write_text(json.dumps({"finished": "now", "metrics": {"val/loss": value}, "seconds": 1}))
        return 0

    @staticmethod
    def answer(x, seed):
        return (x - 3) ** 2 + 0.01 * seed


@pytest.fixture
def answers(place, monkeypatch):
    monkeypatch.setattr(command, "TrialWorkers", Answers)
    monkeypatch.setattr(Answers, "asked", [])
    return Answers


def test_it_finds_the_best_and_writes_tables_a_picture_and_a_configuration(answers, capsys):
    space = {"x": {"low": 0.1, "high": 100.0, "log": True}, "y": {"low": 1, "high": 3}}
    path = plan(trials=25, seeds=[0, 2], space={**space, "z.w": {"choices": ["a", [1, 2]]}})
    assert main(["sweep", str(path), "--out=out", "--trainer.max_steps=1"]) == 0
    table = pd.read_csv("out/table.csv")
    assert table["trial"].tolist() == list(range(25))
    assert set(table["state"]) == {"complete"}
    assert table["objective"].tolist() == pytest.approx(((table["x"] - 3) ** 2 + 0.01).tolist())
    assert table["std"].tolist() == pytest.approx([0.02 / 2**0.5] * 25)
    assert table["y"].isin([1, 2, 3]).all()
    assert table["objective"].min() < 2, "better than chance"
    best = table.loc[table["objective"].idxmin()]
    found = yaml.safe_load(Path("out/best.yaml").read_text())
    assert found["x"] == pytest.approx(best["x"])
    assert found["z"] == {"w": "a" if best["z.w"] == "a" else [1, 2]}
    assert f"| {int(best['trial'])} | complete" in capsys.readouterr().out.splitlines()[4]
    assert Path("out/figure.png").read_bytes().startswith(b"\x89PNG")
    assert {given["trainer.max_steps"] for given in answers.asked} == {"1"}
    assert len({given["experiment"] for given in answers.asked}) == 50
    assert not list(Path("out").rglob("*.part"))


def test_what_was_interrupted_goes_on_and_proposes_the_same(answers, monkeypatch):
    space = {"x": {"low": 0.1, "high": 100.0}}
    assert main(["sweep", str(plan(trials=14, space=space)), "--out=whole"]) == 0
    before, calm = Path("whole/table.csv").read_text(), answers.answer

    def stroke(x, seed):
        if len(answers.asked) % 5 == 0:
            raise KeyboardInterrupt
        return calm(x, seed)

    monkeypatch.setattr(answers, "answer", staticmethod(stroke))
    answers.asked.clear()
    for trials in (2, 14, 14, 14, 14):  # more may be asked for later
        try:
            main(["sweep", str(plan(trials=trials, space=space)), "--out=parts"])
        except KeyboardInterrupt:
            continue
    assert Path("parts/table.csv").read_text() == before
    assert len(answers.asked) == 14 + 3, "only what was interrupted was done again"


def test_a_failed_trial_is_passed_over_and_hopeless_ones_stop(answers, monkeypatch, capsys):
    monkeypatch.setattr(answers, "answer", staticmethod(lambda x, seed: "crash" if x < 30 else None if x < 50 else x))
    assert main(["sweep", str(plan(trials=8, space={"x": {"low": 0, "high": 100}})), "--out=out"]) in (0, 2)
    table = pd.read_csv("out/table.csv")
    assert (table["state"] == "fail").tolist() == (table["x"] < 50).tolist()
    monkeypatch.setattr(answers, "answer", staticmethod(lambda x, seed: None))
    assert main(["sweep", str(plan(trials=8)), "--out=none"]) == 2
    assert "all 3 trials failed" in capsys.readouterr().err
    assert len(pd.read_csv("none/table.csv")) == 3


def test_what_an_earlier_sweep_left_is_not_taken_for_ones_own(answers):
    for _ in range(2):
        assert main(["sweep", str(plan()), "--out=out"]) == 0
        shutil.rmtree("out")
    assert len(answers.asked) == 2


def test_another_plan_is_refused(answers, capsys):
    assert main(["sweep", str(plan()), "--out=out"]) == 0
    assert main(["sweep", str(plan(seeds=[1])), "--out=out"]) == 2
    assert "seeds.0 was 0, is 1" in capsys.readouterr().err
    assert main(["sweep", str(plan()), "--out=out", "--trainer.max_steps=9"]) == 2
    with Path("base.yaml").open("a") as file:
        file.write("# changed\n")
    assert main(["sweep", str(plan()), "--out=out"]) == 2
    assert "configs.0, the file was" in capsys.readouterr().err


@pytest.mark.parametrize(("more", "message"), [
    ({"objective": "test/loss"}, "objective = 'test/loss': a number of the validation split"),
    ({"direction": "up"}, "direction = 'up'"),
    ({"trials": 0}, "trials = 0"),
    ({"seeds": [1, 1]}, r"seeds = \[1, 1\]"),
    ({"experiment": "chest_phantom"}, "experiment = 'chest_phantom': a stage of it is needed, and no configs"),
    ({"configs": ["no.yaml"]}, r"configs = \['no.yaml'\]: a list of files that exist"),
    ({"space": {"x": 3}}, "space: x = 3"),
    ({"space": {"x": {"low": 1}}}, "space: x = "),
    ({"space": {"x": {"low": 2, "high": 1}}}, "space: x = "),
    ({"space": {"x": {"choices": []}}}, "space: x = "),
    ({"space": {"x": {"low": 0, "high": 1, "log": True}}}, "space: x = "),
    ({"epochs": 3}, "objective, and experiment with stage or configs, are needed"),
])  # fmt: skip
def test_wrong_plans_are_named(place, more, message):
    with pytest.raises(ValueError, match=f"plan.yaml: {message}"):
        read(plan(**more))


def test_a_stage_of_an_experiment_is_searched_with_all_of_its_configuration(answers, capsys):
    def asked(**more):
        Path("plan.yaml").write_text(yaml.safe_dump({"objective": "val/loss", "experiment": "chexpert"} | more))
        return main(["sweep", "plan.yaml", "--out=out"])

    assert asked(stage="pretrain") == 0
    config = yaml.safe_load(Path(answers.asked[0]["config"]).read_text())
    assert config["data"]["init_args"]["source"]["class_path"] == "data_modules.chexpert.CheXpert"
    assert config["model"]["init_args"]["hvae"]["init_args"]["stages"][0]["width"] == 8, "of the recipe"
    assert asked(stage="pretrain") == 0, "the same sweep"
    assert asked(stage="segmentor") == 2
    assert "out holds another sweep" in capsys.readouterr().err
    wrong = {"segcft": "segcft study chexpert --stages pretrain", "evaluate": "nothing is trained", "segfct": "did you"}
    for stage, message in wrong.items():
        assert asked(stage=stage) == 2
        assert message in capsys.readouterr().err


def test_whole_numbers_stay_whole(place):
    assert type(distribution({"low": 1, "high": 4}).high) is int
    assert type(distribution({"low": 1, "high": 4.0}).high) is float
    assert read(plan()) == Plan("val/loss", ["base.yaml"])


def test_options_in_two_words_and_foreign_code_are_refused(place, capsys, monkeypatch):
    assert main(["sweep", str(plan()), "--out=out", "--trainer.max_steps", "1"]) == 2
    assert "one word" in capsys.readouterr().err
    monkeypatch.setenv("PYTHONPATH", environment()["PYTHONPATH"])  # of the trial's process, which refuses it
    assert main(["sweep", str(plan(space={"model": {"choices": ["subprocess.Popen"]}})), "--out=out"]) == 2
    assert "--trust" in capsys.readouterr().err


@pytest.mark.slow
def test_two_commands_share_a_sweep_and_one_that_is_killed_loses_nothing(place, monkeypatch):
    """Real trainings in real processes: kill -9 at the driver, an orphan that goes on, SIGTERM, and two at once."""
    path = plan(trials=3, space={LR: {"low": 1e-4, "high": 1e-2, "log": True}})
    command = [sys.executable, "-m", "segcft", "sweep", str(path), "--out=out", "--trainer.max_steps=4"]

    def start():
        return subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    first = start()
    until(lambda: Path("out/logs/trial-0000-seed-0.log").is_file())
    first.send_signal(signal.SIGKILL)
    first.communicate()
    second, third = start(), start()
    until(lambda: len(list(Path("out/trials").glob("*.json"))) >= 1)
    second.send_signal(signal.SIGTERM)
    said = [process.communicate(timeout=300)[1] for process in (second, third)]
    assert second.returncode in (0, 75, -signal.SIGTERM), said  # the last before it listens
    assert third.returncode == 0, said
    monkeypatch.setenv("PYTHONPATH", environment()["PYTHONPATH"])
    assert main(command[3:]) == 0
    table = pd.read_csv("out/table.csv")
    assert table["state"].tolist() == ["complete"] * 3
    assert table["objective"].nunique() == 3
    for row in table.to_dict("records"):
        (file,) = Path("checkpoints/sweeps").glob(f"out-*/trial-{row['trial']:04d}/seed-0/segmentor/run.json")
        record = json.loads(file.read_text())
        assert record["config"]["model"]["init_args"]["optimisation"]["lr"] == pytest.approx(row[LR])
        assert record["metrics"]["val/loss"] == pytest.approx(row["objective"])
        assert record["steps"] == 4


def until(true, seconds=400):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.1)
