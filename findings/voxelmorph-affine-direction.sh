#!/usr/bin/env bash
# VoxelMorph: an affine matrix moves a lesion to the right, and its displacement field moves the lesion to the left.
#
# voxelmorph 0.3.4, torch 2.13.0. spatial_transform takes an affine matrix or a displacement field, affine_to_disp makes
# the field of a matrix, and compose makes one transform of several. One expects that a matrix and its field do the
# same, and that composed transforms do the same as one after the other. But spatial_transform inverts a matrix before
# it makes a field of it, and affine_to_disp and compose do not: for a matrix, a voxel goes to its product with the
# matrix, and for a field, it comes from there. So an alignment that is composed with a field, even one of zeros, goes
# in the other direction. affine_to_disp is documented for matrices from target to source; spatial_transform says
# nothing about the direction. No thread about these functions was found.
#
# Seen (place of a lesion of one voxel that was at 12 10 8, in a volume of 25 x 25 x 25):
#   transform                            matrix    its field  composed with zeros  zeros, then the matrix
#   shift by 2 3 4                       14 13 12  10  7  4   10  7  4             14 13 12
#   turn by 90 degrees about the middle  12 16 10  12  8 14   12  8 14             12 16 10
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.6 neurite==0.3.4 voxelmorph==0.3.4
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'END'
import torch
import voxelmorph

shape = 25, 25, 25
lesion = torch.zeros(shape)
lesion[12, 10, 8] = 1
nothing = torch.zeros(3, *shape)
shift = torch.eye(4)
shift[:3, 3] = torch.tensor([2.0, 3, 4])
turn = torch.tensor([[1.0, 0, 0, 0], [0, 0, -1, 0], [0, 1, 0, 0], [0, 0, 0, 1]])


def place(*transforms):
    image = lesion
    for transform in transforms:
        image = voxelmorph.spatial_transform(image, transform)
    return torch.nonzero(image > 0.5).flatten().tolist()


expected = {"shift": ([14, 13, 12], [10, 7, 4]), "turn": ([12, 16, 10], [12, 8, 14])}
for name, matrix in (("shift", shift), ("turn", turn)):
    field = voxelmorph.affine_to_disp(matrix, shape=shape)
    composed = voxelmorph.compose([matrix, nothing])
    seen = place(matrix), place(field), place(composed), place(nothing, matrix)
    print(name, "matrix, field, composed with zeros, one after the other", *seen)
    one, other = expected[name]
    assert seen == (one, other, other, one), "the behaviour has changed"
END
