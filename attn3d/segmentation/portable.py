"""Preprocessing and postprocessing of a network, which only need nibabel, NumPy, PyTorch and MONAI.

This file and ``grid.py`` are copied into every export, so that the preprocessing is the same as in training.
"""

import math
import re
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.inferers import Inferer, SlidingWindowInferer
from monai.transforms import MapTransform
from torch import Tensor

from .grid import along, resampled_planes, to_grid  # relative, since an export is another package

_PERCENTILES = (0.5, 99.5)  # so that a few extreme voxels do not set the scale
_SAMPLE = 2**20  # approximate number of voxels from which percentiles are computed
_FURTHEST = 10.0  # standard deviations from the mean

Windows = Sequence[Sequence[float]] | None


def find_images(folder: str, images: int) -> list[dict[str, list[str]]]:
    """The files of each case in a folder: ``case_0000`` to ``case_000N``, or one file ``case`` with all images.

    Args:
        folder: the folder of the NIfTI files.
        images: number of images per case.

    Raises:
        FileNotFoundError: when there is no case.
        ValueError: when two cases have the same name.
    """
    found = [path for path in sorted(Path(folder).glob("[!.]*")) if path.name.endswith((".nii", ".nii.gz"))]
    files = {path.name: str(path) for path in found}
    cases = []
    for name, path in files.items():
        channel = re.search(r"_(\d{4})\.nii", name)
        if images == 1 or channel is None:
            cases.append({"image": [path]})
        elif channel[1] == "0000":
            cases.append({"image": [path.replace("_0000.nii", f"_{number:04d}.nii") for number in range(images)]})
    names = [_name_of(case["image"][0]) for case in cases]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(f"{folder}: has two scans of the name {twice!r}; their labels would have the same file")
    if not cases:
        more = f": case_0000 to case_{images - 1:04d}, or one 4-D file" if images > 1 else ""
        raise FileNotFoundError(f"{folder}: has no NIfTI file of a case of {images} images{more}; put the scans there")
    return cases


def _name_of(path: Path | str) -> str:
    """The name of a case from its first file."""
    return re.sub(r"(_0000)?\.nii(\.gz)?$", "", Path(path).name)


def normalise(intensities: Tensor) -> Tensor:
    """Normalises every channel to mean 0 and standard deviation 1, and clips it to -10 and 10.

    Mean and standard deviation are computed after clipping to the percentiles 0.5 and 99.5, over the voxels above the
    channel's mean, so that air does not set the scale. If these voxels are all equal, as in an image of two values, all
    voxels are used. A constant channel becomes 0.

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


def on_grid(images: Sequence[nib.Nifti1Image], spacing: Sequence[float], windows: Windows) -> MetaTensor:
    """The input of `to_channels`: the images of a case, (images, *S), float32, on the working grid, with its affine.

    Args:
        images: the images of a case.
        spacing: millimetres per voxel along right, anterior, superior.
        windows: level and width in HU of each channel, or None to normalise each image.
    """
    volumes = [to_grid(image, spacing) for image in images]
    intensities = volumes[0].as_tensor() if len(volumes) == 1 else torch.cat([one.as_tensor() for one in volumes])
    if windows is None:
        intensities = normalise(intensities)
    return MetaTensor(intensities, affine=volumes[0].affine)


def to_channels(intensities: Tensor, windows: Windows) -> Tensor:
    """Maps a CT to one channel per window, scaled and clipped to -1 and 1. Without windows, returns its input.

    Args:
        intensities: (images, *S) or (B, images, *S).
        windows: level and width in HU of each channel, or None.

    Returns:
        (windows, *S) or (B, windows, *S), or ``intensities`` if there are no windows.
    """
    if windows is None:
        return intensities
    return torch.cat([((intensities - level) / (width / 2)).clamp(-1, 1) for level, width in windows], dim=-4)


def probabilities_of(logits: Tensor, regions: bool) -> Tensor:
    """Probabilities of logits (channels, *S): a sigmoid for each region, or a softmax over labels."""
    return logits.sigmoid() if regions else logits.softmax(dim=0)


def choose_labels(probabilities: Tensor, values: Sequence[int], regions: bool) -> Tensor:
    """The label map (*S), uint8, of probabilities (channels, *S).

    For labels, a voxel gets the value of the most probable one, or of the first of equally probable ones. For regions,
    as in nnU-Net, it gets the value of the last region with a probability above 0.5, or 0 if there is none.

    Args:
        probabilities: from `probabilities_of`.
        values: the label value of each channel.
        regions: whether the channels are regions.
    """
    if not regions:
        return torch.tensor(values, dtype=torch.uint8, device=probabilities.device)[probabilities.max(dim=0).indices]
    chosen = torch.zeros(probabilities.shape[1:], dtype=torch.uint8, device=probabilities.device)
    for value, probability in zip(values, probabilities, strict=True):
        chosen[probability > 0.5] = value
    return chosen


def window_size(patch_size: Sequence[int], multiple: Sequence[int], shape: Sequence[int]) -> tuple[int, ...]:
    """The size of the sliding window: the whole volume if it has at most twice the voxels of a patch, else a patch.

    Args:
        patch_size: size of a patch in training, in voxels.
        multiple: number per axis that must divide the size of a window.
        shape: shape of the volume.
    """
    whole = tuple(
        max(patch, -(-size // one) * one) for patch, one, size in zip(patch_size, multiple, shape, strict=True)
    )
    return whole if math.prod(whole) <= 2 * math.prod(patch_size) else tuple(patch_size)


class Prepared(MapTransform):
    """The preprocessing of a scan that MONAI has loaded: (images, *S) to (C, *S) on the working grid.

    The metadata keep the grid of the scan, for `ToScan`.

    Args:
        keys: keys of the scan.
        spacing: millimetres per voxel along right, anterior, superior.
        windows: level and width in HU of each channel, or None to normalise to mean 0 and standard deviation 1.
    """

    def __init__(self, keys: KeysCollection, spacing: Sequence[float], windows: Windows = None):
        super().__init__(keys)
        self.spacing, self.windows = spacing, windows

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Returns the data with the preprocessed scan.

        Raises:
            ValueError: when a voxel is not finite.
        """
        prepared = dict(data)
        for key in self.key_iterator(prepared):
            scan = prepared[key]
            if bad := int((~torch.isfinite(scan)).sum()):
                name = scan.meta.get("filename_or_obj", f"the scan {key!r}")
                raise ValueError(f"{name}: {bad} voxels are NaN or infinite; replace them, for example by 0")
            affine = np.asarray(scan.affine, float)
            images = [nib.Nifti1Image(np.asarray(one, np.float32), affine) for one in scan]
            volume = on_grid(images, self.spacing, self.windows)
            meta = {"filename_or_obj": scan.meta["filename_or_obj"], "scan_affine": affine}
            meta |= {"scan_shape": tuple(scan.shape[1:])}
            channels = to_channels(volume.as_tensor(), self.windows)
            prepared[key] = MetaTensor(channels, affine=volume.affine, meta=meta)
        return prepared


