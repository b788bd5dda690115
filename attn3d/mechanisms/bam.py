"""Bottleneck attention: Park, Woo, Lee, Kweon, arXiv 1807.06514, equations 1 to 5.

Deviations: the compact form replaces the dilated bottleneck by one convolution of the map mean_c + max_c, and gates by
the sigmoid where the paper has 1 + sigmoid. In the paper's form, norms follow the hidden layers, as in the authors'
code; equations 3 and 4 have one at the end of each branch. The authors' code multiplies the two maps where the paper
adds them, see ``combine``.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from attn3d.arguments import odd_per_axis, one_of, per_axis
from attn3d.layers.conv import convolution, map_convolution
from attn3d.layers.gating import joint_gate
from attn3d.layers.norms import NormSpec, create_norm
from attn3d.layers.pooling import mean, mean_and_maximum
from attn3d.layers.spatial import axes, broadcast_gate
from attn3d.mechanisms.base import Mechanism, hidden_width
from attn3d.mechanisms.registry import register_attention

__all__ = ["BAM"]


@register_attention("bam")
class BAM(Mechanism):
    """Gates every voxel and channel, by a channel map and a spatial map that are added.

    compact: y = x * sigmoid(Mc + Ms), Mc = W2 relu(W1 mean(x)), Ms = norm(conv_k(mean_c(x) + max_c(x)));
    paper: y = x * (1 + sigmoid(Mc + Ms)), Mc = W2 relu(norm(W1 mean(x))), Ms = conv_1 f(f(g(x))) with
    g = relu(norm(conv_1 C -> h)), f = relu(norm(conv_k h -> h, dilated)), h = max(C // reduction, min(C, 4)).

    Args:
        spatial_dims: 1, 2 or 3.
        channels: number of channels C.
        reduction: ratio of C to the hidden width h, which is at least min(C, 4).
        kernel_size: k, odd, one integer or one per axis; "auto": 7 in the compact form, 3 in the paper's.
        dilation: dilation of the convolutions with kernel k, one integer or one per axis; "auto": 1 in the compact
            form, 4 in the paper's.
        combine: how the maps are combined, "sum" as in the paper or "product" as in the authors' code.
        norm: spec of the norms.
        variant: "compact" or "paper".

    Raises:
        TypeError, ValueError: if an argument has the wrong type or is out of range.

    Shape:
        (B, C, *S) -> (B, C, *S). Parameters 2 C h + k^n + 2; in the paper's form
        3 C h + C + 6 h + 2 (k^n h^2 + 3 h) + h + 1.

    Examples:
        >>> BAM(3, 64)(torch.randn(1, 64, 8, 16, 16)).shape
        torch.Size([1, 64, 8, 16, 16])
    """

    paper = "1807.06514"
    summary = "channels and voxels jointly"

    def __init__(
        self,
        spatial_dims: int,
        channels: int,
        *,
        reduction: int = 16,
        kernel_size: int | Sequence[int] | str = "auto",
        dilation: int | Sequence[int] | str = "auto",
        combine: str = "sum",
        norm: NormSpec = "batch",
        variant: str = "compact",
    ) -> None:
        super().__init__(spatial_dims, channels, variant)
        hidden = hidden_width(channels, reduction)
        kernel = odd_per_axis("kernel_size", self.by_variant(kernel_size, compact=7, paper=3), spatial_dims)
        spread = per_axis("dilation", self.by_variant(dilation, compact=1, paper=4), spatial_dims)
        self.combine = one_of("combine", combine, ("sum", "product"))
        conv = convolution(spatial_dims)
        around = {
            "kernel_size": kernel,
            "dilation": spread,
            "padding": tuple(size // 2 * step for size, step in zip(kernel, spread, strict=True)),
        }
        if variant == "compact":
            self.channel_branch = nn.Sequential(
                nn.Linear(channels, hidden, bias=False), nn.ReLU(), nn.Linear(hidden, channels, bias=False)
            )
            self.spatial_branch = nn.Sequential(
                map_convolution(spatial_dims)(1, 1, bias=False, **around), create_norm(norm, 1)
            )
            return
        self.channel_branch = nn.Sequential(
            nn.Linear(channels, hidden), create_norm(norm, hidden), nn.ReLU(), nn.Linear(hidden, channels)
        )
        self.spatial_branch = nn.Sequential(
            conv(channels, hidden, 1), create_norm(norm, hidden), nn.ReLU(),
            conv(hidden, hidden, **around), create_norm(norm, hidden), nn.ReLU(),
            conv(hidden, hidden, **around), create_norm(norm, hidden), nn.ReLU(),
            conv(hidden, 1, 1),
        )  # fmt: skip

    def channel_map(self, x: Tensor) -> Tensor:
        """Returns Mc, (B, C, 1, ..)."""
        return broadcast_gate(self.channel_branch(mean(x, axes(x))), x)

    def spatial_map(self, x: Tensor) -> Tensor:
        """Returns Ms, (B, 1, *S)."""
        if self.variant == "compact":
            average, largest = mean_and_maximum(x, [1])
            return self.spatial_branch(average + largest)
        return self.spatial_branch(x)

    def forward(self, x: Tensor) -> Tensor:
        """Gates (B, C, *S)."""
        self.check_input(x)
        offset = 0.0 if self.variant == "compact" else 1.0
        return joint_gate(x, self.channel_map(x), self.spatial_map(x), self.combine == "product", offset)

    def attention_weights(self, x: Tensor, queries: Tensor | None = None) -> dict[str, Tensor]:
        """Returns sigmoid(Mc) as "channel" and sigmoid(Ms) as "spatial"."""
        self.check_input(x)
        return {"channel": torch.sigmoid(self.channel_map(x)), "spatial": torch.sigmoid(self.spatial_map(x))}
