"""The multi-seed benchmark: its plan, its queue and its page; a short one from end to end is slow."""

import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from segcft.cli.main import main
from segcft.cli.study_options import parse
from segcft.evaluation.command import conclusions
from segcft.evaluation.protocol import gather, perfect, unchanged
from segcft.evaluation.result_tables import write_json
from segcft.evaluation.rows import rows
from segcft.guidance.judges import Segmentor
from segcft.study import experiment, plan, report, schedule
from segcft.study.command import study
from tests.balls import Balls

ROOT = Path(__file__).parents[2]


def planned(name="chest_phantom", seeds=(0, 1), **options):
    study = plan.study(ROOT / "experiments" / name, seeds, (), "test", Path("results/x"), **options)
    return study, {job.name: job for job in plan.jobs(study)}


def test_stages_wait_for_the_checkpoints_that_their_yaml_names():
    _, jobs = planned()
    assert set(jobs["seed1/segcft"].needs) == {"seed1/pretrain", "seed1/segmentor"}
    assert set(jobs["seed0/regcft"].needs) == {"seed0/pretrain", "seed0/regressor"}
    assert jobs["seed0/pretrain"].needs == ()
    assert set(jobs["seed1/evaluate"].needs) >= {"seed1/evaluator", "seed1/nocft", "seed1/segcft"}
    places = {name: place for place, name in enumerate(jobs)}
    assert all(places[needed] < places[name] for name, job in jobs.items() for needed in job.needs)


def test_seeds_differ_in_seed_and_folder_alone():
    _, jobs = planned()
    one, other = (yaml.safe_dump(jobs[f"seed{seed}/segcft"].config) for seed in (0, 1))
    assert "checkpoints/chest_phantom/seed1/pretrain/last.ckpt" in other
    assert one.replace("seed0", "seed1").replace("everything: 0", "everything: 100") == other
    assert jobs["seed0/segcft"].config["seed_everything"] == 0, "the first seed is that of `make demo`"
    assert jobs["seed1/evaluator"].config["seed_everything"] == 101


def test_variations_differ_in_what_they_declare():
    _, jobs = planned(methods=("seg_cft_area", "seg_cft"))
    free, usual = (jobs[f"seed0/{name}"].config["model"]["init_args"] for name in ("segcft_area", "segcft"))
    assert {key for key in free if free[key] != usual[key]} == {"stage", "guidance"}
    assert "seed0/regressor" not in jobs, "what no method needs is not trained"


def test_another_question_is_put_to_the_same_models():
    (_, usual), (study, asked) = planned("chexpert"), planned("chexpert", declaration="smaller")
    assert usual.keys() == asked.keys()
    assert all(job.config == asked[name].config for name, job in usual.items() if job.command == "fit")
    assert asked["seed0/evaluate"].config == usual["seed0/evaluate"].config | {"ask": "-25%"}
    assert study.name == "chexpert_smaller"


def test_a_declaration_may_be_like_one_that_exists(tmp_path):
    for name, text in {
        "data": "",
        "a": "methods: {m: s}",
        "b": "{like: a, ask: -5%}",
        "c": "like: b",
        "d": "like: x",
        "e": "{like: b, methods: {n: s}}",
    }.items():
        (tmp_path / f"{name}.yaml").write_text(text)
    study = plan.study(tmp_path, (0,), (), "val", Path("x"), declaration="c")
    assert (list(study.methods), study.ask) == (["m"], "-5%")
    study = plan.study(tmp_path, (0,), (), "val", Path("x"), declaration="e")
    assert (list(study.methods), study.ask) == (["n"], "-5%"), "methods are all its own"
    with pytest.raises(ValueError, match=r"x\.yaml does not exist"):
        plan.study(tmp_path, (0,), (), "val", Path("x"), declaration="d")


def test_without_a_declaration_the_methods_of_evaluate_are_compared():
    with pytest.raises(ValueError, match=r"morphomnist has no evaluate\.yaml that names methods"):
        planned("morphomnist")
    for folder in {path.parent for path in (ROOT / "experiments").glob("*/data.yaml")} - {
        ROOT / "experiments/morphomnist"
    }:
        study, jobs = planned(folder.name, seeds=(0,))
        assert list(study.methods)[-1] == "seg_cft"
        assert "seed0/evaluate" in jobs
    with pytest.raises(ValueError, match="unknown method 'mine'"):
        planned(methods=("mine",))


def test_another_class_takes_none_of_the_former_arguments():
    base = {"guidance": {"class_path": "A", "init_args": {"judge": "x"}}, "lr": 1}
    found = experiment.merged(base, {"guidance": {"class_path": "B"}})
    assert found == {"guidance": {"class_path": "B"}, "lr": 1}
    assert experiment.merged(base, {"guidance": {"init_args": {"more": 2}}})["guidance"]["init_args"] == {
        "judge": "x",
        "more": 2,
    }


