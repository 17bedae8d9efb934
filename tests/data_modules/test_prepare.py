"""Caches: the same bytes whatever happened on the way, and never one that is not what was asked for."""

import json
import logging
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from data_modules.common.transforms import Augmentation
from data_modules.folder import Folder
from data_modules.preparation.cache import open_cache, stale
from data_modules.preparation.inspect import inspect
from data_modules.preparation.prepare import prepare
from data_modules.preparation.prepared import Prepared
from segcft.cli.main import main
from segcft.variables.variables import Variable
from tests import trees
from tests.discs import Discs, write

ROOT = Path(__file__).parents[2]
preparation = sys.modules[prepare.__module__]
VARIABLES = {"age": Variable(unit="years"), "left_area": Variable(structure="left", unit="mm^2")}


@pytest.fixture
def root(tmp_path):
    return write(tmp_path / "discs set")


def content(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize(("dims", "dtype"), [(2, "uint8"), (3, "int16")])
def test_a_cache_holds_what_the_source_reads(tmp_path, dims, dtype):
    source = Discs(str(write(tmp_path / "in", 20, dims=dims)), dtype=dtype)
    cache = prepare(source, tmp_path / "out")
    table = source.table()
    assert cache.table["id"].tolist() == table["id"].tolist()
    for place, row in table.iterrows():
        sample = source.read(row)
        np.testing.assert_array_equal(cache.images[place], sample.image)
        np.testing.assert_array_equal(cache.read_masks(np.array([place]), ["right", "left"])[0], sample.mask[::-1])
        name = f"left_{source.measure}"
        assert cache.table[name][place] == sample.values[name]
    assert cache.images.dtype == dtype
    assert cache.facts["counts"] == table["split"].value_counts().to_dict()
    assert cache.facts["variables"]["age"]["missing"] == 2
    assert cache.facts["intensity"]["p50"] in (40, -50)


def test_workers_and_repetition_change_nothing(root, tmp_path):
    source = Discs(str(root))
    prepare(source, tmp_path / "one")
    before = content(tmp_path / "one")
    prepare(source, tmp_path / "three", workers=3)
    assert content(tmp_path / "three") == before
    times = [path.stat().st_mtime_ns for path in (tmp_path / "one").iterdir()]
    prepare(source, tmp_path / "one")
    assert [path.stat().st_mtime_ns for path in (tmp_path / "one").iterdir()] == times
    assert {path.name for path in tmp_path.iterdir()} == {"discs set", "one", "three"}, "nothing is left behind"


def start(root, out, workers):
    code = f"""
        from data_modules.preparation.prepare import prepare
        from tests.discs import Discs
        prepare(Discs({str(root)!r}, delay=0.01), {str(out)!r}, workers={workers})
    """
    return subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], cwd=ROOT)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_preparation_goes_on_and_gives_the_same_bytes(tmp_path, workers, caplog):
    root = write(tmp_path / "in", 300)
    prepare(Discs(str(root)), tmp_path / "whole")
    running = start(root, tmp_path / "out", workers)
    journal = tmp_path / "out.partial" / "journal.jsonl"
    deadline = time.monotonic() + 120
    while not (journal.is_file() and journal.read_text().count("\n") >= 60):
        assert running.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(running.pid, signal.SIGKILL)
    running.wait()
    with pytest.raises(ValueError, match=r"only partly prepared.*run the same"):
        open_cache(tmp_path / "out")
    with journal.open("a") as file:
        file.write('[299, {"left_ar')  # a line cut short
    prepare(Discs(str(root)), tmp_path / "out", workers)
    assert "resuming" in caplog.text
    assert content(tmp_path / "out") == content(tmp_path / "whole")


def test_two_processes_make_one_cache(root, tmp_path):
    running = [start(root, tmp_path / "out", 1) for _ in range(2)]
    assert [process.wait(120) for process in running] == [0, 0]
    prepare(Discs(str(root)), tmp_path / "alone")
    assert content(tmp_path / "out") == content(tmp_path / "alone")


