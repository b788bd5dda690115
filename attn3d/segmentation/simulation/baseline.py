"""What every network has to be compared with: a threshold."""

import nibabel as nib
import numpy as np
from scipy import ndimage

_BLOOD = (48.0, 95.0)  # HU


def threshold_segmentation(image: nib.Nifti1Image) -> np.ndarray:
    """Segments blood by its Hounsfield units alone: from 48 to 95 HU, opened by a voxel and its six neighbours.

    Args:
        image: a head CT in HU, from `read_image`.

    Returns:
        A uint8 mask of the image's shape, 1 where blood may be; of which kind it cannot say.
    """
    units = np.asarray(image.dataobj)
    return ndimage.binary_opening((units >= _BLOOD[0]) & (units <= _BLOOD[1])).astype(np.uint8)
