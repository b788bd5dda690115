"""A real T1 MRI with its tissues, there without a download: the MNI152 template that nilearn carries.

It is the average of 152 people, stripped of its skull; the labels come from the maps published with it.
It is exactly symmetric, so a flip shows a network nothing new and a left/right split would test on the training
data: hold out along the anterior-posterior axis.
"""

from pathlib import Path

import numpy as np
from nilearn import datasets

from attn3d.segmentation.files import write_image

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
