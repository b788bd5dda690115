#!/usr/bin/env bash
# NiTransforms: where a scan begins before its displacement field, the top of the head is copied to the neck.
#
# nitransforms 25.1.0, nibabel 5.4.2. A DenseFieldTransform moves points by a field of displacements, and points outside
# of the field are not to be moved (a comment in DenseFieldTransform.map: "back to the original coordinates value = no
# displacement"). So it is if a point is between voxels of the field. But if all points are on its grid, the field is
# indexed with their voxels, and a negative index counts from the end: voxels before the first slice get the place of
# the last slices, even if no displacement is other than 0. This is so for a field of a cropped scan, from which the
# neck was cut off, that is applied to the whole scan. (Voxels after the last slice raise an error.) No thread about it
# was found; nitransforms#254 is about points in general.
#
# Seen (a scan of 40 slices whose intensity is the number of the slice; a field of zeros without the first 10 slices):
#   slices after the transform   30 31 32 ... 39  10 11 12 ... 39   (0 1 2 ... 39)
#   the point 10 10 2 mm         10 10 62                           (10 10 2)
#   the point 10 10 2.5 mm       10 10 2.5                          (10 10 2.5)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q numpy==2.4.6 scipy==1.17.1 nibabel==5.4.2 nitransforms==25.1.0
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'END'
import nibabel
import numpy as np
from nitransforms.nonlinear import DenseFieldTransform
from nitransforms.resampling import apply

neck = 10
whole = nibabel.Nifti1Image(np.ones((20, 20, 1), np.float32) * np.arange(40, dtype=np.float32), np.diag([1, 1, 2, 1]))
cropped = whole.slicer[:, :, neck:]
field = np.zeros((*cropped.shape, 3), np.float32)
transform = DenseFieldTransform(field, reference=cropped)

seen = np.asanyarray(apply(transform, whole, reference=whole, order=1).dataobj)[10, 10]
print("slices of the scan after the transform", seen.round().astype(int).tolist())
on_grid = transform.map([[10, 10, 2]])[0]
between = transform.map([[10, 10, 2.5]])[0]
print("point 10 10 2", on_grid, "point 10 10 2.5", between)
assert np.allclose(between, (10, 10, 2.5), atol=1e-3)
assert np.allclose(seen[neck:], np.arange(neck, 40), atol=1e-3)
assert np.allclose(on_grid, (10, 10, 62)), "the behaviour has changed"
assert np.allclose(seen[:neck], np.arange(30, 40), atol=1e-3), "the behaviour has changed"
END
