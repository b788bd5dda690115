#!/usr/bin/env bash
# SimpleITK: a registration with symmetric forces fails if the scans are stored as RAS, as in most NIfTI files.
#
# SimpleITK 2.5.7. SymmetricForcesDemonsRegistrationFilter returns a displacement field that aligns one scan with
# another. Images have a direction, so one expects the same field, in mm, for the same scans in another orientation. The
# force is the sum of the gradients of both scans. But that of the fixed scan is along the axes of the patient, and that
# of the moving scan along the axes of the array (itkSymmetricForcesDemonsRegistrationFunction.hxx). In RAS, x and y are
# reversed, so that the two nearly cancel: after 100 or 400 steps, the field is far from the true one, and there is no
# error. Demons, FastSymmetricForcesDemons, DiffeomorphicDemons and LevelSetMotion align the scans in all orientations.
# No thread about it was found.
#
# Seen (a ball that is 3 2 1 mm from its place; what is left of the difference of the scans, and of the distance):
#   filter                     LPS                  RAS
#   SymmetricForcesDemons      0.00  0.0  0.0  0.0  0.79  1.3  0.9  0.1
#   FastSymmetricForcesDemons  0.02  0.0  0.0  0.0  0.02  0.0  0.0  0.0
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q numpy==2.4.6 SimpleITK==2.5.7
cd "$folder"
"$folder/venv/bin/python" - <<'END'
import numpy as np
import SimpleITK as sitk

size = 40
directions = {"LPS": np.diag([1, 1, 1]), "RAS": np.diag([-1, -1, 1])}
expected = {
    "SymmetricForcesDemons": {"LPS": (0, 0, 0, 0), "RAS": (0.79, 1.31, 0.87, 0.06)},
    "FastSymmetricForcesDemons": {"LPS": (0, 0, 0, 0), "RAS": (0, 0, 0, 0)},
}


def ball(direction, centre):
    """Return a ball with a radius of 10 mm on a grid whose middle is at 0 mm, and the points of the grid."""
    grid = sitk.Image([size] * 3, sitk.sitkFloat64)
    grid.SetDirection(direction.ravel().tolist())
    grid.SetOrigin((-direction.sum(1) * (size - 1) / 2).tolist())
    place = grid.GetSize(), grid.GetOrigin(), grid.GetSpacing(), grid.GetDirection()
    points = sitk.GetArrayFromImage(sitk.PhysicalPointSource(sitk.sitkVectorFloat64, *place))
    distance = np.linalg.norm(points - centre, axis=-1)
    image = sitk.GetImageFromArray((100 / (1 + np.exp(distance - 10))).astype(np.float32))
    image.CopyInformation(grid)
    return image, points


def difference(image, other):
    return np.abs(sitk.GetArrayFromImage(image) - sitk.GetArrayFromImage(other)).sum()


def centre(image, points):
    return np.average(points.reshape(-1, 3), axis=0, weights=sitk.GetArrayFromImage(image).ravel())


for name, values in expected.items():
    for orientation, direction in directions.items():
        fixed, points = ball(direction, (0, 0, 0))
        moving, _ = ball(direction, (3, 2, 1))
        registration = getattr(sitk, name + "RegistrationFilter")()
        registration.SetNumberOfIterations(100)
        registration.SetStandardDeviations(2)
        field = registration.Execute(fixed, moving)
        transform = sitk.DisplacementFieldTransform(sitk.Cast(field, sitk.sitkVectorFloat64))
        moved = sitk.Resample(moving, fixed, transform)
        seen = difference(fixed, moved) / difference(fixed, moving), *centre(moved, points)
        print(name, orientation, np.round(seen, 2), "before", 1, centre(moving, points).round(2))
        assert np.allclose(seen, values[orientation], atol=0.05), "the behaviour has changed"
END
