"""Which files of a folder are answered, where the answers lie, and what their names say."""

import numpy as np
import pandas as pd
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.fileset import FileSet
from pydicom.uid import (
    BasicTextSRStorage,
    ComputedRadiographyImageStorage,
    ExplicitVRLittleEndian,
    GrayscaleSoftcopyPresentationStateStorage,
    generate_uid,
)

from segcft.io.readers import read_picture
from segcft.io.writers import write_changed
from tests.dicoms import write_dicom
from tests.inference.test_answer_file import ask, description, make, save

pytestmark = pytest.mark.filterwarnings("ignore:do\\(")
FILM = np.random.default_rng(0).integers(0, 255, (20, 20), dtype=np.uint8)


def without_pixels(path, kind):
    """A report or presentation state."""
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID, data.file_meta.MediaStorageSOPClassUID = ExplicitVRLittleEndian, kind
    data.SOPClassUID, data.SOPInstanceUID, data.PatientID = kind, generate_uid(), "7"
    data.Modality = "SR" if kind == BasicTextSRStorage else "PR"
    data.save_as(path, enforce_file_format=True)


@pytest.fixture
def disc(tmp_path):
    """A disc as archives write it, beside a checkpoint: two films, a DICOMDIR, a report, a presentation state."""
    save(tmp_path / "a.ckpt", make(description(2)))
    films = FileSet()
    for number in range(2):
        tags = {"PatientID": "7", "PatientName": "Doe^Jane", "StudyDate": "20200131", "StudyTime": "101010"}
        tags |= {"StudyID": "1", "StudyInstanceUID": "1.2.3", "SeriesInstanceUID": "1.2.3.4", "SeriesNumber": 1}
        tags |= {"Modality": "CR", "InstanceNumber": number + 1, "SOPClassUID": ComputedRadiographyImageStorage}
        films.add(pydicom.dcmread(write_dicom(tmp_path / f"{number}.dcm", FILM, **tags)))
        (tmp_path / f"{number}.dcm").unlink()
    films.write(tmp_path / "cd")
    without_pixels(tmp_path / "cd/SR000001", BasicTextSRStorage)
    without_pixels(tmp_path / "cd/state.dcm", GrayscaleSoftcopyPresentationStateStorage)
    (tmp_path / "cd/README.TXT").write_text("a viewer for Windows")
    return tmp_path


def test_a_disc_with_a_directory_reports_and_presentation_states(disc, capsys):
    assert (disc / "cd/DICOMDIR").is_file()
    assert ask(disc, "--do=left_size=+20%", image="cd") == 0
    printed = capsys.readouterr()
    assert "2 of 2 files answered" in printed.out
    assert "skipped: 3 DICOM files without an image" in printed.err
    assert "skipped: 1 files of other formats (.txt)" in printed.err
    assert len(list((disc / "out").rglob("counterfactual.dcm"))) == 2


@pytest.mark.parametrize(
    ("name", "kind"),
    [("DICOMDIR", "Media Storage Directory"), ("SR000001", "Basic Text SR"), ("state.dcm", "Grayscale Softcopy")],
)
def test_a_file_without_an_image_says_what_it_is(name, kind, disc):
    with pytest.raises(ValueError, match=rf"{name} cannot be read as an image: it holds no image, but {kind}"):
        read_picture(disc / "cd" / name)


def test_names_of_files_are_not_handed_on_unless_they_are_kept(tmp_path):
    save(tmp_path / "a.ckpt", make(description(2)))
    (tmp_path / "in/Doe_Jane").mkdir(parents=True)
    write_dicom(tmp_path / "in/Doe_Jane/1970-01-31.dcm", FILM, PatientName="Doe^Jane", PatientID="7")
    Image.fromarray(FILM).save(tmp_path / "in/Jane.png")
    assert ask(tmp_path, "--do=left_size=+20%", "--manifest") == 0
    handed_on = [path for path in (tmp_path / "out").rglob("*") if path.name != "answers.csv"]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"0001", "0002", "answers.csv", "manifest.csv"}
    for path in handed_on:
        assert not any(word in str(path.relative_to(tmp_path)) for word in ("Doe", "Jane", "1970"))
        if path.is_file():
            content = path.read_bytes()
            assert not any(word in content for word in (b"Doe^Jane", b"Doe_Jane", b"Jane.png", b"1970-01-31")), path
    table = pd.read_csv(tmp_path / "out/answers.csv")
    assert table["image"].str.contains("Jane").all(), "whose answers they are is said here alone"
    assert ask(tmp_path, "--do=left_size=+20%", "--keep-identity", f"--out={tmp_path / 'kept'}") == 0
    assert (tmp_path / "kept/Jane.png/counterfactual.png").is_file()
    assert pydicom.dcmread(tmp_path / "kept/Doe_Jane/1970-01-31.dcm/counterfactual.dcm").PatientName == "Doe^Jane"


def test_answers_of_one_file_never_lie_beside_those_of_another(tmp_path):
    save(tmp_path / "a.ckpt", make(description(2)))
    for name in ("a.png", "b.png", "c.png"):
        Image.fromarray(FILM).save(tmp_path / name)
    seen = []
    for name in ("b.png", "a.png", "a.png", "c.png"):
        assert ask(tmp_path, "--do=left_size=+20%", image=name) == 0
        (answer,) = set(pd.read_csv(tmp_path / "out/answers.csv")["counterfactual"])
        seen.append(answer[:4])
    assert seen == ["0001", "0002", "0002", "0003"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["NIH_DX_00000002", "RG1_UNCR", "RG1_J2KI"])
def test_real_films_are_answered_and_written_back(name, shared, tmp_path):
    """1955 x 1841, 15 bits, MONOCHROME1, JPEG 2000, a spacing of 0: every pixel that is not moved is kept."""
    source = shared / f"data/dicom_chest/images/{name}.dcm"
    if not source.is_file():
        pytest.skip(f"no {source}")
    data = pydicom.dcmread(source)
    picture = read_picture(source)
    assert picture.levels.shape == data.pixel_array.shape
    assert picture.spacing is None
    inverted = data.PhotometricInterpretation == "MONOCHROME1"
    brightness = np.corrcoef(picture.levels[::9, ::9].ravel(), data.pixel_array[::9, ::9].ravel())[0, 1]
    assert (brightness < -0.9) if inverted else (brightness > 0.9), "as viewers show it"
    change = np.zeros(picture.levels.shape, np.float32)
    change[:, :500] = 20
    write_changed(source, change, tmp_path / "half.dcm", None, "test")
    half = pydicom.dcmread(tmp_path / "half.dcm")
    assert (half.pixel_array.shape, half.BitsStored) == (data.pixel_array.shape, data.BitsStored)
    assert half.PhotometricInterpretation == data.PhotometricInterpretation
    assert np.array_equal(half.pixel_array[:, 500:], data.pixel_array[:, 500:])
    free = (change > 0) & (picture.levels > 0) & (picture.levels < 230)
    moved = read_picture(tmp_path / "half.dcm").levels.astype(int) - picture.levels
    assert np.abs(moved[free] - 20).max() <= 1
    save(tmp_path / "a.ckpt", make(description(2)))
    for amount, same in (("+0%", True), ("+20%", False)):
        assert ask(tmp_path, f"--do=left_size={amount}", image=source) == 0
        answer = pydicom.dcmread(tmp_path / "out/0001/counterfactual.dcm").pixel_array
        assert np.array_equal(answer, data.pixel_array) == same
