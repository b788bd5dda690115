"""Networks on a volume that is too large for one device: every rank of a process group has a shard of it."""

import warnings
from typing import TypeVar

import torch.distributed as dist
from torch import nn
from torch.nn.modules import batchnorm, conv, pooling

from attn3d.arguments import one_of
from attn3d.attention import ChannelwiseAttention, VolumeAttention
from attn3d.layers.norms import BatchNorm, GroupNorm
from attn3d.mechanisms.base import Mechanism
from attn3d.mechanisms.channel import ChannelSelfAttention
from attn3d.mechanisms.dual_attention import ChannelAttention, DualAttention, PositionAttention
from attn3d.mechanisms.non_local import Concatenation, DotProduct, NonLocal
from attn3d.mechanisms.self_attention import MultiHeadSelfAttention

ROTATIONS = ("all_gather", "ring")

_EXACT = (ChannelAttention, ChannelSelfAttention, DualAttention, MultiHeadSelfAttention, NonLocal, PositionAttention)

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


def parallelize_attention(
    net: Module, process_group: dist.ProcessGroup | None, *, rotate: str = "all_gather"
) -> Module:
    """Makes the attention in ``net`` context parallel: it works on shards of a volume, with the whole volume's result.

    The volume is cut along its first spatial axis: rank r of the group gives the r-th piece, of as many rows as it
    likes but one at least, and gets the same rows of the output. `NonLocal` in all its modes,
    `MultiHeadSelfAttention`, `ChannelSelfAttention`, `PairedAttention` and `DualAttention` with its two branches work
    so, inserted into a network or not, with every pattern, and with them `attn3d.layers.norms.BatchNorm`, whose
    statistics are of the whole.

    Every rank calls forward and backward of the same modules in the same order. The gradient of the input is then
    that of the sum of the losses of all ranks; gradients of parameters are each rank's share, and
    `attn3d.sum_gradients` adds them up.

    Other layers of a network are not touched. Where a convolution, a pooling or a norm of PyTorch would look past
    the border of its shard, or take its statistics for the whole, a warning names it.

    Args:
        net: in which attention works on shards from now on. Its modules are changed in place: parameters, buffers,
            hooks and the keys of the state are what they were.
        process_group: of the ranks, with gloo or nccl; ``mesh["volume"].get_group()`` of a DeviceMesh. None: on
            whole volumes again. It stays with ``net`` alone: a copy, deep or pickled, works on whole volumes.
        rotate: how the keys and values of other ranks come to queries that see all of them: "all_gather", at once,
            which takes any backend; "ring", a shard after another in tiles, so that memory falls with the number of
            ranks. With patterns in which a voxel sees few others, a rank fetches the rows that its voxels see.

    Returns:
        ``net``.

    Raises:
        TypeError: when ``process_group`` is no process group.
        ValueError: when ``rotate`` is unknown, or ``net`` has attention that would be wrong on shards, naming it and
            why. Nothing has been changed then.

    Examples:
        >>> torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
        >>> group = torch.distributed.group.WORLD  # of one rank, for this example
        >>> block = attn3d.parallelize_attention(attn3d.NonLocal(3, 32), group)
        >>> block(torch.randn(1, 32, 4, 8, 8)).square().sum().backward()
        >>> attn3d.sum_gradients(block, group)
        >>> torch.distributed.destroy_process_group()
    """
    from attn3d.distributed import context, norm  # bring PyTorch's compiler, which takes seconds to import

    one_of("rotate", rotate, ROTATIONS)
    if process_group is not None:
        if not isinstance(process_group, dist.ProcessGroup):
            raise TypeError(f"`process_group` must be a torch.distributed.ProcessGroup or None, got {process_group!r}")
        _check(net, rotate)
    forms = {
        VolumeAttention: context.ShardedAttention,
        DotProduct: context.ShardedPairwise,
        Concatenation: context.ShardedPairwise,
        ChannelwiseAttention: context.ShardedChannels,
        BatchNorm: norm.ShardedBatchNorm,
    }
    for part in net.modules():
        if isinstance(part, context.ContextParallel):
            context.make_plain(part)
        form = next((form for plain, form in forms.items() if isinstance(part, plain)), None)
        if process_group is not None and form is not None:
            context.make_parallel(part, form, process_group, rotate)
    return net


def sum_gradients(net: nn.Module, process_group: dist.ProcessGroup) -> None:
    """Adds up over the ranks the gradients of all parameters of ``net``, after backward.

    Args:
        net: the same on every rank.
        process_group: the ranks that the volume is cut over.
    """
    for parameter in net.parameters():
        if parameter.grad is not None:
            dist.all_reduce(parameter.grad, group=process_group)


def _check(net: nn.Module, rotate: str) -> None:
    """Refuses what would be wrong on shards, and warns of what may be."""
    refused, beyond = {}, []
    mechanisms = [part for part in net.modules() if isinstance(part, Mechanism)]
    within = {layer for mechanism in mechanisms for layer in mechanism.modules()}
    for name, part in net.named_modules():
        reason = _refusal(part, rotate)
        if reason:
            refused[f"{name or 'itself'} ({type(part).__name__})"] = reason
        elif isinstance(part, _OF_HOSTS) and part not in within and not _is_right(part):
            beyond.append(f"{name} ({type(part).__name__})")
    if refused:
        named = "; ".join(f"{name}, {reason}" for name, reason in refused.items())
        raise ValueError(f"`net` has what would be wrong on shards: {named}")
    if beyond:
        named = ", ".join(beyond[:5]) + (f" and {len(beyond) - 5} more" if len(beyond) > 5 else "")
        warnings.warn(f"these see a shard as if it were the volume, and are left so: {named}", stacklevel=3)


def _refusal(part: nn.Module, rotate: str) -> str:
    """Why ``part`` would be wrong on shards, or an empty string."""
    if isinstance(part, VolumeAttention):
        if not part.pattern.local and rotate == "ring" and part.backend not in ("auto", "chunked"):
            return f"whose backend {part.backend!r} needs all keys at once; rotate='all_gather' gives them"
    elif isinstance(part, MultiHeadSelfAttention) and part.registers is not None and rotate == "ring":
        return "whose `registers` do not go round a ring; rotate='all_gather' serves them"
    elif isinstance(part, NonLocal) and part.sub_sample:
        return "whose `sub_sample` pools across the borders of shards; pattern=PooledKeys(2) pools as the whole"
    elif isinstance(part, GroupNorm):
        return "whose statistics would be of a shard; the norms 'batch' and 'layer' work"
    elif isinstance(part, Mechanism) and not isinstance(part, _EXACT):
        return "which takes means or convolves over voxels of other ranks; attention over voxels and channels works"
    return ""


def _is_right(layer: nn.Module) -> bool:
    """Whether a layer treats every row of the first axis alone, or knows of the others."""
    if isinstance(layer, BatchNorm | nn.SyncBatchNorm):
        return True
    return isinstance(layer, conv._ConvNd) and layer.kernel_size[0] == 1 and layer.stride[0] == 1
