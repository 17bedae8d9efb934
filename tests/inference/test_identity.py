"""A patient's name is planted wherever files can hold one; what is handed on holds it nowhere."""

import base64
import gzip
import io
import json
import shutil
import warnings
import zlib
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pydicom
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from pydicom.datadict import DicomDictionary

from segcft.app.service import CounterfactualService
from segcft.cli.main import main
from segcft.io.readers import read_picture
from segcft.io.writers import write_changed
from tests import trees
from tests.app.test_app import Client
from tests.dicoms import write_dicom
from tests.experiments import configuration
from tests.inference.test_answer_file import ask, description, make, save

pytestmark = pytest.mark.filterwarnings("ignore:do\\(")
NAME = "DOE^JANE"
WORDS = [word.encode(code) for word in ("JANE", "Jane", "jane") for code in ("ascii", "utf-16-le", "utf-16-be")]
TEXT = ("AE", "CS", "LO", "LT", "PN", "SH", "ST", "UC", "UR", "UT", "UI")
NEEDED = {  # the file is not read with other text in these
    *("PhotometricInterpretation", "PatientOrientation", "SpecificCharacterSet", "VOILUTFunction"),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
}
FILM = np.random.default_rng(0).integers(0, 255, (20, 20), dtype=np.uint8)


def item() -> pydicom.Dataset:
    """An item of any sequence: an identity table and names."""
    made = pydicom.Dataset()
    made.add_new("LUTDescriptor", "US", [256, 0, 8])
    made.add_new("LUTData", "US", list(range(256)))
    made.LUTExplanation = made.PatientName = made.ModalityLUTType = NAME
    made.private_block(0x0011, NAME, create=True).add_new(1, "LO", NAME)
    inner = pydicom.Dataset()
    inner.PatientName = NAME
    made.ReferencedStudySequence = [inner]
    return made


def dicom(path: Path) -> Path:
    """The name in all text elements of the standard, all of its sequences, private and unknown elements, file meta."""
    data = pydicom.dcmread(write_dicom(path, FILM, PixelSpacing=[0.5, 0.5], PatientOrientation=["P", "F"]))
    for tag, (kind, _, _, _, keyword) in DicomDictionary.items():
        if keyword and tag >> 16 > 4 and keyword not in NEEDED:
            if kind in TEXT:
                data.add_new(tag, kind, NAME)
            elif kind == "SQ":
                data.add_new(tag, kind, [item()])
    data.ImageType = ["ORIGINAL", "PRIMARY", NAME, "AXIAL"]
    data.add_new("SliceThickness", "LO", NAME)
    data.add_new(0x00280FF0, "LO", NAME)
    for tag in (0x00281FF0, 0x60003000, 0x7FE11010, 0xFFFCFFFC):
        data.add_new(tag, "OB", NAME.encode())
    data.private_block(0x0029, NAME, create=True).add_new(1, "UN", NAME.encode())
    data.preamble = NAME.encode().ljust(128, b"\0")
    meta = data.file_meta
    meta.SourceApplicationEntityTitle = meta.SendingApplicationEntityTitle = meta.ImplementationVersionName = NAME
    meta.add_new(0x00020100, "UI", "1.2.JANE")
    meta.add_new(0x00020102, "OB", NAME.encode())
    data.save_as(path)
    return path


def png(path: Path) -> Path:
    text, exif = PngInfo(), Image.Exif()
    text.add_text("Patient", NAME)
    text.add_text(NAME, "x", zip=True)
    text.add_itxt("Comment", NAME, zip=True)
    text.add(b"prVt", NAME.encode())
    exif[0x013B] = NAME
    Image.fromarray(FILM).save(
        path, format="PNG", pnginfo=text, exif=exif, icc_profile=NAME.encode() * 9, dpi=(300, 150)
    )
    return path


def jpeg(path: Path) -> Path:
    exif = Image.Exif()
    exif[0x010E] = NAME
    Image.fromarray(FILM).save(path, format="JPEG", exif=exif, comment=NAME, icc_profile=NAME.encode() * 9)
    return path