def test_a_change_reaches_the_stages_after_it():
    study, _ = planned(seeds=(0,))
    before = plan.fingerprints(plan.jobs(study))
    jobs = plan.jobs(study)
    place = next(i for i, job in enumerate(jobs) if job.stage == "segmentor")
    jobs[place] = replace(jobs[place], arguments=("--trainer.max_steps=1",))
    after = plan.fingerprints(jobs)
    changed = {name for name in before if before[name] != after[name]}
    assert {"seed0/segmentor", "seed0/segcft", "seed0/evaluate"} <= changed
    assert not {"seed0/pretrain", "seed0/regcft", "seed0/nocft"} & changed


WORKER = """
import sys, pathlib, yaml
config = yaml.safe_load(open(sys.argv[2].removeprefix("--config=")))
for needed in config["needs"]:
    assert pathlib.Path(needed).is_file()
assert not config.get("broken"), "broken on purpose"
path = pathlib.Path(config["product"]); path.parent.mkdir(parents=True, exist_ok=True); path.write_text("made")
"""


def queue(folder, broken=False):
    made = []
    for name, needs in {"s0/a": (), "s0/b": (), "s0/c": ("s0/a", "s0/b")}.items():
        product = folder / name / "last.ckpt"
        config = {"product": str(product), "needs": [str(folder / needed / "last.ckpt") for needed in needs]}
        config |= {"broken": True} if broken and name == "s0/b" else {}
        made.append(plan.Job(name, name, "fit", config, needs, product))
    script = folder / "worker.py"
    script.write_text(WORKER)
    return schedule.Schedule(made, folder / "logs", 2, (sys.executable, str(script)))


def test_the_queue_goes_on_where_it_failed(tmp_path, capsys):
    work = queue(tmp_path, broken=True)
    assert work.plan().splitlines()[2] == "run  s0/c  after s0/a, s0/b"
    with pytest.raises(ValueError, match=r"s0/b failed.*to go on"):
        work.run(poll=0.02)
    assert "broken on purpose" in capsys.readouterr().err
    again = queue(tmp_path)
    assert again.waiting == ["s0/b", "s0/c"], "s0/a is done"
    assert again.left() is not None
    again.run(poll=0.02)
    assert queue(tmp_path).waiting == []
    assert [line[:4] for line in queue(tmp_path).plan().splitlines()] == ["done"] * 3
    (tmp_path / "s0/a/last.ckpt").unlink()
    assert queue(tmp_path).waiting == ["s0/a"]


def write_seeds(out, seeds):
    data = Balls(subjects=24)
    judge = Segmentor(data.description, "monai.UNet", {"channels": [2, 4], "strides": [2]}).eval()
    with torch.inference_mode():
        people = gather(data, data.dataset("test"), judge, 16, seed=0)
        parts = {"identity": unchanged(people), "true_counterfactual": perfect(people), "mine": unchanged(people)}
        frame = pd.concat([rows(given, people, judge).assign(method=n, refinement="") for n, given in parts.items()])
    for seed in seeds:
        folder = out / f"seed{seed}"
        folder.mkdir(parents=True)
        shifted = frame.assign(error_percent=frame["error_percent"] + 50 * seed * (frame["method"] == "mine"))
        shifted.to_csv(folder / "subjects.csv", index=False)
        found = conclusions(shifted, {}, dict.fromkeys(people.do, 1.0), 3.0, ["mine"])
        write_json(folder / "metrics.json", {"subjects": 16, "split": "test", **found})
    return frame


def test_seeds_are_pooled_into_one_table_and_page(tmp_path):
    frame = write_seeds(tmp_path, (0, 1, 2))
    methods = {"mine": {"stage": "mine", "corrections": 2, "confined": True}}
    study = plan.Study("balls", "balls", tmp_path, {}, methods, {}, (0, 1, 2), "evaluator", (), "test", tmp_path)
    docs = tmp_path / "docs"
    report.conclude(study, "make benchmark", 90.0, docs)
    found = json.loads((tmp_path / "benchmark.json").read_text())
    own = frame[(frame["method"] == "mine") & (frame["do"] == "left_size")]["error_percent"].mean()
    mape = found["metrics"]["mine"]["left_size"]["mape"]
    assert mape["value"] == pytest.approx(own + 50, rel=1e-4)
    still = found["metrics"]["identity"]["left_size"]["mape"]
    assert mape["high"] - mape["low"] > still["high"] - still["low"], "seeds add doubt"
    assert found["differences"]["identity"]["left_size"]["mape"]["value"] == pytest.approx(-50, rel=1e-4)
    assert found["hardware"]["cores"] > 0
    page = (docs / "results/balls.md").read_text()
    assert page.startswith("# balls\n\n**")
    assert "](../figures/benchmark_balls.png)" in page
    assert "| mine | 2 rounds, confined | left_size |" in page
    assert (docs / "figures/benchmark_balls.png").is_file()
    assert np.isfinite(found["seconds"])


