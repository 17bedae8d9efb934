"""A run that was killed goes on as if nothing had happened, or says why it does not."""

import itertools
import json
import logging
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from segcft.callbacks import resume, run_record
from segcft.callbacks.checkpointing import AtomicCheckpoints, IntervalCheckpoint
from segcft.cli.main import main
from segcft.core import checkpoints, provenance
from segcft.core.folder_lock import alone
from segcft.core.interruption import AGAIN
from tests.balls import BallDataset
from tests.cli.test_launch import environment
from tests.tasks.test_tasks import CONFIG, STAGES, UNET, run

OFTEN = ("--trainer.max_steps=8", "--save_every=0")


def darker(self, indices, do, counterfactual=BallDataset.counterfactual):
    batch = counterfactual(self, indices, do)
    return {**batch, "image": 0.9 * batch["image"]}


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder in which every stage was trained without a disturbance, three batches an epoch."""
    folder = tmp_path_factory.mktemp("undisturbed")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for stage, _, _ in STAGES:
            run(folder, "fit", 2, stage, *OFTEN)
    return folder


@pytest.fixture
def place(workplace, monkeypatch):
    monkeypatch.chdir(workplace)
    return workplace


def last(stage, experiment="balls", name="last.ckpt"):
    return torch.load(f"checkpoints/{experiment}/{stage}/{name}", weights_only=True)


def killed(patch, at, blow=RuntimeError):
    """From now on the batch after ``at`` steps is the last thing a run sees; returns the steps it began with."""
    seen = []

    def strike(self, trainer, module, batch, batch_idx):
        seen.append(trainer.global_step)
        if trainer.global_step == at:
            raise blow("killed")

    patch.setattr(IntervalCheckpoint, "on_train_batch_start", strike)
    return seen


def interrupted(place, stage, at, *more):
    with pytest.MonkeyPatch.context() as patch:
        killed(patch, at)
        with pytest.raises(RuntimeError, match="killed"):
            run(place, "fit", 2, stage, *OFTEN, *more)


def same(one, other):
    """Weights, averages, optimiser and schedule, bit by bit."""
    for key in ("state_dict", "current_model_state", "optimizer_states", "lr_schedulers", "global_step", "epoch"):
        assert resembles(one[key], other[key]), key
    return True


def resembles(one, other):
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(resembles(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(resembles, one, other))
    return one == other


@pytest.mark.parametrize(("stage", "at"), [("segcft", 2), ("segcft", 3)])
def test_killed_anywhere_it_ends_with_the_same_bits(stage, at, place, monkeypatch):
    """Within an epoch, at its end, with batch statistics, averages, noise, questions and the multiplier."""
    again(stage, [at], place, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [name for name, _, _ in STAGES])
def test_killed_after_every_step_it_ends_with_the_same_bits(stage, place, monkeypatch):
    again(stage, range(1, 8), place, monkeypatch)


def again(stage, places, place, monkeypatch, *more):
    other = ["--experiment=again", *more]
    for at in places:
        interrupted(place, stage, at, *other)
        assert Path(f"checkpoints/again/{stage}/unfinished.json").is_file()
    with monkeypatch.context() as patch:
        seen = killed(patch, None)
        run(place, "fit", 2, stage, *OFTEN, *other)
    assert seen[0] == places[-1]
    assert same(last(stage), last(stage, "again"))
    assert set(os.listdir(f"checkpoints/again/{stage}")) == {"last.ckpt", "run.json"}, "nothing else is left"
    record = json.loads(Path(f"checkpoints/again/{stage}/run.json").read_text())
    assert [start["step"] for start in record["starts"]][-1] == places[-1]
    assert record["steps"] == 8
    assert record["finished"]


@pytest.mark.slow
@pytest.mark.parametrize("more", [
    ("--trainer.accumulate_grad_batches=2", "--trainer.max_steps=6"),
    ("--trainer.val_check_interval=2", "--trainer.gradient_clip_val=0.1"),
    ("--trainer.limit_train_batches=2",),
    ("--data.batch_size=5", "--trainer.check_val_every_n_epoch=2", "--trainer.precision=bf16-mixed"),
])  # fmt: skip
def test_it_waits_until_a_run_can_go_on(more, place, monkeypatch):
    """Gathered gradients, a validation that is due, epochs that are cut short."""
    run(place, "fit", 2, "pretrain", *OFTEN, "--experiment=whole", *more)
    for at in (1, 3):
        interrupted(place, "pretrain", at, "--experiment=parts", *more)
    run(place, "fit", 2, "pretrain", *OFTEN, "--experiment=parts", *more)
    assert same(last("pretrain", "whole"), last("pretrain", "parts"))


@pytest.mark.slow
def test_a_finished_run_starts_from_scratch(place, monkeypatch):
    seen = killed(monkeypatch, None)
    run(place, "fit", 2, "segmentor", *OFTEN)
    assert seen == list(range(8))


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_workers_change_no_bit_of_a_run_that_is_killed(workers, place, monkeypatch):
    """With validation, whose workers are started anew when the run goes on."""
    more = f"--data.init_args.num_workers={workers}"
    for stage, places in (("pretrain", [2, 3, 5]), ("segcft", [4])):
        again(stage, places, place, monkeypatch, more)


@pytest.mark.slow
def test_another_configuration_is_not_gone_on_with(place, monkeypatch, capsys):
    more = ["--experiment=other", "--model.init_args.optimisation.lr=0.5"]
    interrupted(place, "segmentor", 4, more[0])
    path = place / "segmentor2.yaml"
    before = Path("checkpoints/other/segmentor/last.ckpt").read_bytes()
    assert main(["fit", f"--config={path}", *OFTEN, *more]) == 2
    said = capsys.readouterr().err
    assert "interrupted at step 4, and since then: model.init_args.optimisation.lr was 0.001, is 0.5." in said
    assert Path("checkpoints/other/segmentor/last.ckpt").read_bytes() == before
    seen = killed(monkeypatch, 4)
    for choice, first in (("force", 4), ("never", 0)):
        with pytest.raises(RuntimeError, match="killed"):
            run(place, "fit", 2, "segmentor", *OFTEN, *more, f"--resume={choice}")
        assert seen[0] == first
        seen.clear()


@pytest.mark.slow
def test_a_new_pretrained_model_is_another_configuration(place, capsys):
    interrupted(place, "segcft", 2, "--experiment=inputs")
    path = Path("checkpoints/balls/pretrain/last.ckpt")
    before = path.stat()
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert main(["fit", f"--config={place / 'segcft2.yaml'}", *OFTEN, "--experiment=inputs"]) == 2
    assert "pretrained, the file was" in capsys.readouterr().err


def test_a_second_fit_in_the_same_folder_is_refused_and_harms_nothing(place, capsys):
    """While the first one is at work; a killed one keeps nobody out."""
    folder = place / "checkpoints/twice/segmentor"
    folder.mkdir(parents=True)
    child = os.fork()
    if not child:
        with alone(folder / "running.json"):
            time.sleep(60)
        os._exit(0)
    while not (folder / "running.json").exists():
        time.sleep(0.01)
    command = ["fit", f"--config={place / 'segmentor2.yaml'}", *OFTEN, "--experiment=twice"]
    try:
        assert main(command) == 2
        assert f"twice/segmentor is in use by process {child} on " in capsys.readouterr().err
        assert os.listdir(folder) == ["running.json"]
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert main(command) == 0
    assert set(os.listdir(folder)) == {"last.ckpt", "run.json"}


def test_a_run_whose_folder_was_taken_over_does_not_write_there(tmp_path):
    with alone(tmp_path / "running.json") as lock:
        files = AtomicCheckpoints(lock)
        files.save_checkpoint({"w": 1}, tmp_path / "last.ckpt")
        (tmp_path / "running.json").write_text("another")
        with pytest.raises(ValueError, match="taken over"):
            files.save_checkpoint({"w": 2}, tmp_path / "last.ckpt")
    assert torch.load(tmp_path / "last.ckpt") == {"w": 1}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "name", "value", "said"),
    [
        (provenance, "commit", lambda: "another", "commit was .*, is another"),
        (provenance, "edits", lambda: "another", "edits of its code was .*, is another"),
        (run_record, "version", lambda name: "0", "package lightning was .*, is 0"),
        (BallDataset, "__len__", lambda self: 20, r"data, subjects was \{'train': 24, 'val': 24\}, is .*20"),
        (BallDataset, "counterfactual", darker, "data, images of train was .*, is "),
    ],
)
def test_a_run_does_not_go_on_after_a_change(module, name, value, said, place, monkeypatch, capsys):
    """The command itself compares commit, code, packages and data; --resume=force goes on."""
    interrupted(place, "segmentor", 4, f"--experiment=changed-{name}")
    command = ["fit", f"--config={place / 'segmentor2.yaml'}", *OFTEN, f"--experiment=changed-{name}"]
    monkeypatch.setattr(module, name, value)
    assert main(command) == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert re.search(f"interrupted at step 4, and since then: .*{said}", told), told
    seen = killed(monkeypatch, 5)
    with pytest.raises(RuntimeError, match="killed"):
        main([*command, "--resume=force"])
    assert seen[0] == 4


class Dataset:
    """One image, and a value."""

    def __init__(self, level):
        self.level = level

    def __len__(self):
        return 3

    def read_unchanged(self, indices):
        return {"image": torch.full((len(indices), 1, 4, 4), self.level), "index": indices}


@pytest.mark.parametrize("changed", ["commit", "package torch", "data, images of train", "data, subjects"])
def test_what_surrounds_a_run_is_compared(changed, tmp_path, monkeypatch):
    """Refused with what differs, forced if asked, afresh if asked; nothing of a run without a checkpoint is lost."""
    before = {"commit": "a", "package torch": "2", "data, images of train": "b", "data, subjects": "4", "lr": 0.1}
    run = resume.Run("1", before)
    run.mark(tmp_path)
    now = before | {changed: "other"}
    assert resume.begin(tmp_path, now, "auto").checkpoint is None
    content = {"run": "1", "global_step": 7, "segcft": checkpoints.describe({}, {}), "state_dict": {}}
    torch.save(content, tmp_path / "last.ckpt")
    with pytest.raises(ValueError, match=f"interrupted at step 7, and since then: {changed} was .*, is other.*force"):
        resume.begin(tmp_path, now, "auto")
    forced = resume.begin(tmp_path, now, "force")
    assert (forced.step, forced.run.number, forced.run.configuration) == (7, "1", now)
    assert resume.begin(tmp_path, before, "auto").step == 7
    assert resume.begin(tmp_path, now, "never").checkpoint is None


def test_images_have_a_fingerprint_that_every_pixel_decides():
    one, same, other = (run_record.images(Dataset(level)) for level in (0.5, 0.5, 0.5000001))
    assert one == same != other


def test_weights_that_are_not_finite_stop_the_run_and_the_former_checkpoint_is_kept(tmp_path):
    files, path = AtomicCheckpoints(), tmp_path / "last.ckpt"
    unknown = {"constraint.bound": torch.tensor(torch.nan), "count": torch.tensor(3)}
    files.save_checkpoint({"state_dict": {"w": torch.ones(2), **unknown}}, path)
    for bad in (torch.nan, torch.inf):
        with pytest.raises(ValueError, match=r"model\.w of the model.*is not finite"):
            files.save_checkpoint({"state_dict": {"model.w": torch.tensor([1.0, bad])}}, path)
    assert torch.load(path)["state_dict"]["w"].sum() == 2


@pytest.mark.slow
def test_a_checkpoint_that_is_named_is_gone_on_from_and_so_is_that_run(place, monkeypatch):
    given = "--resume=checkpoints/balls/segmentor/last.ckpt"
    more = ["--experiment=named", "--trainer.max_steps=12", "--save_every=0", given]
    with monkeypatch.context() as patch:
        killed(patch, 10)
        with pytest.raises(RuntimeError, match="killed"):
            run(place, "fit", 2, "segmentor", *more)
    seen = killed(monkeypatch, None)
    run(place, "fit", 2, "segmentor", *more)
    assert seen == [10, 11]
    wrong = place / "segmentor2.yaml"
    assert main(["fit", f"--config={wrong}", "--resume=nowhere.ckpt"]) == 2


@pytest.fixture(scope="module")
def stopped(workplace):
    """Checkpoints of a run that was killed at step 5."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(workplace)
        interrupted(workplace, "segcft", 5, "--experiment=damaged")
    return shutil.move(workplace / "checkpoints/damaged", workplace / "stopped")


