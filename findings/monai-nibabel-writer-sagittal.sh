#!/usr/bin/env bash
# SaveImage: labels of a sagittal or coronal volume cannot be written, nor those of a single slice.
#
# monai 1.6.1, torch 2.13.0, nibabel 5.4.2. A MetaTensor with an affine, such as a label map that a postprocessing has
# made, or a channel of a scan in a 4-D file (with resample=False). One expects that it is written on its grid, whatever
# the order of the axes. For 32 of the 48 orientations, "SaveImage cannot find a suitable writer" is raised. SaveImage
# squeezes the channel axis, but the writer then counts the first spatial axis as the channels:
# NibabelWriter.resample_if_needed takes the volume for 2-D, and inverts the upper left 2 x 2 of its affine, which is
# singular if the volume is exactly sagittal or coronal. Oblique volumes, and those loaded from a 3-D file (whose
# metadata say "no_channel"), are written. A single slice is not written in any orientation, since its last axis is
# squeezed too. No thread about it was found.
#
# Seen (48 orientations; a volume of 6 x 7 x 8 voxels):
#                                         resample=True (default)   resample=False
#   MetaTensor with an affine             16 written, 32 errors     16 written, 32 errors
#   a channel of a 4-D file               48 written                16 written, 32 errors
#   a 3-D file                            48 written                48 written
#   MetaTensor of 6 x 7 x 1               48 errors                 48 errors
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.6 monai==1.6.1 nibabel==5.4.2
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'END'
from collections import Counter
from itertools import permutations, product

import nibabel as nib
import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import LoadImage, SaveImage

voxels = np.random.default_rng(0).integers(0, 3, (6, 7, 8), np.uint8)
load = LoadImage(ensure_channel_first=True)


def made(affine):
    name = {"filename_or_obj": "a.nii"}
    return MetaTensor(torch.from_numpy(voxels)[None], affine=torch.from_numpy(affine), meta=name)


def slice_of(affine):
    return made(affine)[..., :1]


def channel(affine):
    nib.save(nib.Nifti1Image(np.stack([voxels, voxels], axis=-1), affine), "a.nii")
    return load("a.nii")[:1]


def loaded(affine):
    nib.save(nib.Nifti1Image(voxels, affine), "a.nii")
    return load("a.nii")


def written(volume, affine, resample):
    save = SaveImage("out", output_dtype=np.uint8, resample=resample, separate_folder=False, print_log=False)
    try:
        save(volume)
    except RuntimeError as error:
        assert "cannot find a suitable writer" in str(error)
        return "error"
    image = nib.load("out/a_trans.nii.gz")
    assert np.allclose(image.affine, affine)
    assert np.array_equal(np.asarray(image.dataobj), volume.numpy()[0].squeeze())
    return image.shape


for source, resample, shape, expected in (
    (made, True, (6, 7, 8), 16),
    (made, False, (6, 7, 8), 16),
    (channel, True, (6, 7, 8), 48),
    (channel, False, (6, 7, 8), 16),
    (loaded, True, (6, 7, 8), 48),
    (loaded, False, (6, 7, 8), 48),
    (slice_of, True, (6, 7, 1), 0),
    (slice_of, False, (6, 7, 1), 0),
):
    seen = Counter()
    for order, signs in product(permutations(range(3)), product((1.0, -1.0), repeat=3)):
        affine = np.eye(4)
        affine[:3, :3] = (np.diag(signs) * (1, 2, 3))[:, order]
        seen[written(source(affine), affine, resample)] += 1
    print(source.__name__, f"resample={resample}", dict(seen))
    assert seen == +Counter({shape: expected, "error": 48 - expected}), "the behaviour has changed"
END
