"""The positions of an attention module's tokens on a grid, and rows of weights on that grid."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor


class TokenLayout(NamedTuple):
    """The positions of an attention module's tokens on a grid.

    Attributes:
        shape: S of the grid.
        voxels: (groups, tokens), the flat index on the grid of every token of every group; -1 for tokens that are not
            voxels: class tokens, registers, padding. A token attends to the tokens of its group. In the batch that the
            module is called with, the groups of the first sample come first.
    """

    shape: list[int]
    voxels: Tensor

    def rows(self, queries: Tensor, weights: Callable[[int, int], Tensor]) -> Tensor:
        """Returns the weights of chosen voxels for all voxels: (B, H, Q, *S), zero outside a voxel's group.

        Args:
            queries: (Q,), flat indices on the grid.
            weights: returns (B, H, tokens) for a group and a token in it.
        """
        positions = self.voxels.flatten().argsort()[(self.voxels < 0).sum() :]  # index of each voxel among the tokens
        rows = []
        for position in positions[queries].tolist():
            group, token = divmod(position, self.voxels.shape[1])
            row, voxels = weights(group, token), self.voxels[group]
            volume = row.new_zeros(*row.shape[:2], math.prod(self.shape))
            volume[..., voxels[voxels >= 0]] = row[..., voxels >= 0]
            rows.append(volume)
        return torch.stack(rows, 2).unflatten(3, self.shape)


# A layout returns the positions of tokens, ``(module, its first argument) -> TokenLayout``.
Layout = Callable[[Any, Tensor], TokenLayout]
# A reader returns the weights of an attention module, like ``attention_weights`` of a mechanism. It is called before
# each forward pass of the module as ``(module, tokens, queries, *arguments)``, with the `TokenLayout`, the flat indices
# of the chosen voxels on its grid, and the arguments of the module.
Reader = Callable[..., dict[str, Tensor]]


def over_grid(shape: Sequence[int], device: torch.device, more: int = 0) -> TokenLayout:
    """Returns one group of all voxels in order, after ``more`` tokens that are not voxels."""
    voxels = torch.arange(math.prod(shape), device=device)
    return TokenLayout(list(shape), torch.cat([voxels.new_full((more,), -1), voxels])[None])
