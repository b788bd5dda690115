#!/usr/bin/env bash
# NiTransforms: the field of a B-spline is up to 11 mm wrong if a scan is stored in another orientation than the knots.
#
# nitransforms 25.1.0, nibabel 5.4.2. BSplineFieldTransform.to_field computes the displacements of a B-spline on the
# grid of a reference, and map computes them for single points. One expects the same from both. But the weights of the
# knots are computed from the first voxel and the sizes of the voxels (grid_bspline_weights), not from the axes: if the
# axes of the reference are reversed, exchanged or oblique with respect to those of the knots, the field is that of
# other points. And the weights are kept: a second call with another reference returns the field of the first one, on
# the grid of the second one, if the shapes are equal, and raises an error if not. No thread about it was found.
#
# Seen (largest error in mm on a grid of 58 x 58 x 38 mm, for a displacement of up to 9 mm that is linear in x, y and z,
# which cubic B-splines represent exactly; knots in RAS, every 10 mm):
#   grid     map  to_field  to_field after one in RAS
#   RAS      0.0   0.0      0.0
#   LAS      0.0  11.0      5.8
#   ARS      0.0   5.8      5.8
#   oblique  0.0   2.0      2.0
#   shifted  0.0   0.0      2.0
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q numpy==2.4.6 scipy==1.17.1 nibabel==5.4.2 nitransforms==25.1.0
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'END'
import nibabel
import numpy as np
from nibabel.affines import apply_affine
from nitransforms.nonlinear import BSplineFieldTransform

shape = 30, 30, 20
ras = np.diag([2.0, 2, 2, 1])
las = ras.copy()
las[0] = -2, 0, 0, 2 * (shape[0] - 1)
turn = np.eye(4)
turn[:2, :2] = np.array([[np.cos(0.3), -np.sin(0.3)], [np.sin(0.3), np.cos(0.3)]])
shifted = ras.copy()
shifted[0, 3] = 20
affines = {"RAS": ras, "LAS": las, "ARS": ras[:, [1, 0, 2, 3]], "oblique": turn @ ras, "shifted": shifted}


def points_of(affine, shape):
    return apply_affine(affine, np.stack(np.indices(shape), -1))


def displacement(points):
    return points * (0.1, 0.05, -0.04) + (3, 0, 0)


knots = np.diag([10.0, 10, 10, 1])
knots[:3, 3] = -30
coefficients = nibabel.Nifti1Image(displacement(points_of(knots, (16, 16, 16))).astype(np.float32), knots)


def errors(transform, affine):
    reference = nibabel.Nifti1Image(np.zeros(shape, np.uint8), affine)
    points = points_of(affine, shape)
    true = points + displacement(points)
    field = transform.to_field(reference=reference)
    by_field = field.map(points.reshape(-1, 3)).reshape(points.shape)
    corners = points[:: shape[0] - 1, :: shape[1] - 1, :: shape[2] - 1].reshape(-1, 3)
    by_map = BSplineFieldTransform(coefficients, reference=reference).map(corners)
    return np.abs(by_field - true).max(), np.abs(by_map - corners - displacement(corners)).max()


expected = {"RAS": (0, 0), "LAS": (11.03, 5.8), "ARS": (5.8, 5.8), "oblique": (1.97, 1.97), "shifted": (0, 2)}
kept = BSplineFieldTransform(coefficients)
errors(kept, ras)
for name, affine in affines.items():
    first, by_map = errors(BSplineFieldTransform(coefficients), affine)
    second, _ = errors(kept, affine)
    print(name, "map", by_map.round(2), "to_field", first.round(2), "to_field after RAS", second.round(2))
    assert by_map < 1e-3
    assert np.allclose((first, second), expected[name], atol=0.02), "the behaviour has changed"
END
