"""Vessels in CT volumes: phantoms written to disk and straightened again, and all that can be wrong with a manifest."""

import gzip
import logging
import os
import pickle
import shutil
import tracemalloc
from pathlib import Path

import nibabel
import nrrd
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_modules.common.splits import hashed_splits
from data_modules.coronary.curved_planar_reformation import Centreline
from data_modules.coronary.files import read_centreline, read_header, read_volume
from data_modules.coronary.manifests import asoca_manifest, imagecas_manifest, read_manifest
from data_modules.coronary.phantom_dataset import CoronaryPhantomDataset
from data_modules.coronary.volumes import write_volumes
from data_modules.coronary_cta import CoronaryCTA, _warn_widening

STRUCTURES = ["lumen", "calcified_plaque", "noncalcified_plaque"]
COUNT, SPACING = 2, (0.3, 0.35, 0.4)  # mm


def rows_of(source):
    return source.table().to_dict("records")


def dice(a, b):
    return 2 * (a & b).sum() / (a.sum() + b.sum())


@pytest.fixture(scope="session")
def written(tmp_path_factory):
    return write_volumes(tmp_path_factory.mktemp("coronary"), COUNT, spacing=SPACING)


@pytest.fixture
def manifest(written, tmp_path):
    """A copy of the manifest, to spoil; its files have another name beside it."""
    shutil.copytree(written.parent, tmp_path / "files", copy_function=os.link)
    table = pd.read_csv(written, dtype=str, keep_default_na=False)
    for name in ("image", "label", "centerline"):
        table[name] = [str(tmp_path / "files" / cell) for cell in table[name]]
    table.to_csv(tmp_path / "manifest.csv", index=False)
    return tmp_path / "manifest.csv"


@pytest.fixture(scope="module")
def truth():
    return CoronaryPhantomDataset("train", (96, 48, 48), COUNT)


def test_straightened_phantoms_have_their_true_volumes_and_masks(written, truth):
    source = CoronaryCTA(str(written), frame=(96, 48, 48))
    factual = truth.read(torch.arange(COUNT))
    for index, row in enumerate(rows_of(source)):
        sample = source.read(row)
        assert sample.image.shape == (1, 96, 48, 48)
        assert sample.image.dtype == np.int16
        assert sample.mask.shape == (3, 96, 48, 48)
        for name, value in sample.values.items():
            allowed = 0.02 if "lumen" in name else 0.12 if name in truth.causes.whole(name) else 0.25
            assert value == pytest.approx(float(factual[name][index]), rel=allowed), name
        overlap = [dice(m, t) for m, t in zip(sample.mask, (factual["mask"][index] > 0.5).numpy(), strict=True)]
        assert overlap[0] > 0.94
        assert min(overlap[1:]) > 0.55, "plaques are one or two voxels thick"
        vessel = dice(sample.mask.any(0), (factual["mask"][index].sum(0) > 0.5).numpy())
        assert vessel > 0.94
        lumen, hu = sample.mask[0], sample.image[0]
        true = factual["image"][index, 0].numpy() * 600 + 400
        assert hu[lumen].mean() == pytest.approx(true[lumen].mean(), rel=0.03)
        assert np.corrcoef(hu.ravel(), true.ravel())[0, 1] > 0.95


def test_sections_measure_areas_through_the_axis(written, truth):
    source = CoronaryCTA(str(written), frame=(96, 96), angles=[0, 45, 90, 180])
    rows = rows_of(source)
    assert [row["id"] for row in rows[:4]] == [f"phantom0000_lad_{angle}" for angle in (0, 45, 90, 180)]
    assert len(rows) == 4 * COUNT
    assert len({(row["patient"], row["split"]) for row in rows}) == COUNT, "all sections of a patient in one split"
    straight = CoronaryCTA(str(written), frame=(96, 96, 96))
    for index, volume in enumerate(rows_of(straight)):
        sections = [source.read(row) for row in rows[4 * index : 4 * index + 4]]
        assert sections[0].image.shape == (1, 96, 96)
        middle = straight.read(volume).mask[0][:, :, 47:49].mean(2)  # the plane of the normals
        area = middle.sum() * source.spacing[0] * source.spacing[1]
        assert sections[0].values["lumen_area"] == pytest.approx(area, rel=0.02)
        for name in ("lumen_area", "calcified_plaque_area"):
            assert sections[3].values[name] == pytest.approx(sections[0].values[name], abs=0.5), "a mirror image"
        thirds = sum(sections[1].values[f"{region}_lumen_area"] for region in ("proximal", "mid", "distal"))
        assert thirds == pytest.approx(sections[1].values["lumen_area"])


