"""The base class of the mechanisms: common constructor arguments, checks of the input and attention weights."""

from typing import Any

import torch
from torch import Tensor, nn

from attn3d.arguments import one_of, positive_integer
from attn3d.capture import is_captured, is_eager
from attn3d.layers.pooling import count
from attn3d.layers.spatial import axes, central_voxel, check_spatial_dims, is_proxy

_LEAST = 4  # hidden units of a squeeze: with a single unit that its relu switches off, the gate would be constant


def hidden_width(channels: int, reduction: int) -> int:
    """Returns the hidden width of a squeeze, max(C // reduction, min(C, 4)).

    Args:
        channels: number of channels C.
        reduction: ratio of C to the hidden width.

    Raises:
        TypeError: if ``reduction`` is not an integer.
        ValueError: if it is below 1.
    """
    return max(channels // positive_integer("reduction", reduction), min(channels, _LEAST))


class Mechanism(nn.Module):
    """Base class of the attention modules (B, C, *S) -> (B, C, *S) for 1, 2 or 3 spatial axes.

    Args:
        spatial_dims: number of spatial axes, 1, 2 or 3.
        channels: number of channels C.
        variant: "compact", the lean form, or "paper", the published form; left out if both are identical.

    Raises:
        TypeError: if ``channels`` is not an integer.
        ValueError: if ``spatial_dims``, ``channels`` or ``variant`` is out of range.

    Attributes:
        paper: arXiv number of the paper, or its URL if it is not on arXiv.
        summary: what the mechanism weighs, in a few words for tables.
        averages_space: whether the weights depend only on means over space. After an instance norm, a plain mean is
            its bias for every image, so the weights would be constant. A weighted mean, as in `gc`, is nearly this
            bias as long as its weights are nearly equal.
        identity_at_start: whether the module returns its input before training.
    """

    paper = ""
    summary = ""
    averages_space = False
    identity_at_start = False

    def __init__(self, spatial_dims: int, channels: int, variant: str = "") -> None:
        super().__init__()
        self.spatial_dims = check_spatial_dims(spatial_dims)
        self.channels = positive_integer("channels", channels)
        # Not None, since a null in a configuration would then be a third form.
        self.variant = None if variant == "" else one_of("variant", variant, ("compact", "paper"))

    def by_variant(self, value: Any, *, compact: Any, paper: Any) -> Any:
        """Returns ``value``, or the default of the variant if ``value`` is "auto"."""
        if isinstance(value, str) and value == "auto":
            return compact if self.variant == "compact" else paper
        return value

    def check_input(self, x: Tensor) -> None:
        """Checks that ``x`` is a tensor (B, C, *S), floating point, with at least one voxel.

        Raises:
            ValueError: if the shape is wrong; the message gives the expected one.
            TypeError: if it is not a tensor or not floating point; under torch.fx, which does not support sizes.
        """
        if is_proxy(x):
            raise TypeError(
                "torch.fx cannot trace attention, which uses sizes: pass a torch.fx.Tracer whose is_leaf_module"
                " returns True for it, or use torch.export, torch.compile or torch.jit.trace"
            )
        if not isinstance(x, Tensor):
            raise TypeError(f"`x` must be a torch.Tensor, got {type(x).__name__}")
        if not x.is_floating_point():
            raise TypeError(f"`x` must be floating point, got {x.dtype}")
        expected = self.spatial_dims + 2
        if x.dim() != expected:
            raise ValueError(
                f"`x` must have {expected} dimensions (batch, channels, {self.spatial_dims} spatial), got {x.dim()}"
            )
        if torch.jit.is_tracing():
            return  # comparing sizes during a trace would make them constants
        if x.shape[1] != self.channels:
            raise ValueError(f"`x` must have {self.channels} channels, got {x.shape[1]}")
        for size in x.shape[2:]:
            if size == 0:
                raise ValueError("`x` must have at least one voxel along every axis, got an axis of size 0")

    def read_key_mask(self, key_mask: Tensor | None, x: Tensor) -> Tensor | None:
        """Returns a key mask (B, *S) as (B, N), and None as it is.

        Raises:
            TypeError: if it is not a boolean tensor.
            ValueError: if it does not have the batch and spatial sizes of ``x``.
        """
        if key_mask is None:
            return None
        if not isinstance(key_mask, Tensor):
            raise TypeError(f"`key_mask` must be a torch.Tensor, got {type(key_mask).__name__}")
        if key_mask.dtype != torch.bool:
            raise TypeError(f"`key_mask` must be boolean, true where a voxel may be seen, got {key_mask.dtype}")
        if key_mask.dim() != x.dim() - 1 or (not is_captured() and key_mask.shape != (x.shape[0], *x.shape[2:])):
            expected = (x.shape[0], *x.shape[2:])
            raise ValueError(f"`key_mask` must be (B, *S) = {tuple(expected)}, got {tuple(key_mask.shape)}")
        # A plain tensor, as in `to_tokens`: the output would take over the metadata of a MetaTensor.
        return (key_mask if is_captured() else key_mask.as_subclass(Tensor)).flatten(1)

    def read_queries(self, queries: Tensor | None, x: Tensor) -> Tensor:
        """Returns flat indices of voxels, (Q,); for None, that of the central voxel.

        Raises:
            TypeError: if they are not a tensor of int64 or int32.
            ValueError: if they are not (Q,), or there is no such voxel.
        """
        if queries is None:
            return central_voxel(x)
        if not isinstance(queries, Tensor) or queries.dtype not in (torch.int64, torch.int32):
            raise TypeError(f"`queries` must be a torch.Tensor of int64 or int32 voxel indices, got {queries!r:.80}")
        if queries.dim() != 1:
            raise ValueError(f"`queries` must be (Q,), got the shape {tuple(queries.shape)}")
        if is_eager() and not queries.is_meta:
            voxels = count(x, axes(x))
            for index in queries[(queries < 0) | (queries >= voxels)][:1].tolist():
                raise ValueError(f"`queries` must be indices from 0 to {voxels - 1}, got {index}")
        return queries

    def attention_weights(self, x: Tensor, queries: Tensor | None = None) -> dict[str, Tensor]:
        """Computes the weights that a forward pass over ``x`` applies.

        Call it in evaluation mode: in training mode, batch norms would update their statistics with ``x``.

        Args:
            x: (B, C, *S).
            queries: flat indices of the voxels whose weights are returned, (Q,), for mechanisms in which every voxel
                has its own weights; the central voxel by default.

        Returns:
            a dictionary with some of "channel" and "added" (B, C, 1, ..), "channel_map" (B, C, *S) if "channel" does
            not multiply x, "spatial" (B, 1, *S), "gate" (B, C, *S), "axis0", .. (B, C, .., S_a, ..), "branch"
            (B, M, C, 1, ..), "query" (B, heads, Q, *S of the keys) and "affinity" (B, C, C).

        Raises:
            TypeError, ValueError: if ``x`` does not fit, as in a forward pass.
        """
        raise NotImplementedError

    def extra_repr(self) -> str:
        """Returns the common constructor arguments."""
        common = f"spatial_dims={self.spatial_dims}, channels={self.channels}"
        return common if self.variant is None else f"{common}, variant={self.variant!r}"


def read_heads(num_heads: int | None, channels: int, least: int = 1) -> int:
    """Returns the number of heads, by default the largest divisor of the channels up to 8.

    Args:
        num_heads: a divisor of the channels, or None for the default.
        channels: number of channels C.
        least: the smallest number of channels per head for the default, if C has as many.

    Raises:
        TypeError: if ``num_heads`` is not an integer.
        ValueError: if it does not divide the channels; the message lists the divisors.
    """
    divisors = [heads for heads in range(1, channels + 1) if channels % heads == 0]
    if num_heads is None:
        return max(heads for heads in divisors if heads <= 8 and (channels // heads >= least or heads == 1))
    heads = positive_integer("num_heads", num_heads)
    if heads not in divisors:
        raise ValueError(f"`num_heads` must divide {channels} channels, got {heads}; {divisors} do")
    return heads
