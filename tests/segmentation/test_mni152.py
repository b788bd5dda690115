import nibabel as nib
import numpy as np
import pytest

from attn3d.segmentation import TISSUES, read_image, read_segmentation, write_mni152


def test_a_real_brain_is_written_and_read_back(tmp_path):
    image_path, label_path = write_mni152(tmp_path / "data", resolution=4)
    image = read_image(image_path)
    label = read_segmentation(label_path, image, [0, *TISSUES])
    assert nib.aff2axcodes(image.affine) == ("R", "A", "S")
    np.testing.assert_allclose(nib.affines.voxel_sizes(image.affine), 4.0)
    millilitres = np.bincount(np.asarray(label.dataobj).ravel()) * 4**3 / 1000
    # Published for this template at 1 mm with nilearn's brain mask, in ml.
    assert millilitres[1:] == pytest.approx([156, 1091, 635], rel=0.07)
