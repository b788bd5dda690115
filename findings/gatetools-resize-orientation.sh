#!/usr/bin/env bash
# gatetools: padding or cropping a scan moves it by its own width if it is stored as RAS, as most NIfTI files are.
#
# gatetools 0.12.9, itk 5.4.7. imageResize pads or crops an image to a size. One expects everything to stay at its place
# in mm. So it is if the direction of the image is the identity. If not, the image is also resampled to that direction
# (applyTransformation with force_resample), where the first voxel is another corner of the volume. But imageResize sets
# the origin to that of the input, moved by the padding: the scan is elsewhere, by the size of the volume along each
# reversed axis, even if nothing is padded, and by the padding along the others. No thread about it was found.
#
# Seen (centre in mm of a lesion in a volume of 50 x 40 x 30 voxels of 1 x 1 x 2 mm; x, y, z):
#   size          LPS: before, after             RAS: before, after
#   50 x 40 x 30  36.5 17.5 26  36.5 17.5 26     -26.5 -5.5 26  22.5 33.5 26
#   60 x 50 x 30  36.5 17.5 26  36.5 17.5 26     -26.5 -5.5 26  17.5 28.5 26
#   60 x 50 x 40  36.5 17.5 26  36.5 17.5 26     -26.5 -5.5 26  17.5 28.5 16
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q numpy==2.4.6 scipy==1.17.1 itk==5.4.7 gatetools==0.12.9
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'END'
import gatetools
import itk
import numpy as np

lesion = np.zeros((30, 40, 50), np.float32)
lesion[8:12, 10:14, 30:34] = 1


def place(image):
    voxel = np.argwhere(itk.array_from_image(image) > 0.5).mean(0)[::-1]
    return itk.array_from_matrix(image.GetDirection()) @ (voxel * image.GetSpacing()) + image.GetOrigin()


expected = {
    (50, 40, 30): (22.5, 33.5, 26),
    (60, 50, 30): (17.5, 28.5, 26),
    (60, 50, 40): (17.5, 28.5, 16),
}
for size, after in expected.items():
    for name, direction in (("LPS", (1, 1, 1)), ("RAS", (-1, -1, 1))):
        image = itk.image_from_array(lesion)
        image.SetSpacing([1.0, 1, 2])
        image.SetOrigin([5.0, 6, 7])
        image.SetDirection(itk.matrix_from_array(np.diag(direction).astype(float)))
        result = gatetools.imageResize(image, newsize=size)
        true, seen = place(image), place(result)
        print(size, name, "before", true, "after", seen)
        assert itk.array_from_image(result).sum() == lesion.sum()
        assert np.allclose(seen, true if name == "LPS" else after), "the behaviour has changed"
END
