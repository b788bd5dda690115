"""Real DICOM series, compared with dcm2niix."""

import subprocess
import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np

from attn3d.segmentation import FileError, read_image
from attn3d.segmentation.io.dicom import is_dicom
from tests.faults.sweeps import Row


def real_series(data: Path) -> Row:
    """Reads every folder of DICOM files: voxels and places equal those of dcm2niix, or the error is one line."""
    folders = [folder for folder in sorted(data.iterdir()) if folder.is_dir() and any(map(is_dicom, folder.iterdir()))]
    recovered, refused, problems = 0, 0, []
    for folder in folders:
        try:
            image = read_image(folder)
        except FileError as error:
            if str(folder) in str(error) and "\n" not in str(error):
                refused += 1
            else:
                problems.append(f"{folder.name}: {error}")
            continue
        with tempfile.TemporaryDirectory() as made:
            command = ["dcm2niix", "-z", "n", "-p", "n", "-f", "found", "-o", made, str(folder)]
            subprocess.run(command, check=True, capture_output=True)
            problem = difference(image, nib.load(Path(made) / "found.nii"))
        if problem:
            problems.append(f"{folder.name}: {problem}")
        else:
            recovered += 1
    return Row("real DICOM series beside dcm2niix", len(folders), recovered, refused, len(problems), problems)


def difference(image: nib.Nifti1Image, other: nib.Nifti1Image) -> str:
    """How two images differ, regardless of the order of axes and slices; empty if they do not."""
    values = other.get_fdata()
    at = np.indices(values.shape).reshape(3, -1).T
    places = nib.affines.apply_affine(np.linalg.inv(image.affine) @ other.affine, at)
    voxels = np.rint(places).astype(int)
    if not np.allclose(places, voxels, atol=2e-3):
        return f"voxels are up to {np.abs(places - voxels).max():.3g} voxels beside each other"
    if image.shape != tuple(voxels.max(0) + 1) or voxels.min():
        return f"shapes differ: {image.shape} and {other.shape}"
    if not np.allclose(image.get_fdata()[tuple(voxels.T)], values.ravel(), rtol=1e-6):
        return "values differ"
    return ""
