"""Rotary positions: Su et al., arXiv 2104.09864, extended to several axes (Heo et al., arXiv 2403.13298)."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from attn3d.arguments import Spec, boolean, check_options, one_of, positive_integer, positive_numbers, read_spec
from attn3d.capture import at_least_single
from attn3d.layers.spatial import check_spatial_dims

PositionSpec = Spec | None


class RotaryPosition(nn.Module):
    """Rotates pairs of adjacent channels of queries and keys by angles proportional to their position p.

    The product of a rotated query and a rotated key depends only on the distance between them.

    - axial (default): each of n axes has f = d // (2 n) pairs, and pair j of axis a is rotated by p_a base^(-j / f).
      The last d - 2 n f channels are not rotated; there are none if d is a multiple of 2 n, which is 6 in 3-D.
    - mixed: each of d // 2 pairs is rotated by sum_a p_a w_haj, where w is learnt for every head h. The w of a pair
      start with random directions and lengths base^(-j / (d // 2)). If d is odd, the last channel is not rotated.

    Args:
        spatial_dims: number of axes n.
        heads: number of heads H.
        head_dim: channels per head d, at least 2 n, or 2 with ``mixed``.
        mixed: whether to use the learnt form.
        base: 100 by default, or 10 with ``mixed``, as published for images.
        spacing: voxel spacing, one number or one per axis, by which positions are multiplied. With a spacing in mm, a
            step across thick slices is a larger distance than a step within a slice.

    Raises:
        TypeError, ValueError: if an argument has the wrong type or is out of range.
    """

    def __init__(
        self,
        spatial_dims: int,
        heads: int,
        head_dim: int,
        *,
        mixed: bool = False,
        base: float | None = None,
        spacing: float | Sequence[float] = 1.0,
    ) -> None:
        super().__init__()
        spatial_dims, heads = check_spatial_dims(spatial_dims), positive_integer("heads", heads)
        self.spacing = positive_numbers("spacing", spacing, spatial_dims)
        base = (10.0 if boolean("mixed", mixed) else 100.0) if base is None else base
        (self.base,) = positive_numbers("base", base, 1)
        least = 2 if mixed else 2 * spatial_dims
        if positive_integer("head_dim", head_dim) < least:
            raise ValueError(f"`position` 'rope' needs at least {least} channels in every head, got {head_dim}")
        self.pairs = head_dim // least  # per axis, or in total with ``mixed``
        if mixed:
            directions = nn.functional.normalize(torch.randn(spatial_dims, heads, self.pairs), dim=0)
            self.frequencies = nn.Parameter(directions * self._lengths(directions))
        else:
            self.register_parameter("frequencies", None)

    def extra_repr(self) -> str:
        """Returns the options."""
        return f"mixed={self.frequencies is not None}, base={self.base:g}, spacing={self.spacing}"

    def forward(self, x: Tensor, positions: list[Tensor]) -> Tensor:
        """Rotates the tokens of a volume.

        Args:
            x: (B, H, N, d).
            positions: positions of the tokens along every axis in voxels, (S_a,); the product of their lengths is N.
        """
        wide = at_least_single(x).unflatten(2, [along.shape[0] for along in positions])
        width, rotated = 2 * self.pairs, []
        angles = self._angles(positions, wide)
        if self.frequencies is not None:
            angles = [sum(angles[1:], angles[0])]
        for axis, angle in enumerate(angles):
            rotated.append(_rotate(wide[..., width * axis : width * (axis + 1)], angle))
        if width * len(angles) < x.shape[3]:
            rotated.append(wide[..., width * len(angles) :])
        return torch.cat(rotated, -1).flatten(2, -2).to(x.dtype)

    def _angles(self, positions: list[Tensor], like: Tensor) -> list[Tensor]:
        """Returns the angles of every axis, which broadcast to (H, *S, pairs)."""
        angles = []
        for axis, (along, step) in enumerate(zip(positions, self.spacing, strict=True)):
            position = (along.to(like.dtype) * step).view([-1] + [1] * (len(positions) - axis))
            if self.frequencies is None:
                angles.append(position * self._lengths(like))
            else:
                frequency = self.frequencies[axis].to(like.dtype)
                angles.append(position * frequency.view([-1] + [1] * len(positions) + [self.pairs]))
        return angles

    def _lengths(self, like: Tensor) -> Tensor:
        """Returns base^(-j / f) for all pairs j, (f,)."""
        pairs = torch.arange(self.pairs, device=like.device, dtype=like.dtype)
        return torch.exp(pairs * (-math.log(self.base) / self.pairs))


def _rotate(x: Tensor, angle: Tensor) -> Tensor:
    """Rotates the pairs of channels (.., 2 f) by the angles (.., f)."""
    first, second = x.unflatten(-1, [-1, 2]).unbind(-1)
    cosine, sine = angle.cos(), angle.sin()
    return torch.stack([first * cosine - second * sine, first * sine + second * cosine], -1).flatten(-2)


def create_position(spec: PositionSpec, spatial_dims: int, heads: int, head_dim: int) -> RotaryPosition | None:
    """Creates the position from None, "rope" or ``("rope", {options})``.

    Raises:
        TypeError: if ``spec`` is none of these, or an option is unknown.
        ValueError: if the name is unknown, or an option is out of range.
    """
    if spec is None:
        return None
    name, options = read_spec("position", spec)
    one_of("position", name, ["rope"])
    check_options("the position 'rope'", RotaryPosition, options, positional=3)
    return RotaryPosition(spatial_dims, heads, head_dim, **options)
