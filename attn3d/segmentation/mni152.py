"""A real T1 MRI with tissue labels and without a download: the MNI152 template, which nilearn ships.

It is the average of 152 people, without the skull. The labels come from the tissue maps that were published with it.
The template is exactly symmetric: mirroring gives no new training data, and a left/right split would test on the
training data. Hold out a part along the anterior-posterior axis instead.
"""

from pathlib import Path

import numpy as np
from nilearn import datasets

from attn3d.segmentation.io.files import write_image

TISSUES = {1: "CSF", 2: "grey matter", 3: "white matter"}


def write_mni152(folder: Path | str, resolution: int = 2) -> tuple[Path, Path]:
    """Writes the T1 MRI and its tissue labels as NIfTI files.

    Inside the brain mask, a voxel gets the most probable of CSF (1 - grey - white), grey matter and white matter.

    Args:
        folder: the folder to write to; it is created if it does not exist.
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