def test_nrrd_in_lps_and_centrelines_of_every_kind_give_the_same(written, tmp_path):
    table = pd.read_csv(written).head(1)
    sample = CoronaryCTA(str(written), frame=(48, 24))
    expected = sample.read(rows_of(sample)[0])
    for name in ("image", "label"):
        volume = read_volume(written.parent / table[name][0])
        affine = np.diag([-1, -1, 1, 1]) @ volume.affine
        head = {"space": "left-posterior-superior", "space directions": affine[:3, :3].T, "space origin": affine[:3, 3]}
        nrrd.write(str(tmp_path / f"{name}.nrrd"), volume.data, head)
        np.testing.assert_allclose(read_header(tmp_path / f"{name}.nrrd")[1], volume.affine, atol=1e-6)
    points = read_centreline(written.parent / table["centerline"][0]) * [-1, -1, 1]  # LPS
    rows = [f"{i + 1} 2 {x} {y} {z} 1.5 {i or -1}" for i, (x, y, z) in enumerate(points)]
    (tmp_path / "a.swc").write_text("# id type x y z radius parent\n" + "\n".join(rows))
    (tmp_path / "a.txt").write_text("\n".join(f"{x} {y} {z} 1.5" for x, y, z in points))
    (tmp_path / "a.vtp").write_text(vtp(points))
    for suffix in ("swc", "txt", "vtp"):
        row = {
            "image": "image.nrrd",
            "label": "label.nrrd",
            "centerline": f"a.{suffix}",
            "patient_id": "p",
            "vessel": "lad",
        }
        pd.DataFrame([row]).to_csv(tmp_path / "manifest.csv", index=False)
        source = CoronaryCTA(str(tmp_path / "manifest.csv"), frame=(48, 24), centerline_frame="LPS")
        found = source.read(rows_of(source)[0])
        assert np.array_equal(found.mask, expected.mask), suffix
        assert np.abs(found.image.astype(int) - expected.image).max() <= 1
    wrong = CoronaryCTA(str(tmp_path / "manifest.csv"), frame=(48, 24))
    with pytest.raises(ValueError, match=r"manifest\.csv, row 2, image = 'image\.nrrd': (the centreline leaves|.*RAS)"):
        wrong.read(rows_of(wrong)[0])


