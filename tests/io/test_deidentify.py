"""What a written file says of its patient: nothing, unless asked to."""

import nibabel
import numpy as np
import pytest

from segcft.io.readers import read_picture
from segcft.io.writers import write_changed

TEXT = {
    "data_type": b"Doe1",
    "db_name": b"Jane2",
    "aux_file": b"Doe^Jane3",
    "intent_name": b"Doe4",
    "descrip": b"Jane5",
}


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_free_text_of_a_nifti_header_is_cleared_unless_it_is_kept(kind, suffix, tmp_path):
    image = kind(np.arange(24, dtype=np.int16).reshape(2, 3, 4), np.eye(4))
    told = {name: text for name, text in TEXT.items() if name in image.header}
    for name, text in told.items():
        image.header[name] = text
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"Doe6"))
    source = tmp_path / f"a{suffix}"
    nibabel.save(image, source)
    change = np.zeros(read_picture(source, (0, 30)).levels.shape, np.float32)
    for identity in (False, True):
        write_changed(source, change, tmp_path / f"b{suffix}", (0, 30), "test", identity)
        written = nibabel.load(tmp_path / f"b{suffix}")
        content = written.to_bytes()
        for name, text in told.items():
            assert (text in content) == (identity and name != "descrip"), name
        assert (b"Doe6" in content) == identity
        assert np.array_equal(np.asarray(written.dataobj), np.asarray(image.dataobj))