@pytest.mark.slow
@pytest.mark.parametrize("harm", ["cut", "flipped", "missing", "foreign"])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(harm, stopped, place, monkeypatch, caplog):
    shutil.copytree(stopped, "checkpoints/damaged", dirs_exist_ok=True)
    path = Path("checkpoints/damaged/segcft/last.ckpt")
    content, weight = bytearray(path.read_bytes()), within_a_tensor(path)
    path.unlink()  # not written in place: previous.ckpt may be another name of the same file
    if harm == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif harm == "flipped":
        content[weight] ^= 1
        path.write_bytes(content)
    elif harm == "foreign":
        path.write_bytes(Path("checkpoints/balls/segcft/last.ckpt").read_bytes())
    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        seen = killed(patch, None)
        run(place, "fit", 2, "segcft", *OFTEN, "--experiment=damaged")
    assert seen[0] == 4
    assert ("is damaged" in caplog.text) == (harm in ("cut", "flipped"))
    assert same(last("segcft"), last("segcft", "damaged"))


def test_a_flipped_bit_of_a_header_is_noticed_or_changes_nothing(tmp_path, caplog):
    """Of an archive's headers, with versions, flags, compression, sizes and names; then the one before is used."""
    files = AtomicCheckpoints()
    resume.Run("a", {}).mark(tmp_path)
    described = checkpoints.describe({}, {})
    for step in (1, 2):
        content = {"segcft": described, "state_dict": {"w": torch.arange(4.0) + step}, "run": "a", "global_step": step}
        files.save_checkpoint(content, tmp_path / "last.ckpt")
    whole = (tmp_path / "last.ckpt").read_bytes()
    found = []
    directory = whole.index(b"PK\x01\x02")
    for place in [*range(30), *range(directory, directory + 60), *range(len(whole) - 100, len(whole))]:
        harmed = bytearray(whole)
        harmed[place] ^= 1 << place % 8
        (tmp_path / "last.ckpt").unlink(missing_ok=True)
        (tmp_path / "last.ckpt").write_bytes(harmed)
        start = resume.begin(tmp_path, {}, "auto")
        assert torch.equal(checkpoints.read(start.checkpoint)["state_dict"]["w"], torch.arange(4.0) + start.step)
        found.append(start.step)
    assert set(found) == {1, 2}
    (tmp_path / "last.ckpt").write_bytes(whole[:100])
    (tmp_path / "previous.ckpt").write_bytes(whole[:100])
    caplog.clear()
    with pytest.raises(ValueError, match=r"last.ckpt is damaged"):
        resume.begin(tmp_path, {}, str(tmp_path / "last.ckpt"))
    assert resume.begin(tmp_path, {}, "auto").checkpoint is None
    assert "starts from scratch" in caplog.text