class ToScan(MapTransform):
    """The postprocessing: logits (channels, *S) on the working grid to labels (1, *shape), uint8, on the scan's grid.

    Args:
        keys: keys of the logits.
        image: key of the scan from `Prepared`.
        values: the label value of each channel.
        regions: whether the channels are regions, which may overlap.
    """

    def __init__(self, keys: KeysCollection, image: Hashable, values: Sequence[int], regions: bool = False):
        super().__init__(keys)
        self.image, self.values, self.regions = image, values, regions

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Returns the data with labels instead of logits."""
        done = dict(data)
        scan = done[self.image]
        affine, shape = (np.asarray(scan.meta[name]) for name in ("scan_affine", "scan_shape"))
        for key in self.key_iterator(done):
            probabilities = probabilities_of(torch.as_tensor(done[key]).cpu().float(), self.regions)
            grid = scan.affine.numpy(), probabilities.shape[1:]
            labels = torch.empty(*shape.tolist(), dtype=torch.uint8)
            axis = along(2, grid[0], affine)
            planes = iter(probabilities.unbind(3))
            for index, plane in resampled_planes(planes, *grid, affine, shape.tolist(), 2):
                labels.select(axis, index).copy_(choose_labels(plane, self.values, self.regions))
            meta = {"filename_or_obj": str(scan.meta["filename_or_obj"])}
            done[key] = MetaTensor(labels[None], affine=torch.from_numpy(affine), meta=meta)
        return done


class SaveLabels(MapTransform):
    """Writes labels from `ToScan` to ``case_seg.nii.gz``, with the affines of the scan and their codes.

    MONAI's ``SaveImaged`` fails for sagittal and coronal scans and for single slices.

    Args:
        keys: keys of the labels.
        folder: the folder to write to.
    """

    def __init__(self, keys: KeysCollection, folder: str):
        super().__init__(keys)
        self.folder = Path(folder)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Writes the labels and returns the data."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for key in self.key_iterator(dict(data)):
            path = Path(data[key].meta["filename_or_obj"])
            scan: Any = nib.load(path)
            labels = nib.Nifti1Image(np.asarray(data[key][0], np.uint8), data[key].affine.numpy())
            labels.set_sform(*scan.get_sform(coded=True))
            labels.set_qform(*scan.get_qform(coded=True))
            labels.header.set_xyzt_units("mm")
            file = self.folder / f"{_name_of(path)}_seg.nii.gz"
            unfinished = file.with_name(f".{file.name}")
            nib.save(labels, unfinished)
            unfinished.replace(file)
        return dict(data)


class WindowInferer(Inferer):
    """MONAI's sliding window inference with the window size of `window_size`.

    Args:
        patch_size: size of a patch in training, in voxels.
        multiple: number per axis that must divide the size of a window.
        overlap: overlap of neighbouring windows, as a fraction of their size.
    """

    def __init__(self, patch_size: Sequence[int], multiple: Sequence[int], overlap: float = 0.5):
        super().__init__()
        self.patch_size, self.multiple, self.overlap = patch_size, multiple, overlap

    def __call__(self, inputs: Tensor, network: Any, *args: Any, **kwargs: Any) -> Any:
        """Returns the logits of a volume (B, C, *S)."""
        window = window_size(self.patch_size, self.multiple, inputs.shape[2:])
        slide = SlidingWindowInferer(
            window, overlap=self.overlap, mode="gaussian", padding_mode="replicate", cache_roi_weight_map=False
        )
        return slide(inputs, network, *args, **kwargs)
