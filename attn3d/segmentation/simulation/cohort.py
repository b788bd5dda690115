"""Writes a cohort of simulated head CT in the layout of nnU-Net v2."""

from contextlib import suppress
from pathlib import Path

import nibabel as nib
import numpy as np
from rich.progress import track

from attn3d.arguments import natural_number, positive_integer
from attn3d.segmentation.datasets import Dataset, find_dataset
from attn3d.segmentation.errors import FileError
from attn3d.segmentation.io.files import write_image
from attn3d.segmentation.io.writing import finished_folder, read_json, write_json
from attn3d.segmentation.simulation.haemorrhages import HAEMORRHAGES
from attn3d.segmentation.simulation.scanner import sample_scan

_VERSION = 1  # version of the simulation; existing cohorts of other versions are not used
_FOLDERS = ("imagesTr", "labelsTr")
_ORIENTATIONS = ("RAS", "LAS", "LPS", "RPI", "ASR")


def simulate(out: Path | str, cases: int = 60, seed: int = 0, *, quiet: bool = False) -> Dataset:
    """Writes a simulated cohort: head CT with five kinds of haemorrhage, made from the MNI152 brain.

    Each case has a different head, none to three kinds of haemorrhage, and structures that look like haemorrhage. The
    scans have 5 mm slices and different voxel sizes, orientations and poses; half of them have oblique affines. They
    are int16 in Hounsfield units, some with an intercept. A case depends only on the seed and its number.

    Simulated scans test how a method handles geometry, windows, anisotropy and metrics. They say nothing about
    patients.

    Args:
        out: the folder to write; it must be new or empty. If it already has the same cohort, this cohort is used.
        cases: number of cases.
        seed: seed of all random values.
        quiet: whether to show no progress bar.

    Returns:
        The data set, from `find_dataset`, with absolute paths.

    Raises:
        FileError: when ``out`` is a file, or a folder with anything but this cohort.
        TypeError: when ``cases`` or ``seed`` is not an integer.
        ValueError: when ``cases`` is not positive, or ``seed`` is negative.
    """
    cases, seed, out = positive_integer("cases", cases), natural_number("seed", seed), Path(out).resolve()
    settings = {"version": _VERSION, "seed": seed, "cases": cases}
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        with suppress(FileError):
            if read_json(out / "dataset.json", "simulated")["simulated"] == settings:
                dataset = find_dataset(out)
                if len(dataset.cases) == cases:
                    return dataset
        raise FileError(
            out,
            f"already exists, and is not a complete cohort of this version with {cases} cases and seed {seed}; choose "
            "a new or empty folder",
        )
    with finished_folder(out) as unfinished:
        for folder in _FOLDERS:
            (unfinished / folder).mkdir()
        for number in track(range(cases), "simulating head CT", disable=quiet):
            _write_case(unfinished, number, np.random.default_rng([seed, number]))
        description = {
            "name": "Simulated head CT with haemorrhage",
            "description": "SIMULATED from the MNI152 brain by attn3d; no patient, no clinical meaning.",
            "simulated": settings,
            "channel_names": {"0": "CT"},
            "labels": {"background": 0} | {name: value for value, name in HAEMORRHAGES.items()},
            "numTraining": cases,
            "file_ending": ".nii.gz",
        }
        write_json(unfinished / "dataset.json", description)
    return find_dataset(out)


def _write_case(folder: Path, number: int, random: np.random.Generator) -> None:
    """Writes a scan and its label in a random orientation."""
    units, labels, affine = sample_scan(random)
    axes = nib.orientations.axcodes2ornt(random.choice(_ORIENTATIONS).item())
    turn = nib.orientations.ornt_transform(nib.io_orientation(affine), axes)
    affine = affine @ nib.orientations.inv_ornt_aff(turn, units.shape)
    units, labels = (np.ascontiguousarray(nib.apply_orientation(array, turn)) for array in (units, labels))
    name = f"simulated_{number:03d}"
    intercept = random.choice((0, -1024)).item()
    write_image(
        folder / "imagesTr" / f"{name}_0000.nii.gz",
        *(np.rint(units - intercept).astype(np.int16), affine, "scanner"),
        intercept=intercept,
    )
    write_image(folder / "labelsTr" / f"{name}.nii.gz", labels, affine, "scanner")
