"""DICOM: folders at any depth with one series each, for prediction."""

import os
from pathlib import Path

from attn3d.segmentation.datasets.dataset import Case, Dataset
from attn3d.segmentation.errors import FileError
from attn3d.segmentation.io.dicom import find_series, is_dicom


def find(folder: Path) -> Dataset | None:
    """Finds all series in the folder, also behind links. A case is named by the folders on the path to its series."""
    cases, problems, failed = [], dict[str, str](), dict[str, str]()
    for name, below, files in os.walk(folder, followlinks=True):
        path = Path(name)
        if any(path.samefile(above) for above in path.parents if above.is_relative_to(folder)):
            below.clear()  # a link to a folder above it
            continue
        below.sort()
        if not any(is_dicom(path / file) for file in files):
            continue
        try:
            series, others = find_series(path)
        except FileError as error:
            failed[str(error.path)] = error.problem
            continue
        problems |= {str(file): problem for file, problem in others.items()}
        if series:
            cases.append(Case("_".join(path.relative_to(folder).parts) or path.resolve().name, (path,)))
    if not cases and not problems and not failed:
        return None
    return Dataset(folder, test_cases=tuple(cases), problems=problems, failed=failed)
