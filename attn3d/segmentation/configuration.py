"""Derives the configuration of a run from the settings and the fingerprint of the data."""

from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import torch

from attn3d.arguments import read_spec
from attn3d.segmentation.datasets import Dataset
from attn3d.segmentation.fingerprint import Fingerprint, Geometry, propose_geometry, propose_kernels
from attn3d.segmentation.losses import create_loss
from attn3d.segmentation.networks import narrowest, shape_multiple, uses_kernels, uses_strides
from attn3d.segmentation.settings import Configuration, Settings, checked
from attn3d.segmentation.windows import propose_windows, warn_of_invisible

_WINDOW = 8  # voxels of an attention window along the finest axis
_SQUEEZING = ("se", "cbam", "bam", "coord", "sk", "gc")  # mechanisms with a hidden layer of channels // reduction
_HIDDEN = 8  # smallest number of its hidden units: with one or two, a gate can be constant for all data


def configure(dataset: Dataset, images: int, fingerprint: Fingerprint, settings: Settings) -> Configuration:
    """The configuration for a data set: the settings, and values from its fingerprint for those that are None.

    Raises:
        ValueError: when patch size, strides and network do not fit, the network does not use strides or kernels that
            are set, the loss does not take the class weights, or windows or a change of brightness do not fit the data.
    """
    geometry = propose_geometry(fingerprint, settings.patch_voxels, settings.spacing, settings.patch_size)
    strides = settings.strides or geometry.strides
    costly = len(strides) > 1 and (geometry.whole or torch.cuda.is_available())  # DynUNet needs at least two
    network = settings.network or ("DynUNet" if costly else "UNet")
    kernels = settings.kernels or propose_kernels(strides, geometry.spacing)
    _check_shape(network, settings, strides)
    multiple = shape_multiple(network, strides)
    patch_size = _fitting(geometry, multiple, given=settings.patch_size is not None)
    if patch_size == multiple and network != "SegResNet":  # its group norm takes single voxels
        raise ValueError(
            f"`patch_size` {patch_size} becomes a single voxel in a {network}, which cannot be normalised; "
            "set a larger one, or another network"
        )
    windows = settings.windows
    if windows == "auto":
        windows = propose_windows(dataset.modality, fingerprint) if images == 1 else None
    if windows is not None and images != 1:
        raise ValueError(f"`windows` are for a CT of one image, got {images} images per case")
    if windows is not None and settings.brightness:
        raise ValueError(
            f"`brightness` must be 0 for a CT with `windows`, whose Hounsfield units scanners agree on, "
            f"got {settings.brightness:g}"
        )
    create_loss(settings.loss, dataset.labels, settings.class_weights)  # raises if the weights do not fit
    warn_of_invisible(windows, fingerprint)
    derived = {
        "network": network,
        "spacing": geometry.spacing,
        "patch_size": patch_size,
        "strides": strides,
        "kernels": kernels,
        "windows": windows,
        **_warp(windows is not None, settings),
        "attention": completed(settings.attention, geometry.spacing, narrowest(network, settings.width)),
        "start_from": None if settings.start_from is None else settings.start_from.resolve(),
        "data": str(dataset.folder.resolve()),
        "layout": dataset.layout,
        "simulated": dataset.simulated,
        "modality": dataset.modality,
        "labels": dataset.labels,
        "images": images,
        "versions": {name: version(name) for name in ("torch", "monai", "lightning", "nibabel", "numpy")},
    }
    return checked(Configuration, settings.model_dump(mode="json") | derived)


def _warp(hounsfield: bool, settings: Settings) -> dict[str, float]:
    """How patches are warped. The larger values were better on Task04 (MRI), and worse on simulated CT."""
    proposed = {"warped": 0.3, "rotation": 10.0, "scaling": 0.1}
    if not hounsfield:
        proposed = {"warped": 0.5, "rotation": 20.0, "scaling": 0.2}
    given = {name: getattr(settings, name) for name in proposed}
    return proposed | {name: value for name, value in given.items() if value is not None}


def _check_shape(network: str, settings: Settings, strides: Sequence[Sequence[int]]) -> None:
    """Checks that the network has enough strides, and uses the strides and kernels that are set."""
    if settings.strides and not uses_strides(network):
        raise ValueError(f"`strides` are not used by {network}, which halves all axes; omit them or use a UNet")
    least = 2 if uses_kernels(network) else 1
    if uses_strides(network) and len(strides) < least:
        raise ValueError(
            f"`strides` of a {network} must have {least} or more entries, got {strides}; set them, or larger patches"
        )
    if settings.kernels and not uses_kernels(network):
        raise ValueError(f"`kernels` are not used by {network}, whose kernels have size 3; omit them or use a DynUNet")
    if settings.kernels and len(settings.kernels) != 1 + len(strides):
        raise ValueError(
            f"`kernels` must have {1 + len(strides)} entries, one more than the strides, got {len(settings.kernels)}"
        )


def completed(attention: Any, spacing: Sequence[float], channels: int) -> Any:
    """Completes the spec of a mechanism with options that follow from the data and the network.

    A window has 8 voxels along the finest axis and about the same size in mm along the others, but at least 2 voxels. A
    squeeze has at least 8 hidden units for the given number of channels.
    """
    if attention is None:
        return None
    name, options = read_spec("attention", attention)
    if options.get("pattern") == "window":
        size = [max(2, round(_WINDOW * min(spacing) / one)) for one in spacing]
        return [name, {**options, "pattern": ["window", {"size": size}]}]
    if name in _SQUEEZING and "reduction" not in options:
        return [name, {**options, "reduction": max(1, channels // _HIDDEN)}]
    return attention


def _fitting(geometry: Geometry, multiple: tuple[int, ...], given: bool) -> tuple[int, ...]:
    """The patch size, rounded up to a multiple that the network requires."""
    fitting = tuple(-(-size // one) * one for size, one in zip(geometry.patch_size, multiple, strict=True))
    if given and fitting != geometry.patch_size:
        raise ValueError(f"`patch_size` must be multiples of {multiple}, got {geometry.patch_size}; try {fitting}")
    return fitting