def vtp(points, form="ascii", lines=1):
    numbers, order = " ".join(map(str, points.ravel())), " ".join(map(str, range(len(points))))
    ends = " ".join(str(len(points) * (n + 1) // lines) for n in range(lines))
    return (
        f'<VTKFile type="PolyData"><PolyData><Piece><Points><DataArray NumberOfComponents="3" format="{form}">{numbers}'
        f'</DataArray></Points><Lines><DataArray Name="connectivity" format="ascii">{order}</DataArray>'
        f'<DataArray Name="offsets" format="ascii">{ends}</DataArray></Lines></Piece></PolyData></VTKFile>'
    )


def test_calcium_is_found_by_its_attenuation_where_labels_hold_the_artery_alone(written):
    known = CoronaryCTA(str(written), frame=(96, 48, 48))
    told = CoronaryCTA(str(written), {"lumen": [1, 2]}, (96, 48, 48), calcium_threshold=550)
    assert told.structures == ["lumen", "calcified_plaque"]
    for row in rows_of(told):
        found, true = told.read(row), known.read(row)
        assert not (found.mask[0] & found.mask[1]).any()
        dense = true.image[0] >= 550
        assert found.mask[1].sum() > 0
        assert (found.mask[1] <= dense).all()
        assert (found.mask[1] & true.mask[1]).sum() > 0.8 * (dense & true.mask[1]).sum()


def test_options_decide_the_content_and_a_source_can_be_sent(written):
    source = CoronaryCTA(str(written), frame=(24, 12, 12))
    again = pickle.loads(pickle.dumps(source))
    assert again.options() == source.options()
    assert CoronaryCTA(str(written), **source.options()).options() == source.options()
    assert source.files()[0] == written
    assert len(source.files()) == 1 + COUNT
    row = rows_of(source)[0]
    assert np.array_equal(again.read(row).image, source.read(row).image)
    assert source.unit == "mm^3"
    assert source.spacing == [2, 1, 1]
    assert {"age", "sex"} <= set(row)


def test_splits_are_by_patient_and_filled_in_by_a_hash(manifest, spoil):
    table = read_manifest(manifest)
    assert hashed_splits(table["patient"], 0).tolist() == table["split"].tolist()
    spoil(manifest, 2, "split", "test")
    assert read_manifest(manifest)["split"].iloc[0] == "test"
    many = hashed_splits(pd.Series([f"p{n}" for n in range(3000)]), 3).value_counts(normalize=True)
    assert many["train"] == pytest.approx(0.8, abs=0.03)
    assert many["val"] == pytest.approx(0.1, abs=0.03)


def test_short_vessels_are_left_out(manifest, tmp_path, caplog, spoil):
    short = tmp_path / "short.csv"
    full = pd.read_csv(pd.read_csv(manifest)["centerline"][0])
    full.head(20).to_csv(short, index=False)
    spoil(manifest, 2, "centerline", str(short))
    with caplog.at_level(logging.INFO):
        assert len(CoronaryCTA(str(manifest)).table()) == 2 * (COUNT - 1)
    assert "1 of 2 vessels are at least 48 mm long" in caplog.text
    with pytest.raises(ValueError, match="no vessel is at least 60 mm long; the longest: "):
        CoronaryCTA(str(manifest), length=60).table()


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("image", "absent.nii.gz", "no such file"),
        ("image", "/etc/hostname", "lies outside"),
        ("label", "../secret.nii.gz", "lies outside"),
        ("centerline", "files/../../a.csv", "lies outside"),
        ("label", "", "blank"),
        ("split", "valid", "train, val, test or blank"),
        ("sex", "x", "F, M or blank"),
        ("age", "old", "a number"),
        ("patient_id", "", "blank"),
    ],
)
def test_bad_cells_are_named(manifest, spoil, field, value, said):
    spoil(manifest, 3, field, value)
    with pytest.raises(ValueError, match=rf"manifest\.csv, row 3, {field} = '{value}': .*{said}"):
        CoronaryCTA(str(manifest)).table()


def test_repeated_vessels_and_divided_patients_are_named(manifest, spoil):
    spoil(manifest, 3, "patient_id", "phantom0000")
    with pytest.raises(ValueError, match=r"row 3, vessel = 'lad': .*twice"):
        read_manifest(manifest)
    spoil(manifest, 3, "vessel", "rca")
    spoil(manifest, 2, "split", "train")
    spoil(manifest, 3, "split", "val")
    shared = (
        r"1 patients lie in more than one split, such as phantom0000 in train \(.*row 2.*, phantom0000 in val \(.*row 3"
    )
    with pytest.raises(ValueError, match=shared):
        read_manifest(manifest)
    spoil(manifest, 3, "split", "")
    assert read_manifest(manifest)["split"].iloc[:2].tolist() == ["train", "train"]
    table = pd.read_csv(manifest)
    table.head(0).to_csv(manifest, index=False)
    with pytest.raises(ValueError, match="no rows"):
        read_manifest(manifest)
    table.drop(columns="vessel").to_csv(manifest, index=False)
    with pytest.raises(ValueError, match="no column 'vessel'"):
        read_manifest(manifest)


