import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import SpatialResample

from attn3d.segmentation.grid import along, label_to_grid, resampled_planes, to_grid
from tests.segmentation.volumes import AFFINES, scan

SHAPE = (31, 29, 27)


def from_grid(volume, like, axis=0):
    """Resamples a volume by planes along an axis; the result has the shape (C, *like.shape)."""
    affine = volume.affine.numpy()
    planes = iter(volume.as_tensor().unbind(1 + axis))
    found = dict(resampled_planes(planes, affine, volume.shape[1:], like.affine, like.shape, axis))
    return torch.stack([found[index] for index in range(len(found))], dim=1 + along(axis, affine, like.affine))


def marked(affine, place):
    """A scan with a smooth blob at a voxel, wide enough for resampling."""
    index = np.moveaxis(np.indices(SHAPE), 0, -1) - np.array(place)
    distance = np.linalg.norm(index @ affine[:3, :3].T, axis=-1)
    return scan(np.exp(-((distance / 5) ** 2)).astype(np.float32), affine)


def centre_of_mass(volume, affine):
    """The centre of mass in millimetres."""
    volume = volume.numpy().astype(np.float64)
    index = np.moveaxis(np.indices(volume.shape), 0, -1)
    return nib.affines.apply_affine(affine, (index * volume[..., None]).sum(axis=(0, 1, 2)) / volume.sum())


@pytest.mark.parametrize("name", AFFINES)
@pytest.mark.parametrize("spacing", [(2.0, 2.0, 2.0), (1.5, 1.5, 4.0)])
def test_a_mark_keeps_its_place_in_millimetres_in_both_directions(name, spacing):
    affine, place = AFFINES[name], (16, 13, 12)
    image = marked(affine, place)
    volume = to_grid(image, spacing)
    grid = volume.affine.numpy()
    assert nib.aff2axcodes(grid) == ("R", "A", "S")
    np.testing.assert_allclose(nib.affines.voxel_sizes(grid), spacing, rtol=1e-6)

    millimetres = nib.affines.apply_affine(affine, place)
    np.testing.assert_allclose(centre_of_mass(volume.as_tensor()[0], grid), millimetres, atol=0.25)
    back = from_grid(volume, like=image)
    assert back.shape == (1, *SHAPE)
    np.testing.assert_allclose(centre_of_mass(back[0], affine), millimetres, atol=0.25)


def test_flipped_axes_change_nothing():
    """As of an image of a case that is turned to the first one, which is a view of the voxels in its file."""
    image = marked(AFFINES["permuted"], (3, 14, 5))
    expected = to_grid(image, (1.5, 1.5, 4.0))
    turned = image.as_reoriented(np.array([[1, -1], [0, 1], [2, -1]]))
    found = to_grid(turned, (1.5, 1.5, 4.0))
    np.testing.assert_allclose(found.affine, expected.affine, atol=1e-6)
    torch.testing.assert_close(found.as_tensor(), expected.as_tensor())


def test_resampling_to_the_same_grid_changes_nothing():
    image = marked(AFFINES["RAS"], (3, 4, 5))
    volume = to_grid(image, (2.0, 2.0, 2.0))
    assert torch.equal(volume.as_tensor()[0], torch.from_numpy(np.asarray(image.dataobj)))
    assert torch.equal(from_grid(volume, like=image), volume.as_tensor())


@pytest.mark.parametrize("name", AFFINES)
@pytest.mark.parametrize(("axis", "spacing"), [(0, (2.0, 2.0, 2.0)), (1, (1.1, 3.0, 7.0)), (2, (4.0, 1.3, 0.9))])
def test_resampled_planes_equal_monai_on_the_whole_volume(name, axis, spacing):
    """Probabilities are resampled to the grid of the scan, where labels are chosen."""
    image = scan(np.zeros(SHAPE, np.float32), AFFINES[name])
    affine, generator = to_grid(image, spacing).affine, torch.Generator().manual_seed(axis)
    volume = MetaTensor(torch.rand(3, *to_grid(image, spacing).shape[1:], generator=generator), affine=affine)
    resample = SpatialResample(mode="bilinear", padding_mode="border")
    expected = resample(volume, dst_affine=torch.from_numpy(image.affine), spatial_size=image.shape).as_tensor()
    found = from_grid(volume, image, axis)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    sure = expected.topk(2, dim=0).values.diff(dim=0).abs()[0] > 1e-3
    assert torch.equal(found.argmax(0)[sure], expected.argmax(0)[sure])


