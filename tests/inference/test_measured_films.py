"""One film measures the same however it is stored: 14,324 mm^2 of left lung, never the right lung's 17,981.

The segmentor is known: dark pixels on the right of the image are left lung, those on the left are right lung.
"""

import nibabel
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from segcft.counterfactual.model import CounterfactualModel
from segcft.guidance.judges import SegmentationModel
from segcft.hvae.hvae import HVAE
from segcft.hvae.stages import Stage
from segcft.io.orientation import OF_EXIF, of_codes
from segcft.variables.variables import DataDescription, Variable
from tests import films
from tests.dicoms import write_dicom
from tests.inference.test_answer_file import ask
from tests.io.test_orientation import FRONTAL

LEVELS, LEFT, RIGHT = films.draw()
ABOUT = {"rel": 0.015}  # of the frame's pixels of 4 mm
DO = "--do=left_lung_area=+0%"
VECTORS = {"L": (1, 0, 0), "R": (-1, 0, 0), "H": (0, 0, 1), "F": (0, 0, -1)}


class DarkHalves(SegmentationModel):
    """Outlines what is darker than level 120 in either half."""

    def forward(self, image):
        inside = (torch.arange(image.shape[-1]) >= image.shape[-1] / 2).float()
        dark = 120 - (image[:, 0] + 1) * 127.5
        return torch.stack([dark - 1000 * (1 - inside), dark - 1000 * inside], 1)


@pytest.fixture
def model(monkeypatch):
    sizes = {side: Variable(unit="mm^2", structure=side, low=5e3, high=4e4) for side in ("left_lung", "right_lung")}
    variables = {f"{side}_area": variable for side, variable in sizes.items()}
    about = DataDescription(variables, list(sizes), [4.0, 4.0])
    torch.manual_seed(0)
    made = CounterfactualModel(
        about, HVAE(2, 1, about.parents.dim, [Stage(4, 0, resolution=100), Stage(4, 2, 2, resolution=25)])
    ).eval()
    made.segmentor = DarkHalves(about, 0.5).eval()
    monkeypatch.setattr(CounterfactualModel, "load", lambda path: made)
    return made


def png(path, tag=1):
    exif = Image.Exif()
    exif[274] = tag
    Image.fromarray(np.ascontiguousarray(OF_EXIF[tag].store(LEVELS))).save(path, exif=exif)


def nifti(path):
    nibabel.save(nibabel.Nifti1Image(np.ascontiguousarray(LEVELS.T[::-1, None, ::-1]), np.eye(4)), path)


def dicom(path, codes=("L", "F"), vectors=False, **tags):
    directions = {"ImageOrientationPatient": [*VECTORS[codes[0]], *VECTORS[codes[1]]]}
    where = directions if vectors else {"PatientOrientation": list(codes)}
    shown = 255 - LEVELS if tags.get("PhotometricInterpretation") == "MONOCHROME1" else LEVELS
    write_dicom(path, np.ascontiguousarray(of_codes(codes).store(shown)), **where, **{"PixelSpacing": [1, 1]} | tags)


def test_every_file_of_one_film_measures_the_same(model, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for tag in OF_EXIF:
        png(folder / f"exif{tag}.png", tag)
    png(folder / "exif2.jpg", 2)
    for place, codes in enumerate(FRONTAL):
        dicom(folder / f"{codes[0]}{codes[1]}.dcm", codes, vectors=place % 2 == 1)
    dicom(folder / "turned.dcm", ("R", "F"), vectors=True)
    dicom(folder / "inverted.dcm", PhotometricInterpretation="MONOCHROME1")
    dicom(folder / "detector.dcm", PixelSpacing=None, ImagerPixelSpacing=[1.2, 1.2],
          EstimatedRadiographicMagnificationFactor=1.2)  # fmt: skip
    nifti(folder / "film.nii.gz")
    assert ask(tmp_path, DO, "--spacing", "1", "1", "--corrections=0", "--no-confined") == 0
    table = pd.read_csv(tmp_path / "out/answers.csv")
    assert table["image"].nunique() == 9 + 9 + 3
    for name, wanted in (("left_lung_area", 14_461), ("right_lung_area", films.RIGHT)):
        found = table.loc[table["variable"] == name, "factual"].to_numpy()
        assert found == pytest.approx(wanted, **ABOUT), name
        assert np.ptp(found) < 0.001 * wanted, name
    assert not table["warning"].notna().any()


def test_so_does_every_array(model):
    held = {
        "uint8": (LEVELS, None),
        "torch": (torch.from_numpy(LEVELS)[None, None], None),
        "float": (LEVELS.astype(np.float32), (0, 255)),
        "of 16 bits": (LEVELS.astype(np.uint16) * 257, (0, 65535)),
        "of [0, 1]": (LEVELS / 255, (0, 1)),
        "of [-1, 1]": (LEVELS / 127.5 - 1, None),
    }
    for name, (array, window) in held.items():
        (answer,) = model.ask(array, do={"left_lung_area": "+0%"}, window=window, spacing=(1, 1), corrections=0)
        assert float(answer.subject.measured["left_lung_area"]) == pytest.approx(14_429, **ABOUT), name
        assert answer.image.shape == (1, 1, films.SIDE, films.SIDE), name
    with pytest.raises(ValueError, match=r"may be of \[0, 1\] or \[-1, 1\]: give window"):  # 4,216 mm^2 once
        model.ask(LEVELS / 255, do={"left_lung_area": "+0%"}, spacing=(1, 1))
