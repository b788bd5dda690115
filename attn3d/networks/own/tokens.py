"""Where the tokens of an attention module lie on a grid, and rows of weights brought there."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Tokens(NamedTuple):
    """Where the tokens of an attention module lie on a grid.

    Attributes:
        shape: S of the grid.
        voxels: (groups, tokens), the flat index on the grid of every token of every group; -1 for a token that is no
            voxel: a class token, a register, padding. A token attends to those of its group, and the module is called
            with a batch in which the groups of the first sample come first.
    """

    shape: list[int]
    voxels: Tensor

    def rows(self, queries: Tensor, weights: Callable[[int, int], Tensor]) -> Tensor:
        """The weights of chosen voxels for all others: (B, H, Q, *S), zero outside a voxel's group.

        Args:
            queries: (Q,), flat indices on the grid.
            weights: gives (B, H, tokens) for a group and a token of it.
        """
        places = self.voxels.flatten().argsort()[(self.voxels < 0).sum() :]  # of the voxels, in their order
        rows = []
        for place in places[queries].tolist():
            group, token = divmod(place, self.voxels.shape[1])
            row, voxels = weights(group, token), self.voxels[group]
            volume = row.new_zeros(*row.shape[:2], math.prod(self.shape))
            volume[..., voxels[voxels >= 0]] = row[..., voxels >= 0]
            rows.append(volume)
        return torch.stack(rows, 2).unflatten(3, self.shape)


def over_grid(shape: Sequence[int], device: torch.device, more: int = 0) -> Tokens:
    """One group of all voxels in their order, behind ``more`` tokens that are none."""
    voxels = torch.arange(math.prod(shape), device=device)
    return Tokens(list(shape), torch.cat([voxels.new_full((more,), -1), voxels])[None])