def within_a_tensor(path):
    """Where a byte of the largest tensor lies; bytes between the files of an archive mean nothing."""
    with zipfile.ZipFile(path) as archive:
        largest = max(archive.infolist(), key=lambda entry: entry.file_size)
    start = largest.header_offset
    name, extra = (int.from_bytes(path.read_bytes()[start + at : start + at + 2], "little") for at in (26, 28))
    return start + 30 + name + extra + largest.file_size // 2


def test_a_full_disk_leaves_the_former_checkpoint_whole(tmp_path, caplog):
    files, path = AtomicCheckpoints(), tmp_path / "last.ckpt"
    files.save_checkpoint({"weights": torch.zeros(10)}, path)
    files.save_checkpoint({"weights": torch.ones(10)}, path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, limits[1]))
        files.save_checkpoint({"weights": torch.ones(10**6)}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "could not be written" in files.failed
    assert torch.load(path)["weights"].sum() == 10
    assert torch.load(tmp_path / "previous.ckpt")["weights"].sum() == 0
    assert sorted(os.listdir(tmp_path)) == ["last.ckpt", "previous.ckpt"]
    files.save_checkpoint({"weights": torch.ones(10)}, path)
    assert files.failed is None


@pytest.mark.slow
def test_a_run_whose_last_checkpoint_was_not_written_fails(place, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("segcft.callbacks.checkpointing.torch.save", full)
    with pytest.raises(OSError, match="No space left"):
        run(place, "fit", 2, "segmentor", "--experiment=full", *OFTEN)
    assert Path("checkpoints/full/segmentor/unfinished.json").is_file()


@pytest.mark.slow
@pytest.mark.parametrize(("number", "at"), [(signal.SIGTERM, 1), (signal.SIGUSR1, 2)])
def test_a_signal_saves_and_stops_and_the_same_command_goes_on(number, at, place, monkeypatch, capsys):
    """Within an epoch after the very step; in its last step after the epoch."""
    more = ["--trainer.max_steps=8", "--experiment=signalled"]
    command = ["fit", f"--config={place / 'segcft2.yaml'}", *more]
    handlers = [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGUSR1)]

    def told(self, trainer, module, batch, batch_idx):
        if trainer.global_step == at:
            os.kill(os.getpid(), number)

    with monkeypatch.context() as patch:
        patch.setattr(IntervalCheckpoint, "on_train_batch_start", told)
        assert main(command) == AGAIN
    assert f"saved at step {at + 1}" in capsys.readouterr().err
    assert [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGUSR1)] == handlers
    assert last("segcft", "signalled")["global_step"] == at + 1
    assert main(command) == 0
    assert same(last("segcft"), last("segcft", "signalled"))


