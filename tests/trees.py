"""Small data sets in the layouts of the public ones: the same drawn films, as MIMIC-CXR-JPG, PadChest or a manifest.

(CheXpert's layout is the fixture ``chexpert_tree``.)
"""

import gzip
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from data_modules.chest.chexmask import encode


def films(count: int) -> list[tuple[np.ndarray, dict[str, np.ndarray]]]:
    """(H, W) uint8 and masks; the patient's right lung on the left of the image."""
    drawn = []
    for number in range(count):
        noise = np.random.default_rng(number)
        shape = (84, 70) if number % 2 else (60, 80)
        y, x = np.mgrid[: shape[0], : shape[1]] / np.array(shape)[:, None, None]
        wide, high = noise.uniform(0.1, 0.18, 3), noise.uniform(0.2, 0.3, 3)
        places = {"left_lung": (0.75, 0.45), "right_lung": (0.25, 0.45), "heart": (0.55, 0.65)}
        masks = {
            name: ((x - place[0]) / w) ** 2 + ((y - place[1]) / h) ** 2 < 1
            for (name, place), w, h in zip(places.items(), wide, high, strict=True)
        }
        grey = 170 + noise.normal(0, 6, shape) - 100 * (masks["left_lung"] | masks["right_lung"]) + 40 * masks["heart"]
        drawn.append((grey.clip(2, 255).astype(np.uint8), masks))
    return drawn


def _chexmask(path: Path, key: str, ids: list[str], drawn: list[tuple[np.ndarray, dict[str, np.ndarray]]]) -> Path:
    columns = {"Left Lung": "left_lung", "Right Lung": "right_lung", "Heart": "heart"}
    rows = [
        {key: name, "Dice RCA (Mean)": 0.9, "Height": image.shape[0], "Width": image.shape[1]}
        | {column: encode(masks[structure]) for column, structure in columns.items()}
        for name, (image, masks) in zip(ids, drawn, strict=True)
    ]
    pd.DataFrame(rows).to_csv(path, index=False)
    return path


def mimic(root: Path, count: int = 24) -> list[str]:
    """Writes the tree; returns the options that read it."""
    drawn, root = films(count), root / "mimic"
    ids = [f"{n:08x}-{n:08x}-00000000-00000000-00000000" for n in range(count)]
    table = pd.DataFrame({"dicom_id": ids, "subject_id": [f"{10_000_000 + n}" for n in range(count)]})
    table["study_id"] = [f"{50_000_000 + n}" for n in range(count)]
    for (image, _), row in zip(drawn, table.itertuples(), strict=True):
        path = root / f"files/p{row.subject_id[:2]}/p{row.subject_id}/s{row.study_id}/{row.dicom_id}.jpg"
        path.parent.mkdir(parents=True)
        Image.fromarray(image).save(path, quality=95)
    split = ["validate" if n % 6 == 4 else "test" if n % 6 == 5 else "train" for n in range(count)]
    table.assign(ViewPosition="AP").to_csv(root / "mimic-cxr-2.0.0-metadata.csv.gz", index=False)
    table.assign(split=split).to_csv(root / "mimic-cxr-2.0.0-split.csv.gz", index=False)
    table[["subject_id", "study_id"]].assign(Edema=1.0).to_csv(root / "mimic-cxr-2.0.0-chexpert.csv.gz", index=False)
    masks = _chexmask(root / "masks.csv", "dicom_id", ids, drawn)
    return [f"--data.source.root={root}", f"--data.source.masks={masks}"]


def padchest(root: Path, count: int = 40) -> list[str]:
    """Writes the tree; returns the options that read it."""
    drawn, root = films(count), root / "padchest"
    root.mkdir()
    ids = [f"{n}.png" for n in range(count)]
    for name, (image, _) in zip(ids, drawn, strict=True):
        Image.fromarray(image.astype(np.uint16) << 4).save(root / name)
    table = {"ImageID": ids, "PatientID": [f"p{n}" for n in range(count)], "StudyDate_DICOM": 20150120}
    table |= {"PatientBirth": [1930 + n for n in range(count)], "PatientSex_DICOM": ["F", "M"] * (count // 2)}
    pd.DataFrame(table | {"Projection": "PA", "Labels": "['normal']"}).to_csv(root / "PADCHEST_1.csv", index=False)
    masks = _chexmask(root / "masks.csv", "ImageID", ids, drawn)
    return [f"--data.source.root={root}", f"--data.source.masks={masks}"]


def folder(root: Path, count: int = 24) -> list[str]:
    """Writes images, masks and a manifest; returns the options that read them."""
    root, rows = root / "my images", []
    root.mkdir()
    for n, (image, masks) in enumerate(films(count)):
        Image.fromarray(image).save(root / f"{n}.png")
        for name, mask in masks.items():
            Image.fromarray(mask.astype(np.uint8) * 255).save(root / f"{n}_{name}.png")
        split = "val" if n % 6 == 4 else "test" if n % 6 == 5 else "train"
        rows.append({"image": f"{n}.png", "split": split, **{f"mask_{name}": f"{n}_{name}.png" for name in masks}})
    pd.DataFrame(rows).to_csv(root / "manifest.csv", index=False)
    return [f"--data.source.manifest={root / 'manifest.csv'}"]


def morphomnist(root: Path, name: str, count: int = 24, seed: int = 0) -> list[str]:
    """Writes strokes as ``name`` (train or t10k) of Morpho-MNIST; returns the options that read them."""
    noise = np.random.default_rng(seed)
    y, x = np.mgrid[:28, :28] - 13.5
    table = pd.DataFrame({"thickness": noise.uniform(2, 6, count), "intensity": noise.uniform(80, 250, count)})
    places = noise.uniform(-8, 8, count)
    strokes = [
        (abs(x - place) < thickness / 2) & (abs(y) < 10)
        for thickness, place in zip(table["thickness"], places, strict=True)
    ]
    images = (np.stack(strokes) * table["intensity"].to_numpy()[:, None, None]).astype(np.uint8)
    labels = np.arange(count, dtype=np.uint8) % 10
    for kind, values in (("images-idx3", images), ("labels-idx1", labels)):
        lengths = b"".join(length.to_bytes(4) for length in values.shape)
        content = bytes([0, 0, 8, values.ndim]) + lengths + values.tobytes()
        (root / f"{name}-{kind}-ubyte.gz").write_bytes(gzip.compress(content))
    table.round(4).rename_axis("index").to_csv(root / f"{name}-morpho.csv")
    return [f"--data.init_args.root={root}", "--data.init_args.held_out=8", "--data.init_args.batch_size=8"]
