import nibabel as nib
import pytest

from attn3d.segmentation import read_image
from tests.segmentation.volumes import AFFINES, DATA, scan


@pytest.fixture
def image(tmp_path):
    """A scan that was read from a file."""
    nib.save(scan(DATA, AFFINES["oblique"]), tmp_path / "scan.nii.gz")
    return read_image(tmp_path / "scan.nii.gz")
