"""MIMIC-CXR-JPG 2.0.0 chest radiographs (Johnson et al., 2019) with CheXmask segmentations."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from data_modules.chest.chexmask import Variant
from data_modules.chest.chexpert_labels import FINDINGS, findings
from data_modules.chest.radiographs import ChestFilms
from segcft.io.csv_tables import categories, find_table, numbers, origins, read_table, refuse, refuse_twice, years

SPLITS = {"train": "train", "validate": "val", "test": "test"}
YOUNGEST, OLDEST = 18, 90  # years; MIMIC-IV has adults only, and 91 for all older than 89
IDS = {"dicom_id": r"[0-9a-f]{8}(-[0-9a-f]{8}){4}", "subject_id": r"1\d{7}", "study_id": r"5\d{7}"}


class MimicCXR(ChestFilms):
    """Frontal radiographs of MIMIC-CXR-JPG; see ``ChestFilms`` for the other arguments and the geometry.

    ``root`` holds ``mimic-cxr-2.0.0-{metadata,split,chexpert}.csv[.gz]`` and ``files/p10/p10000032/s50414267/*.jpg``.
    The official split divides the patients. Offers ``ap`` (1 antero-posterior, 0 postero-anterior; other views are
    unknown) and the findings of the study by CheXpert's labeller (``pleural_effusion``; 0 or 1, uncertain and blank
    are unknown). With MIMIC-IV's ``patients.csv[.gz]`` also ``sex`` (0 female, 1 male) and ``age`` in years at the
    study, ``anchor_age`` + year of the study - ``anchor_year`` (``anchor_age`` alone where the table has no
    ``anchor_year``), unknown where ``anchor_age`` is not 18 to 90.

    CheXmask removed black borders of the films before making its Preprocessed masks, so they are removed here as well.
    JPEG decoders may differ by one grey level, which shifts such a border by at most a pixel in films that fade to
    black.

    Args:
        root: Folder of the data set.
        masks: CheXmask table ``MIMIC-CXR-JPG.csv``.
        patients: MIMIC-IV's ``patients.csv`` or ``.csv.gz``; by default the one in ``root``, if there is one.
        views: Values of ``ViewPosition`` to use; AP and PA by default.
        structures: See ``ChestFilms``.
        size: See ``ChestFilms``.
        min_dice: See ``ChestFilms``.
        variant: See ``ChestFilms``.
        seed: Unused, since the data set has an official split.
    """

    name = "mimic_cxr"
    strips_borders = True

    def __init__(
        self,
        root: str,
        masks: str,
        patients: str | None = None,
        views: list[str] | None = None,
        structures: list[str] | None = None,
        size: int = 192,
        min_dice: float = 0.7,
        variant: Variant = "auto",
        seed: int = 0,
    ) -> None:
        super().__init__(root, masks, structures, size, min_dice, variant, seed)
        self.views = views or ["AP", "PA"]
        here = [path for path in (self.root / "patients.csv", self.root / "patients.csv.gz") if path.is_file()]
        self.patients = Path(patients).expanduser() if patients else next(iter(here), None)

    def options(self) -> dict[str, Any]:
        """See ``Source.options``."""
        return super().options() | {"views": self.views}

    def files(self) -> list[Path]:
        """See ``Source.files``."""
        tables = [self._path(kind) for kind in ("metadata", "split", "chexpert")]
        return [*tables, *([self.patients] if self.patients else []), self.masks]

    def films(self) -> pd.DataFrame:
        """See ``ChestFilms.films``."""
        path = self._path("metadata")
        frame = read_table(path, ["dicom_id", "subject_id", "study_id", "ViewPosition"], ["StudyDate"])
        frame = frame[frame["ViewPosition"].isin(self.views)]
        for field, pattern in IDS.items():
            wrong = ~frame[field].str.fullmatch(pattern).fillna(False).to_numpy(bool)
            refuse(frame, field, path, wrong, f"not a {field} of MIMIC-CXR")
        subject, study, dicom = frame["subject_id"], frame["study_id"], frame["dicom_id"]
        image = f"{self.root}/files/p" + subject.str[:2] + "/p" + subject + "/s" + study + "/" + dicom + ".jpg"
        table = pd.DataFrame({"id": dicom, "patient": subject, "image": image})
        table = table.assign(split=self._splits(frame, path), origin=origins(frame, "dicom_id", path))
        table["ap"] = frame["ViewPosition"].map({"AP": 1.0, "PA": 0.0}).to_numpy(np.float32)
        return table.assign(**self._findings(frame), **self._demographics(frame, path)).reset_index(drop=True)

    def _path(self, kind: str) -> Path:
        return find_table(self.root, f"mimic-cxr-2.0.0-{kind}.csv")

    def _splits(self, frame: pd.DataFrame, path: Path) -> "pd.Series[str]":
        source = self._path("split")
        table = read_table(source, ["dicom_id", "split"])
        refuse_twice(table, "dicom_id", source, "image")
        refuse(table, "split", source, ~table["split"].isin(list(SPLITS)).to_numpy(), "train, validate or test")
        splits = frame["dicom_id"].map(table.set_index("dicom_id")["split"].map(SPLITS))
        refuse(frame, "dicom_id", path, splits.isna().to_numpy(), f"{source} gives it no split")
        return splits

    def _findings(self, frame: pd.DataFrame) -> dict[str, NDArray[np.float32]]:
        path = self._path("chexpert")
        table = read_table(path, ["study_id"], list(FINDINGS.values()))
        refuse_twice(table, "study_id", path, "study")
        places = pd.Index(table["study_id"]).get_indexer(pd.Index(frame["study_id"]))  # -1 is unknown
        offered = {name: column for name, column in FINDINGS.items() if column in table}
        return {name: _taken(findings(table, column, path), places) for name, column in offered.items()}

    def _demographics(self, frame: pd.DataFrame, metadata: Path) -> dict[str, NDArray[np.float32]]:
        if self.patients is None:
            return {}
        path = self.patients
        table = read_table(path, ["subject_id", "gender", "anchor_age"], ["anchor_year"])
        refuse_twice(table, "subject_id", path, "patient")
        places = pd.Index(table["subject_id"]).get_indexer(pd.Index(frame["subject_id"]))
        ages = numbers(table, "anchor_age", path, blank=True)
        refuse(table, "anchor_age", path, (ages < 0) | (ages > 120), "an age lies between 0 and 120")
        age = _taken(np.where((ages >= YOUNGEST) & (ages <= OLDEST), ages, np.nan), places)
        if "anchor_year" in table:
            if "StudyDate" not in frame:
                raise ValueError(f"{metadata}: no column 'StudyDate', which the age at the study needs")
            age += years(frame, "StudyDate", metadata) - _taken(numbers(table, "anchor_year", path, blank=True), places)
        sex = categories(table, "gender", path, {"F": 0.0, "M": 1.0})
        return {"age": age, "sex": _taken(sex, places)}


def _taken(values: NDArray[np.float64], places: NDArray[np.intp]) -> NDArray[np.float32]:
    """``values`` at ``places``, NaN at place -1."""
    return np.append(values, np.nan)[places].astype(np.float32)
