"""Networks on a volume that is too large for one device: every rank of a process group has a shard of it."""

import warnings
from typing import TypeVar

import torch.distributed as dist
from torch import nn
from torch.nn.modules import batchnorm, conv, pooling

from attn3d.arguments import first_few, one_of
from attn3d.attention import ChannelwiseAttention, VolumeAttention
from attn3d.capture import modules_by_path
from attn3d.layers.norms import BatchNorm, GroupNorm
from attn3d.mechanisms.base import Mechanism
from attn3d.mechanisms.channel import ChannelSelfAttention
from attn3d.mechanisms.dual_attention import ChannelAttention, DualAttention, PositionAttention
from attn3d.mechanisms.non_local import Concatenation, DotProduct, NonLocal
from attn3d.mechanisms.self_attention import MultiHeadSelfAttention
from attn3d.networks.own import own_attention

_EXACT = (ChannelAttention, ChannelSelfAttention, DualAttention, MultiHeadSelfAttention, NonLocal, PositionAttention)

# PyTorch's own layers that need voxels beyond the border of a shard, or compute statistics over it.
_OF_HOSTS = (
    conv._ConvNd,
    batchnorm._NormBase,
    nn.GroupNorm,
    nn.Upsample,
    pooling._MaxPoolNd,
    pooling._AvgPoolNd,
    pooling._AdaptiveMaxPoolNd,
    pooling._AdaptiveAvgPoolNd,
    nn.MultiheadAttention,
)

Module = TypeVar("Module", bound=nn.Module)


def parallelize_attention(
    net: Module, process_group: dist.ProcessGroup | None, *, rotate: str = "all_gather"
) -> Module:
    """Makes the attention in ``net`` context parallel, so that every rank computes its shard of the whole result.

    The volume is split along its first spatial axis. Rank r passes the r-th shard, with any number of rows from 1, and
    gets the same rows of the output. Supported, with every pattern and inserted into a network or not, are `NonLocal`
    in all modes, `MultiHeadSelfAttention`, `ChannelSelfAttention`, `PairedAttention` and `DualAttention` with its two
    branches. `attn3d.layers.norms.BatchNorm` uses the statistics of the whole volume.

    All ranks must call forward and backward of the same modules in the same order. The gradient of the input is then
    that of the sum of all ranks' losses. Gradients of parameters are the share of each rank; `attn3d.sum_gradients`
    sums them.

    Other layers of a network are not changed. A warning names PyTorch's convolutions, poolings and norms, and attention
    of other libraries, that would need rows of other ranks or would use the statistics of one shard.

    Args:
        net: a network, which is changed in place. Parameters, buffers, hooks and state dict keys are unchanged.
        process_group: the ranks, with gloo or nccl, for example ``mesh["volume"].get_group()`` of a DeviceMesh. With
            None, ``net`` works on whole volumes again. Deep or pickled copies of ``net`` always work on whole volumes.
        rotate: how keys and values of other ranks are exchanged if queries see all of them. "all_gather" gathers them
            at once and supports every backend. "ring" passes one shard after another, in tiles, so that memory
            decreases with the number of ranks. With local patterns, a rank fetches only the rows that its voxels see.

    Returns:
        ``net``.

    Raises:
        TypeError: if ``process_group`` is not a process group.
        ValueError: if ``rotate`` is unknown, or ``net`` has modules that would be wrong on shards; the message lists
            them with the reasons. ``net`` is then unchanged.

    Examples:
        >>> torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
        >>> group = torch.distributed.group.WORLD  # of one rank, for this example
        >>> block = attn3d.parallelize_attention(attn3d.NonLocal(3, 32), group)
        >>> block(torch.randn(1, 32, 4, 8, 8)).square().sum().backward()
        >>> attn3d.sum_gradients(block, group)
        >>> torch.distributed.destroy_process_group()
    """
    from attn3d.distributed import context, norm  # these import PyTorch's compiler, which takes seconds

    one_of("rotate", rotate, ("all_gather", "ring"))
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
    """Sums the gradients of all parameters of ``net`` over the ranks, after backward.

    Args:
        net: the network, the same on every rank.
        process_group: the ranks that the volume is split over.
    """
    for parameter in net.parameters():
        if parameter.grad is not None:
            dist.all_reduce(parameter.grad, group=process_group)


def _check(net: nn.Module, rotate: str) -> None:
    """Raises an error for modules that would be wrong on shards, and warns of layers that may be."""
    refused, beyond = {}, []
    mechanisms = [part for part in net.modules() if isinstance(part, Mechanism)]
    within = {layer for mechanism in mechanisms for layer in mechanism.modules()}
    own = own_attention(net)
    for name, part in modules_by_path(net):
        reason = _refusal(part, rotate)
        if reason:
            refused[f"{name or 'itself'} ({type(part).__name__})"] = reason
        elif (isinstance(part, _OF_HOSTS) or name in own) and part not in within and not _is_right(part):
            beyond.append(f"{name or 'itself'} ({type(part).__name__})")
    if refused:
        named = "; ".join(f"{name}, {reason}" for name, reason in refused.items())
        raise ValueError(f"`net` has modules that would be wrong on shards: {named}")
    if beyond:
        named = first_few(beyond, 5)
        warnings.warn(f"these layers treat a shard as the whole volume, and are not changed: {named}", stacklevel=3)


def _refusal(part: nn.Module, rotate: str) -> str:
    """Returns why ``part`` would be wrong on shards, or an empty string."""
    if isinstance(part, VolumeAttention):
        if not part.pattern.local and rotate == "ring" and part.backend not in ("auto", "chunked"):
            return f"whose backend {part.backend!r} needs all keys at once; use rotate='all_gather'"
    elif isinstance(part, MultiHeadSelfAttention) and part.registers is not None and rotate == "ring":
        return "whose `registers` are not supported by rotate='ring'; use rotate='all_gather'"
    elif isinstance(part, NonLocal) and part.sub_sample:
        return "whose `sub_sample` pools across the borders of shards; use pattern=PooledKeys(2)"
    elif isinstance(part, GroupNorm):
        return "whose statistics would be those of a shard; use the norm 'batch' or 'layer'"
    elif isinstance(part, Mechanism) and not isinstance(part, _EXACT):
        return "which needs means or convolutions over voxels of other ranks; use attention over voxels or channels"
    return ""


def _is_right(layer: nn.Module) -> bool:
    """Returns whether a layer treats every row of the first axis independently, or supports shards."""
    if isinstance(layer, BatchNorm | nn.SyncBatchNorm):
        return True
    return isinstance(layer, conv._ConvNd) and layer.kernel_size[0] == 1 and layer.stride[0] == 1
