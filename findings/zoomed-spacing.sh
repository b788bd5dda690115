#!/usr/bin/env bash
# TotalSegmentator, MedPy: after a resampling, the last slice is 3.5 mm from its place, and volumes grow by up to 7 %.
#
# TotalSegmentator 2.18.0, MedPy 0.5.2, scipy 1.17.1, nibabel 5.4.2. change_spacing and medpy.filter.resample give a
# scan another spacing. Both call scipy.ndimage.zoom, which by default places the first and last voxels of both grids
# on each other: 30 slices of 5 mm span 145 mm between their centres, and 100 slices are 1.465 mm apart. But the new
# header says 1.5 mm. The error grows linearly from slice to slice, and a lesion has a larger volume. TotalSegmentator
# computes the volumes of --statistics on this grid. nibabel's resample_to_output has no error.
#
# Seen (slices at 1.5 mm; error of the last slice; volume of a block of the middle half, 1 before; linear):
#                                   TotalSegmentator        MedPy                   nibabel
#   10 slices of 5 mm               33   3.0 mm  1.067      33   3.0 mm  1.067      0 mm
#   30 slices of 5 mm               100  3.5 mm  1.024      100  3.5 mm  1.024      0 mm
#   133 slices of 2.5 mm            222  1.5 mm  1.005      222  1.5 mm  1.005      0 mm
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q numpy==2.4.6 scipy==1.17.1 nibabel==5.4.2 SimpleITK==2.5.7 joblib==1.6.0 MedPy==0.5.2
"$folder/venv/bin/pip" install -q --no-deps TotalSegmentator==2.18.0
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'END'
import medpy.io
import nibabel
import numpy as np
from medpy.filter import resample
from nibabel.processing import resample_to_output
from totalsegmentator.resampling import change_spacing


def by_totalsegmentator(values, spacing):
    image = change_spacing(nibabel.Nifti1Image(values, np.diag((1.5, 1.5, spacing, 1))), 1.5, order=1)
    return image.get_fdata(), image.affine[2, 2]


def by_medpy(values, spacing):
    header = medpy.io.Header(spacing=(1.5, 1.5, spacing))
    values, header = resample(values, header, 1.5, bspline_order=1)
    return values, header.get_voxel_spacing()[2]


def by_nibabel(values, spacing):
    image = resample_to_output(nibabel.Nifti1Image(values, np.diag((1.5, 1.5, spacing, 1))), 1.5, order=1)
    return image.get_fdata(), image.affine[2, 2]


for slices, spacing, error, growth in ((10, 5.0, 3.0, 1.067), (30, 5.0, 3.5, 1.024), (133, 2.5, 1.5, 1.005)):
    position = np.broadcast_to(spacing * np.arange(slices), (4, 4, slices)).copy()
    block = np.zeros((4, 4, slices))
    block[..., slices // 4 : 3 * slices // 4] = 1
    before = block[0, 0].sum() * spacing
    for method in (by_totalsegmentator, by_medpy, by_nibabel):
        positions, new = method(position, spacing)
        positions = positions[1, 1]
        if method is by_nibabel:
            positions = positions[:-1]  # the last slice may be outside of the scan
        errors = new * np.arange(len(positions)) - positions
        volume = method(block, spacing)[0][1, 1].sum() * new / before
        print(method.__name__, slices, f"{new:.2f} mm, {errors[-1]:.2f} mm, {volume:.3f}")
        assert np.isclose(new, 1.5) and np.isclose(errors[0], 0, atol=1e-6)
        if method is by_nibabel:
            assert np.allclose(errors, 0, atol=1e-4) and abs(volume - 1) < 0.01
        else:
            assert np.isclose(errors[-1], error, atol=0.05), "the behaviour has changed"
            assert np.isclose(volume, growth, atol=0.005), "the behaviour has changed"
END
