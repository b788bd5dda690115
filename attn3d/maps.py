"""What attention looked at: that which was inserted, and that which a network has of its own."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from attn3d.arguments import one_of
from attn3d.insertion.attach import containers
from attn3d.layers.spatial import resize
from attn3d.networks.own import OwnAttention, Tokens, own_attention
from attn3d.networks.registry import run

Maps = dict[str, dict[str, Tensor]]


def attention_maps(
    net: nn.Module,
    x: Tensor,
    voxels: Sequence[Sequence[int]] | None = None,
    *,
    site: str | Sequence[str] | None = None,
) -> Maps:
    """What every attention of a network weighed in a forward pass over ``x``: inserted mechanisms and its own.

    The network runs once, in evaluation mode and without gradients, and stays what it was. Maps are brought to the
    grid of ``x`` by linear interpolation; nothing over pairs of voxels is built but the rows of the voxels that are
    asked for. Of their own have attention MONAI's AttentionUnet (gates), SwinUNETR (windows), UNETR, ViT, ViTAutoEnc,
    DiffusionModelUNet, AutoencoderKL and all that is built of their blocks, and nnU-Net's Primus.

    Args:
        net: a network with attention.
        x: (B, C, *S).
        voxels: positions on the grid of ``x`` whose rows of weights are wanted, from attention in which every
            voxel has its own (non_local, mhsa, danet, windows, transformers); by default the one in the middle.
        site: one of the names below, or several; by default all.

    Returns:
        by the name of the site (with "#1", "#2" behind it for further mechanisms at the same site), or "own:" and the
        path of the network's own attention, a dictionary, empty for a mechanism without ``attention_weights`` or that
        did not run, of what there is:

        - "channel": gates or weights of the channels, (B, C');
        - "channel_map": the mean over the channels of |gate x map|, (B, *S);
        - "spatial": gates or weights of the voxels, (B, *S);
        - "gate": mean over the channels of a gate for every channel and voxel, (B, *S);
        - "axis0", "axis1", ..: mean gate over the channels at every position along an axis, (B, S_a);
        - "axes_map": the mean over the channels of the product of the axes' gates, (B, *S);
        - "branch": weights of the branches, (B, M, C');
        - "query": weights of all voxels for each of the ``voxels``, (B, heads, Q, *S), 0 where it cannot look;
        - "context": weights of the tokens of a context for each of the ``voxels``, (B, heads, Q, tokens);
        - "affinity": weights of channels for channels, (B, C', C').

    Raises:
        ValueError: when the network has no attention that is known, a site is unknown, or a voxel lies outside the
            grid.

    Examples:
        >>> net = attn3d.insert_attention(UNet(3, 1, 2, (8, 16, 32), (2, 2)), "se", at="encoder")
        >>> maps = attn3d.attention_maps(net, torch.randn(1, 1, 16, 16, 16))
        >>> maps["encoder:model.0"]["channel"].shape
        torch.Size([1, 8])
    """
    mechanisms = _mechanisms(net)
    own = {f"own:{path}": found for path, found in own_attention(net).items()}
    names = [*mechanisms, *own]
    if not names:
        raise ValueError(
            "`net` has no attention in it: none inserted, and none of its own that is known; insert some with "
            "attn3d.insert_attention"
        )
    if site is not None:
        names = [one_of("site", name, names) for name in ([site] if isinstance(site, str) else site)]
    grid = list(x.shape[2:])
    places = [[size // 2 for size in grid]] if voxels is None else [list(voxel) for voxel in voxels]
    for voxel in places:
        if len(voxel) != len(grid) or not all(0 <= place < size for place, size in zip(voxel, grid, strict=True)):
            raise ValueError(f"`voxels` must lie on the grid {grid}, got {voxel}")

    maps: Maps = {name: {} for name in names}

    def see(name: str, module: Any) -> None:
        """Watches a mechanism."""

        def read(x: Tensor, *more: Any, **named: Any) -> None:
            queries = _flat_indices(places, grid, list(x.shape[2:]), x.device)
            maps[name] = _on_grid(module.attention_weights(x, *more, queries=queries, **named), x, grid)

        if hasattr(module, "attention_weights"):
            hooks.enter_context(_before(module, read))

    def see_own(name: str, attention: OwnAttention) -> None:
        """Watches attention of the network's own, and the module that knows where its tokens lie."""
        tokens: list[Tokens] = []

        def lay(*args: Any, **named: Any) -> None:
            tokens[:] = [attention.tokens(*args, **named)]

        def read(*args: Any, **named: Any) -> None:
            queries = _flat_indices(places, grid, tokens[0].shape, tokens[0].voxels.device)
            maps[name] = _on_grid(attention.weights(tokens[0], queries, *args, **named), x, grid)

        hooks.enter_context(_before(attention.host, lay))
        hooks.enter_context(_before(attention.module, read))

    with ExitStack() as hooks, _evaluating(net), torch.no_grad():
        for name in names:
            see_own(name, own[name]) if name in own else see(name, mechanisms[name])
        run(net, x)
    return maps


@contextmanager
def _before(module: nn.Module, see: Callable[..., None]) -> Iterator[None]:
    """Calls ``see`` with what a module is called with, before each of its calls."""
    handle = module.register_forward_pre_hook(lambda _, args, named: see(*args, **named), with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _evaluating(net: nn.Module) -> Iterator[None]:
    """Evaluation mode, and every module in its own mode again."""
    training = {module: module.training for module in net.modules()}
    try:
        net.eval()
        yield
    finally:
        for module, mode in training.items():
            module.training = mode


def _mechanisms(net: nn.Module) -> dict[str, nn.Module]:
    """The mechanisms by the names of their sites."""
    found: dict[str, nn.Module] = {}
    for _, inserted in containers(net):
        module: Any
        for record, module in zip(inserted.records, inserted, strict=True):
            while not hasattr(module, "attention_weights") and hasattr(module, "attention"):
                module = module.attention  # inside the gate of an identity at start
            again = sum(name.split("#")[0] == record.site for name in found)
            found[f"{record.site}#{again}" if again else record.site] = module
    return found


def _on_grid(weights: dict[str, Tensor], x: Tensor, grid: list[int]) -> dict[str, Tensor]:
    """The weights of a mechanism over ``x``, its maps brought to the grid of the image."""
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
