"""Attention maps of inserted mechanisms and of a network's own attention."""

import functools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from attn3d.arguments import one_of, voxels_on
from attn3d.capture import unwrapped, without_compiled_code
from attn3d.insertion.attach import inserted_by_network
from attn3d.insertion.probe import evaluating
from attn3d.layers.spatial import resize
from attn3d.networks.own import OwnAttention, TokenLayout, own_attention
from attn3d.networks.registry import run

Maps = dict[str, dict[str, Tensor]]


def attention_maps(
    net: nn.Module,
    x: Tensor,
    voxels: Sequence[Sequence[int]] | None = None,
    *,
    site: str | Sequence[str] | None = None,
) -> Maps:
    """Returns the attention maps of a network for ``x``, of inserted mechanisms and of the network's own attention.

    The network runs once, in evaluation mode and without gradients, and is not changed. Maps are resized to the grid of
    ``x`` by linear interpolation. Of pairwise weights, only the rows of the requested voxels are computed. If a module
    runs several times, the maps are those of its last call. Supported as a network's own attention: MONAI's
    AttentionUnet (gates), SwinUNETR (windows), UNETR, ViT, ViTAutoEnc, DiffusionModelUNet, AutoencoderKL and other
    networks with their blocks, and nnU-Net's Primus. A registered network that takes more than an image runs with
    placeholders, such as time 0 and a context of one token. To pass other values, wrap it in a module that takes the
    image only.

    Args:
        net: a network with attention, which may be compiled; its compiled code is not used.
        x: (B, C, *S).
        voxels: positions on the grid of ``x`` whose rows of weights are returned, for attention in which every voxel
            has its own weights (non_local, mhsa, danet, windows, transformers); the central voxel by default.
        site: one or several of the names below; all by default.

    Returns:
        a dictionary of plain tensors for every site. The keys are the names of the sites, with "#1", "#2" appended for
        further mechanisms at the same site, and "own:<path>" for the network's own attention. If ``net`` contains
        several networks with attention, their paths come first: "encoder:student.model.0". A site's dictionary is
        empty for a mechanism that has no ``attention_weights`` or did not run; otherwise it has some of these:

        - "channel": gates or weights of the channels, (B, C');
        - "channel_map": mean over the channels of |gate * map|, (B, *S), where map is what the gate multiplies;
        - "added": values that are added to the channels, (B, C');
        - "spatial": gates or weights of the voxels, (B, *S);
        - "gate": mean over the channels of a gate for every channel and voxel, (B, *S);
        - "axis0", "axis1", ..: mean gate over the channels at every position along an axis, (B, S_a);
        - "axes_map": mean over the channels of the product of the gates of all axes, (B, *S);
        - "branch": weights of the branches, (B, M, C');
        - "query": weights of all voxels for each of the ``voxels``, (B, heads, Q, *S); 0 for voxels it does not see;
        - "context": weights of the tokens of a context for each of the ``voxels``, (B, heads, Q, tokens);
        - "affinity": weights between channels, (B, C', C').

    Raises:
        TypeError: if ``net`` is not a module, ``x`` not a tensor, or ``site`` not a name or a list of names.
        ValueError: if the network has no supported attention, a site is unknown, or a voxel is outside the grid.

    Examples:
        >>> net = attn3d.insert_attention(UNet(3, 1, 2, (8, 16, 32), (2, 2)), "se", at="encoder")
        >>> maps = attn3d.attention_maps(net, torch.randn(1, 1, 16, 16, 16))
        >>> maps["encoder:model.0"]["channel"].shape
        torch.Size([1, 8])
    """
    net = unwrapped(net)
    if not isinstance(x, Tensor):
        raise TypeError(f"`x` must be a torch.Tensor (B, C, *S), got {type(x).__name__}")
    mechanisms = _mechanisms(net)
    own = {f"own:{path}": found for path, found in own_attention(net).items()}
    names = [*mechanisms, *own]
    if not names:
        raise ValueError(
            "`net` must have attention, got none: neither inserted nor supported attention of its own; use"
            " attn3d.insert_attention"
        )
    if site is not None:
        if not isinstance(site, Iterable):
            raise TypeError(f"`site` must be a name or a list of names, got {site!r}")
        names = [one_of("site", name, names) for name in ([site] if isinstance(site, str) else site)]
    grid = list(x.shape[2:])
    positions = voxels_on(grid, voxels)

    maps: Maps = {name: {} for name in names}

    def watch(name: str, module: Any) -> None:
        """Registers a hook that reads the weights of a mechanism."""

        def read(x: Tensor, *more: Any, **named: Any) -> None:
            queries = _flat_indices(positions, grid, list(x.shape[2:]), x.device)
            maps[name] = _on_grid(module.attention_weights(x, *more, queries=queries, **named), x, grid)

        if hasattr(module, "attention_weights"):
            hooks.enter_context(_before(module, read))

    def watch_own(name: str, attention: OwnAttention) -> None:
        """Registers hooks on the network's own attention and on the module that determines its token positions."""
        tokens: list[TokenLayout] = []

        def read_positions(*args: Any, **named: Any) -> None:
            tokens[:] = [attention.tokens(*args, **named)]

        def read(*args: Any, **named: Any) -> None:
            queries = _flat_indices(positions, grid, tokens[0].shape, tokens[0].voxels.device)
            maps[name] = _on_grid(attention.weights(tokens[0], queries, *args, **named), x, grid)

        hooks.enter_context(_before(attention.host, read_positions))
        hooks.enter_context(_before(attention.module, read))

    with ExitStack() as hooks, evaluating(net), torch.no_grad(), without_compiled_code():
        for name in names:
            if name in own:
                watch_own(name, own[name])
            else:
                watch(name, mechanisms[name])
        run(net, x)
    return maps


