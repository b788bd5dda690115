"""A real T1 MRI with its tissues, there without a download: the MNI152 template that nilearn carries.

It is the average of 152 people, stripped of its skull; the labels come from the maps published with it.
It is exactly symmetric, so a flip shows a network nothing new and a left/right split would test on the training
data: hold out along the anterior-posterior axis.
"""

from pathlib import Path

import nibabel as nib
import numpy as np
import torch
import torchio as tio
from nilearn import datasets

from attn3d.segmentation.files import write_image
from attn3d.segmentation.preprocessing import normalise

TISSUES = {1: "CSF", 2: "grey matter", 3: "white matter"}


def write_mni152(folder: Path | str, resolution: int = 2) -> tuple[Path, Path]:
    """Writes the T1 MRI and its tissue labels as NIfTI files.

    Inside the brain mask a voxel is the most probable of CSF (1 - grey - white), grey and white matter.

    Args:
        folder: where to; made if it is not there.
        resolution: edge of a voxel in whole millimetres.

    Returns:
        The paths of the image (float32) and of the label (uint8, 0 outside the brain, then as `TISSUES`).
    """
    image = datasets.load_mni152_template(resolution=resolution)
    grey = datasets.load_mni152_gm_template(resolution=resolution).get_fdata()
    white = datasets.load_mni152_wm_template(resolution=resolution).get_fdata()
    brain = datasets.load_mni152_brain_mask(resolution=resolution).get_fdata() > 0
    tissues = np.where(brain, 1 + np.argmax([1 - grey - white, grey, white], axis=0), 0)

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    image_path, label_path = folder / "mni152_t1.nii.gz", folder / "mni152_tissues.nii.gz"
    write_image(image_path, image.get_fdata(dtype=np.float32), image.affine, code="mni")
    write_image(label_path, tissues.astype(np.uint8), image.affine, code="mni")
    return image_path, label_path


def hold_out_anterior(label: nib.Nifti1Image, fraction: float) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Cuts what is labelled in two along the anterior-posterior axis, to train behind and to test in front.

    Args:
        label: from `read_label`, in any orientation.
        fraction: how much of the labelled extent lies in front of the cut.

    Returns:
        Slices of the posterior and of the anterior part, for arrays and for ``image.slicer``.

    Raises:
        ValueError: when one part would have no label.
    """
    axes, directions = nib.io_orientation(label.affine).T
    axis = int(np.flatnonzero(axes == 1)[0])
    forwards = directions[axis] > 0  # does the index grow towards the front?
    labelled = np.flatnonzero(np.asarray(label.dataobj).any(axis=tuple({0, 1, 2} - {axis})))
    extent = labelled[-1] + 1 - labelled[0]
    cut = int(labelled[0] + round((1 - fraction if forwards else fraction) * extent))
    if not labelled[0] < cut <= labelled[-1]:
        raise ValueError(f"`label` must span more voxels from back to front to be cut in two, got {extent}")
    before, after = [slice(None)] * 3, [slice(None)] * 3
    before[axis], after[axis] = slice(None, cut), slice(cut, None)
    return (tuple(before), tuple(after)) if forwards else (tuple(after), tuple(before))


def degrade(image: nib.Nifti1Image) -> nib.Nifti1Image:
    """The same scan from a worse scanner: a bias field and noise, the same at every call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        data = tio.RandomBiasField(coefficients=0.3)(torch.from_numpy(image.get_fdata(dtype=np.float32))[None])
        data = tio.RandomNoise(std=(0.3, 0.3))(normalise(data))[0]
    return type(image)(data.numpy(), image.affine, image.header)
