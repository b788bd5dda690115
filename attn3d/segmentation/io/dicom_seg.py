"""Writes labels as DICOM SEG in the frame of reference of their series, with highdicom."""

import warnings
from importlib.metadata import version
from pathlib import Path

import numpy as np

from attn3d.segmentation.errors import FileError
from attn3d.segmentation.io.dicom import slices_of
from attn3d.segmentation.io.writing import finished_file
from attn3d.segmentation.labels import Labels

_SERIES_NUMBER = 1000  # above the series numbers of scanners
_MAY_BE_EMPTY = (  # in DICOM (type 2), and often removed from anonymised series
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex"),
    *("AccessionNumber", "StudyID", "StudyDate", "StudyTime"),
)


def write_dicom_seg(path: Path | str, segmentation: np.ndarray, series: Path, labels: Labels) -> None:
    """Writes a label map as a binary DICOM SEG that refers to the slices of a series, with a segment for each label.

    Segments are numbered from 1 in the order of the labels and have their names. Segments of regions overlap. All are
    coded as tissue, since a more specific code is not known. Slices without labels are left out, except if no slice has
    a label. Patient and study are those of the series; what its headers lack is empty.

    Raises:
        FileError: when ``series`` does not have all headers that a SEG needs, such as ``StudyInstanceUID``.
    """
    import highdicom as hd
    from pydicom.sr.codedict import codes

    slices, headers = slices_of(series)
    for header in headers.values():
        for name in _MAY_BE_EMPTY:
            header.setdefault(name, "")
    algorithm = hd.AlgorithmIdentificationSequence(
        name="attn3d", version=version("attn3d"), family=codes.DCM.ArtificialIntelligence
    )
    segments = [
        hd.seg.SegmentDescription(
            segment_number=number,
            segment_label=name[:64],  # the limit of DICOM
            segmented_property_category=codes.SCT.Tissue,
            segmented_property_type=codes.SCT.Tissue,
            algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=algorithm,
        )
        for number, name in enumerate(labels.names, 1)
    ]
    if labels.regions:
        pixels = np.stack([mask for _, mask in labels.masks(segmentation)], axis=-1).astype(np.uint8)
    else:
        numbers = np.zeros(256, np.uint8)
        numbers[list(labels.written)] = range(len(labels.written))
        pixels = numbers[segmentation]
    frames = [pixels[:, :, index].swapaxes(0, 1) for index in range(len(slices))]
    files = list(dict.fromkeys(one.path for one in slices))
    if len(files) < len(slices):  # the frames of one file, in its order
        frames = [frames[index] for index in np.argsort([one.frame for one in slices])]
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The string .* single component")  # names of anonymised patients
            seg = hd.seg.Segmentation(
                source_images=[headers[file] for file in files],
                pixel_array=np.stack(frames),
                segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
                segment_descriptions=segments,
                series_instance_uid=hd.UID(),
                series_number=_SERIES_NUMBER,
                sop_instance_uid=hd.UID(),
                instance_number=1,
                manufacturer="attn3d",
                manufacturer_model_name="attn3d predict",
                software_versions=version("attn3d"),
                device_serial_number="0",
                content_description=", ".join(labels.names)[:64],
                specific_character_set="ISO_IR 192",  # UTF-8; that of the series may lack characters of the names
            )
    except (AttributeError, KeyError, TypeError, ValueError) as error:  # for missing header fields
        absent = error.name if isinstance(error, AttributeError) else None
        reason = f"it has no {absent}" if absent else " ".join(str(error).split())
        raise FileError(series, f"a DICOM SEG cannot refer to it ({reason}); omit --dicom-seg") from error
    with finished_file(path) as unfinished:
        seg.save_as(unfinished)
