"""Finds the scans to segment: a file, a folder of files, or the cases of a data set."""

import logging
from contextlib import suppress
from itertools import islice
from pathlib import Path

from attn3d.segmentation.datasets.dataset import Case
from attn3d.segmentation.datasets.finding import find_dataset
from attn3d.segmentation.datasets.listing import SUFFIXES, channels, files_by_name, image_of, stem, unread
from attn3d.segmentation.errors import FileError
from attn3d.segmentation.io.dicom import is_dicom

logger = logging.getLogger("attn3d")
_TRIED = 100  # files of a folder inside the folder of the scans


def find_scans(scans: Path, images: int) -> tuple[list[Case], dict[str, str]]:
    """The cases to segment, and for each file that is not in a case the reason.

    Args:
        scans: a NIfTI file, a folder of NIfTI files, a DICOM series, or the folder of a data set. In a folder of files,
            the files of a case are named ``case_0000`` to ``case_000N``. A file named ``case`` contains all images of
            the case, one volume for each. Files named as the label of another one, such as ``case_label``, and folders
            beside the files are left out.
        images: number of images per case.

    Raises:
        FileError: when there is no scan.
    """
    if not scans.exists():
        raise FileError(scans, "does not exist; give a NIfTI file or a folder of scans")
    if scans.is_file():
        name = stem(scans)
        return [Case(name.removesuffix("_0000") or name if images == 1 else name, (scans,), volumes=images)], {}
    files, failed = files_by_name(scans)
    if not files and not failed:
        dataset = find_dataset(scans)
        used = tuple(f"{image}: " for case in dataset.test_cases for image in case.images)
        for problem in dataset.problems:
            if not problem.startswith(used):
                logger.warning("left out: %s", problem)
        cases = [*dataset.test_cases, *dataset.cases]
        if twice := {case.name for case in dataset.test_cases} & {case.name for case in dataset.cases}:
            raise FileError(scans, f"has two cases with the name {min(twice)!r}, with and without a label; rename one")
        odd = [case for case in cases if case.channels != images]
        problem = "its case has {} images, the network needs {}"
        return [case for case in cases if case not in odd], {
            **dataset.failed,
            **{str(case.images[0]): problem.format(case.channels, images) for case in odd},
        }
    for name in [name for name in files if image_of(name) in files or f"{image_of(name)}_0000" in files]:
        logger.warning("left out: %s: is the label of another file", files.pop(name))
    for problem in (*unread(scans, "*"), *_ignored(scans)):
        logger.warning("left out: %s", problem)
    plain = {name: path for name, path in files.items() if not _is_of_channels(name, files, images)}
    found, problems = channels({name: path for name, path in files.items() if name not in plain}, images)
    for name in plain.keys() & found.keys():
        problems[plain.pop(name)] = f"also exists as {found.pop(name)[0].name}; remove one of them"
    failed |= problems
    cases = [Case(name, files) for name, files in found.items()]
    cases += [Case(name, (path,), volumes=images) for name, path in plain.items()]
    return sorted(cases, key=lambda case: case.name), {str(path): failed[path] for path in sorted(failed)}


def _ignored(folder: Path) -> list[str]:
    """A line for each folder inside a folder of scans that contains scans, too; only some files of each are tried."""
    return [
        f"{below}: is a folder in the folder of the scans; to segment scans in it, give this folder"
        for below in sorted(folder.iterdir())
        if below.is_dir() and not below.name.startswith(".") and any(map(_is_scan, islice(below.rglob("*"), _TRIED)))
    ]


def _is_scan(file: Path) -> bool:
    with suppress(OSError):
        return file.name.lower().endswith(SUFFIXES) or is_dicom(file)
    return False


def _is_of_channels(name: str, files: dict[str, Path], images: int) -> bool:
    """Whether a file is named as a channel of a case. If cases have one image, its first channel must exist."""
    case, _, channel = name.rpartition("_")
    return len(channel) == 4 and channel.isdecimal() and (images > 1 or f"{case}_0000" in files)