def nifti(path: Path, kind: type = nibabel.Nifti1Image) -> Path:
    image = kind(FILM[:, :, None], np.diag([0.5, 0.5, 1.0, 1.0]))
    for name in image.header:
        if image.header[name].dtype.kind == "S" and name not in ("magic", "regular"):
            image.header[name] = NAME.encode()
    for code in (4, 6, 44):
        image.header.extensions.append(nibabel.nifti1.Nifti1Extension(code, NAME.encode()))
    content = image.to_bytes()
    path.write_bytes(gzip.compress(content) if path.name.endswith(".gz") else content)
    return path


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """A folder of files about one patient, beside a checkpoint."""
    root = tmp_path_factory.mktemp("planted")
    save(root / "a.ckpt", make(description(2)))
    folder = root / "in/DOE_JANE"
    folder.mkdir(parents=True)
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        patch.setattr(pydicom.config.settings, "writing_validation_mode", pydicom.config.IGNORE)
        warnings.simplefilter("ignore")
        dicom(folder / "Jane.dcm")
    shutil.copy(folder / "Jane.dcm", folder / "JANE")
    png(folder / "Jane.png")
    jpeg(folder / "Jane.jpg")
    nifti(folder / "Jane.nii.gz")
    nifti(folder / "Jane.nii", nibabel.Nifti2Image)
    return root


@pytest.fixture
def planted(drawn, tmp_path):
    return Path(shutil.copytree(drawn, tmp_path, dirs_exist_ok=True))


def within(content: bytes) -> bytes:
    """Bytes of a file, and what they hold compressed."""
    if content.startswith(b"\x1f\x8b"):
        return content + gzip.decompress(content)
    found, place = content, 8
    while content.startswith(b"\x89PNG") and place < len(content):
        length = int.from_bytes(content[place : place + 4])
        kind, chunk = content[place + 4 : place + 8], content[place + 8 : place + 8 + length]
        start = chunk.find(b"\x78")  # of zlib
        if kind in (b"zTXt", b"iTXt", b"iCCP") and start >= 0:
            found += zlib.decompressobj().decompress(chunk[start:])
        place += 12 + length
    return found


def names(content: bytes) -> bool:
    return any(word in within(content) for word in WORDS)


def test_the_name_is_found_where_it_was_planted(planted):
    for path in (planted / "in/DOE_JANE").iterdir():
        assert names(path.read_bytes()), path
        read_picture(path, (0, 255) if path.suffix != ".png" else None)


@pytest.mark.parametrize("asked", [["--do=left_size=+20%", "--manifest"], ["--sweep=left_size=0.9:1.1:3"]])
def test_nothing_that_the_command_writes_or_says_names_the_patient(asked, planted, capfd):
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        assert ask(planted, *asked, "--window", "0", "255", image="in") == 0
    said = capfd.readouterr()
    assert not names(f"{said.out}{said.err}{[str(each.message) for each in warned]}".encode())
    written = [path for path in (planted / "out").rglob("*") if path.is_file()]
    assert {path.suffix for path in written} >= {".dcm", ".png", ".gz", ".nii", ".csv"}
    for path in written:
        assert not names(str(path.relative_to(planted)).encode())
        if path.name != "answers.csv":
            assert not names(path.read_bytes()), path
    table = pd.read_csv(planted / "out/answers.csv")
    assert table["image"].str.contains("Jane|JANE").all(), "whose answers they are is said here alone"
    assert not names(table.drop(columns="image").to_csv().encode())


def test_nothing_that_the_app_hands_on_names_the_patient(planted, capfd):
    pytest.importorskip("starlette")
    from segcft.app.server import App, create

    app = App(CounterfactualService(make(description(2))), "balls", 10**8)
    client = Client(create(app, None, local=True))
    for path in (planted / "in/DOE_JANE").iterdir():
        status, opened = client.upload(path.read_bytes(), name=path.name, window=[0, 255])
        assert status == 200, opened
        session = opened["session"]
        folder = Path(app.sessions.get(session).folder.name)
        assert not any(names(str(each).encode()) for each in (folder, *folder.iterdir()))
        for kind in opened["downloads"]:
            told = client.post("/download", {"session": session, "do": ["left_size=+20%"], "kind": kind})[1]
            assert not names(told["name"].encode())
            assert not names(base64.b64decode(told["content"])), (path.name, kind)
        answer = client.post("/ask", {"session": session, "do": ["left_size=+20%"]})[1]
        pictures = [answer.pop(name) for name in ("image", "change", "factual")]
        assert not any(names(base64.b64decode(each.partition(",")[2])) for each in pictures)
        assert not names(json.dumps(answer).encode())
    app.sessions.tidy(everyone=True)
    said = capfd.readouterr()
    assert not names(f"{said.out}{said.err}".encode())