@pytest.mark.slow
def test_the_mark_says_what_is_at_work_and_where_it_logs(place):
    interrupted(place, "segmentor", 2, "--experiment=marked", "--trainer.logger=true")
    mark = json.loads(Path("checkpoints/marked/segmentor/unfinished.json").read_text())
    assert mark["configuration"]["trainer.max_steps"] == 8
    assert mark["number"] == last("segmentor", "marked")["run"]


@pytest.mark.slow
def test_logs_of_a_run_that_goes_on_lie_in_one_folder_even_if_their_end_is_lost(place, tmp_path):
    """A killed process leaves half a record: what was logged before it stays, no step is shown twice."""
    text = (place / "segmentor2.yaml").read_text().replace("  logger: false\n", "")
    (place / "logged.yaml").write_text(text)
    command = ["fit", "--config=logged.yaml", "--experiment=logged", "--trainer.log_every_n_steps=1", *OFTEN]
    with pytest.MonkeyPatch.context() as patch:
        killed(patch, 4)
        with pytest.raises(RuntimeError, match="killed"):
            main(command)
    (events,) = Path("logs/logged/segmentor/version_0").glob("events*")
    os.truncate(events, events.stat().st_size - 7)
    assert main(command) == 0
    assert os.listdir("logs/logged/segmentor") == ["version_0"]
    shown = EventAccumulator("logs/logged/segmentor/version_0").Reload()
    steps = [event.step for event in shown.Scalars("train/loss")]
    assert steps == sorted(set(steps))
    assert {0, 1, 2, 4, 5, 6, 7} <= set(steps)
    assert main(command) == 0
    assert sorted(os.listdir("logs/logged/segmentor")) == ["version_0", "version_1"]


