#!/usr/bin/env bash
# ANTsPy: the centre of a lesion in slice 15 of a head CT is in "slice 384".
#
# antspyx 0.6.3. label_image_centroids returns a centre for each label of a volume: in voxels, and with physical=True in
# mm. Its lists of coordinates have the order that voxels have in R, not in numpy, and the third list counts along the
# second axis. In a cube the axes of the centre are reversed. In other volumes the first two coordinates have nothing
# to do with the lesion, and the third one may be outside of the volume. physical=True changes nothing. There is no
# error and no warning. get_centroids, in mm, is right. In 2024 the function was corrected for labels other than 1 to N
# (ANTsPy#714).
#
# Seen (a lesion of 3 x 3 x 3 voxels of 1 x 1 x 5 mm):
#   volume          true centre  label_image_centroids  physical=True  get_centroids
#   60 x 60 x 60    10 30 50     50 30 10               50 30 10       10 30 250 mm
#   512 x 512 x 30  128 256 15   186 271 128            186 271 128    128 256 75 mm
#   512 x 512 x 30  384 256 15   186 271 384            186 271 384    384 256 75 mm
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q antspyx==0.6.3
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'END'
import ants
import numpy as np

for shape, centre, expected in (
    ((60, 60, 60), (10, 30, 50), (50, 30, 10)),
    ((512, 512, 30), (128, 256, 15), (186, 271, 128)),
    ((512, 512, 30), (384, 256, 15), (186, 271, 384)),
):
    lesion = np.zeros(shape, np.float32)
    lesion[tuple(slice(place - 1, place + 2) for place in centre)] = 1
    image = ants.from_numpy(lesion, spacing=(1.0, 1.0, 5.0))
    seen = ants.label_image_centroids(image)["vertices"][0]
    physical = ants.label_image_centroids(image, physical=True)["vertices"][0]
    right = ants.get_centroids(image)[0, :3]
    print(shape, centre, seen.round(1), physical.round(1), right)
    assert np.allclose(right, np.multiply(centre, (1, 1, 5)))
    assert np.array_equal(seen.round(), expected) and np.array_equal(physical, seen), "the behaviour has changed"
END