def test_training_logs_and_keeps_no_names(tmp_path, monkeypatch, capfd):
    """Names of patients, files and folders of a data set stay in its manifest: logs and checkpoints are handed on."""
    monkeypatch.chdir(tmp_path)
    (option,) = trees.folder(tmp_path)
    manifest = Path(option.partition("=")[2])
    table = pd.read_csv(manifest).assign(patient=[f"{NAME} {n}" for n in range(24)])
    (manifest.parent / "DOE_JANE").mkdir()
    for column in [name for name in table if name.startswith(("image", "mask"))]:
        for name in table[column]:
            (manifest.parent / name).rename(manifest.parent / f"DOE_JANE/Jane_{name}")
        table[column] = "DOE_JANE/Jane_" + table[column]
    table.to_csv(manifest, index=False)
    stage = ["fit", configuration("folder", "segmentor"), option, "--data.batch_size=8", "--data.cache=cache"]
    quick = ["--trainer.accelerator=cpu", "--trainer.devices=1", "--trainer.max_steps=2"]
    assert main([*stage, *quick, "--trainer.check_val_every_n_epoch=1"]) == 0
    said = capfd.readouterr()
    assert not names(f"{said.out}{said.err}".encode())
    written = [path for top in ("logs", "checkpoints") for path in Path(top).rglob("*") if path.is_file()]
    assert any("tfevents" in path.name for path in written)
    assert any(path.suffix == ".ckpt" for path in written)
    for path in written:
        assert not names(str(path).encode())
        assert not names(path.read_bytes()), path


def test_what_geometry_needs_is_kept(planted):
    sources = planted / "in/DOE_JANE"
    change = np.zeros(FILM.shape, np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        write_changed(sources / "Jane.dcm", change, planted / "b.dcm", None, "test")
        old, new = (pydicom.dcmread(path) for path in (sources / "Jane.dcm", planted / "b.dcm"))
        assert np.array_equal(new.pixel_array, old.pixel_array)
        assert np.array_equal(read_picture(planted / "b.dcm").levels, read_picture(sources / "Jane.dcm").levels)
    assert (new.PixelSpacing, new.PatientOrientation) == (old.PixelSpacing, old.PatientOrientation)
    assert list(new.ImageType) == ["DERIVED", "SECONDARY", "OTHER", "AXIAL"]
    assert new.VOILUTSequence[0].LUTDescriptor == [256, 0, 8]
    assert sorted(element.keyword for element in new.VOILUTSequence[0]) == [
        "LUTData",
        "LUTDescriptor",
        "ModalityLUTType",
    ]
    write_changed(sources / "Jane.png", change, planted / "b.png", None, "test")
    with Image.open(planted / "b.png") as image:
        assert image.info["dpi"] == pytest.approx((300, 150), rel=0.01)
        assert set(image.info) == {"dpi", "Description"}


@pytest.mark.parametrize("name", ["Jane.dcm", "Jane.png", "Jane.nii.gz", "Jane.nii"])
def test_identity_is_kept_where_it_is_asked_for(name, planted):
    source, target = planted / "in/DOE_JANE" / name, planted / f"b{name[4:]}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        write_changed(source, np.zeros(FILM.shape, np.float32), target, (0, 255), "test", identity=True)
    assert names(target.read_bytes())
    if name == "Jane.png":
        with Image.open(io.BytesIO(target.read_bytes())) as image:
            assert image.info["icc_profile"] == NAME.encode() * 9
            assert (image.text["Patient"], image.text["Comment"]) == (NAME, NAME)
    elif ".nii" in name:
        found = nibabel.load(target)
        assert [each.get_code() for each in found.header.extensions] == [4, 6, 44]
        assert found.header["aux_file"] == NAME.encode()
