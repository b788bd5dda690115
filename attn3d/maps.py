"""What inserted attention looked at."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from attn3d.insertion.attach import containers
from attn3d.layers.spatial import resize
from attn3d.networks.registry import run


def attention_maps(
    net: nn.Module, x: Tensor, voxels: Sequence[Sequence[int]] | None = None
) -> dict[str, dict[str, Tensor]]:
    """What every inserted mechanism weighed in a forward pass over ``x``.

    The network runs once, in evaluation mode and without gradients. Maps are brought to the grid of ``x`` by linear
    interpolation; nothing over pairs of voxels is built but the rows of the voxels that are asked for.

    Args:
        net: a network with attention inserted.
        x: (B, C, *S).
        voxels: positions on the grid of ``x`` whose rows of weights are wanted, from mechanisms in which every
            voxel has its own (non_local, mhsa, danet); by default the one in the middle.

    Returns:
        by the name of the site (with "#1", "#2" behind it for further mechanisms at the same site) a dictionary,
        empty for a mechanism without ``attention_weights`` or that did not run, of what the mechanism has:

        - "channel": gates or weights of the channels, (B, C');
        - "channel_map": the mean over the channels of |gate x map|, (B, *S);
        - "spatial": gates or weights of the voxels, (B, *S);
        - "gate": mean over the channels of a gate for every channel and voxel, (B, *S);
        - "axis0", "axis1", ..: mean gate over the channels at every position along an axis, (B, S_a);
        - "axes_map": the mean over the channels of the product of the axes' gates, (B, *S);
        - "branch": weights of the branches, (B, M, C');
        - "query": weights of all voxels for each of the ``voxels``, (B, heads, Q, *S);
        - "affinity": weights of channels for channels, (B, C', C').

    Raises:
        ValueError: when nothing is inserted, or a voxel lies outside the grid.

    Examples:
        >>> net = attn3d.insert_attention(UNet(3, 1, 2, (8, 16, 32), (2, 2)), "se", at="encoder")
        >>> maps = attn3d.attention_maps(net, torch.randn(1, 1, 16, 16, 16))
        >>> maps["encoder:model.0"]["channel"].shape
        torch.Size([1, 8])
    """
    mechanisms = _mechanisms(net)
    if not mechanisms:
        raise ValueError("`net` has no attention in it; insert some with attn3d.insert_attention")
    grid = list(x.shape[2:])
    voxels = [[size // 2 for size in grid]] if voxels is None else [list(voxel) for voxel in voxels]
    for voxel in voxels:
        if len(voxel) != len(grid) or not all(0 <= place < size for place, size in zip(voxel, grid, strict=True)):
            raise ValueError(f"`voxels` must lie on the grid {grid}, got {voxel}")

    inputs: dict[str, tuple[Any, ...]] = {}
    handles = [
        module.register_forward_pre_hook(lambda _, args, name=name: inputs.__setitem__(name, args))
        for name, module in mechanisms.items()
    ]
    training = {module: module.training for module in net.modules()}
    try:
        net.eval()
        with torch.no_grad():
            run(net, x)
            return {name: _on_grid(module, inputs.get(name), grid, voxels) for name, module in mechanisms.items()}
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in training.items():
            module.training = mode


def _mechanisms(net: nn.Module) -> dict[str, nn.Module]:
    """The mechanisms by the names of their sites."""
    found: dict[str, nn.Module] = {}
    for _, inserted in containers(net):
        for record, module in zip(inserted.records, inserted, strict=True):
            while not hasattr(module, "attention_weights") and hasattr(module, "attention"):
                module = module.attention  # inside the gate of an identity at start
            again = sum(name.split("#")[0] == record.site for name in found)
            found[f"{record.site}#{again}" if again else record.site] = module
    return found


def _on_grid(
    module: nn.Module, inputs: tuple[Any, ...] | None, grid: list[int], voxels: list[list[int]]
) -> dict[str, Tensor]:
    """The weights of a mechanism, its maps brought to the grid of the image."""
    if inputs is None or not hasattr(module, "attention_weights"):
        return {}
    x = inputs[0]
    weights = module.attention_weights(*inputs, queries=_flat_indices(voxels, grid, list(x.shape[2:]), x.device))
    found: dict[str, Tensor] = {}
    for name, weight in weights.items():
        if name == "channel":
            found["channel"] = weight.flatten(1)
            found["channel_map"] = resize((weight * x).abs().mean(1, keepdim=True), grid).squeeze(1)
        elif name in ("spatial", "gate"):
            found[name] = resize(weight.mean(1, keepdim=True), grid).squeeze(1)
        elif name == "branch":
            found["branch"] = weight.flatten(2)
        elif name == "query":
            found["query"] = resize(weight.flatten(1, 2), grid).unflatten(1, list(weight.shape[1:3]))
        elif name.startswith("axis"):
            axis = int(name.removeprefix("axis"))
            found[name] = resize(weight.mean(1, keepdim=True).flatten(2), [grid[axis]]).squeeze(1)
        else:
            found[name] = weight
    gates = [weight for name, weight in weights.items() if name.startswith("axis")]
    if gates:
        product = gates[0]
        for gate in gates[1:]:
            product = product * gate
        found["axes_map"] = resize(product.mean(1, keepdim=True), grid).squeeze(1)
    return found


def _flat_indices(voxels: list[list[int]], grid: list[int], shape: list[int], device: torch.device) -> Tensor:
    """The voxels of the image as flat indices into a map of another shape."""
    indices = []
    for voxel in voxels:
        index = 0
        for place, whole, size in zip(voxel, grid, shape, strict=True):
            index = index * size + place * size // whole
        indices.append(index)
    return torch.tensor(indices, device=device)
