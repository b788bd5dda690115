"""Large kernel attention: Guo, Lu, Liu, Cheng, Hu, arXiv 2202.09741.

Deviations: the paper is 2-D. The compact form replaces each depthwise kernel by one kernel per axis, as large separable
kernel attention (arXiv 2309.01439) does in 2-D: 36 weights per channel instead of the 468 of a 5^3 and a 7^3 kernel.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from attn3d.arguments import odd_per_axis, per_axis
from attn3d.layers.conv import along_axis, convolution, depthwise
from attn3d.layers.gating import gate
from attn3d.layers.spatial import keep_format
from attn3d.mechanisms.base import Mechanism
from attn3d.mechanisms.registry import register_attention

__all__ = ["LargeKernelAttention"]


@register_attention("lka")
class LargeKernelAttention(Mechanism):
    """Weighs every channel and voxel by a large neighbourhood: a local, a dilated and a pointwise convolution.

    y = x * (W dw_{K,d}(dw_k(x))), where dw are depthwise convolutions with kernel sizes k and K, the second with
    dilation d, and W: C -> C, all with biases. There is no sigmoid, so the weights are unbounded. The receptive field
    is k + (K - 1) d voxels along an axis, 23 by default. In the compact form, each depthwise convolution is a sequence
    of convolutions along one axis each.

    Args:
        spatial_dims: 1, 2 or 3.
        channels: number of channels C.
        kernel_size: k, odd, one integer or one per axis.
        dilated_kernel_size: K, odd, one integer or one per axis. On small maps, most of a large kernel is padding.
        dilation: d, one integer or one per axis.
        variant: "compact" or "paper".

    Raises:
        TypeError, ValueError: if an argument has the wrong type or is out of range.

    Shape:
        (B, C, *S) -> (B, C, *S). Parameters n C (k + 1) + n C (K + 1) + C^2 + C; in the paper's form
        C (k^n + 1) + C (K^n + 1) + C^2 + C.

    Examples:
        >>> LargeKernelAttention(3, 64)(torch.randn(1, 64, 8, 16, 16)).shape
        torch.Size([1, 64, 8, 16, 16])
    """

    paper = "2202.09741"
    summary = "channels and voxels, by a large neighbourhood"

    def __init__(
        self,
        spatial_dims: int,
        channels: int,
        *,
        kernel_size: int | Sequence[int] = 5,
        dilated_kernel_size: int | Sequence[int] = 7,
        dilation: int | Sequence[int] = 3,
        variant: str = "compact",
    ) -> None:
        super().__init__(spatial_dims, channels, variant)
        local = odd_per_axis("kernel_size", kernel_size, spatial_dims)
        wide = odd_per_axis("dilated_kernel_size", dilated_kernel_size, spatial_dims)
        spread = per_axis("dilation", dilation, spatial_dims)
        self.local = self._depthwise(local, (1,) * spatial_dims)
        self.dilated = self._depthwise(wide, spread)
        self.pointwise = convolution(spatial_dims)(channels, channels, 1)

    def _depthwise(self, kernel: tuple[int, ...], dilation: tuple[int, ...]) -> nn.Sequential:
        """Returns one depthwise convolution, or in the compact form one per axis."""
        kernels: list[Sequence[int]] = [kernel]
        if self.variant == "compact":
            kernels = [along_axis(axis, kernel) for axis in range(self.spatial_dims)]
        return nn.Sequential(*(depthwise(self.channels, size, dilation) for size in kernels))

    def weights(self, x: Tensor) -> Tensor:
        """Returns W dw(dw(x)), (B, C, *S)."""
        return self.pointwise(self.dilated(self.local(x)))

    def forward(self, x: Tensor) -> Tensor:
        """Weighs (B, C, *S)."""
        self.check_input(x)
        return keep_format(gate(x, self.weights(x)), x)

    def attention_weights(self, x: Tensor, queries: Tensor | None = None) -> dict[str, Tensor]:
        """Returns the weights as "gate"; they may be negative."""
        self.check_input(x)
        return {"gate": self.weights(x)}