def test_bad_centrelines_are_named(manifest, tmp_path, spoil):
    path = tmp_path / "line.csv"
    good = pd.read_csv(pd.read_csv(manifest)["centerline"][1], dtype=str)
    spoil(manifest, 3, "centerline", str(path))

    def expect(said, call=lambda source: source.table()):
        with pytest.raises(ValueError, match=rf"(?s)manifest\.csv, row 3, image = .*{said}"):
            call(CoronaryCTA(str(manifest), frame=(48, 24)))

    good.to_csv(path, index=False)
    spoil(path, 5, "y", "north")
    expect(r"line\.csv, row 5, y = 'north'")
    for count in (3, 0):
        good.head(count).to_csv(path, index=False)
        expect(f"4 different points, got {count}")
    moved = good.astype(float)
    moved["z"] += 30
    moved.to_csv(path, index=False)
    expect(r"leaves the volume: \d+ of 48 points lie outside, first point", lambda s: s.read(rows_of(s)[2]))
    aside = good.astype(float) + 4.5
    aside.to_csv(path, index=False)
    expect("no structure along this centreline", lambda s: s.read(rows_of(s)[2]))
    path.with_suffix(".txt").write_text("1 2 0 0 0 1 -1\n2 2 0 0 1 1 1\n3 2 0 1 1 1 1\n")
    spoil(manifest, 3, "centerline", str(path.with_suffix(".txt")))
    expect("line 3: parent 1 is not the point before")
    path.with_suffix(".vtp").write_text(vtp(np.eye(3), "binary"))
    spoil(manifest, 3, "centerline", str(path.with_suffix(".vtp")))
    expect("ASCII")
    path.with_suffix(".vtp").write_text(vtp(np.zeros((8, 3)), lines=2))
    expect("2 lines: one vessel a file")


def test_volumes_that_do_not_fit_are_named(manifest, tmp_path, spoil):
    table = pd.read_csv(manifest)
    image, label = (read_volume(Path(table[name][1])) for name in ("image", "label"))
    path = tmp_path / "other.nii.gz"
    spoil(manifest, 3, "label", str(path))

    def expect(said):
        with pytest.raises(ValueError, match=rf"(?s)manifest\.csv, row 3, image = .*other\.nii\.gz: .*{said}"):
            CoronaryCTA(str(manifest)).table()

    path.write_bytes(b"nothing")
    expect("")
    nibabel.save(nibabel.Nifti1Image(label.data[:-1], label.affine), path)
    expect("its shape .* is not the image's")
    moved = label.affine + np.outer(np.eye(4)[0], np.eye(4)[3]) * 0.1
    nibabel.save(nibabel.Nifti1Image(label.data, moved), path)
    expect(r"not aligned with its image: their corners are up to 0\.10 mm apart")
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 4, 4, 2), np.int16), label.affine), path)
    expect("one image or volume")
    lost = nibabel.Nifti1Image(label.data, None)
    lost.header["sform_code"] = lost.header["qform_code"] = 0
    nibabel.save(lost, path)
    expect("neither sform nor qform")
    nrrd.write(str(tmp_path / "plain.nrrd"), image.data)
    with pytest.raises(ValueError, match=r"plain\.nrrd: space '' with directions"):
        read_header(tmp_path / "plain.nrrd")


def test_nrrd_files_that_inflate_or_point_elsewhere_are_refused(tmp_path):
    """Four million zeros in a file of kilobytes that declares eight voxels, and a header that reads another file."""
    path = tmp_path / "a.nrrd"
    place = "space: left-posterior-superior\nspace directions: (1,0,0) (0,1,0) (0,0,1)\nspace origin: (0,0,0)\n"

    def write(encoding, sizes="2 2 2", more="", content=b""):
        head = f"NRRD0004\ntype: short\ndimension: 3\nsizes: {sizes}\nendian: little\n{place}"
        path.write_bytes(f"{head}encoding: {encoding}\n{more}\n".encode() + content)

    write("gzip", content=gzip.compress(bytes(range(16))))
    assert read_volume(path).data.shape == (2, 2, 2)
    read_volume.cache_clear()
    tracemalloc.start()
    for how, said in (
        ({"encoding": "gzip", "content": gzip.compress(bytes(2**22))}, "inflates to more than its 8 voxels can take"),
        ({"encoding": "raw", "more": "data file: /etc/hostname\n"}, "its voxels are in another file"),
        ({"encoding": "bzip2"}, "raw or gzip is needed"),
        ({"encoding": "raw", "sizes": "4096 4096 4096"}, "more than 268435456 voxels"),
    ):
        write(**how)
        with pytest.raises(ValueError, match=rf"a\.nrrd: .*{said}"):
            read_volume(path)
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()


