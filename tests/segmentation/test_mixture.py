import numpy as np
import pytest

from attn3d.segmentation import gaussian_mixture
from tests.segmentation.volumes import AFFINES, head, scan

BACK = (slice(None), slice(None, 20), slice(None))


@pytest.mark.parametrize("sign", [1, -1], ids=["bright", "dark"])
def test_classes_apart_in_intensity_are_found_whatever_their_order(sign):
    image, labels = head(AFFINES["RAS"])
    found = gaussian_mixture(scan(sign * image, AFFINES["RAS"]), scan(labels, AFFINES["RAS"]), BACK)
    assert found.dtype == np.uint8
    assert (found == labels).mean() > 0.999


def test_only_labels_that_the_training_part_holds_are_given():
    image, labels = head(AFFINES["RAS"])
    labels = np.where(labels == 2, 1, labels)
    found = gaussian_mixture(scan(image, AFFINES["RAS"]), scan(labels, AFFINES["RAS"]), BACK)
    assert set(np.unique(found)) == {0, 1, 3}
