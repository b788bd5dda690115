#!/usr/bin/env bash
# ome-zarr: the voxel size of a scan is replaced by 1, so that a lesion of 1.4 ml has 0.6 ml.
#
# ome-zarr 0.18.0, zarr 3.1.6. coordinate_transformations of write_image and write_labels is the argument for the voxel
# size of each level, until version 0.17 the usual one (0.13.0, 0.16.0 and 0.17.0 write it). In 0.18 it is documented as
# deprecated and as added to each level, and by the change that deprecates it, it takes precedence over the new argument
# "scale" (ome-zarr-py#553). But it is ignored: the file has voxels of 1, and translations in voxels. The only sign is a
# DeprecationWarning, which Python hides by default. With "scale", or with write_multiscale and levels of the caller, the
# voxel size is right. That write_labels ignores scale_factors is known (ome-zarr-py#606); no thread about the voxel size
# was found.
#
# Seen (a lesion of 576 voxels of 5 x 0.7 x 0.7 mm; scale of the first level, and volume by it; the truth is 1411 mm3):
#   function           coordinate_transformations   scale
#   write_image        1  1    1     576            5  0.7  0.7  1411
#   write_labels       1  1    1     576            5  0.7  0.7  1411
#   write_multiscale   5  0.7  0.7  1411            -
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q numpy==2.4.6 scikit-image==0.26.0 dask==2026.8.0 zarr==3.1.6 ome-zarr==0.18.0
cd "$folder"
"$folder/venv/bin/python" - <<'END'
import numpy as np
import zarr
from ome_zarr.writer import write_image, write_labels, write_multiscale

lesion = np.zeros((10, 64, 64), np.uint8)
lesion[2:6, 20:32, 20:32] = 1
levels = [lesion, lesion[:, ::2, ::2]]
steps = [[{"type": "scale", "scale": [5.0, 0.7 * factor, 0.7 * factor]}] for factor in (1, 2, 4, 8, 16)]
by_steps = {"coordinate_transformations": steps}
by_scale = {"scale": {"z": 5, "y": 0.7, "x": 0.7}}


def read(name):
    attributes = zarr.open_group(name, mode="r").attrs["ome"]["multiscales"][0]["datasets"][0]
    array = zarr.open_array(f"{name}/{attributes['path']}", mode="r")[:]
    scale = attributes["coordinateTransformations"][0]["scale"]
    volume = array.astype(bool).sum() * np.prod(scale)
    print(name, scale, round(volume, 1), "mm3")
    return *scale, volume


for name, arguments in (("steps", by_steps), ("scale", by_scale)):
    group = zarr.open_group(name, mode="w")
    write_image(lesion, group, axes="zyx", **arguments)
    write_labels(lesion, group, "lesion", axes="zyx", **arguments)
steps_only = {"coordinate_transformations": steps[:2]}
write_multiscale(levels, zarr.open_group("levels", mode="w"), axes="zyx", **steps_only)

right, wrong = (5, 0.7, 0.7, 1411.2), (1, 1, 1, 576)
for name in ("steps", "steps/labels/lesion"):
    assert np.allclose(read(name), wrong), "the behaviour has changed"
for name in ("scale", "scale/labels/lesion", "levels"):
    assert np.allclose(read(name), right), "the behaviour has changed"
END
