"""What the mechanisms share: their constructor's first words, the check of their input, their weights."""

from typing import Any

import torch
from torch import Tensor, nn

from attn3d.arguments import one_of, positive_integer
from attn3d.capture import is_captured
from attn3d.layers.spatial import check_spatial_dims, is_proxy

AUTO = "auto"
_LEAST = 4  # hidden units of a squeeze: a single one, switched off by its rectifier, leaves a constant gate


def hidden_width(channels: int, reduction: int) -> int:
    """The hidden width of a squeeze, max(C // reduction, min(C, 4)).

    Args:
        channels: C.
        reduction: C over the hidden width.

    Raises:
        TypeError: when ``reduction`` is no integer.
        ValueError: when it is below 1.
    """
    return max(channels // positive_integer("reduction", reduction), min(channels, _LEAST))


class Mechanism(nn.Module):
    """An attention module (B, C, *S) -> (B, C, *S) for 1, 2 or 3 spatial axes.

    Args:
        spatial_dims: the number of spatial axes, 1, 2 or 3.
        channels: C.
        variant: "compact", the lean form, or "paper", the form that was published.

    Raises:
        TypeError: when ``channels`` is no integer.
        ValueError: when ``spatial_dims``, ``channels`` or ``variant`` is out of range.

    Attributes:
        paper: the arXiv number of the paper, or the address of one that is not there.
        summary: what the mechanism weighs, in a few words for tables.
        averages_space: whether all it weighs comes of means over space, which behind an instance norm are its bias.
        identity_at_start: whether the module returns its input until it is trained.
    """

    paper = ""
    summary = ""
    averages_space = False

    def __init__(self, spatial_dims: int, channels: int, variant: str) -> None:
        super().__init__()
        self.spatial_dims = check_spatial_dims(spatial_dims)
        self.channels = positive_integer("channels", channels)
        self.variant = one_of("variant", variant, ("compact", "paper"))
        self.identity_at_start = False

    def by_variant(self, value: Any, *, compact: Any, paper: Any) -> Any:
        """``value``, or what the variant has where it is "auto"."""
        if isinstance(value, str) and value == AUTO:
            return compact if self.variant == "compact" else paper
        return value

    def check_input(self, x: Tensor) -> None:
        """Refuses what is not (B, C, *S) with at least one voxel.

        Raises:
            ValueError: naming the shape that is expected and the one that came.
            TypeError: under torch.fx, which cannot follow sizes.
        """
        if is_proxy(x):
            raise TypeError(
                "torch.fx cannot trace attention, which asks for sizes: give a torch.fx.Tracer whose is_leaf_module"
                " says so of it, or use torch.export, torch.compile or torch.jit.trace"
            )
        expected = self.spatial_dims + 2
        if x.dim() != expected:
            raise ValueError(
                f"`x` must have {expected} dimensions (batch, channels, {self.spatial_dims} spatial), got {x.dim()}"
            )
        if torch.jit.is_tracing():
            return  # a trace has sizes that cannot be asked without freezing them
        if x.shape[1] != self.channels:
            raise ValueError(f"`x` must have {self.channels} channels, got {x.shape[1]}")
        for size in x.shape[2:]:
            if size == 0:
                raise ValueError("`x` must have at least one voxel along every axis, got an axis of size 0")

    def read_key_mask(self, key_mask: Tensor, x: Tensor) -> Tensor:
        """(B, *S) as (B, N).

        Raises:
            TypeError: when it is not boolean.
            ValueError: when it is not a value for every voxel of ``x``.
        """
        if key_mask.dtype != torch.bool:
            raise TypeError(f"`key_mask` must be boolean, true where a voxel may be seen, got {key_mask.dtype}")
        if key_mask.dim() != x.dim() - 1 or (not is_captured() and key_mask.shape != (x.shape[0], *x.shape[2:])):
            expected = (x.shape[0], *x.shape[2:])
            raise ValueError(f"`key_mask` must be (B, *S) = {tuple(expected)}, got {tuple(key_mask.shape)}")
        return key_mask.flatten(1)

    def attention_weights(self, x: Tensor, queries: Tensor | None = None) -> dict[str, Tensor]:
        """What a forward pass over ``x`` would weigh its voxels and channels with; computed when asked.

        Ask in evaluation mode: in training, batch norms would count ``x`` once more.

        Args:
            x: (B, C, *S).
            queries: for mechanisms in which every voxel has weights of its own, the flat indices of those
                asked for, (Q,); by default the central voxel.

        Returns:
            by name: "channel" (B, C, 1, ..), "spatial" (B, 1, *S), "gate" (B, C, *S), "axis0" .. (B, C, .., S_a, ..),
            "branch" (B, M, C, 1, ..), "query" (B, heads, Q, *S of the keys), "affinity" (B, C, C).
        """
        raise NotImplementedError

    def extra_repr(self) -> str:
        """The first words of the constructor."""
        return f"spatial_dims={self.spatial_dims}, channels={self.channels}, variant={self.variant!r}"


def read_heads(num_heads: int | None, channels: int, least: int = 1) -> int:
    """How many heads there are: by default the largest divisor of the channels that is not above 8.

    Args:
        num_heads: a divisor of the channels, or None.
        channels: C.
        least: channels that a head is left with by default, where there are so many.

    Raises:
        TypeError: when ``num_heads`` is no integer.
        ValueError: when it does not divide the channels, naming those that do.
    """
    divisors = [heads for heads in range(1, channels + 1) if channels % heads == 0]
    if num_heads is None:
        return max(heads for heads in divisors if heads <= 8 and (channels // heads >= least or heads == 1))
    if positive_integer("num_heads", num_heads) not in divisors:
        raise ValueError(f"`num_heads` must divide {channels} channels, got {num_heads}; {divisors} do")
    return num_heads
