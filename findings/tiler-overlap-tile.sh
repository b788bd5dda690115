#!/usr/bin/env bash
# tiler: merged with the window "overlap-tile", a scan is 0 everywhere if its tiles do not overlap along the slices.
#
# tiler 0.6.0. Merger weights the tiles of a volume, and divides by the sum of the weights. "overlap-tile" keeps the
# inner part of each tile, without half of the overlap at each side, and the documentation asks for the padding of
# Tiler.calculate_padding. Tiles that contain all slices are usual for scans with thick slices, and the overlap may be
# given for each axis. One expects that nothing is cut off along an axis without an overlap. But there the inner part is
# the slice from 0 to -0, which is empty: all weights are 0, and NaN, the result of the division, is replaced by 0.
# There is no warning: a predicted mask is empty. No thread about it was found.
#
# Seen (a scan of 16 x 96 x 96 between 1 and 2, cut into tiles of 16 x 32 x 32 and merged again; voxels that are 0):
#   overlap      boxcar  overlap-tile
#   8, 16, 16    0 %       0 %
#   0, 16, 16    0 %     100 %
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q numpy==2.4.6 scipy==1.17.1 tiler==0.6.0
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'END'
from importlib.metadata import version

import numpy as np
from tiler import Merger, Tiler

scan = np.random.default_rng(0).uniform(1, 2, (16, 96, 96)).astype(np.float32)
expected = {(8, 16, 16): {"boxcar": 0, "overlap-tile": 0}, (0, 16, 16): {"boxcar": 0, "overlap-tile": 1}}
print("tiler", version("tiler"))
for overlap, parts in expected.items():
    for window, part in parts.items():
        tiler = Tiler(scan.shape, (16, 32, 32), overlap=overlap)
        shape, padding = tiler.calculate_padding()
        tiler.recalculate(data_shape=shape)
        merger = Merger(tiler, window=window)
        for index, tile in tiler(np.pad(scan, padding, mode="reflect")):
            merger.add(index, tile)
        merged = merger.merge(extra_padding=padding)
        print(overlap, window, f"{(merged == 0).mean():.0%} of the voxels are 0")
        assert merged.shape == scan.shape and (part or np.allclose(merged, scan))
        assert (merged == 0).mean() == part, "the behaviour has changed"
END
