#!/usr/bin/env bash
# SimpleITK: where a registration finds a growth of 33 %, the Jacobian determinant is 0.89 if the scan is stored as RAS.
#
# SimpleITK 2.5.7. DisplacementFieldJacobianDeterminant returns how much each voxel grows in a displacement field, by
# its documentation det(I + du/dx). Displacements are in mm along the axes of the patient, and the field has a
# direction, so one expects the same determinant in all orientations. But the derivatives are along the axes of the
# array. In RAS, which is usual in NIfTI files, those along x and y have the wrong sign, so that growth is shrinkage; in
# a sagittal scan, other components are derived. And a turn changes the volume. InverseDisplacementField, which has no
# argument for a direction, samples the field on a grid without one, mostly outside of the scan, so that the inverse is
# wrong, too; InvertDisplacementField is right. ITK#5358 is about the determinant, and ITK#5390, which corrects it, was
# merged in 2025, but is not in this version. antspyx 0.6.3 has the right determinant.
#
# Seen (determinant of a growth by 10 % along each axis, of one by 20 % along z, and of a turn by 10 degrees about x;
# inverse of the first one at a point):
#   orientation  10 % each      20 % along z   turn           inverse in mm
#   LPS          1.331 (1.331)  1.200 (1.200)  1.000 (1.000)  -0.77 -0.50  0.05 (-0.77 -0.50 0.05)
#   RAS          0.891 (1.331)  1.200 (1.200)  0.970 (1.000)  -1.45 -1.45  0.18 (-0.77 -0.50 0.05)
#   sagittal     0.999 (1.331)  1.000 (1.200)  1.174 (1.000)  -0.34 -0.09 -2.92 (-0.77 -0.50 0.05)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q numpy==2.4.6 SimpleITK==2.5.7
cd "$folder"
"$folder/venv/bin/python" - <<'END'
import numpy as np
import SimpleITK as sitk

size = 24
directions = {
    "LPS": np.diag([1, 1, 1]),
    "RAS": np.diag([-1, -1, 1]),
    "sagittal": np.array([[0, 0, 1], [1, 0, 0], [0, -1, 0]]),
}
sine, cosine = np.sin(np.radians(10)), np.cos(np.radians(10))
turn = np.array([[1, 0, 0], [0, cosine, -sine], [0, sine, cosine]])
transforms = np.diag([1.1, 1.1, 1.1]), np.diag([1, 1, 1.2]), turn
expected = {
    "LPS": (1.331, 1.2, 1, -0.77, -0.5, 0.05),
    "RAS": (0.891, 1.2, 0.97, -1.45, -1.45, 0.18),
    "sagittal": (0.999, 1, 1.174, -0.34, -0.09, -2.92),
}
point = np.array([8.5, 5.5, -0.5])
true_inverse = point / 1.1 - point


def field_of(transform, direction):
    """Return the displacements of a linear transform on a grid whose middle is at 0 mm."""
    grid = sitk.Image([size] * 3, sitk.sitkFloat64)
    grid.SetDirection(direction.ravel().tolist())
    grid.SetOrigin((-direction.sum(1) * (size - 1) / 2).tolist())
    place = grid.GetSize(), grid.GetOrigin(), grid.GetSpacing(), grid.GetDirection()
    points = sitk.GetArrayFromImage(sitk.PhysicalPointSource(sitk.sitkVectorFloat64, *place))
    field = sitk.GetImageFromArray(points @ (transform - np.eye(3)).T, isVector=True)
    field.CopyInformation(grid)
    return field


for name, direction in directions.items():
    fields = [field_of(transform, direction) for transform in transforms]
    at = fields[0].TransformPhysicalPointToIndex(point)
    assert np.allclose(fields[0][at], point * 0.1)
    seen = [sitk.DisplacementFieldJacobianDeterminant(field)[at] for field in fields]
    true = np.linalg.det(transforms)
    field = fields[0]
    grid = {"size": field.GetSize(), "outputOrigin": field.GetOrigin(), "outputSpacing": field.GetSpacing()}
    inverse = sitk.InverseDisplacementField(field, subsamplingFactor=6, **grid)
    right = sitk.InvertDisplacementField(field, 30, maxErrorToleranceThreshold=1e-4, meanErrorToleranceThreshold=1e-5)
    print(name, np.round(seen, 3), np.round(inverse[at], 2), "true", true.round(3), true_inverse.round(2))
    print("  InvertDisplacementField", np.round(right[at], 2))
    assert np.allclose(right[at], true_inverse, atol=0.01)
    assert np.allclose((*seen, *inverse[at]), expected[name], atol=0.01), "the behaviour has changed"
END
