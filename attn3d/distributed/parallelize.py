"""Modules on a volume that is too large for one device: every rank of a process group has a shard of it."""

import warnings
from typing import TypeVar

import torch.distributed as dist
from torch import nn
from torch.nn.modules import batchnorm, conv, pooling

from attn3d.arguments import one_of
from attn3d.attention import VolumeAttention
from attn3d.layers.norms import BatchNorm, GroupNorm
from attn3d.mechanisms import (
    ChannelAttention,
    DualAttention,
    MultiHeadSelfAttention,
    NonLocal,
    PositionAttention,
)
from attn3d.mechanisms.base import Mechanism
from attn3d.mechanisms.non_local import Concatenation, DotProduct

_EXACT = (ChannelAttention, DualAttention, MultiHeadSelfAttention, PositionAttention)
_SHARDED = (VolumeAttention, DotProduct, Concatenation, ChannelAttention, BatchNorm)  # what asks the other ranks
_SCOPES = ("global", "pooled_keys", "window", "neighborhood")

# PyTorch's own layers that look past the border of a shard, or take statistics over it.
_OF_HOSTS = (
    conv._ConvNd,
    batchnorm._NormBase,
    nn.GroupNorm,
    nn.Upsample,
    pooling._MaxPoolNd,
    pooling._AvgPoolNd,
    pooling._AdaptiveMaxPoolNd,
    pooling._AdaptiveAvgPoolNd,
)

Module = TypeVar("Module", bound=nn.Module)


def shard_over(module: Module, process_group: dist.ProcessGroup | None, *, sharing: str = "all_gather") -> Module:
    """Makes the attention in ``module`` work on shards of a volume, with the result of the whole volume.

    The volume is cut along its first spatial axis: rank r of the group gives the r-th piece, of as many rows as it
    likes but one at least, and gets the same rows of the output. `NonLocal` in all its modes,
    `MultiHeadSelfAttention` and `DualAttention` with its two branches work so, inserted into a network or not, in
    the scopes Global, PooledKeys, Window and Neighborhood, and with them `attn3d.layers.norms.BatchNorm`, whose
    statistics are of the whole.

    Every rank calls forward and backward of the same modules in the same order. The gradient of the input is then
    that of the sum of the losses of all ranks; gradients of parameters are each rank's share, and
    `sum_gradients` adds them up.

    Other layers of a network are not touched. Where a convolution, a pooling or a norm of PyTorch would look past
    the border of its shard, or take its statistics for the whole, a warning names it.

    Args:
        module: in which attention works on shards from now on.
        process_group: of the ranks, with gloo or nccl; ``mesh["volume"].get_group()`` of a DeviceMesh. None: on
            whole volumes again. It stays with ``module`` alone: a copy, deep or pickled, works on whole volumes.
        sharing: how global attention comes to the keys and values of other ranks: "all_gather", all of them at
            once, which takes any method; "ring", a shard after another in tiles, so that memory falls with the
            number of ranks. Halos of windows and neighbourhoods and the few pooled keys are fetched either way.

    Returns:
        ``module``.

    Raises:
        TypeError: when ``process_group`` is no process group.
        ValueError: when ``sharing`` is unknown, or ``module`` has attention that would be wrong on shards, naming
            it and why. Nothing has been changed then.

    Example:
        >>> torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
        >>> group = torch.distributed.group.WORLD  # of one rank, for this example
        >>> block = attn3d.shard_over(attn3d.NonLocal(3, 32), group)
        >>> block(torch.randn(1, 32, 4, 8, 8)).square().sum().backward()
        >>> attn3d.sum_gradients(block, group)
        >>> torch.distributed.destroy_process_group()
    """
    from attn3d.attention.sharded import SHARINGS, Ranks  # brings PyTorch's compiler, which takes seconds to import

    one_of("sharing", sharing, SHARINGS)
    if process_group is not None and not isinstance(process_group, dist.ProcessGroup):
        raise TypeError(f"`process_group` must be a torch.distributed.ProcessGroup or None, got {process_group!r}")
    ranks = None if process_group is None else Ranks(process_group, sharing)
    if ranks is not None:
        _check(module, sharing)
    for part in module.modules():
        if isinstance(part, _SHARDED):
            part.ranks = ranks
    return module


def sum_gradients(module: nn.Module, process_group: dist.ProcessGroup) -> None:
    """Adds up over the ranks the gradients of all parameters of ``module``, after backward.

    Args:
        module: the same on every rank.
        process_group: the ranks that the volume is cut over.
    """
    for parameter in module.parameters():
        if parameter.grad is not None:
            dist.all_reduce(parameter.grad, group=process_group)


def _check(module: nn.Module, sharing: str) -> None:
    """Refuses what would be wrong on shards, and warns of what may be."""
    refused, beyond = {}, []
    mechanisms = [part for part in module.modules() if isinstance(part, Mechanism)]
    within = {layer for mechanism in mechanisms for layer in mechanism.modules()}
    for name, part in module.named_modules():
        reason = _refusal(part, sharing)
        if reason:
            refused[f"{name or 'the module'} ({type(part).__name__})"] = reason
        elif isinstance(part, _OF_HOSTS) and part not in within and not _is_right(part):
            beyond.append(f"{name} ({type(part).__name__})")
    if refused:
        named = "; ".join(f"{name}, {reason}" for name, reason in refused.items())
        raise ValueError(f"`module` has what would be wrong on shards: {named}")
    if beyond:
        named = ", ".join(beyond[:5]) + (f" and {len(beyond) - 5} more" if len(beyond) > 5 else "")
        warnings.warn(f"these see a shard as if it were the volume, and are left so: {named}", stacklevel=3)


def _refusal(part: nn.Module, sharing: str) -> str:
    """Why ``part`` would be wrong on shards, or an empty string."""
    if isinstance(part, VolumeAttention):
        if part.kind not in _SCOPES:
            return f"whose scope {part.kind!r} reaches through the whole first axis; {', '.join(_SCOPES)} work"
        if part.kind == "global" and sharing == "ring" and part.method not in ("auto", "chunked"):
            return f"whose method {part.method!r} needs all keys at once; sharing='all_gather' gives them"
    elif isinstance(part, NonLocal):
        if part.sub_sample:
            return "whose `sub_sample` pools across the borders of shards; scope=PooledKeys(2) pools as the whole"
    elif isinstance(part, GroupNorm):
        return "whose statistics would be of a shard; the norms 'batch' and 'layer' work"
    elif isinstance(part, Mechanism) and not isinstance(part, _EXACT):
        return "which takes means or convolves over voxels of other ranks; non_local, mhsa and danet work"
    return ""


def _is_right(layer: nn.Module) -> bool:
    """Whether a layer treats every row of the first axis alone, or knows of the others."""
    if isinstance(layer, BatchNorm | nn.SyncBatchNorm):
        return True
    return isinstance(layer, conv._ConvNd) and layer.kernel_size[0] == 1 and layer.stride[0] == 1
