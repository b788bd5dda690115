"""The volumes of what was segmented into a folder, which several runs of ``predict`` add to."""

from collections.abc import Mapping
from pathlib import Path

import nibabel as nib
import numpy as np

from attn3d.segmentation.errors import FileError
from attn3d.segmentation.locks import locked
from attn3d.segmentation.writing import read_json, write_json, write_table

Volumes = dict[str, float]


class Statistics:
    """``statistics.json`` and ``statistics.csv``: volumes in ml, a row for each case.

    Args:
        folder: that they are in.
        labels: value and name of each label.
    """

    def __init__(self, folder: Path, labels: Mapping[int, str]):
        self.folder, self.labels = folder, labels
        self.file = folder / "statistics.json"

    def of(self, label: nib.Nifti1Image) -> Volumes:
        """The volumes in a segmentation."""
        data, millilitres = np.asarray(label.dataobj), voxel_millilitres(label.affine)
        return {name: float((data == value).sum() * millilitres) for value, name in self.labels.items()}

    def check(self) -> dict[str, Volumes]:
        """What is there.

        Raises:
            FileError: when it cannot be added to.
        """
        if not self.file.exists():
            return {}
        there = read_json(self.file, "volumes")["volumes"]
        names = set(self.labels.values())
        if not isinstance(there, dict) or any(not isinstance(one, dict) or set(one) != names for one in there.values()):
            raise FileError(self.file, "has volumes of other labels; give another folder")
        return there

    def add(self, volumes: Mapping[str, Volumes]) -> None:
        """Adds cases to what is there, one process at a time; those of the same name are replaced."""
        with locked(self.folder, wait=True):
            every = dict(sorted({**self.check(), **volumes}.items()))  # in whatever order they came
            write_json(self.file, {"unit": "ml", "volumes": every})
            rows = [[case, *(f"{one[name]:.3f}" for name in self.labels.values())] for case, one in every.items()]
            head = ["case", *(f"{name} ml" for name in self.labels.values())]
            write_table(self.folder / "statistics.csv", [head, *rows])


def voxel_millilitres(affine: np.ndarray) -> float:
    """The volume of a voxel in ml, of an affine in mm."""
    return float(abs(np.linalg.det(affine[:3, :3])) / 1000)
