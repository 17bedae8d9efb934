"""Launchers: what they tell the Trainer, and one script under each of them, unchanged."""

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.strategies import FSDPStrategy

from segcft.cli import main as cli
from segcft.cli.launch import located, main, refuse_lonely, settle, split, told
from tests.stages import STAGES, write

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
LIGHTNING = [sys.executable, "-m", "segcft.cli.launch", "run"]
EVERY, CPU = str(ROOT / "tests/stages.py"), "--trainer.accelerator=cpu"
LAUNCHERS = {
    "torchrun": [*TORCHRUN, EVERY, CPU],
    "plain": [sys.executable, EVERY, CPU, "--trainer.devices=2"],
    "fabric": [str(BIN / "fabric"), "run", "--devices=2", "--accelerator=cpu", EVERY],
    "lightning": [*LIGHTNING, "--devices=2", "--accelerator=cpu", EVERY],
    "srun": [sys.executable, EVERY, CPU],
}
FIT = ["-m", "segcft", "fit", "--config=segmentor.yaml", CPU]


def environment(**more):
    """Scripts in tests/ must not find tests/data_modules in front of data_modules."""
    return {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "PYTHONSAFEPATH": "1",
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        **more,
    }


def as_slurm(tasks, job="4711"):
    """What srun tells each of ``tasks`` processes on one node."""
    common = {"SLURM_JOB_ID": job, "SLURM_JOB_NAME": "segcft", "SLURM_NTASKS": str(tasks), "SLURM_NNODES": "1",
              "SLURM_NTASKS_PER_NODE": str(tasks), "SLURM_NODEID": "0", "SLURM_NODELIST": "127.0.0.1"}  # fmt: skip
    return [{**common, "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)} for rank in range(tasks)]


def test_the_trainer_is_told_what_torchrun_fabric_and_slurm_started():
    assert told({}) == {}
    torchrun = {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4"}
    assert told(torchrun) == {"devices": 4, "num_nodes": 2}
    fabric = {"LT_CLI_USED": "1", "LT_ACCELERATOR": "cuda", "LT_STRATEGY": "ddp", "LT_PRECISION": "bf16-mixed"}
    asked = {"accelerator": "cuda", "strategy": "ddp", "precision": "bf16-mixed"}
    assert told({**torchrun, **fabric, "LT_DEVICES": "4"}) == {**asked, "devices": 4, "num_nodes": 2}
    assert told({**torchrun, **fabric, "LT_DEVICES": "1,3,5,7"})["devices"] == "1,3,5,7"
    slurm = {"SLURM_NTASKS": "8", "SLURM_NNODES": "2", "SLURM_NTASKS_PER_NODE": "4", "SLURM_JOB_NAME": "segcft"}
    assert told(slurm) == {"devices": 4, "num_nodes": 2}
    assert told({**slurm, **torchrun, "WORLD_SIZE": "4"}) == {"devices": 4, "num_nodes": 1}, "torchrun under srun"
    assert told({**slurm, "SLURM_JOB_NAME": "bash"}) == {}, "processes started by hand"


def test_a_trainer_that_stayed_alone_is_refused():
    refuse_lonely(1, {})
    refuse_lonely(2, {"WORLD_SIZE": "2"})
    for world_size in (1, 4):
        with pytest.raises(ValueError, match=rf"started 2 processes .* knows of {world_size}"):
            refuse_lonely(world_size, {"WORLD_SIZE": "2"})


def test_a_world_of_another_size_is_refused_before_training(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WORLD_SIZE", "2")
    write(tmp_path, ["segmentor"])
    assert cli.main(["fit", "--config=segmentor.yaml", "--trainer.devices=1", CPU]) == 2
    assert "the launcher started 2 processes" in capsys.readouterr().err
    assert not (tmp_path / "checkpoints").exists()


def test_commands_do_not_wait_for_denormal_numbers(tmp_path, capsys):
    torch.set_flush_denormal(False)
    assert float(torch.tensor(1e-38) / 100) > 0
    assert cli.main(["export", f"--checkpoint={tmp_path}/none.ckpt", f"--out={tmp_path}/a"]) == 2
    assert float(torch.tensor(1e-38) / 100) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="pages are counted on Linux")
def test_memory_that_a_step_has_freed_is_kept_for_the_next():
    script = """
import resource
from segcft.cli import cpu

def step():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [bytearray(2**24) for _ in range(8)]
    del blocks
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

found = [step(), step()]
cpu.hasten()
print(*found, step(), step())
"""
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "LD_PRELOAD"))}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, env=plain, check=True
    )
    _, given_back, _, kept = map(int, done.stdout.split())
    assert given_back > 10_000
    assert kept < 100


