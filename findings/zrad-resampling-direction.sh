#!/usr/bin/env bash
# Z-Rad: resampling to thinner slices moves the grid off the scan if its axes are not those of the patient.
#
# z-rad 26.9.0, SimpleITK 2.5.7. ImageResampler and MaskResampler resample a scan to another spacing. The middle of the
# new grid is to be that of the scan, as the Image Biomarker Standardisation Initiative asks for: the origin moves by
# half of the difference in size. But this is added to the coordinates of the patient (_calculate_resampled_origin),
# though it is along the axes of the array, which the direction may reverse or exchange. With slices from the head to
# the feet, it is in the wrong direction, and in a coronal or sagittal scan along another axis. So the last slices of
# the result are outside of the scan and have 0 HU, and the first ones of the scan are missing. A lesion there loses a
# part of its volume, and tissue of 0 HU appears. (Scan and mask move together, so that lesions elsewhere keep their
# intensities.) No thread about it was found.
#
# Seen (a scan of ten slices of 5 mm and 40 HU, with a lesion in its first slice, resampled to 1 mm; in brackets with an
# origin along the direction; middle of the grid relative to that of the scan):
#   slices                     middle in mm  slices of 0 HU  lesion in ml
#   from the feet to the head  0  0  0     0 (0)           0.50 (0.50)
#   from the head to the feet  0  0 -4     4 (0)           0.10 (0.50)
#   coronal, to the front      0 -2 -2     2 (0)           0.30 (0.50)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q numpy==2.4.6 scipy==1.17.1 SimpleITK==2.5.7 scikit-image==0.26.0 z-rad==26.9.0
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'END'
import numpy as np
import SimpleITK as sitk
from zrad.image import Image
from zrad.preprocessing.interpolation import ImageResampler, MaskResampler

directions = {
    "from the feet to the head": np.eye(3),
    "from the head to the feet": np.diag([1, 1, -1]),
    "coronal, to the front": np.array([[1, 0, 0], [0, 0, -1], [0, 1, 0]]),
}
expected = dict(zip(directions, ((0, 0.5), (4, 0.1), (2, 0.3)), strict=True))
size, spacing, new = np.array([20, 20, 10]), np.array([1.0, 1, 5]), np.ones(3)
scan = np.full((10, 20, 20), 40.0)
lesion = np.zeros_like(scan)
lesion[0, 5:15, 5:15] = 1


def middle(image):
    """Return the middle of the grid of an image in mm."""
    place = sitk.GetImageFromArray(np.zeros(image.array.shape, np.uint8))
    place.SetOrigin([float(x) for x in image.origin])
    place.SetSpacing([float(x) for x in image.spacing])
    place.SetDirection(image.direction)
    return np.array(place.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in place.GetSize()]))


def plain(array, direction, interpolator):
    """The same resampling by SimpleITK, with an origin that moves along the axes of the array."""
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing.tolist())
    image.SetDirection(direction.ravel().tolist())
    shape = np.ceil(size * spacing / new).astype(int)
    origin = direction @ ((spacing * (size - 1) - new * (shape - 1)) / 2)
    grid = [int(n) for n in shape], sitk.Transform(), interpolator, origin.tolist(), new.tolist(), image.GetDirection()
    return sitk.GetArrayFromImage(sitk.Resample(image, *grid))


def outside(array):
    return int((array == 0).all((1, 2)).sum())


for name, direction in directions.items():
    place = {"origin": (0.0, 0.0, 0.0), "spacing": spacing, "direction": direction.ravel().tolist(), "shape": size}
    image = Image(array=scan, **place)
    resampled = ImageResampler(1.0).apply(image)
    mask = MaskResampler(1.0).apply(Image(array=lesion, **place))
    shift = middle(resampled) - middle(image)
    true_scan, true_mask = plain(scan, direction, sitk.sitkLinear), plain(lesion, direction, sitk.sitkNearestNeighbor)
    seen, true = (outside(resampled.array), mask.array.sum() / 1000), (outside(true_scan), true_mask.sum() / 1000)
    print(name, "middle", shift.round(2), "slices of 0 HU and lesion in ml", seen, "true", true)
    assert true == (0, 0.5)
    assert np.allclose(seen, expected[name]), "the behaviour has changed"
END
