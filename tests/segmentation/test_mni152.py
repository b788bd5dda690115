import nibabel as nib
import numpy as np
import pytest
import torch

from attn3d.segmentation import TISSUES, degrade, hold_out_anterior, read_image, read_label, write_mni152
from tests.segmentation.volumes import AFFINES, head, scan


def test_a_real_brain_is_written_and_read_back(tmp_path):
    image_path, label_path = write_mni152(tmp_path / "data", resolution=4)
    image = read_image(image_path)
    label = read_label(label_path, image, [0, *TISSUES])
    assert nib.aff2axcodes(image.affine) == ("R", "A", "S")
    np.testing.assert_allclose(nib.affines.voxel_sizes(image.affine), 4.0)
    millilitres = np.bincount(np.asarray(label.dataobj).ravel()) * 4**3 / 1000
    # Published for this template at 1 mm with nilearn's brain mask, in ml.
    assert millilitres[1:] == pytest.approx([156, 1091, 635], rel=0.07)


def pair(name):
    image, labels = head(AFFINES[name])
    return scan(image, AFFINES[name]), scan(labels, AFFINES[name])


@pytest.mark.parametrize("name", AFFINES)
def test_the_split_is_along_the_anterior_posterior_axis(name):
    _, label = pair(name)
    posterior, anterior = hold_out_anterior(label, 0.4)
    labels = np.asarray(label.dataobj)
    part = np.zeros(labels.shape, int)
    part[posterior] += 1
    part[anterior] += 2
    assert set(np.unique(part)) == {1, 2}, "each voxel is in one part"

    y = nib.affines.apply_affine(label.affine, np.argwhere(np.ones(labels.shape)))[:, 1]
    assert y[part.ravel() == 1].mean() < y[part.ravel() == 2].mean()
    along = next(axis for axis, cut in enumerate(posterior) if cut != slice(None))
    extent = np.flatnonzero(labels.any(axis=tuple({0, 1, 2} - {along})))
    behind = labels[posterior].shape[along] - (extent[0] if posterior[along].start is None else 0)
    if posterior[along].start is not None:
        behind = extent[-1] + 1 - posterior[along].start
    assert abs(behind - 0.6 * extent.size) <= 0.5 + 1e-9


def test_a_label_too_thin_to_split_is_refused():
    labels = np.zeros((5, 5, 5), np.uint8)
    labels[:, 2] = 1
    with pytest.raises(ValueError, match="must span more voxels from back to front"):
        hold_out_anterior(scan(labels, AFFINES["RAS"]), 0.4)


def test_a_degraded_scan_is_worse_and_always_the_same():
    image, label = pair("RAS")
    state = torch.get_rng_state()
    worse = degrade(image)
    assert torch.equal(torch.get_rng_state(), state), "the training's random numbers stay what they were"
    np.testing.assert_array_equal(worse.get_fdata(), degrade(image).get_fdata())
    np.testing.assert_array_equal(worse.affine, image.affine)
    inner = np.asarray(label.dataobj) == 3

    def variation(volume):
        intensities = volume.get_fdata()
        return intensities[inner].std() / intensities[np.asarray(label.dataobj) > 0].std()

    assert variation(worse) > 1.5 * variation(image)
