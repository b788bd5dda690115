#!/usr/bin/env bash
# FillHoles: a tumour inside an organ is a hole.
#
# monai 1.6.1, torch 2.13.0. The documentation of FillHoles says that a hole is "a background pixel/voxel which is only
# enclosed by a single class". In a label map (one channel), another class inside counts as well: a tumour (2) that an
# organ (1) encloses becomes organ, with default arguments and with applied_labels=1. One that reaches the organ's
# surface stays. The input is changed too, so that the label before the transform cannot be used either. With
# applied_labels=2, the holes of the tumour are filled and nothing else changes.
#
# Seen (voxels of organ, enclosed tumour, tumour at the surface; background hole in the organ):
#   before               7712  216  64  8
#   FillHoles()          7936  0    64  0
#   FillHoles(1)         7936  0    64  0
#   FillHoles(2)         7712  216  64  8
#   the input, after FillHoles()  7936  0  64  0
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.6 scipy==1.17.1 monai==1.6.1
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'END'
import torch
from monai.transforms import FillHoles

enclosed = (0, slice(10, 16), slice(10, 16), slice(10, 16))
surface = (0, slice(5, 9), slice(20, 24), slice(20, 24))
hole = (0, slice(20, 22), slice(10, 12), slice(10, 12))


def scan():
    label = torch.zeros(1, 30, 30, 30, dtype=torch.uint8)
    label[0, 5:25, 5:25, 5:25] = 1
    label[enclosed] = 2
    label[surface] = 2
    label[hole] = 0
    return label


def voxels(label):
    tumours = ((label[place] == 2).sum() for place in (enclosed, surface))
    return [int(number) for number in ((label == 1).sum(), *tumours, (label[hole] == 0).sum())]


before = voxels(scan())
print("before", *before)
label = scan()
default = voxels(FillHoles()(label))
after = voxels(label)
organ = voxels(FillHoles(applied_labels=1)(scan()))
tumour = voxels(FillHoles(applied_labels=2)(scan()))
print("FillHoles()", *default)
print("FillHoles(1)", *organ)
print("FillHoles(2)", *tumour)
print("the input, after FillHoles()", *after)
assert before == tumour == [7712, 216, 64, 8]
assert default == organ == [7936, 0, 64, 0], "the behaviour has changed"
assert after == default, "the behaviour has changed"
END
