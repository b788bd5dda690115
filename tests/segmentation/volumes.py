"""Small scans in the geometries of real ones."""

from collections.abc import Iterable
from pathlib import Path

import nibabel as nib
import numpy as np


def rotation(about_x: float, about_z: float) -> np.ndarray:
    cos, sin = np.cos(about_x), np.sin(about_x)
    x = np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]])
    cos, sin = np.cos(about_z), np.sin(about_z)
    return x @ np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])


def affine_of(matrix: np.ndarray, origin: tuple[float, float, float] = (-30.0, 12.0, 45.0)) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = matrix
    affine[:3, 3] = origin
    return affine


AFFINES = {
    "RAS": affine_of(np.diag([2.0, 2.0, 2.0])),
    "LAS, 5 mm slices": affine_of(np.diag([-1.0, 1.0, 5.0])),
    "permuted": affine_of(np.array([[0, 0, 2.5], [-1.2, 0, 0], [0, 1.2, 0]])),
    "oblique": affine_of(rotation(0.3, -0.2) @ np.diag([-1.5, 1.5, 3.0])),
    "sheared": affine_of(rotation(0.2, 0.1) @ np.array([[1.5, 0, 0.6], [0, 1.5, 0], [0, 0, 3.0]])),
}

DATA = np.arange(210, dtype=np.int16).reshape(6, 7, 5)  # a value for each voxel


def scan(data: np.ndarray, affine: np.ndarray, code: int = 1) -> nib.Nifti1Image:
    """A scan with the affine as its sform, and as its qform if that can represent it."""
    image = nib.Nifti1Image(data, affine)
    image.set_sform(affine, code)
    image.set_qform(affine, code, strip_shears=True)
    image.header.set_xyzt_units("mm")
    return image


def head(affine: np.ndarray, millimetres: float = 64.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """The image and the labels, 1 to 3, of three nested balls in a cube; inner balls are brighter."""
    shape = np.rint(millimetres / nib.affines.voxel_sizes(affine)).astype(int)
    index = np.moveaxis(np.indices(shape), 0, -1) - (shape - 1) / 2
    radius = np.linalg.norm(index @ affine[:3, :3].T, axis=-1)
    labels = sum((radius < millimetres * part).astype(np.uint8) for part in (0.45, 0.36, 0.24))
    noise = np.random.default_rng(seed).normal(0, 5, shape)
    return (100.0 * labels + noise).astype(np.float32), labels


def write_heads(folder: Path, geometries: Iterable[str], millimetres: float = 64.0) -> Path:
    """Writes a head in each geometry, as image/label pairs; returns the folder."""
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True)
    for index, name in enumerate(geometries):
        image, labels = head(AFFINES[name], millimetres, seed=index)
        nib.save(scan(image, AFFINES[name]), folder / "images" / f"case{index}.nii.gz")
        nib.save(scan(labels.astype(np.uint8), AFFINES[name]), folder / "labels" / f"case{index}.nii.gz")
    return folder