def test_a_dry_run_prints_the_plan_and_bad_input_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    experiments = f"--experiments={ROOT / 'experiments'}"
    assert main(["study", "chest_phantom", "--seeds", "0", "--dry-run", "--out=nowhere", experiments]) == 0
    assert "run  seed0/segcft  after seed0/pretrain, seed0/segmentor" in capsys.readouterr().out
    assert not Path("nowhere").exists()
    assert main(["study", "chess", "--dry-run", experiments]) == 2
    assert "chess is no experiment" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--trainer.max_stepz=3", r"stage evaluator: .*max_stepz=3; did you mean --trainer\.max_steps"),
        ("--trainer.max_steps=many", r"stage evaluator: trainer\.max_steps: .*many"),
        ("--data.batch_size=few", r"stage evaluator: data\.batch_size: .*few"),
        ("--subjects=all", r"stage evaluate: subjects: .*int.*all"),
        ("--gap=wide", r"stage evaluate: gap: .*wide"),
        ("--methods.seg_cft.corrections=often", r"stage evaluate: .*often"),
    ],
)
def test_options_of_every_stage_are_checked_before_the_first(option, message, tmp_path, monkeypatch):
    """What only the evaluation at the end would refuse is not trained for."""
    monkeypatch.chdir(tmp_path)
    chosen = plan.single(ROOT / "experiments/chest_phantom", (), (option,), "test", Path("r"))
    with pytest.raises(ValueError, match=message):
        parse(plan.jobs(chosen))
    asked = []

    def check(jobs):
        asked.extend(job.name for job in jobs)
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        study(["chest_phantom", option, f"--experiments={ROOT / 'experiments'}"], check)
    assert {"pretrain", "segcft", "evaluate"} < set(asked)
    assert not list(tmp_path.iterdir()), "no stage began"


@pytest.mark.parametrize("declaration", ["chest_phantom/benchmark", "coronary_phantom/benchmark", "morphomnist/None"])
def test_what_is_declared_is_accepted(declaration):
    folder, name = declaration.split("/")
    steps = ("--trainer.max_steps=300",)
    if name == "None":
        parse(plan.jobs(plan.single(ROOT / "experiments" / folder, (), steps, "test", Path("r"))))
    else:
        parse(plan.jobs(plan.study(ROOT / "experiments" / folder, (0, 1), steps, "test", Path("r"))))


@pytest.mark.slow
def test_a_wrong_option_of_the_evaluation_stops_the_study(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    options = [f"--experiments={ROOT / 'experiments'}", "--trainer.max_steps=300", "--subjects=all"]
    assert main(["study", "chest_phantom", *options]) == 2
    assert "segcft: error: stage evaluate: subjects: " in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_short_benchmark_from_end_to_end(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    few = ["--data.init_args.subjects={train: 16, val: 8, test: 8}", "--data.init_args.batch_size=8"]
    steps = ["--trainer.max_steps=2", "--trainer.accelerator=cpu", "--trainer.limit_val_batches=0"]
    options = ["study", "chest_phantom", "--seeds", "0", "1", f"--experiments={ROOT / 'experiments'}", "--docs=docs"]
    options += ["--methods", "no_cft", "seg_cft", "--trainer.logger=false"]
    assert main([*options, *few, *steps]) == 0
    found = json.loads((tmp_path / "results/chest_phantom/benchmark/benchmark.json").read_text())
    assert set(found["methods"]) == {"no_cft", "seg_cft"}
    assert (tmp_path / "docs/results/chest_phantom.md").read_text().startswith("# chest_phantom\n")
    capsys.readouterr()
    assert main([*options, *few, *steps, "--dry-run"]) == 0
    assert {line[:4] for line in capsys.readouterr().out.splitlines()} == {"done"}


@pytest.mark.parametrize(
    "declaration",
    [
        "chest_phantom/benchmark",
        "chest_phantom/ablations",
        "chest_phantom/carried",
        "chest_phantom/guides",
        "chest_phantom/location",
        "coronary_phantom/regions",
        "chexpert/benchmark",
        "chexpert/size_128",
        "chexpert/size_192",
        "chexpert/smaller",
        "cxr_heart/benchmark",
        "cxr_heart/ctr",
    ],
)
def test_every_declaration_can_be_planned(declaration):
    folder, name = declaration.split("/")
    study = plan.study(ROOT / "experiments" / folder, (0,), (), "val", Path("results/x"), declaration=name)
    made = {job.name: job for job in plan.jobs(study)}
    evaluation = made["seed0/evaluate"]
    assert len(evaluation.config["methods"]) == len(study.methods)
    assert set(evaluation.needs) <= made.keys()
    shared = name in ("benchmark", "ablations", "guides", "smaller")
    assert (study.home == folder) is shared, "other data, other checkpoints"
    for job in made.values():
        for text in re.findall(r"checkpoints/\S+?/seed0/(\S+?)/last.ckpt", str(job.config)):
            assert f"seed0/{text}" in made
    with pytest.raises(ValueError, match=r"nothing\.yaml does not exist"):
        plan.study(ROOT / "experiments/chest_phantom", (0,), (), "val", Path("x"), declaration="nothing")


def test_a_declaration_can_leave_a_variable_out():
    _, jobs = planned("cxr_heart", seeds=(0,), declaration="ctr")
    for name in ("seed0/segcft", "seed0/evaluate"):
        assert set(jobs[name].config["data"]["init_args"]["variables"]) == {"left_lung_area", "right_lung_area", "ctr"}
