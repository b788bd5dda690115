"""Attention gate: Oktay, Schlemper, Le Folgoc, et al., arXiv 1804.03999, equations 1 and 2.

Deviations: the compact form is the widely used one, without the stride and with norms; a convolution that is followed
by a norm has no bias. The authors' code adds a convolution and a norm after the product, and raises for axes that are
shorter than the stride; here axes that are not a multiple of the stride are padded with zeros.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from attn3d.arguments import per_axis, positive_integer
from attn3d.layers.blockwise import runs_eagerly
from attn3d.layers.conv import convolution, pointwise_convolution
from attn3d.layers.gating import gate
from attn3d.layers.norms import NormSpec, create_norm
from attn3d.layers.recomputed import recomputed
from attn3d.layers.spatial import resize_by_products, sizes_are_symbols, spatial_shape
from attn3d.mechanisms.base import Mechanism, hidden_width
from attn3d.mechanisms.registry import register_attention

__all__ = ["AttentionGate"]


@register_attention("attention_gate")
class AttentionGate(Mechanism):
    """Gates every voxel of a skip connection, by the skip itself and by a gating signal from the decoder.

    y = x * a, a = sigmoid(psi relu(W_x x + W_g g)), where W_x: C -> h has stride and kernel size s, W_g: C_g -> h and
    psi: h -> 1 are 1 x 1, and h = max(C // reduction, min(C, 4)). W_g g is resized to the grid of W_x x, and a to that
    of x, by linear interpolation.

    Args:
        spatial_dims: 1, 2 or 3.
        channels: number of channels C of the skip.
        gating_channels: number of channels C_g of the signal; C by default.
        reduction: ratio of C to the hidden width h.
        stride: s, one integer or one per axis; "auto": 1 in the compact form, 2 in the paper's.
        norm: spec of the norms after W_x, W_g and psi; "auto": "batch" in the compact form, None in the paper's.
            With None, W_g and psi have biases.
        variant: "compact" or "paper".

    Raises:
        TypeError, ValueError: if an argument has the wrong type or is out of range.

    Shape:
        (B, C, *S), (B, C_g, *any) -> (B, C, *S). Parameters C h s^n + C_g h + h; without norms h + 1 more, with
        affine ones 4 h + 2 more.

    Examples:
        >>> x, signal = torch.randn(1, 64, 8, 16, 16), torch.randn(1, 128, 4, 8, 8)
        >>> AttentionGate(3, 64, gating_channels=128)(x, signal).shape
        torch.Size([1, 64, 8, 16, 16])
    """

    paper = "1804.03999"
    summary = "voxels of a skip connection, by the decoder's map"
    takes_signal = True

    def __init__(
        self,
        spatial_dims: int,
        channels: int,
        *,
        gating_channels: int | None = None,
        reduction: int = 2,
        stride: int | Sequence[int] | str = "auto",
        norm: NormSpec = "auto",
        variant: str = "compact",
    ) -> None:
        super().__init__(spatial_dims, channels, variant)
        given = channels if gating_channels is None else gating_channels
        self.gating_channels = positive_integer("gating_channels", given)
        hidden = hidden_width(channels, reduction)
        self.stride = per_axis("stride", self.by_variant(stride, compact=1, paper=2), spatial_dims)
        self.steps = list(self.stride)  # TorchScript cannot index a tuple
        self.padding = [size for step in reversed(self.stride) for size in (0, step - 1)]
        norm = self.by_variant(norm, compact="batch", paper=None)
        strided = pointwise_convolution if max(self.stride) == 1 else convolution
        pointwise, bias = pointwise_convolution(spatial_dims), norm is None
        self.of_map = strided(spatial_dims)(channels, hidden, self.stride, stride=self.stride, bias=False)
        self.of_signal = pointwise(self.gating_channels, hidden, 1, bias=bias)
        self.score = pointwise(hidden, 1, 1, bias=bias)
        self.map_norm = create_norm(norm, hidden)
        self.signal_norm = create_norm(norm, hidden)
        self.score_norm = create_norm(norm, 1)

    def check_signal(self, x: Tensor, signal: Tensor | None) -> Tensor:
        """Returns the signal.

        Raises:
            TypeError: if it is None, not a tensor, or not floating point.
            ValueError: if its number of dimensions, channels or samples is wrong, or it has no voxel.
        """
        if signal is None:
            raise TypeError(
                "`signal` is missing: an attention gate is called with a skip and its gating signal, gate(x, signal);"
                " insert_attention(net, 'attention_gate', at='skip') passes the decoder's map as the signal"
            )
        if not isinstance(signal, Tensor):
            raise TypeError(f"`signal` must be a torch.Tensor, got {type(signal).__name__}")
        if not signal.is_floating_point():
            raise TypeError(f"`signal` must be floating point, got {signal.dtype}")
        if signal.dim() != x.dim():
            raise ValueError(f"`signal` must have {x.dim()} dimensions like `x`, got {signal.dim()}")
        if torch.jit.is_tracing():
            return signal
        if signal.shape[1] != self.gating_channels:
            raise ValueError(f"`signal` must have {self.gating_channels} channels, got {signal.shape[1]}")
        if signal.shape[0] != x.shape[0]:
            raise ValueError(f"`signal` must have a batch size of {x.shape[0]} like `x`, got {signal.shape[0]}")
        for size in signal.shape[2:]:
            if size == 0:
                raise ValueError("`signal` must have at least one voxel along every axis, got an axis of size 0")
        return signal

    def spatial_gate(self, x: Tensor, signal: Tensor) -> Tensor:
        """Returns sigmoid(psi relu(W_x x + W_g g)) on the grid of ``x``, (B, 1, *S)."""
        # Zeros at the end, so that the last voxels of an axis that is not a multiple of the stride are used too.
        padded = functional.pad(x, self.padding) if self._is_cut(x) else x
        of_map = self.map_norm(self.of_map(padded))
        of_signal = self.signal_norm(self.of_signal(signal))
        if _differ(of_signal, of_map):
            of_signal = resize_by_products(of_signal, spatial_shape(of_map))
        weights = torch.sigmoid(self.score_norm(self.score(torch.relu(of_map + of_signal))))
        return resize_by_products(weights, spatial_shape(x)) if _differ(weights, x) else weights

    def _is_cut(self, x: Tensor) -> bool:
        """Returns whether an axis may not be a multiple of the stride."""
        if sizes_are_symbols():
            return max(self.padding) > 0
        cut = False
        for axis, size in enumerate(x.shape[2:]):
            cut = cut or size % self.steps[axis] != 0
        return cut

    def forward(self, x: Tensor, signal: Tensor | None = None) -> Tensor:
        """Gates (B, C, *S) by (B, C_g, *any)."""
        self.check_input(x)
        signal = self.check_signal(x, signal)
        if not torch.jit.is_scripting() and runs_eagerly(x):  # saves no hidden map for backward
            return gate(x, recomputed(AttentionGate.spatial_gate, self, x, signal))
        return gate(x, self.spatial_gate(x, signal))

    def attention_weights(  # type: ignore[override]  # the signal comes second, as in forward
        self, x: Tensor, signal: Tensor | None = None, queries: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Returns the gate as "spatial"."""
        self.check_input(x)
        return {"spatial": self.spatial_gate(x, self.check_signal(x, signal))}


def _differ(x: Tensor, y: Tensor) -> bool:
    """Returns whether two maps may have different spatial sizes; always true in a capture."""
    return sizes_are_symbols() or x.shape[2:] != y.shape[2:]