@contextmanager
def _before(module: nn.Module, function: Callable[..., None]) -> Iterator[None]:
    """Calls ``function`` with the arguments of the module before each of its calls."""
    handle = module.register_forward_pre_hook(lambda _, args, named: function(*args, **named), with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def _mechanisms(net: nn.Module) -> dict[str, nn.Module]:
    """Returns the inserted mechanisms by the names of their sites."""
    found: dict[str, nn.Module] = {}
    earlier: Counter[str] = Counter()
    networks = inserted_by_network(net)
    for network, inserted in networks.items():
        module: Any
        for record, module in inserted:
            while not hasattr(module, "attention_weights") and hasattr(module, "attention"):
                module = module.attention  # inside `IdentityAtStart`
            kind, _, path = record.site.partition(":")
            front = f"{network}." if network and len(networks) > 1 else ""
            name = f"{kind}:{front}{path}"
            found[f"{name}#{earlier[name]}" if earlier[name] else name] = module
            earlier[name] += 1
    return found


def _on_grid(weights: dict[str, Tensor], x: Tensor, grid: list[int]) -> dict[str, Tensor]:
    """Returns the weights of a mechanism for ``x``, with maps resized to the grid of the image."""
    found: dict[str, Tensor] = {}
    if "channel" in weights:
        weights = {"channel_map": (weights["channel"] * x).abs()} | weights
    for name, weight in weights.items():
        if name in ("channel", "added"):
            found[name] = weight.flatten(1)
        elif name in ("spatial", "gate", "channel_map"):
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
        product = functools.reduce(torch.mul, gates)
        found["axes_map"] = resize(product.mean(1, keepdim=True), grid).squeeze(1)
    return {name: weight.as_subclass(Tensor) for name, weight in found.items()}  # of a MetaTensor too


def _flat_indices(voxels: list[tuple[int, ...]], grid: list[int], shape: list[int], device: torch.device) -> Tensor:
    """Converts voxels of the image to flat indices into a map of another shape."""
    scaled = np.array(voxels) * shape // grid
    return torch.from_numpy(np.ravel_multi_index(tuple(scaled.T), shape)).to(device)
