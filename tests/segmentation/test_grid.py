import nibabel as nib
import numpy as np
import pytest
import torch

from attn3d.segmentation.grid import from_grid, to_grid
from tests.segmentation.volumes import AFFINES, scan

SHAPE = (31, 29, 27)


def marked(affine, place):
    """A scan with a smooth blob at a voxel, wide enough to survive resampling."""
    index = np.moveaxis(np.indices(SHAPE), 0, -1) - np.array(place)
    distance = np.linalg.norm(index @ affine[:3, :3].T, axis=-1)
    return scan(np.exp(-((distance / 5) ** 2)).astype(np.float32), affine)


def centre_of_mass(volume, affine):
    """In millimetres."""
    volume = volume.numpy().astype(np.float64)
    index = np.moveaxis(np.indices(volume.shape), 0, -1)
    return nib.affines.apply_affine(affine, (index * volume[..., None]).sum(axis=(0, 1, 2)) / volume.sum())


@pytest.mark.parametrize("name", AFFINES)
@pytest.mark.parametrize("spacing", [(2.0, 2.0, 2.0), (1.5, 1.5, 4.0)])
def test_a_mark_stays_in_its_place_in_millimetres_there_and_back(name, spacing):
    affine, place = AFFINES[name], (16, 13, 12)
    image = marked(affine, place)
    volume = to_grid(image, spacing)
    grid = volume.affine.numpy()
    assert nib.aff2axcodes(grid) == ("R", "A", "S")
    np.testing.assert_allclose(nib.affines.voxel_sizes(grid), spacing, rtol=1e-6)

    millimetres = nib.affines.apply_affine(affine, place)
    np.testing.assert_allclose(centre_of_mass(volume.as_tensor()[0], grid), millimetres, atol=0.2)
    back = from_grid(volume, like=image)
    assert back.shape == (1, *SHAPE)
    np.testing.assert_allclose(centre_of_mass(back[0], affine), millimetres, atol=0.2)


def test_the_own_grid_changes_nothing():
    image = marked(AFFINES["RAS"], (3, 4, 5))
    volume = to_grid(image, (2.0, 2.0, 2.0))
    assert torch.equal(volume.as_tensor()[0], torch.from_numpy(np.asarray(image.dataobj)))
    assert torch.equal(from_grid(volume, like=image), volume.as_tensor())


def test_labels_stay_whole_numbers():
    labels = (np.indices(SHAPE).sum(axis=0) // 9 % 4).astype(np.uint8)
    volume = to_grid(scan(labels, AFFINES["oblique"]), (2.0, 2.0, 2.0), mode="nearest")
    assert set(volume.as_tensor().unique().tolist()) == {0, 1, 2, 3}
