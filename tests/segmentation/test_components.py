"""Pieces of a mask: what is connected, where the largest has its middle, what is small."""

import numpy as np

from attn3d.segmentation.components import components, middle_of_largest, without_small


def blocks(*boxes):
    """A mask of (12, 12, 4) voxels with boxes in it, each by its ends along the axes."""
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


def test_what_is_small_goes_label_by_label():
    labels = np.where(blocks(((0, 2), (0, 2), (0, 2))), 2, 0)
    labels[blocks(((2, 4), (0, 2), (0, 2)), ((8, 9), (8, 9), (0, 3)))] = 5
    kept = without_small(labels, 8)
    assert np.array_equal(kept, np.where(blocks(((8, 9), (8, 9), (0, 3))), 0, labels))
    assert not without_small(labels, 8.5).any()
