"""Labels as a DICOM SEG, in the frame of the series that they were found in; highdicom writes it."""

from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from attn3d.segmentation.dicom import is_dicom, slices_of
from attn3d.segmentation.errors import FileError
from attn3d.segmentation.labels import Labels
from attn3d.segmentation.writing import finished_file

_SERIES_NUMBER = 1000  # of ours, behind those of scanners


def highdicom() -> Any:
    """The library.

    Raises:
        ValueError: when it is not installed.
    """
    try:
        import highdicom
    except ImportError as error:
        raise ValueError("`dicom_seg` needs highdicom; python -m pip install 'attn3d[dicom]'") from error
    return highdicom


def write_dicom_seg(path: Path | str, segmentation: np.ndarray, series: Path, labels: Labels) -> None:
    """Writes a label map as a binary DICOM SEG with a segment for each label, which refers to the slices of a series.

    Segments are numbered from 1 in the order of the labels, have their names, and are coded as tissue, since a name
    says no more. Those of regions overlap. Slices without any label are left out, unless all are.

    Args:
        path: where to; nothing is there before the file is whole.
        segmentation: label values of the volume that `read_image` makes of the series.
        series: its folder, or a file of several frames.
        labels: what the values mean.

    Raises:
        FileError: when ``series`` is no DICOM, or lacks what a SEG takes from it.
        ValueError: when highdicom is not installed.
    """
    hd = highdicom()
    from pydicom.sr.codedict import codes

    if not (series.is_dir() or is_dicom(series)):
        raise FileError(series, "is no DICOM series, which a DICOM SEG refers to; leave --dicom-seg out")
    slices, headers = slices_of(series)
    algorithm = hd.AlgorithmIdentificationSequence(
        name="attn3d", version=version("attn3d"), family=codes.DCM.ArtificialIntelligence
    )
    segments = [
        hd.seg.SegmentDescription(
            segment_number=number,
            segment_label=name[:64],  # the most that DICOM has room for
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
        pixels = np.searchsorted(labels.written, segmentation).astype(np.uint8)
    frames = [pixels[:, :, index].swapaxes(0, 1) for index in range(len(slices))]
    files = list(dict.fromkeys(one.path for one in slices))
    if len(files) < len(slices):  # the frames of one file, in its order
        frames = [frames[index] for index in np.argsort([one.frame for one in slices])]
    try:
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
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:  # of a header that lacks what is taken over
        reason = " ".join(str(error).split())
        raise FileError(series, f"a DICOM SEG cannot refer to it ({reason}); leave --dicom-seg out") from error
    with finished_file(path) as unfinished:
        seg.save_as(unfinished)
