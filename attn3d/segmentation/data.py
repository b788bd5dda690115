"""From pairs of scan and label to patches for training: torchio's subjects, augmentation and queue."""

from collections.abc import Generator, Sequence
from functools import cache

import nibabel as nib
import numpy as np
import torch
import torchio as tio
from torch import Tensor

from attn3d.segmentation.grid import label_to_grid, to_grid

_PERCENTILES = (0.5, 99.5)  # a hot voxel, however bright, must not set the scale
_SAMPLE = 2**20  # voxels that percentiles are taken of at most
_FURTHEST = 10.0  # deviations from the mean


def normalise(intensities: Tensor) -> Tensor:
    """Every channel with mean 0 and standard deviation 1, and none of its voxels beyond 10.

    Both are those of the voxels brighter than the channel's mean, as air must not set the scale, after what lies
    beyond the percentiles 0.5 and 99.5 is set to them. Where these are all the same, as in an image of two values,
    those of all voxels are taken; where all voxels are the same, they become 0.

    Args:
        intensities: (channels, *S), finite.
    """
    return torch.stack([_normalised(channel.float()) for channel in intensities])


def _normalised(values: Tensor) -> Tensor:
    some = values.flatten()[:: 1 + values.numel() // _SAMPLE].numpy()
    clipped = values.clamp(*np.percentile(some, _PERCENTILES, method="nearest").tolist())
    for chosen in (clipped[clipped > clipped.mean(dtype=torch.float64)], clipped, values):
        if chosen.numel() and chosen.min() < chosen.max():
            deviation, mean = torch.std_mean(chosen.double())
            return ((values - mean.item()) / deviation.item()).clamp_(-_FURTHEST, _FURTHEST)
    return torch.zeros_like(values)


def hold_out_anterior(label: nib.Nifti1Image, fraction: float) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Cuts what is labelled in two along the anterior-posterior axis, to train behind and to test in front.

    Args:
        label: from `read_label`, in any orientation.
        fraction: how much of the labelled extent lies in front of the cut.

    Returns:
        Slices of the posterior and of the anterior part, for arrays and for ``image.slicer``.

    Raises:
        ValueError: when one part would have no label.
    """
    axes, directions = nib.io_orientation(label.affine).T
    axis = int(np.flatnonzero(axes == 1)[0])
    forwards = directions[axis] > 0  # does the index grow towards the front?
    labelled = np.flatnonzero(np.asarray(label.dataobj).any(axis=tuple({0, 1, 2} - {axis})))
    extent = labelled[-1] + 1 - labelled[0]
    cut = int(labelled[0] + round((1 - fraction if forwards else fraction) * extent))
    if not labelled[0] < cut <= labelled[-1]:
        raise ValueError(f"`label` must span more voxels from back to front to be cut in two, got {extent}")
    before, after = [slice(None)] * 3, [slice(None)] * 3
    before[axis], after[axis] = slice(None, cut), slice(cut, None)
    return (tuple(before), tuple(after)) if forwards else (tuple(after), tuple(before))


def training_subject(
    images: nib.Nifti1Image | Sequence[nib.Nifti1Image],
    label: nib.Nifti1Image,
    spacing: Sequence[float],
    patch_size: Sequence[int],
) -> tio.Subject:
    """A case, of one image or several, on the working grid, extended by its edges where a patch is larger."""
    images = [images] if isinstance(images, nib.Nifti1Image) else images
    volumes = [to_grid(image, spacing) for image in images]
    affine = volumes[0].affine.numpy()
    labels = label_to_grid(label, spacing).as_tensor()
    subject = tio.Subject(
        image=tio.ScalarImage(tensor=torch.cat([volume.as_tensor() for volume in volumes]), affine=affine),
        label=tio.LabelMap(tensor=labels, affine=affine),
    )
    shape = [max(sizes) for sizes in zip(subject.spatial_shape, patch_size, strict=True)]
    return tio.CropOrPad(shape, padding_mode="edge")(subject)


_normalisation = tio.Lambda(normalise, types_to_apply=[tio.INTENSITY])


def augmentation() -> tio.Transform:
    """What one scanner, position or person does to a T1 MRI and another does not; ends as `normalise` does."""
    return tio.Compose(
        [
            tio.RandomFlip(axes=0),
            tio.RandomAffine(scales=0.1, degrees=10, p=0.2),  # interpolation blurs: most scans stay sharp
            tio.RandomBiasField(coefficients=0.15, p=0.3),
            _normalisation,
            tio.RandomNoise(std=(0, 0.3), p=0.3),
        ]
    )


def degrade(image: nib.Nifti1Image) -> nib.Nifti1Image:
    """The same scan from a worse scanner: a bias field and noise, the same at every call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        worse = tio.Compose([tio.RandomBiasField(coefficients=0.3), _normalisation, tio.RandomNoise(std=(0.3, 0.3))])
        data = worse(torch.from_numpy(image.get_fdata(dtype=np.float32))[None])[0]
    return type(image)(data.numpy(), image.affine, image.header)


class LabelledPatches(tio.data.sampler.RandomSampler):
    """Draws patches of which a given share holds a label, wherever in the scan it lies.

    For such a patch a label is drawn among those that the case has, then one of its voxels, which is the patch's
    middle unless the border is nearer: there the patch ends at the border. The others lie anywhere, as all do in a
    case without labels.

    Args:
        patch_size: voxels along each axis.
        share: of the patches that hold a label by intent, 0 to 1.
    """

    def __init__(self, patch_size: Sequence[int], share: float):
        super().__init__(tuple(patch_size))
        self.share = share

    def _generate_patches(self, subject: tio.Subject, num_patches: int | None = None) -> Generator[tio.Subject]:
        labels = subject["label"].data[0]
        size = torch.from_numpy(self.patch_size.astype(np.int64))
        room = torch.tensor(subject.spatial_shape) - size
        present = labels[labels > 0].unique()

        @cache
        def voxels(value: int) -> Tensor:
            return (labels == value).nonzero()

        drawn = 0
        while num_patches is None or drawn < num_patches:
            if len(present) and torch.rand(()) < self.share:
                corner = (_one_of(voxels(_one_of(present).item())) - size // 2).clamp(torch.zeros(3, dtype=int), room)
            else:
                corner = (torch.rand(3, dtype=torch.float64) * (room + 1)).long()
            yield self.extract_patch(subject, tuple(corner.tolist()))
            drawn += 1


def _one_of(rows: Tensor) -> Tensor:
    return rows[torch.randint(len(rows), ())]


def patch_loader(
    subjects: Sequence[tio.Subject], patch_size: Sequence[int], batch_size: int, patches_per_scan: int = 48
) -> tio.SubjectsLoader:
    """Batches of augmented patches; an epoch augments every scan once."""
    queue = tio.Queue(
        tio.SubjectsDataset(list(subjects), transform=augmentation()),
        max_length=patches_per_scan * min(len(subjects), 8),
        samples_per_volume=patches_per_scan,
        sampler=tio.UniformSampler(tuple(patch_size)),
    )
    return tio.SubjectsLoader(queue, batch_size=batch_size)
