#!/usr/bin/env bash
# PlatiPy: when overlaps are removed from 60 structures, the small ones become empty, although nothing overlaps.
#
# platipy 0.7.2, SimpleITK 2.5.7. correct_volume_overlap gives each voxel that several structures share to the largest
# (or smallest) of them. One expects that structures without overlap stay as they are. A voxel is encoded as the product
# of the primes of its structures; smaller structures have larger primes. On the way, these products are cast to 8 bits:
# the 55th prime is 257 and becomes 1, no structure; the 56th is 263 and becomes 7, the prime of the fourth largest. So
# the 55th largest structure and all after it lose all voxels, but for the last one, and larger structures gain some of
# them. TotalSegmentator has 117 structures. There is no warning, and the documentation names no limit.
#
# Seen (n separate structures of different sizes):
#   n    structures that become empty  structures that grow
#   55   0                             0
#   60   5                             3
#   117  62                            19
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q numpy==2.4.6 scipy==1.17.1 SimpleITK==2.5.7 scikit-image==0.26.0 matplotlib==3.11.2
"$folder/venv/bin/pip" install -q --no-deps platipy==0.7.2
cd "$folder"
"$folder/venv/bin/python" - <<'END'
import numpy as np
import SimpleITK as sitk
from platipy.imaging.label.utils import correct_volume_overlap


def change(count):
    structures = {}
    for k in range(count):
        mask = np.zeros((2, count, 150), np.uint8)
        mask[:, k, : 150 - k] = 1
        structures[f"structure {k + 1}"] = sitk.GetImageFromArray(mask)
    corrected = correct_volume_overlap(structures)
    before = np.array([sitk.GetArrayViewFromImage(structures[name]).sum() for name in structures])
    after = np.array([sitk.GetArrayViewFromImage(corrected[name]).sum() for name in structures])
    lost, gained = np.flatnonzero(after < before), np.flatnonzero(after > before)
    print(count, "empty", (lost + 1).tolist(), "larger", (gained + 1).tolist())
    assert not after[lost].any() and lost.tolist() == list(range(54, count - 1)), "the behaviour has changed"
    return len(lost), len(gained)


results = [change(count) for count in (55, 60, 117)]
print(results)
assert results == [(0, 0), (5, 3), (62, 19)], "the behaviour has changed"
END
