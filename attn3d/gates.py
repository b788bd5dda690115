"""Gates that do not depend on their input."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from attn3d.maps import attention_maps

_OF_SAMPLES = ("channel", "branch")  # weights of which each is to differ between volumes; others may along a volume too
_OF_VOXELS = ("spatial", "gate", "axis0", "axis1", "axis2")


def constant_gates(net: nn.Module, loader: Iterable[Any], *, tolerance: float = 1e-6) -> dict[str, float]:
    """Which inserted gates weigh every volume alike, and so do nothing that a fixed weight would not.

    A hidden layer whose units are all switched off leaves such a gate, and so does a mean over space directly behind
    an instance norm, which is the norm's bias.

    Args:
        net: a network with attention inserted.
        loader: gives images (B, C, *S), or tuples or lists that begin with them, or dictionaries that have them as
            "image"; two volumes at least in all.
        tolerance: the spread, the largest less the smallest value of a weight, up to which a gate is constant.

    Returns:
        the spreads of the constant gates, by the site's and the gate's names, "encoder:down_1 channel".

    Raises:
        TypeError: when the loader gives something else.
        ValueError: when nothing is inserted, or the loader gives fewer than two volumes.

    Examples:
        >>> net = attn3d.insert_attention(UNet(3, 1, 2, (8, 16, 32), (2, 2)), "se", at="encoder")
        >>> attn3d.constant_gates(net, [torch.randn(2, 1, 16, 16, 16)])
        {}
    """
    lowest: dict[str, Tensor] = {}
    highest: dict[str, Tensor] = {}
    volumes = 0
    for batch in loader:
        x = _image(batch)
        volumes += len(x)
        for site, weights in attention_maps(net, x).items():
            for kind, weight in weights.items():
                if site.startswith("own:") or not (kind in _OF_SAMPLES or kind in _OF_VOXELS):
                    continue
                name = f"{site} {kind}"
                values = weight.detach().as_subclass(Tensor)
                values = values if kind in _OF_SAMPLES else values.flatten().unsqueeze(1)
                low, high = values.amin(0), values.amax(0)
                lowest[name] = torch.minimum(lowest.get(name, low), low)
                highest[name] = torch.maximum(highest.get(name, high), high)
    if volumes < 2:
        raise ValueError(f"`loader` must give at least two volumes, which gates can tell apart, got {volumes}")
    spreads = {name: float((highest[name] - lowest[name]).max()) for name in lowest}
    return {name: spread for name, spread in spreads.items() if spread <= tolerance}


def _image(batch: Any) -> Tensor:
    if isinstance(batch, Mapping):
        batch = batch.get("image")
    elif isinstance(batch, (tuple, list)) and batch:
        batch = batch[0]
    if not isinstance(batch, Tensor):
        raise TypeError(
            "`loader` must give images, tuples or lists that begin with them or dictionaries that have them as"
            f" 'image', got {type(batch).__name__}"
        )
    return batch
