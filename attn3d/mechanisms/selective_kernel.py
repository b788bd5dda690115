"""Selective kernels: Li, Wang, Hu, Yang, arXiv 1903.06586, equations 1 to 6.

Deviations: the compact form has dense kernels of increasing size, and its selection has biases and no norm. The paper's
branches are dilated 3^n kernels, which have far fewer weights in 3-D: 27 instead of the 125 of a 5^3 kernel.
"""

import torch
from torch import Tensor, nn

from attn3d.arguments import positive_integer
from attn3d.layers.conv import convolution
from attn3d.layers.gating import weighted_sum
from attn3d.layers.norms import NormSpec, create_norm
from attn3d.layers.pooling import mean
from attn3d.layers.spatial import axes, broadcast_gate, keep_format
from attn3d.mechanisms.base import Mechanism
from attn3d.mechanisms.registry import register_attention

__all__ = ["SelectiveKernel"]


@register_attention("sk")
class SelectiveKernel(Mechanism):
    """Convolves with kernels of several sizes and selects between them per channel.

    U_i = relu(norm(conv_i(x))), i = 0 .. M-1; s = mean(sum_i U_i); z = W s + b (paper: relu(norm(W s))),
    W: C -> d, d = max(C // reduction, min_channels); a = softmax over i of (W_i z + b_i) (paper: without
    b_i); y = sum_i a_i U_i. compact: conv_i has kernel 3 + 2 i; paper: kernel 3, dilation 1 + i.

    Args:
        spatial_dims: 1, 2 or 3.
        channels: number of channels C.
        branches: number of branches M.
        reduction: ratio of C to the hidden width d.
        min_channels: the smallest d.
        groups: groups of the convolutions, lowered to the largest divisor of C up to this number.
        norm: spec of the norms.
        variant: "compact" or "paper".

    Raises:
        TypeError, ValueError: if an argument has the wrong type or is out of range.

    Shape:
        (B, C, *S) -> (B, C, *S). Parameters in the paper's form with batch norm
        M (3^n C^2 / G + 2 C) + C d + 2 d + d M C, where G is the number of groups.

    Examples:
        >>> SelectiveKernel(3, 64, variant="paper")(torch.randn(1, 64, 8, 16, 16)).shape
        torch.Size([1, 64, 8, 16, 16])
    """

    paper = "1903.06586"
    summary = "convolutions with kernels of several sizes"

    def __init__(
        self,
        spatial_dims: int,
        channels: int,
        *,
        branches: int = 2,
        reduction: int = 16,
        min_channels: int = 32,
        groups: int = 32,
        norm: NormSpec = "batch",
        variant: str = "compact",
    ) -> None:
        super().__init__(spatial_dims, channels, variant)
        positive_integer("branches", branches)
        hidden = max(
            channels // positive_integer("reduction", reduction),
            positive_integer("min_channels", min_channels),
        )
        most = min(positive_integer("groups", groups), channels)
        groups = max(divisor for divisor in range(1, most + 1) if channels % divisor == 0)
        paper = variant == "paper"
        self.branches = nn.ModuleList()
        for index in range(branches):
            kernel, dilation = (3, 1 + index) if paper else (3 + 2 * index, 1)
            conv = convolution(spatial_dims)(
                channels, channels, kernel, padding=1 + index, dilation=dilation, groups=groups, bias=False
            )
            self.branches.append(nn.Sequential(conv, create_norm(norm, channels), nn.ReLU()))
        self.squeeze = nn.Sequential(nn.Linear(channels, hidden, bias=not paper))
        if paper:
            self.squeeze.extend([create_norm(norm, hidden), nn.ReLU()])
        self.select = nn.ModuleList(nn.Linear(hidden, channels, bias=not paper) for _ in range(branches))

    def convolve(self, x: Tensor) -> list[Tensor]:
        """Returns U_i of every branch."""
        return [branch(x) for branch in self.branches]

    def branch_gates(self, convolved: list[Tensor]) -> Tensor:
        """Returns the softmax over the branches, (B, M, C)."""
        pooled = mean(convolved[0], axes(convolved[0]))
        for map_ in convolved[1:]:
            pooled = pooled + mean(map_, axes(map_))
        hidden = self.squeeze(pooled)
        return torch.stack([select(hidden) for select in self.select], 1).softmax(1)

    def merge(self, convolved: list[Tensor], x: Tensor) -> Tensor:
        """Returns sum_i a_i U_i, in the memory format of ``x``."""
        gates = self.branch_gates(convolved)
        per_branch = [broadcast_gate(gates[:, index], x) for index in range(len(convolved))]
        return keep_format(weighted_sum(convolved, per_branch), x)

    def forward(self, x: Tensor) -> Tensor:
        """Convolves and selects over (B, C, *S)."""
        self.check_input(x)
        return self.merge(self.convolve(x), x)

    def branch_weights(self, convolved: list[Tensor]) -> dict[str, Tensor]:
        """Returns the same as `attention_weights`, given the outputs of the branches."""
        return {"branch": self.branch_gates(convolved).unflatten(2, [self.channels] + [1] * self.spatial_dims)}

    def attention_weights(self, x: Tensor, queries: Tensor | None = None) -> dict[str, Tensor]:
        """Returns the softmax over the branches as "branch"."""
        self.check_input(x)
        return self.branch_weights(self.convolve(x))