@pytest.mark.slow
def test_a_clock_that_goes_back_changes_nothing(place, monkeypatch):
    now, calls = time.time(), itertools.count()
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: now - 3600.0 * next(calls))
        again("segcft", [2, 5], place, monkeypatch)
    assert next(calls) > 0, "the clock was looked at"


@pytest.fixture
def open_place():
    """A folder where a user without rights may go."""
    before, user = os.getcwd(), os.geteuid()
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o777)
        os.chdir(folder)
        if user == 0:
            os.seteuid(65534)
        yield Path(folder)
        os.seteuid(user)
        os.chdir(before)


@pytest.mark.slow
def test_a_disk_that_is_or_becomes_read_only(open_place, monkeypatch, capsys, caplog):
    """Refused before the first step; later training goes on, says that it could not save, and can go on from before."""
    more = [*OFTEN, "--experiment=sealed"]
    folder = Path("checkpoints/sealed/segmentor")
    folder.mkdir(parents=True)
    folder.chmod(0o555)
    seen = killed(monkeypatch, None)
    Path("segmentor.yaml").write_text(CONFIG.format(dims=2, task="TrainSegmentor", arguments=UNET))
    command = ["fit", "--config=segmentor.yaml", *more]
    assert main(command) == 2
    assert not seen
    assert "error: checkpoints/sealed/segmentor cannot be written: [Errno 13]" in capsys.readouterr().err
    folder.chmod(0o755)

    def seal(self, trainer, module, batch, batch_idx):
        if trainer.global_step == 5:
            folder.chmod(0o555)

    with monkeypatch.context() as patch:
        patch.setattr(IntervalCheckpoint, "on_train_batch_start", seal)
        with pytest.raises(OSError, match=r"could not be written|Permission denied"):
            main(command)
    assert "training continues" in caplog.text
    folder.chmod(0o755)
    assert main(command) == 0
    assert seen[0] == 5
    assert json.loads((folder / "run.json").read_text())["steps"] == 8


def test_differences_are_named():
    before, now = ({"a": [1, {"b": 2}], "c": "x"}, {"a": [1, {"b": 3}], "d": None})
    assert resume.differences(*map(resume.facts, (before, now))) == [
        "a.1.b was 2, is 3", "c was x, is nothing", "d was nothing, is None"]  # fmt: skip


@pytest.mark.slow
def test_chaos(tmp_path):
    """Every task with 0 and 2 loader workers, each killed once at a random moment: the bits of one left alone."""
    script = Path(__file__).parents[1] / "chaos.py"
    done = subprocess.run([sys.executable, script, tmp_path, "--kills=16"], env=environment(), capture_output=True,
                          text=True, check=False, timeout=900)  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