@pytest.mark.parametrize("flipped", [False, True])
@pytest.mark.parametrize("spacing", [0.5, 1.0, 5.0, 9.0])
def test_planes_come_in_the_order_of_the_volume(flipped, spacing):
    """Whatever the spacing, since the planes of several networks are averaged as they come."""
    step = -1.0 if flipped else 1.0
    planes = iter(torch.rand(7, 1, 4, 4, generator=torch.Generator().manual_seed(0)))
    volume = np.diag([1.0, 1.0, spacing, 1.0])
    new = np.diag([1.0, 1.0, step, 1.0])
    new[2, 3] = 19.0 if flipped else 0.0
    indices = [index for index, _ in resampled_planes(planes, volume, (4, 4, 7), new, (4, 4, 20), 2)]
    assert indices == (list(range(20))[::-1] if flipped else list(range(20)))


def test_labels_stay_whole_numbers():
    labels = (np.indices(SHAPE).sum(axis=0) // 9 % 4).astype(np.uint8)
    image = scan(labels, AFFINES["oblique"])
    volume = label_to_grid(image, (2.0, 2.0, 2.0))
    assert volume.dtype == torch.uint8
    assert set(volume.as_tensor().unique().tolist()) == {0, 1, 2, 3}
    np.testing.assert_allclose(volume.affine, to_grid(image, (2.0, 2.0, 2.0)).affine, atol=1e-9)


@pytest.mark.parametrize("flipped", [(), (0,), (2,), (0, 1, 2)], ids=str)
@pytest.mark.parametrize("part", [2, 4, 6])
def test_at_an_integer_fraction_of_the_spacing_each_voxel_is_repeated_equally_often(part, flipped):
    """Nearest neighbours from the centre of the first voxel would repeat slices 2, 1, 3, 1, 3, .. times."""
    affine = AFFINES["RAS"] @ np.diag([-1.0 if axis in flipped else 1.0 for axis in range(3)] + [1.0])
    labels = np.random.default_rng(part).integers(0, 4, (7, 6, 5)).astype(np.uint8)
    volume = label_to_grid(scan(labels, affine), (2.0 / part,) * 3)
    repeated = np.flip(labels, flipped)
    for axis in range(3):
        repeated = repeated.repeat(part, axis=axis)
    np.testing.assert_array_equal(volume.as_tensor()[0], repeated)


def test_at_a_multiple_of_the_spacing_the_most_frequent_label_is_chosen():
    labels = np.zeros((4, 4, 4), np.uint8)
    labels[:2, :2, :2] = 3
    labels[0, 0, 0] = 1
    labels[2:, 2:, 2:].flat[:4] = 2  # as many as of the background
    volume = label_to_grid(scan(labels, AFFINES["RAS"]), (4.0, 4.0, 4.0)).as_tensor()[0]
    assert volume[0, 0, 0] == 3
    assert int((volume > 0).sum()) == 1


@pytest.mark.parametrize("spacing", [(1.3, 1.3, 2.9), (3.1, 0.7, 5.0)], ids=str)
def test_a_mirrored_scan_gives_the_mirrored_volume(spacing):
    """At any ratio of spacings, the grid has the same centre as the scan."""
    generator = np.random.default_rng(0)
    intensities = generator.normal(size=(9, 10, 8)).astype(np.float32)
    labels = generator.integers(0, 3, intensities.shape).astype(np.uint8)
    for to, data in ((to_grid, intensities), (label_to_grid, labels)):
        straight = to(scan(data, AFFINES["RAS"]), spacing).as_tensor()
        mirrored = to(scan(np.flip(data, (0, 1, 2)).copy(), AFFINES["RAS"]), spacing).as_tensor()
        torch.testing.assert_close(mirrored.flip(1, 2, 3), straight, atol=1e-5, rtol=1e-5)


def test_ten_slices_of_5_mm_are_25_of_2_mm():
    image = scan(np.arange(360, dtype=np.float32).reshape(6, 6, 10), np.diag([1.0, 1.0, 5.0, 1.0]))
    volume = to_grid(image, (1.0, 1.0, 2.0))
    assert volume.shape == (1, 6, 6, 25)
    np.testing.assert_allclose(volume.affine[:3, 3], (0, 0, -1.5))  # the first slice begins at -2.5 mm


def test_a_grid_that_exceeds_memory_is_refused():
    image = scan(np.zeros((64, 64, 64), np.float32), np.diag([100.0, 100.0, 100.0, 1.0]))
    with pytest.raises(ValueError, match=r"`spacing` \(1.0, 1.0, 1.0\) mm gives 6400 x 6400 x 6400 voxels"):
        to_grid(image, (1.0, 1.0, 1.0))
