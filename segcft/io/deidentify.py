"""De-identification: what a counterfactual keeps of the DICOM tags and the NIfTI header of its source file."""

import re
from collections.abc import Sequence
from typing import Any

from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

NUMBERS = {
    *("InstanceNumber", "SliceThickness", "SpacingBetweenSlices", "ImagePositionPatient", "ImageOrientationPatient"),
    *("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing", "PixelAspectRatio"),
    *("EstimatedRadiographicMagnificationFactor", "SamplesPerPixel", "Rows", "Columns", "BitsAllocated", "BitsStored"),
    *("HighBit", "PixelRepresentation", "PixelPaddingValue", "PixelPaddingRangeLimit", "LossyImageCompressionRatio"),
    *("WindowCenter", "WindowWidth", "RescaleIntercept", "RescaleSlope", "PixelIntensityRelationshipSign"),
    "LUTDescriptor",
}
TABLES = {"LUTData", "PixelData"}  # numbers as bytes
SEQUENCES = {"ModalityLUTSequence", "VOILUTSequence"}
CODES = {  # text is kept if it is one of the standard's terms
    "Modality": "CR|DX|CT|MR|PX|MG|XA|RF|OT|IO|US|PT|NM|SC|RG",
    "ImageType": "ORIGINAL|DERIVED|PRIMARY|SECONDARY|AXIAL|LOCALIZER|PROJECTION IMAGE|OTHER",
    "BodyPartExamined": "CHEST|THORAX|LUNG|HEART|ABDOMEN|PELVIS|HEAD|NECK|SPINE|CSPINE|TSPINE|LSPINE|BREAST|KNEE|HIP|"
    "SHOULDER|HAND|FOOT|WRIST|ANKLE|ELBOW|ARM|LEG|SKULL|BRAIN|COUPLE|CORONARY ARTERY|WHOLEBODY|EXTREMITY",
    "ViewPosition": "AP|PA|LL|RL|RLD|LLD|RLO|LLO|LATERAL|LAT|CC|MLO",
    "PatientPosition": "(HF|FF|LF|RF)(S|P|DR|DL)",
    "PatientOrientation": "[AHFLRP]{1,3}",
    "Laterality": "[LRBU]",
    "ImageLaterality": "[LRBU]",
    "PhotometricInterpretation": "MONOCHROME[12]",
    "PixelSpacingCalibrationType": "GEOMETRY|FIDUCIAL",
    "PixelIntensityRelationship": "LIN|LOG|DISP|OTHER",
    "PresentationLUTShape": "IDENTITY|INVERSE",
    "LossyImageCompression": "00|01",
    "BurnedInAnnotation": "YES|NO",
    "RescaleType": "HU|US|OD|HU_MOD|PCT|Z_EFF|ED|EDW|MGML",
    "ModalityLUTType": "HU|US|OD|HU_MOD|PCT|Z_EFF|ED|EDW|MGML",
    "VOILUTFunction": "LINEAR|LINEAR_EXACT|SIGMOID",
}
EMPTY = (  # required to be present, but may be empty (DICOM PS3.3, type 2)
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID"),
    *("AccessionNumber", "ReferringPhysicianName", "SeriesNumber"),
)
LINKS = ("StudyInstanceUID", "FrameOfReferenceUID")
NIFTI_KEPT = (  # numbers; text and unused fields are left at their defaults
    *("dim_info", "dim", "pixdim", "datatype", "bitpix", "scl_slope", "scl_inter", "cal_max", "cal_min", "xyzt_units"),
    *("qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
    *("srow_x", "srow_y", "srow_z"),
)


def pseudonym(uid: str) -> str:
    """A new UID derived from the old one, always the same, so that the series of a study stay together."""
    return str(generate_uid(entropy_srcs=["segcft", uid]))


def kind_of(uid: str) -> str:
    """A SOP class of the standard as it is; secondary capture for any other text."""
    return uid if UID(uid).type == "SOP Class" else str(SecondaryCaptureImageStorage)


def without_identity(data: Any) -> Dataset:
    """A new data set with the pixels, geometry and image type of a pydicom data set, and new file meta information.

    Stricter than the basic profile (DICOM PS3.15, annex E), which lists what to remove: here only listed elements are
    copied, in the items of listed sequences as well: numbers, and text that is a term of the standard.
    Text that is burnt into the pixels is not removed.
    """
    made = _listed(data)
    for name in EMPTY:
        setattr(made, name, "" if name != "SeriesNumber" else None)
    for name in LINKS:
        if name in data:
            setattr(made, name, pseudonym(str(data[name].value)))
    made.SOPClassUID, made.SOPInstanceUID = kind_of(str(data.get("SOPClassUID", ""))), data.SOPInstanceUID
    made.PatientIdentityRemoved = "YES"
    made.DeidentificationMethod = "segcft: all but pixels, geometry and kind removed"
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made.file_meta.MediaStorageSOPClassUID = made.SOPClassUID
    made.file_meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID
    made.preamble = b"\0" * 128
    return made


def anonymous_header(header: Any) -> Any:
    """A new header with the shape, data type and geometry of a nibabel NIfTI header; no text, no extensions."""
    made = type(header)(endianness=header.endianness)
    for name in NIFTI_KEPT:
        made[name] = header[name]
    return made


def _listed(data: Any) -> Dataset:
    """A copy of the listed elements of a data set or of an item."""
    made = Dataset()
    for name in (*NUMBERS, *TABLES, *CODES, *SEQUENCES):
        element = _converted(data, name)
        if element is None or element.is_empty:
            continue
        if name in SEQUENCES:
            setattr(made, name, [_listed(item) for item in element.value])
        elif name in CODES:
            setattr(made, name, _terms(element.value, CODES[name]))
        elif _numeric(element.value) or (name in TABLES and isinstance(element.value, bytes)):
            made.add(element)
    return made


def _converted(data: Any, name: str) -> Any:
    """An element; None if it is missing, or pydicom cannot convert its bytes."""
    try:
        return data[name]
    except (KeyError, ValueError, TypeError, NotImplementedError):
        return None


def _terms(value: Any, known: str) -> str | list[str]:
    """Text whose values that are no known terms are OTHER, or empty if there is just one."""
    if isinstance(value, str) or not isinstance(value, Sequence):
        return str(value) if re.fullmatch(known, str(value)) else ""
    return [str(each) if re.fullmatch(known, str(each)) else "OTHER" for each in value]


def _numeric(value: Any) -> bool:
    several = value if isinstance(value, Sequence) and not isinstance(value, str | bytes) else [value]
    return all(isinstance(each, int | float) for each in several)
