"""Finds gates that do not depend on their input."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from attn3d.capture import unwrapped
from attn3d.insertion.attach import containers
from attn3d.maps import attention_maps

_OF_SAMPLES = ("channel", "added", "branch")  # compared between volumes; the others are compared between voxels too
_OF_VOXELS = ("spatial", "gate", "axis0", "axis1", "axis2")


def constant_gates(net: nn.Module, loader: Iterable[Any], *, tolerance: float = 1e-6) -> dict[str, float]:
    """Finds inserted gates that are the same for every volume and therefore act like fixed weights.

    A gate is constant if all units of its hidden layer are switched off, or if it depends on the spatial mean directly
    after an instance norm, which is the norm's bias. Weights between voxels or channels ("query" and "affinity") and
    channel weights of every voxel ("channel_map") are not checked.

    Args:
        net: a network with inserted attention.
        loader: yields images (B, C, *S), tuples or lists whose first entry is the image, or dictionaries with the key
            "image", whose entry may be a dictionary with the key "data" (torchio); at least two volumes in total.
        tolerance: largest spread (maximum minus minimum) of a weight for which a gate counts as constant.

    Returns:
        the spreads of the constant gates, by the names of site and gate, such as "encoder:down_1 channel"; the names
        of sites are those of `attention_maps`.

    Raises:
        TypeError: if the loader yields something else.
        ValueError: if nothing is inserted, or the loader yields fewer than two volumes.

    Examples:
        >>> net = attn3d.insert_attention(UNet(3, 1, 2, (8, 16, 32), (2, 2)), "se", at="encoder")
        >>> attn3d.constant_gates(net, [torch.randn(2, 1, 16, 16, 16)])
        {}
    """
    if not any(containers(unwrapped(net))):
        raise ValueError("`net` must have inserted attention, got none; use attn3d.insert_attention")
    lowest: dict[str, Tensor] = {}
    highest: dict[str, Tensor] = {}
    volumes = 0
    for batch in loader:
        x = _image(batch)
        if len(x) == 0:  # the last batch of some loaders
            continue
        volumes += len(x)
        for site, weights in attention_maps(net, x).items():
            for kind, weight in weights.items():
                if site.startswith("own:") or not (kind in _OF_SAMPLES or kind in _OF_VOXELS):
                    continue
                name = f"{site} {kind}"
                values = weight if kind in _OF_SAMPLES else weight.flatten().unsqueeze(1)
                low, high = values.amin(0), values.amax(0)
                lowest[name] = torch.minimum(lowest.get(name, low), low)
                highest[name] = torch.maximum(highest.get(name, high), high)
    if volumes < 2:
        raise ValueError(f"`loader` must yield at least two volumes, got {volumes}")
    spreads = {name: float((highest[name] - lowest[name]).max()) for name in lowest}
    return {name: spread for name, spread in spreads.items() if spread <= tolerance}


def _image(batch: Any) -> Tensor:
    if isinstance(batch, Mapping):
        batch = batch.get("image")
        batch = batch.get("data") if isinstance(batch, Mapping) else batch
    elif isinstance(batch, (tuple, list)) and batch:
        batch = batch[0]
    if not isinstance(batch, Tensor):
        raise TypeError(
            "`loader` must yield images, tuples or lists whose first entry is the image, or dictionaries with the"
            f" image as ['image'] or ['image']['data'], got {type(batch).__name__}"
        )
    return batch