def test_a_cache_of_other_options_or_tables_is_stale(root, tmp_path):
    out = tmp_path / "out"
    prepare(Discs(str(root)), out)
    before = content(out)
    with pytest.raises(ValueError, match=r"out is stale.*size: 16 -> 20"):
        prepare(Discs(str(root), size=20), out)
    table = root / "table.csv"
    os.utime(table, (time.time() + 5, time.time() + 5))
    assert stale(out, Discs(str(root))) == [], "younger, but the same"
    text = table.read_text()
    table.write_text(text.replace("p1,", "q1,"))
    os.utime(table, (time.time() + 5, time.time() + 5))
    with pytest.raises(ValueError, match=r"table.csv has changed"):
        prepare(Discs(str(root)), out)
    assert content(out) == before, "a stale cache is not touched"
    assert "q1" in set(prepare(Discs(str(root)), out, overwrite=True).table["patient"])
    table.write_text(text + "s99,p99,train,99.npy,3,16x16\n")
    with pytest.raises(ValueError, match=r"row 62, image = '99.npy'.*cannot be read"):
        prepare(Discs(str(root)), out, overwrite=True)
    assert open_cache(out).table["id"].iloc[-1] == "s59", "the former cache is there until the next one is whole"


def test_a_table_that_was_changed_and_given_an_older_time_is_noticed(root, tmp_path):
    prepare(Discs(str(root)), tmp_path / "out")
    table = root / "table.csv"
    table.write_text(table.read_text().replace("p1,", "q1,"))
    os.utime(table, (1e9, 1e9))
    with pytest.raises(ValueError, match=r"table.csv has changed"):
        prepare(Discs(str(root)), tmp_path / "out")


@pytest.mark.parametrize("when", [1e9, None])
def test_an_image_that_was_edited_in_place_is_noticed(root, tmp_path, when):
    """Of the same size, with an older time or a new one; a copy of the data set, with new times, is none."""
    prepare(Discs(str(root)), tmp_path / "out")
    for path in root.glob("*.npy"):
        os.utime(path, (1.1e9, 1.1e9))
    prepare(Discs(str(root)), tmp_path / "out")
    for number in (3, 40):
        prepared = prepare(Discs(str(root)), tmp_path / f"out{number}")
        path = root / f"{number}.npy"
        np.save(path, ~np.load(path))
        if when:
            os.utime(path, (when, when))
        with pytest.raises(ValueError, match=rf"out{number} is stale.*{number}.npy has changed"):
            prepare(Discs(str(root)), prepared.folder)


def test_a_cache_that_does_not_account_for_every_subject_is_not_written(root, tmp_path, monkeypatch):
    """As when another process took lines of the journal away."""
    filled = preparation._fill

    def lossy(partial, *more):
        filled(partial, *more)
        lines = (partial / "journal.jsonl").read_text().splitlines(keepends=True)
        (partial / "journal.jsonl").write_text("".join(lines[:40]))

    with monkeypatch.context() as patch:
        patch.setattr(preparation, "_fill", lossy)
        with pytest.raises(ValueError, match="accounts for 40 of 60 subjects: run the same command"):
            prepare(Discs(str(root)), tmp_path / "out")
    assert len(prepare(Discs(str(root)), tmp_path / "out").table) == 60


class Starved(Discs):
    """Runs out of memory at a subject, some times, as a decoder says it: a library's error made a ValueError."""

    lacks, error = 0, MemoryError("12 GiB")

    def read(self, row):
        if row["id"] == "s33" and Starved.lacks:
            Starved.lacks -= 1
            try:
                raise self.error
            except Exception as error:
                raise ValueError(f"{row['image']} cannot be read") from error
        return super().read(row)