def test_a_process_leaves_its_group_before_the_interpreter_ends():
    script = """
import atexit
from types import SimpleNamespace
from torch import distributed
from segcft.cli.launch import settle

atexit.register(lambda: print("in a group:", distributed.is_initialized()))  # the last of all to run
for _ in range(2):
    settle(SimpleNamespace(world_size=1, strategy=None), {})
distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=False)
    assert (done.returncode, done.stdout) == (0, "in a group: False\n"), done.stderr


def test_foreign_strategies_that_share_out_parameters_are_refused():
    trainer = SimpleNamespace(world_size=1, strategy=FSDPStrategy())
    with pytest.raises(ValueError, match=r"under FSDPStrategy: use --trainer\.strategy=sharded"):
        settle(trainer, {})


def test_options_of_the_launcher_end_at_the_script():
    assert split(["--devices=2", "--strategy", "ddp", "a.py", "--devices", "3"]) == (
        ["--devices=2", "--strategy", "ddp"], "a.py", ["--devices", "3"])  # fmt: skip
    assert split(["--devices=2", "--", "a.py", "--", "-x"]) == (["--devices=2"], "a.py", ["-x"])
    for none in ([], ["--devices", "2"], ["--devices=2"]):
        with pytest.raises(ValueError, match="script to run is missing"):
            split(none)


def test_a_script_is_a_file_or_a_package_that_runs(tmp_path):
    (tmp_path / "a.py").touch()
    assert located(str(tmp_path / "a.py")) == str(tmp_path / "a.py")
    assert Path(located("segcft")) == ROOT / "segcft/__main__.py"
    for wrong in ("nowhere.py", "math", "data_modules"):
        with pytest.raises(ValueError, match=f"{wrong} is neither a file nor a package"):
            located(wrong)


def test_other_commands_belong_to_the_sdk(capsys, monkeypatch):
    class Sdk:
        @staticmethod
        def load():
            return lambda: 7

        @classmethod
        def select(cls, **kwargs):
            return [cls]

    assert main(["login"]) == 2
    assert "'login'" in (said := capsys.readouterr().err)
    assert "lightning-sdk, which is not installed" in said
    monkeypatch.setattr("segcft.cli.launch.distribution", lambda name: type("Found", (), {"entry_points": Sdk}))
    assert main(["login"]) == 7
    assert main(["run"]) == 2
    assert "script to run is missing" in capsys.readouterr().err


@pytest.mark.parametrize(
    "run", [["segcft", "launch"], ["lightning", "run"], ["lightning", "run", "model"]], ids=" ".join
)
def test_both_names_start_the_same(run, monkeypatch, tmp_path, capsys):
    """``segcft launch`` is there whoever owns the command ``lightning``."""
    given = []
    monkeypatch.setattr("lightning.fabric.cli._main", lambda args, **more: given.append(args))
    monkeypatch.setenv("PYTHONPATH", "")
    script = tmp_path / "script.py"
    script.write_text("")
    start = {"segcft": cli.main, "lightning": main}[run[0]]
    assert start([*run[1:], "--devices=2", str(script), "fit", "--config=a.yaml"]) == 0
    assert given == [["run", "--devices=2", str(script), "--", "fit", "--config=a.yaml"]]
    assert start(run[1:]) == 2
    assert "script to run is missing" in capsys.readouterr().err


def test_the_file_runs_as_a_script_beside_modules_named_like_the_standard_library():
    done = subprocess.run([sys.executable, ROOT / "segcft/__main__.py", "--help"], capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": ""}, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "usage: segcft" in done.stdout


def launched(folder, *commands):
    """What each command said, all of them at work at once: (command, variables) pairs."""
    both = [
        subprocess.Popen(command, cwd=folder, env=environment(**more), stderr=subprocess.PIPE, text=True)
        for command, more in commands
    ]
    said = [process.communicate(timeout=600)[1] for process in both]
    assert [process.returncode for process in both] == [0] * len(both), said
    return "".join(said)


def every(launcher, folder):
    """Train every task in two processes; the weights of each."""
    write(folder)
    more = as_slurm(2) if launcher == "srun" else [{}]
    said = launched(folder, *((LAUNCHERS[launcher], variables) for variables in more))
    assert "Starting with 2 processes" in said
    assert "strides do not match" not in said
    found = {}
    for name in STAGES:
        assert len(re.findall(rf"{name}\s+3/3", said)) == 1, "one training, not two"
        assert json.loads((folder / f"checkpoints/balls/{name}/run.json").read_text())["processes"] == 2
        checkpoint = torch.load(folder / f"checkpoints/balls/{name}/last.ckpt", weights_only=True)
        assert checkpoint["global_step"] == 3
        assert checkpoint["loops"]["fit_loop"]["epoch_progress"]["total"]["ready"] == 1, "half of 24 subjects each"
        found[name] = checkpoint["state_dict"]
    return found


@pytest.fixture(scope="module")
def by_torchrun(tmp_path_factory):
    return every("torchrun", tmp_path_factory.mktemp("torchrun"))


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [name for name in LAUNCHERS if name != "torchrun"])
def test_every_task_learns_the_same_under_every_launcher(launcher, by_torchrun, tmp_path):
    for name, weights in every(launcher, tmp_path).items():
        assert weights.keys() == by_torchrun[name].keys()
        for key, weight in weights.items():
            assert torch.equal(weight, by_torchrun[name][key]), f"{name}: {key}"


@pytest.mark.slow
def test_lightning_run_model_starts_the_package_with_the_precision_it_was_given(tmp_path):
    write(tmp_path, ["segmentor"])
    options = ["model", "--devices", "2", "--precision=bf16-mixed", "segcft"]
    said = launched(tmp_path, ([*LIGHTNING, *options, *FIT[2:]], {}))
    assert "Starting with 2 processes" in said
    assert "bfloat16" in said
    assert len(re.findall(r"segmentor\s+3/3", said)) == 1, "one training, not two"


@pytest.mark.slow
def test_two_nodes_train_together(tmp_path):
    """An agent of torchrun on each, one process an agent, meeting on the loopback."""
    write(tmp_path, ["segmentor"])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    agent = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc_per_node=1",
             "--master_addr=127.0.0.1", f"--master_port={port}"]  # fmt: skip
    said = launched(tmp_path, *(([*agent, f"--node_rank={rank}", *FIT], {}) for rank in range(2)))
    assert "Starting with 2 processes" in said
    assert len(re.findall(r"segmentor\s+3/3", said)) == 1, "one training, not two"
    assert torch.load(tmp_path / "checkpoints/balls/segmentor/last.ckpt", weights_only=True)["global_step"] == 3


@pytest.mark.parametrize(("code", "requeued"), [(75, True), (0, False), (2, False)])
@pytest.mark.parametrize("kind", ["stage", "sweep"])
def test_the_batch_script_puts_a_run_that_can_go_on_back_into_the_queue(kind, code, requeued, tmp_path):
    """With srun and scontrol that only say what they were asked."""
    for name, says in (
        ("srun", 'while [[ $1 == --* ]]; do shift; done; "$@"'),
        ("scontrol", f'echo "$@" >> {tmp_path}/asked'),
        ("python", f"exit {code}"),
    ):
        (tmp_path / name).write_text(f'#!/bin/bash\necho {name} "$@" >> {tmp_path}/calls\n{says}\n')
        (tmp_path / name).chmod(0o755)
    more = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "4711", "SEGCFT_PYTHON": "python"}
    given = {"stage": ["chest_phantom", "segcft_confounded"], "sweep": ["plan.yaml", "--out=out"]}[kind]
    script = [ROOT / f"experiments/slurm/{kind}.sbatch", *given, "--trainer.max_steps=5"]
    done = subprocess.run(["bash", *script], env=environment(**more), check=False, timeout=60)
    assert done.returncode == code
    assert (tmp_path / "asked").is_file() == requeued
    if requeued:
        assert (tmp_path / "asked").read_text() == "requeue 4711\n"
    study = "study chest_phantom --stages segcft_confounded --launcher srun --wait=45"  # not to wait for the dead
    asked = {"stage": study, "sweep": "sweep plan.yaml --out=out"}[kind]
    assert f"python -m segcft {asked} --trainer.max_steps=5\n" in (tmp_path / "calls").read_text()


@pytest.mark.parametrize("given", [["stage.sbatch", "chest_phantom"], ["sweep.sbatch"]])
def test_the_batch_script_asks_for_what_it_needs(given):
    script = ["bash", ROOT / "experiments/slurm" / given[0], *given[1:]]
    done = subprocess.run(script, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2
    assert "usage: sbatch" in done.stderr
