"""DICOM files without the person: what an answer keeps of the file that it was made from."""

from typing import Any

from pydicom.uid import generate_uid

PIXELS = (0x0028, 0x7FE0)  # groups that describe and hold them
KEPT = {
    *("SpecificCharacterSet", "ImageType", "SOPClassUID", "SOPInstanceUID", "Modality", "InstanceNumber"),
    *("BodyPartExamined", "ViewPosition", "PatientPosition", "PatientOrientation", "Laterality", "ImageLaterality"),
    *("ImagerPixelSpacing", "EstimatedRadiographicMagnificationFactor", "SliceThickness", "SpacingBetweenSlices"),
    *("ImagePositionPatient", "ImageOrientationPatient", "PresentationLUTShape"),
}
EMPTY = (  # a file has to have them, whatever they say (DICOM PS3.3, type 2)
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID"),
    *("AccessionNumber", "ReferringPhysicianName", "SeriesNumber"),
)
LINKS = ("StudyInstanceUID", "FrameOfReferenceUID")
FREE_TEXT = ("LT", "ST", "UT")


def pseudonym(uid: str) -> str:
    """The same new identifier for the same old one, so that series of a study stay together."""
    return str(generate_uid(entropy_srcs=["segcft", uid]))


def remove_identity(data: Any) -> None:
    """Keep pixels, geometry and kind of a pydicom data set, in place; all else goes.

    Stricter than the basic profile (DICOM PS3.15, annex E), which lists what to remove: private tags, dates, names,
    institutions, devices, comments and sequences go because nothing says that they may stay. Text that is burnt into
    the pixels stays.
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
