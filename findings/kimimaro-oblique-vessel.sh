#!/usr/bin/env bash
# kimimaro and xs3d: the cross-section of a vessel of 113 mm2 is 283 mm2 if the vessel is oblique to slices of 5 mm.
#
# kimimaro 5.8.5, xs3d 1.14.0. kimimaro.cross_sectional_area takes the spacing as `anisotropy` and measures the area of
# the section across the vessel at each point of its centre line, in the units of the spacing. One expects the section
# to be perpendicular to the vessel in mm. But it is perpendicular to the line in voxels, which is another plane unless
# the voxels are cubes or the vessel follows an axis: the area is too large. xs3d computes the areas, and its readme
# says to convert a normal vector from mm by dividing it by the spacing. That is right for a direction, but a normal has
# to be multiplied. The documentation of kimimaro says that the normals are the differences of adjacent vertices, and
# the vertices are in mm.
#
# Seen (a straight vessel with a radius of 6 mm, 113 mm2; its angle to the axis of the slices; mm2):
#   spacing        angle  kimimaro  xs3d, normal divided  normal multiplied
#   1 x 1 x 1 mm   15     112       117                   117
#   1 x 1 x 5 mm    0     112       112                   112
#   1 x 1 x 5 mm   15     283       291                   121
#   1 x 1 x 5 mm   30     206       199                   110
#   1 x 1 x 5 mm   45     160       170                   107
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q numpy==2.4.6 scipy==1.17.1 kimimaro==5.8.5 xs3d==1.14.0 osteoid==0.7.4 edt==3.0.0 \
    dijkstra3d==1.15.2 connected-components-3d==4.1.1 fastremap==1.21.0
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'END'
from importlib.metadata import version

import kimimaro
import numpy as np
import xs3d

size, radius = np.array([60.0, 120, 120]), 6


def areas(spacing, degrees):
    spacing = np.array(spacing, np.float32)
    shape = np.round(size / spacing).astype(int)
    position = (np.stack(np.indices(shape), -1) + 0.5) * spacing - size / 2
    direction = np.array([0, np.sin(np.radians(degrees)), np.cos(np.radians(degrees))])
    along = (position @ direction)[..., None] * direction
    vessel = np.linalg.norm(position - along, axis=-1) <= radius
    labels = vessel.astype(np.uint32)
    parameters = {"scale": 1.5, "const": 20}
    skeletons = kimimaro.skeletonize(
        labels, anisotropy=spacing, teasar_params=parameters, dust_threshold=0, progress=False
    )
    skeletons = kimimaro.cross_sectional_area(labels, skeletons, anisotropy=spacing, smoothing_window=5)
    skeleton = skeletons[1]
    middle = np.linalg.norm(skeleton.vertices - size / 2, axis=1) < 25  # far from the border of the volume
    assert not skeleton.cross_sectional_area_contacts[middle].any()
    result = [
        np.median(skeleton.cross_sectional_area[middle]),
        xs3d.cross_sectional_area(vessel, shape // 2, direction / spacing, spacing),
        xs3d.cross_sectional_area(vessel, shape // 2, direction * spacing, spacing),
    ]
    print(spacing, degrees, "degrees:", np.round(result), "expected", round(np.pi * radius**2))
    return result


print("kimimaro", version("kimimaro"), "xs3d", version("xs3d"))
results = [areas((1, 1, 1), 15)] + [areas((1, 1, 5), degrees) for degrees in (0, 15, 30, 45)]
expected = (112, 117, 117), (112, 112, 112), (283, 291, 121), (206, 199, 110), (160, 170, 107)
assert np.allclose(results, expected, atol=1), "the behaviour has changed"
END
