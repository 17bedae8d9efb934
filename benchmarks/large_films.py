"""What answering a file costs by its size: CPU seconds and memory of one question with corrections, one thread.

    .venv/bin/python -m benchmarks.large_films checkpoints/chexpert/segcft/last.ckpt left_lung_area=-20%

Writes a 16-bit DICOM of each size into a temporary folder, answers it as ``segcft counterfactual`` does, panel and
DICOM included, and prints a table: each size in a process of its own, the median of three answers after a first one.
"""

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SIZES = (64, 512, 1024, 2048)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("question", help="as of segcft counterfactual --do")
    parser.add_argument("--size", type=int, help="one size, in this process")
    options = parser.parse_args()
    if options.size:
        print("{:.3f} {:.0f}".format(*answer(options.checkpoint, options.question, options.size)))
        return 0
    print("| pixels a side | CPU seconds | beyond the smallest | memory, MB | beyond the smallest |")
    print("|---|---|---|---|---|")
    first: tuple[float, float] | None = None
    for size in SIZES:
        command = [sys.executable, "-m", "benchmarks.large_films", options.checkpoint, options.question]
        told = subprocess.run([*command, f"--size={size}"], check=True, capture_output=True, text=True).stdout.split()
        seconds, memory = float(told[-2]), float(told[-1])
        first = first or (seconds, memory)
        print(f"| {size} | {seconds:.2f} | {seconds - first[0]:.2f} | {memory:.0f} | {memory - first[1]:.0f} |")
    return 0


def answer(checkpoint: str, question: str, size: int) -> tuple[float, float]:
    """CPU seconds, and the process's largest memory in MB."""
    import torch

    from segcft.inference.answer_file import answer_file
    from segcft.inference.command import parser as options_of
    from segcft.inference.command import plan

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "film.dcm")
        write(file, size)
        arguments = [f"--checkpoint={checkpoint}", f"--image={file}", f"--out={folder}/out", f"--do={question}"]
        job = plan(options_of().parse_args([*arguments, "--window", "0", "4095"]))
        taken = []
        for _ in range(4):
            began = time.process_time()
            answer_file(job, file)
            taken.append(time.process_time() - began)
    return statistics.median(taken[1:]), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def write(file: Path, size: int) -> None:
    """A chest phantom of ``size`` pixels a side as DICOM of 12 bits stored in 16."""
    import numpy as np
    import torch
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian, generate_uid

    from data_modules.chest_phantom import ChestPhantom

    data = ChestPhantom(size=size, subjects={"train": 16, "val": 1, "test": 1})
    image = data.dataset("test").read(torch.arange(1))["image"][0, 0].numpy()
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = (
        DigitalXRayImageStorageForPresentation,
        generate_uid(),
    )
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    film = FileDataset(str(file), {}, file_meta=meta, preamble=b"\0" * 128)
    film.SOPClassUID, film.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    film.StudyInstanceUID, film.SeriesInstanceUID, film.Modality = generate_uid(), generate_uid(), "DX"
    film.Rows = film.Columns = size
    film.SamplesPerPixel, film.PixelRepresentation = 1, 0
    film.BitsAllocated, film.BitsStored, film.HighBit = 16, 12, 11
    film.set_pixel_data(((image + 1) * 2047.5).astype(np.uint16), "MONOCHROME2", 12)
    film.save_as(file, enforce_file_format=True)


if __name__ == "__main__":
    sys.exit(main())
