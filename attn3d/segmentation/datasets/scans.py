"""Finds the scans to segment: a file, a folder of files, or the cases of a data set."""

import logging
import os
from pathlib import Path

from attn3d.segmentation.datasets.dataset import Case
from attn3d.segmentation.datasets.finding import find_dataset
from attn3d.segmentation.datasets.listing import SUFFIXES, channels, files_by_name, image_of, stem, unread
from attn3d.segmentation.errors import FileError
from attn3d.segmentation.io.dicom import is_dicom

logger = logging.getLogger("attn3d")


def find_scans(scans: Path, images: int) -> tuple[list[Case], dict[str, str]]:
    """The cases to segment, and for each file that is not in a case the reason.

    Args:
        scans: a NIfTI file, a folder of NIfTI files, a DICOM series, or the folder of a data set. In a folder of files,
            the files of a case are named ``case_0000`` to ``case_000N``. A file named ``case`` contains all images of
            the case, one volume for each. Files named as the label of another one, such as ``case_label``, and folders
            and DICOM files beside the files are left out.
        images: number of images per case.

    Raises:
        FileError: when there is no scan.
    """
    if not scans.exists():
        raise FileError(scans, "does not exist; give a NIfTI file or a folder of scans")
    if scans.is_file():
        name = stem(scans)
        return [Case(name.removesuffix("_0000") or name if images == 1 else name, (scans,), volumes=images)], {}
    files, twice = files_by_name(scans)
    if not files and not twice:
        return _in_dataset(scans, images)
    cases, problems = _in_folder(scans, files, images)
    problems |= twice
    return cases, {str(path): problems[path] for path in sorted(problems)}


def _in_folder(folder: Path, files: dict[str, Path], images: int) -> tuple[list[Case], dict[Path, str]]:
    """The cases of the files in a folder, and the problem of each file that cannot be used."""
    images_of = {name: of for name in files if (of := image_of(name)) is not None}
    labels = [name for name, of in images_of.items() if of in files or f"{of}_0000" in files]
    for name in labels:
        logger.warning("left out: %s: is the label of another file", files.pop(name))
    others = {*folder.iterdir()} - {*files.values()}
    slices = {str(file) for file in others if os.access(file, os.R_OK) and is_dicom(file)}
    for file, problem in unread(folder, "*").items():
        if file not in slices:
            logger.warning("left out: %s: %s", file, problem)
    if slices:
        logger.warning(
            "left out: the DICOM files in %s, since it has files of other formats; if they are a series, put it into "
            "its own folder",
            folder,
        )
    for below in sorted(folder.iterdir()):
        if below.is_dir() and not below.name.startswith(".") and not below.name.lower().endswith(SUFFIXES):
            logger.warning(
                "left out: %s: is a folder in the folder of the scans; to segment its scans, give this folder", below
            )
    numbered = {name: path for name, path in files.items() if _is_of_channels(name, files, images)}
    whole = {name: path for name, path in files.items() if name not in numbered}
    parts, problems = channels(numbered, images)
    for name in whole.keys() & parts.keys():
        problems[whole.pop(name)] = f"also exists as {parts.pop(name)[0].name}; remove one of them"
    cases = [Case(name, paths) for name, paths in parts.items()]
    cases += [Case(name, (path,), volumes=images) for name, path in whole.items()]
    return sorted(cases, key=lambda case: case.name), problems


def _in_dataset(folder: Path, images: int) -> tuple[list[Case], dict[str, str]]:
    """The cases of a data set, first those without a label, and the problem of each scan that cannot be used."""
    dataset = find_dataset(folder)
    segmented = {str(image) for case in dataset.test_cases for image in case.images}
    for file, problem in dataset.problems.items():
        if file not in segmented:  # an image without a label is a problem only for training
            logger.warning("left out: %s: %s", file, problem)
    if twice := {case.name for case in dataset.test_cases} & {case.name for case in dataset.cases}:
        raise FileError(folder, f"has two cases with the name {min(twice)!r}, with and without a label; rename one")
    cases, problems = [], dict(dataset.failed)
    for case in (*dataset.test_cases, *dataset.cases):
        if case.channels == images:
            cases.append(case)
        else:
            problems[str(case.images[0])] = f"its case has {case.channels} images, the network needs {images}"
    return cases, problems


def _is_of_channels(name: str, files: dict[str, Path], images: int) -> bool:
    """Whether a file is named as a channel of a case. If cases have one image, its first channel must exist."""
    case, _, channel = name.rpartition("_")
    return len(channel) == 4 and channel.isdecimal() and (images > 1 or f"{case}_0000" in files)
