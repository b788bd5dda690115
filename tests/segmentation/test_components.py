"""Connected components of a mask: their sizes, the largest and its middle, and removal of small ones."""

import numpy as np

from attn3d.segmentation.components import components, largest, middle_of_largest, without_small
from attn3d.segmentation.labels import Labels


def blocks(*boxes):
    """A mask of (12, 12, 4) voxels with boxes, each given by its ends along the axes."""
    mask = np.zeros((12, 12, 4), bool)
    for x, y, z in boxes:
        mask[slice(*x), slice(*y), slice(*z)] = True
    return mask


def test_pieces_are_connected_by_corners_and_counted():
    mask = blocks(((0, 2), (0, 2), (0, 2)), ((2, 3), (2, 3), (2, 3)), ((6, 7), (0, 12), (0, 1)))
    pieces, sizes = components(mask)
    assert pieces[0, 0, 0] == pieces[2, 2, 2] != pieces[6, 0, 0]
    assert sizes.tolist() == [mask.size - 21, 9, 12]
    assert [len(part) for part in components(np.zeros((0, 0, 0), bool))] == [0, 0]


def test_the_middle_of_a_crescent_is_in_it():
    mask = blocks(((0, 9), (0, 1), (0, 1)), ((0, 1), (0, 9), (0, 1)), ((11, 12), (11, 12), (3, 4)))
    middle = middle_of_largest(mask)
    assert mask[tuple(middle)]
    assert middle.tolist() in ([2, 0, 0], [0, 2, 0])


def test_the_middle_is_the_nearest_voxel_to_the_centre_of_mass():
    random = np.random.default_rng(0)
    for _ in range(20):
        mask = blocks()
        mask[2:12, 1:11, 1:4] = random.random((10, 10, 3)) < 0.5
        mask[4:9, 3:8, :] = False  # around the centre
        voxels = np.argwhere(largest(mask))
        distances = np.linalg.norm(voxels - voxels.mean(axis=0), axis=1)
        (index,) = np.flatnonzero((voxels == middle_of_largest(mask)).all(axis=1))
        assert distances[index] <= distances.min() + 1e-9


def test_the_largest_piece_is_kept():
    large, small = ((6, 9), (0, 3), (0, 1)), ((0, 2), (0, 2), (0, 2))
    assert np.array_equal(largest(blocks(large, small)), blocks(large))
    assert not largest(blocks()).any()


def test_small_pieces_are_removed_from_each_label():
    label = np.where(blocks(((0, 2), (0, 2), (0, 2))), 2, 0)
    label[blocks(((2, 4), (0, 2), (0, 2)), ((8, 9), (8, 9), (0, 3)))] = 5
    labels = Labels.of({2: "a", 5: "b"})
    kept = labels.changed(label, lambda mask: without_small(mask, 8))
    assert np.array_equal(kept, np.where(blocks(((8, 9), (8, 9), (0, 3))), 0, label))
    assert not labels.changed(label, lambda mask: without_small(mask, 8.5)).any()


def test_a_removed_piece_of_a_region_stays_in_the_outer_region():
    label = np.where(blocks(((0, 6), (0, 6), (0, 4))), 1, 0)
    label[1, 1, 1] = 3
    label[blocks(((3, 5), (3, 5), (0, 3)))] = 3
    label[10, 10, 0] = 3
    labels = Labels(("whole", "core"), ((1, 3), (3,)), (1, 3))
    kept = labels.changed(label, lambda mask: without_small(mask, 2))
    expected = label.copy()
    expected[1, 1, 1], expected[10, 10, 0] = 1, 0
    assert np.array_equal(kept, expected)
