"""De-identification of DICOM files: which tags a counterfactual keeps from its source file."""

from typing import Any

from pydicom.uid import generate_uid

PIXELS = (0x0028, 0x7FE0)  # tag groups of image description and pixel data
KEPT = {
    *("SpecificCharacterSet", "ImageType", "SOPClassUID", "SOPInstanceUID", "Modality", "InstanceNumber"),
    *("BodyPartExamined", "ViewPosition", "PatientPosition", "PatientOrientation", "Laterality", "ImageLaterality"),
    *("ImagerPixelSpacing", "EstimatedRadiographicMagnificationFactor", "SliceThickness", "SpacingBetweenSlices"),
    *("ImagePositionPatient", "ImageOrientationPatient", "PresentationLUTShape"),
}
EMPTY = (  # required to be present, but may be empty (DICOM PS3.3, type 2)
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID"),
    *("AccessionNumber", "ReferringPhysicianName", "SeriesNumber"),
)
LINKS = ("StudyInstanceUID", "FrameOfReferenceUID")
FREE_TEXT = ("LT", "ST", "UT")


def pseudonym(uid: str) -> str:
    """A new UID derived from the old one, always the same, so that the series of a study stay together."""
    return str(generate_uid(entropy_srcs=["segcft", uid]))


def remove_identity(data: Any) -> None:
    """Remove everything but pixels, geometry and image type from a pydicom data set, in place.

    Stricter than the basic profile (DICOM PS3.15, annex E), which lists what to remove: here everything that is not
    explicitly kept is removed, so also private tags, dates, names, institutions, devices, comments and sequences.
    Text that is burnt into the pixels is not removed.
    """
    links = {name: pseudonym(str(data[name].value)) for name in LINKS if name in data}
    for element in list(data):
        pixels = element.tag.group in PIXELS and element.VR not in FREE_TEXT
        if not (pixels or element.keyword in KEPT):
            del data[element.tag]
    for name in EMPTY:
        setattr(data, name, "" if name != "SeriesNumber" else None)
    for name, uid in links.items():
        setattr(data, name, uid)
    data.PatientIdentityRemoved = "YES"
    data.DeidentificationMethod = "segcft: all but pixels, geometry and kind removed"
    data.preamble = b"\0" * 128
    for name in ("SourceApplicationEntityTitle", "SendingApplicationEntityTitle", "ReceivingApplicationEntityTitle"):
        if name in data.file_meta:
            delattr(data.file_meta, name)