@pytest.mark.parametrize(
    "error", [MemoryError(), OSError(12, "Cannot allocate memory"), RuntimeError("Insufficient memory")]
)
def test_a_good_subject_is_not_skipped_for_lack_of_memory(root, tmp_path, monkeypatch, error):
    monkeypatch.setattr(Starved, "error", error)
    monkeypatch.setattr(Starved, "lacks", 1)
    cache = prepare(Starved(str(root)), tmp_path / "out", on_error="skip")
    assert (len(cache.table), cache.facts["quarantined"]) == (60, 0)
    monkeypatch.setattr(Starved, "lacks", 2)
    with pytest.raises(ValueError, match=r"out of memory while reading .*row 35.*fewer --workers"):
        prepare(Starved(str(root)), tmp_path / "other", on_error="skip")
    assert len(prepare(Starved(str(root)), tmp_path / "other").table) == 60


def test_six_processes_make_one_cache(root, tmp_path):
    """One after the other: whoever waited must not go on in a folder that was renamed away from under it."""
    children = []
    for _ in range(6):
        children.append(os.fork())
        if not children[-1]:
            code = 1
            try:
                code = len(prepare(Discs(str(root)), tmp_path / "out").table) - 60
            finally:
                os._exit(code)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 6
    assert {path.name for path in tmp_path.iterdir()} == {"discs set", "out"}


def test_a_partial_cache_of_something_else_is_said(root, tmp_path):
    (root / "59.npy").write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"59.npy"):
        prepare(Discs(str(root)), tmp_path / "out")
    write(root, seed=1)
    with pytest.raises(ValueError, match=r"partial cache of other data or options \(files"):
        prepare(Discs(str(root)), tmp_path / "out")
    assert len(prepare(Discs(str(root)), tmp_path / "out", overwrite=True).table) == 60


def test_a_bad_subject_stops_or_is_listed(root, tmp_path):
    good = (root / "33.npy").read_bytes()
    (root / "33.npy").write_bytes(good[:40])
    (root / "34.npy").unlink()
    with pytest.raises(ValueError, match=r"table.csv, row 35, image = '33.npy'.*cannot be read.*on_error=skip"):
        prepare(Discs(str(root)), tmp_path / "out")
    done = (tmp_path / "out.partial" / "journal.jsonl").read_text().count("\n")
    assert done >= 32, "what was read before is kept"
    cache = prepare(Discs(str(root)), tmp_path / "out", on_error="skip")
    listed = pd.read_csv(tmp_path / "out" / "quarantine.csv")
    assert listed["id"].tolist() == ["s33", "s34"]
    assert listed["reason"].str.contains("cannot be read").all()
    assert not {"s33", "s34"} & set(cache.table["id"])
    assert cache.facts["quarantined"] == 2
    assert cache.table["row"].tolist() == [row for row in range(60) if row not in (33, 34)]
    assert not cache.images[33].any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("s3,", "s2,"), "row 5.*this id occurs twice.*id = 's2'"),
        (("p0,train", "p0,valid"), "row 2.*split must be one of train, val, test"),
        (("s7,p3", "s7,p1"), "more than one split, such as p1 in .*row [49].*, p1 in .*row [49]"),
        (("train", "test"), "no subject in the training split"),
    ],
)
def test_a_bad_table_is_refused(root, tmp_path, change, message):
    table = root / "table.csv"
    table.write_text(table.read_text().replace(*change))
    with pytest.raises(ValueError, match=message):
        prepare(Discs(str(root)), tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"discs set"}, "nothing is left behind"


def test_damage_is_noticed(root, tmp_path):
    prepare(Discs(str(root)), tmp_path / "out")
    images = tmp_path / "out" / "images.npy"
    data = bytearray(images.read_bytes())
    data[500] ^= 1
    images.write_bytes(data)
    inspect(str(tmp_path / "out"), str(tmp_path / "seen"))
    with pytest.raises(ValueError, match=r"images.npy is damaged"):
        inspect(str(tmp_path / "out"), str(tmp_path / "seen"), verify=True)
    images.write_bytes(data[:-100])
    with pytest.raises(ValueError, match="out is damaged"):
        open_cache(tmp_path / "out")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="not a prepared data set"):
        prepare(Discs(str(root)), tmp_path / "full", overwrite=True)