def test_wrong_arguments_are_named(written):
    for wrong, said in (
        ({"frame": (96,)}, "two or three sides"),
        ({"length": 0}, "length 0"),
        ({"window": (100, 100)}, "window"),
        ({"angles": [0, 0]}, "angles"),
        ({"labels": {"lumen": []}}, "needs a value"),
        ({"labels": {}}, "needs a value"),
    ):
        with pytest.raises(ValueError, match=said):
            CoronaryCTA(str(written), **wrong)
    with pytest.raises(ValueError, match="no column 'bmi'"):
        CoronaryCTA(str(written), attributes=["bmi"]).table()


def test_imagecas_and_asoca_folders_become_manifests(written, tmp_path):
    source = written.parent
    manifest = imagecas_manifest(source, source, tmp_path / "imagecas.csv")
    with pytest.raises(ValueError, match="set allow_outside: true if that is intended"):
        read_manifest(manifest)
    table = read_manifest(manifest, allow_outside=True)
    assert table["patient"].tolist() == [f"phantom{n:04d}" for n in range(COUNT)]
    assert set(table["vessel"]) == {"lad"}
    cta = CoronaryCTA(str(manifest), {"lumen": [1, 2, 3]}, (24, 12), angles=[0], allow_outside=True)
    assert cta.read(rows_of(cta)[0]).mask.any()
    with pytest.raises(ValueError, match="no vessel with a centreline was found"):
        imagecas_manifest(source, tmp_path, tmp_path / "none.csv")
    for group, case in (("Diseased", "Diseased_1"), ("Normal", "2")):
        for folder in ("CTCA", "Annotations", f"Centerlines/{case}"):
            (tmp_path / group / folder).mkdir(parents=True, exist_ok=True)
        for folder in ("CTCA", "Annotations"):
            head = {"space": "LPS", "space directions": np.eye(3), "space origin": [0, 0, 0]}
            nrrd.write(str(tmp_path / group / folder / f"{case}.nrrd"), np.ones((3, 3, 3), np.int16), head)
        shutil.copy(source / "phantom0000_lad.csv", tmp_path / group / "Centerlines" / case / "RCA.csv")
    found = read_manifest(asoca_manifest(tmp_path, tmp_path / "asoca.csv"), ["diseased"])
    assert found["patient"].tolist() == ["Diseased_1", "Normal_2"]
    assert found["vessel"].tolist() == ["RCA", "RCA"]
    assert found["diseased"].tolist() == [1, 0]
    (tmp_path / "Normal/Annotations/2.nrrd").unlink()
    with pytest.raises(ValueError, match=r"label map .*2\.nrrd does not exist"):
        asoca_manifest(tmp_path, tmp_path / "asoca.csv")


def test_written_centrelines_are_as_long_as_the_vessel(written):
    for path in written.parent.glob("*_lad.csv"):
        assert Centreline(read_centreline(path)).length == pytest.approx(49, abs=0.01)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text("0123456789 .,-e#\nabx", max_size=200), suffix=st.sampled_from(["csv", "txt", "swc", "vtp"]))
def test_any_text_is_a_centreline_or_a_clear_refusal(tmp_path, text, suffix):
    path = tmp_path / f"any.{suffix}"
    path.write_text(text)
    try:
        points = read_centreline(path)
    except ValueError as error:
        if str(path) not in str(error):
            raise
        return
    assert points.ndim == 2
    assert points.shape[1] == 3


@pytest.mark.parametrize("frame", [(48, 24), (24, 12, 12)])
def test_a_centreline_that_runs_backwards_is_warned_of(frame, manifest, caplog):
    def read():
        _warn_widening.cache_clear()
        caplog.clear()
        for row in rows_of(CoronaryCTA(str(manifest), frame=frame)):
            CoronaryCTA(str(manifest), frame=frame).read(row)
        return [message for message in caplog.messages if "run from proximal to distal?" in message]

    assert not read()
    for path in map(Path, pd.read_csv(manifest)["centerline"]):
        points = pd.read_csv(path)
        path.unlink()  # a link to what other tests read
        points.iloc[::-1].to_csv(path, index=False)
    found = read()
    assert len(found) == COUNT, "once a vessel"
    assert all("_lad.csv: the vessel widens" in message for message in found)
