#!/usr/bin/env bash
# ANTsPy: a scan and the mask of its lesion are mirrored at different planes, and the lesion of the mask does not move.
#
# antspyx 0.6.3. reflect_image is documented to reflect an image along an axis. One expects the plane in the middle of
# the volume, so that images of the same grid stay aligned. But the plane is the one through the centre of mass of the
# intensities. That of the mask of one lesion is the lesion itself: the mirrored mask is the mask. That of a CT in
# Hounsfield units depends on the air, which has a negative mass. What comes from outside of the volume is 0, which is
# water in a CT. It is the same with one image after another of a study: each one has its own plane. No thread about it
# was found.
#
# Seen (centre along x of a lesion in a volume of 64 voxels; the head has its centre at 30):
#   image        before  after  in the middle of the volume
#   MR           18      42     45
#   CT in HU     18      46     45
#   lesion mask  18      18     45
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q antspyx==0.6.3
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'END'
import ants
import numpy as np
from scipy import ndimage

x, y, z = np.indices((64, 64, 48))
head = ((x - 30) / 24) ** 2 + ((y - 32) / 28) ** 2 + ((z - 24) / 20) ** 2 < 1
lesion = (x - 18) ** 2 + (y - 30) ** 2 + (z - 24) ** 2 <= 4**2
images = {
    "MR": (np.where(head, 100, 0) + 100 * lesion, 150, 42),
    "CT in HU": (np.where(head, 40, -1000) + 30 * lesion, 55, 46),
    "lesion mask": (lesion, 0.5, 18),
}
for name, (image, threshold, expected) in images.items():
    image = image.astype(np.float32)
    places = [
        ndimage.center_of_mass(volume > threshold)[0]
        for volume in (image, ants.reflect_image(ants.from_numpy(image), axis=0).numpy(), image[::-1])
    ]
    print(name, "before", round(places[0], 1), "after", round(places[1], 1), "in the middle", round(places[2], 1))
    assert np.allclose((places[0], places[2]), (18, 45), atol=0.1)
    assert abs(places[1] - expected) < 0.5, "the behaviour has changed"
END