def test_inspection_says_and_draws_what_is_there(root, tmp_path, capsys):
    prepare(Discs(str(root)), tmp_path / "out")
    found = inspect(str(tmp_path / "out"), str(tmp_path / "seen"), verify=True)
    assert found["patients"] == {"test": 6, "train": 18, "val": 6}
    assert "None of 30 patients is in more than one split." in (tmp_path / "seen" / "inspection.md").read_text()
    assert (tmp_path / "seen" / "inspection.png").stat().st_size > 20_000
    table = pd.read_parquet(tmp_path / "out" / "table.parquet")
    for field, what in (
        ("patient", "1 patients lie in more than one split, such as p29 in "),
        ("image", "1 image files"),
    ):
        spoilt = table.copy()
        spoilt.loc[0, field] = spoilt.loc[59, field]
        spoilt.to_parquet(tmp_path / "out" / "table.parquet")
        with pytest.raises(ValueError, match=what):
            inspect(str(tmp_path / "out"), str(tmp_path / "seen"))


def data(root, tmp_path, **options):
    return Prepared(Discs(str(root)), VARIABLES, cache=str(tmp_path / "cache"), **options)


def test_batches_hold_what_was_declared(root, tmp_path):
    module = data(root, tmp_path, structures=["right", "left"])
    train = module.dataset("train")
    batch = train.read(torch.arange(8))
    assert batch["image"].shape == (8, 1, 16, 16)
    assert sorted(batch["image"].unique().tolist()) == pytest.approx([2 * 40 / 255 - 1, 2 * 200 / 255 - 1])
    assert batch["mask"].shape == (8, 2, 16, 16)
    torch.testing.assert_close(batch["left_area"], 0.25 * batch["mask"][:, 1].sum((1, 2)))
    assert set(batch) == {"image", "mask", "index", "age", "left_area"}
    assert module.description.structures == ["right", "left"]
    assert module.description.parents["age"].unit == "years"
    assert not torch.isnan(train.attributes["age"]).any()
    assert len(train) == 36 - sum(1 for n in range(60) if n % 10 == 7 and n // 2 % 5 < 3)


def test_volumes_are_read_in_their_window(tmp_path):
    source = Discs(str(write(tmp_path / "in", 20, dims=3)), dtype="int16")
    variables = {"left_volume": Variable(structure="left", unit="mm^3")}
    module = Prepared(source, variables, cache=str(tmp_path / "cache"))
    batch = module.dataset("train").read(torch.tensor([3, 0]))
    assert module.description.spatial_dims == 3
    assert batch["image"].shape == (2, 1, 16, 16, 16)
    levels = torch.tensor([-50.0, 300.0])  # -200 becomes -1, 600 becomes 1
    torch.testing.assert_close(batch["image"].unique(), (levels + 200) / 400 - 1)
    torch.testing.assert_close(batch["left_volume"], 0.125 * batch["mask"][:, 0].sum((1, 2, 3)))


def test_augmentation_moves_image_and_mask_and_measures_anew(root, tmp_path):
    batch = (
        data(root, tmp_path, augment=Augmentation(brightness=0, contrast=0, gamma=0))
        .dataset("train")
        .read(torch.arange(8))
    )
    torch.testing.assert_close(batch["left_area"], 0.25 * batch["mask"][:, 0].sum((1, 2)))
    still = data(root, tmp_path).dataset("train").read(torch.arange(8))
    assert (batch["mask"] != still["mask"]).any()
    inside = batch["image"][:, 0][batch["mask"].any(1)]
    assert (inside > 0).float().mean() > 0.8, "the masks lie on the discs"


def test_subject_and_visit_alone_decide_the_augmentation(root, tmp_path):
    train = data(root, tmp_path, augment=Augmentation()).dataset("train")
    first, other = train.__getitems__([3, 5]), train.__getitems__([5, 3 + len(train), 3])
    assert other["index"].tolist() == [5, 3, 3]
    for name in ("image", "mask", "left_area"):
        assert torch.equal(first[name], other[name][[2, 0]]), "whatever is read beside it, and before"
    assert not torch.equal(other["image"][1], other["image"][2]), "another epoch, another change"


def test_what_is_not_offered_is_refused(root, tmp_path):
    for variables, options, message in (
        ({"weight": Variable()}, {}, "unknown variable 'weight'; discs offers age, left_area, right_area"),
        ({"patient": Variable()}, {}, "unknown variable 'patient'"),
        (VARIABLES, {"structures": ["heart"]}, r"structures \['heart'\]: discs offers left, right"),
        (VARIABLES, {"structures": ["right"]}, "'left_area' measures 'left', but the masks hold: right"),
        ({"left_area": Variable(structure="left", unit="cm^2")}, {}, "discs measures in 'mm\\^2', not 'cm\\^2'"),
    ):
        with pytest.raises(ValueError, match=message):
            Prepared(Discs(str(root)), variables, cache=str(tmp_path / "cache"), **options).dataset("train")
    with pytest.raises(ValueError, match="augment needs 8-bit 2-D images"):
        Prepared(Discs(str(root), dtype="int16"), VARIABLES, augment=True)


def test_the_default_cache_is_made_once_and_differs_by_options(root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folders = {Prepared(Discs(str(root), size=size), VARIABLES).cache.folder for size in (16, 16, 16)}
    assert len(folders) == 1
    assert folders.pop().parts[:2] == ("data", "cache")
    assert Prepared(Discs(str(root), size=20), VARIABLES).folder.name != next(Path("data/cache").iterdir()).name


def test_the_fingerprint_names_versions_and_files(root, tmp_path):
    prepare(Discs(str(root)), tmp_path / "out")
    facts = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert facts["plan"]["files"][0]["name"] == "table.csv"
    assert set(facts["sha256"]) == {"images.npy", "masks.npy", "table.parquet"}
    assert facts["versions"]["numpy"] == np.__version__


@pytest.mark.parametrize("name", ["images.npy", "masks.npy", "table.parquet", "dataset.json"])
def test_a_file_that_is_a_link_out_of_the_cache_is_refused(root, tmp_path, name):
    prepare(Discs(str(root)), tmp_path / "cache")
    (tmp_path / "cache" / name).rename(tmp_path / "elsewhere")
    (tmp_path / "cache" / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=rf"{name} is a link to .*elsewhere, outside the cache"):
        open_cache(tmp_path / "cache")
    (tmp_path / "other name").symlink_to(tmp_path / "cache")
    (tmp_path / "cache" / name).unlink()
    (tmp_path / "elsewhere").rename(tmp_path / "cache" / name)
    assert len(open_cache(tmp_path / "other name").table), "the folder itself may have another name"


@pytest.mark.parametrize("name", ["images.npy", "masks.npy"])
def test_a_cache_that_loses_a_file_while_it_is_read_serves_on_or_says_why_not(root, tmp_path, name):
    """Removed: what is mapped stays readable, the next start says what is missing. Cut short: an error, not a kill."""
    data = Prepared(Discs(str(root)), VARIABLES, cache=str(tmp_path / "cache"), batch_size=4)
    batches = iter(data.train_dataloader())
    next(batches)
    (tmp_path / "cache" / name).rename(tmp_path / "away")
    next(batches)
    with pytest.raises(ValueError, match=rf"is damaged, prepare it again: .*{name}"):
        open_cache(tmp_path / "cache")
    (tmp_path / "away").rename(tmp_path / "cache" / name)
    os.truncate(tmp_path / "cache" / name, 200)
    with pytest.raises(ValueError, match=rf"{name} has 200 bytes, .* cut short, prepare it again"):
        next(iter(data.val_dataloader()))
    with pytest.raises(ValueError, match="is damaged, prepare it again"):
        open_cache(tmp_path / "cache")


@pytest.mark.slow
def test_nobody_is_named_in_the_log(tmp_path, monkeypatch, caplog, capfd):
    """Reading, skipping, going on, training, predicting: identifiers stay in the tables."""
    root = write(tmp_path / "in", 40)
    table = pd.read_csv(root / "table.csv", dtype=str)
    for column in ("id", "patient"):
        table[column] = "SECRET" + table[column]
    for k, name in enumerate(table["image"]):
        (root / name).rename(root / f"SECRET{name}")
        table.loc[k, "image"] = f"SECRET{name}"
    table.to_csv(root / "table.csv", index=False)
    (root / table["image"][3]).write_bytes(b"broken")
    monkeypatch.chdir(tmp_path)
    caplog.set_level(logging.DEBUG)
    logging.getLogger("matplotlib").setLevel(logging.INFO)
    source = Discs(str(root))
    prepare(source, "cache", workers=2, on_error="skip")
    inspect("cache")
    variables = {"age": {"unit": "years"}, "left_area": {"structure": "left", "unit": "mm^2"}}
    configuration = {
        "data": {"class_path": "data_modules.preparation.prepared.Prepared", "init_args": {
            "source": {"class_path": "tests.discs.Discs", "init_args": {"root": str(root)}}, "cache": "cache",
            "batch_size": 8, "variables": variables}},
        "model": {"class_path": "segcft.tasks.TrainRegressor", "init_args": {"widths": [4, 8]}},
        "trainer": {"max_epochs": 1, "accelerator": "cpu", "devices": 1},
    }  # fmt: skip
    Path("run.yaml").write_text(yaml.safe_dump(configuration))
    for command in ("fit", "validate", "test", "predict"):
        assert main([command, "--config=run.yaml", "--trust=tests.discs"]) == 0
    said = [*(record.getMessage() for record in caplog.records), *capfd.readouterr()]
    assert any("subjects are kept" in line for line in said), "the log was looked at"
    assert any("1 subjects were skipped" in line for line in said)
    assert not [line for line in said if "SECRET" in line]
    assert "SECRETs3" in Path("cache/quarantine.csv").read_text()
    left = [path for folder in ("checkpoints", "logs", "predictions") for path in Path(folder).rglob("*")]
    assert not [path for path in left if path.is_file() and b"SECRET" in path.read_bytes()], "nor in what a run leaves"


def test_prepare_and_fit_agree_on_size_and_place(tmp_path, monkeypatch, capsys):
    """``segcft prepare`` with an experiment's data.yaml makes the very cache that the experiment's stages look for."""
    monkeypatch.chdir(tmp_path)
    option = trees.folder(tmp_path)[0]
    source = {"class_path": "data_modules.folder.Folder",
              "init_args": {"manifest": option.split("=", 1)[1], "structures": ["left_lung", "right_lung"],
                            "frame": [32, 32]}}  # fmt: skip
    variables = {"left_lung_area": {"unit": "% of image", "structure": "left_lung"}}
    data = {"class_path": "data_modules.preparation.prepared.Prepared",
            "init_args": {"source": source, "variables": variables}}  # fmt: skip
    Path("data.yaml").write_text(yaml.safe_dump({"recipe": "chest_films", "data": data}))
    assert main(["prepare", "folder", "--config=data.yaml", "--workers=1"]) == 0
    made = list(Path("data/cache").iterdir())
    module = Prepared(Folder(**source["init_args"]), {"left_lung_area": Variable("continuous", "% of image")})
    assert [module.folder] == made
    assert main(["prepare", "folder", "--config", "data.yaml", "--frame=[16,16]", "--out=small", "--workers=1"]) == 0
    assert open_cache(Path("small")).images.shape[2:] == (16, 16), "options override the file"
    monkeypatch.setattr(Folder, "read", None)  # nothing is read again
    assert module.cache.images.shape[1:] == (1, 32, 32)
    assert main(["prepare", "chexpert", "--config=data.yaml"]) == 2
    assert "data.yaml: data.source is data_modules.folder.Folder, not data_modules.chexpert.CheXpert" in (
        capsys.readouterr().err
    )
