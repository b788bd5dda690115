#!/usr/bin/env bash
# pyvista: a lesion on the left is on the right if the scan is read from NIfTI or NRRD instead of MHA.
#
# pyvista 0.49.1, vtk 9.7.2, SimpleITK 2.5.7. pyvista.read reads all three, and its ImageData has an origin and a
# direction matrix. From MHA both are set, and meshes, contours and distances are in DICOM's coordinates (x to the
# left). One expects the same from the other formats. From NRRD the direction is dropped, but the origin is kept; from
# NIfTI both are dropped. Neither is documented, and there is no warning. So the side depends on the order of the
# voxels in the file: the same scan is mirrored if it is stored from left to right, as many NIfTI files are. Volumes
# are right.
#
# Seen (x of the lesion's centre, and whether it is left of the scan's middle; the truth: 13, left):
#   stored        MHA       NRRD       NIfTI
#   left to right 13 left   27 right   7 right
#   right to left 13 left   13 left    32 left
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q numpy==2.4.6 SimpleITK==2.5.7 vtk==9.7.2 pyvista==0.49.1
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'END'
import numpy as np
import pyvista
import SimpleITK as sitk

scan = np.zeros((20, 30, 40), np.uint8)
scan[8:12, 12:18, 5:10] = 1
scans = {"left to right": sitk.GetImageFromArray(scan)}
scans["left to right"].SetOrigin((20, -15, -30))
scans["left to right"].SetSpacing((1, 1, 3))
scans["left to right"].SetDirection((-1, 0, 0, 0, 1, 0, 0, 0, 1))
scans["right to left"] = sitk.Flip(scans["left to right"], (True, False, False))

expected = {
    "left to right": {"mha": (13, True), "nrrd": (27, False), "nii.gz": (7, False)},
    "right to left": {"mha": (13, True), "nrrd": (13, True), "nii.gz": (32, True)},
}
for order, image in scans.items():
    places = np.argwhere(sitk.GetArrayViewFromImage(image) > 0)[:, ::-1].tolist()
    truth = np.mean([image.TransformIndexToPhysicalPoint(place) for place in places], axis=0)
    assert truth[0] == 13 and image.TransformContinuousIndexToPhysicalPoint((19.5, 14.5, 9.5))[0] == 0.5
    for suffix, seen in expected[order].items():
        sitk.WriteImage(image, f"scan.{suffix}")
        read = pyvista.read(f"scan.{suffix}")
        lesion = np.asarray(read.active_scalars) > 0
        x, left = read.points[lesion].mean(0)[0], read.points[lesion].mean(0)[0] > read.center[0]
        print(order, suffix, x, "left" if left else "right", read.origin, np.diag(read.direction_matrix))
        assert lesion.sum() == scan.sum() and read.spacing == (1, 1, 3)
        assert (x, left) == seen, "the behaviour has changed"
END
