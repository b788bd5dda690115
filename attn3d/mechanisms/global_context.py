"""Global context: Cao, Xu, Lin, Wei, Hu, arXiv 1904.11492, equation 5; ``fusion="mul"`` is from the authors' code."""

import torch
from torch import Tensor, nn

from attn3d.arguments import one_of
from attn3d.capture import at_least_single, no_autocast
from attn3d.layers.conv import pointwise_convolution
from attn3d.layers.gating import gate
from attn3d.layers.norms import NormSpec, create_norm
from attn3d.layers.spatial import broadcast_gate, spatial_shape
from attn3d.mechanisms.base import Mechanism, hidden_width
from attn3d.mechanisms.registry import register_attention

__all__ = ["GlobalContext"]


@register_attention("gc")
class GlobalContext(Mechanism):
    """Adds a transformed, softmax-weighted mean over the voxels to all voxels. The cost is linear in N.

    alpha = softmax over the voxels of (w x + b), w: C -> 1; c = sum_j alpha_j x_j;
    y = x + W2 relu(norm(W1 c)), W1: C -> h, W2: h -> C, h = max(C // reduction, min(C, 4)), with biases; "mul":
    y = x * sigmoid(W2 relu(norm(W1 c))). W2 and its bias start at 0, so that "add" starts as the identity.

    Args:
        spatial_dims: 1, 2 or 3.
        channels: number of channels C.
        reduction: ratio of C to the hidden width h, which is at least min(C, 4). With h = 1, a layer norm returns only
            its bias.
        fusion: "add", as in the paper, or "mul".
        norm: spec of the norm over the hidden width.

    Raises:
        TypeError, ValueError: if an argument has the wrong type or is out of range.

    Shape:
        (B, C, *S) -> (B, C, *S). Parameters 2 C h + 2 C + 3 h + 1.

    Examples:
        >>> GlobalContext(3, 64)(torch.randn(1, 64, 8, 16, 16)).shape
        torch.Size([1, 64, 8, 16, 16])
    """

    paper = "1904.11492"
    summary = "voxels, with the same weights for all voxels"
    averages_space = True

    def __init__(
        self,
        spatial_dims: int,
        channels: int,
        *,
        reduction: int = 16,
        fusion: str = "add",
        norm: NormSpec = "layer",
    ) -> None:
        super().__init__(spatial_dims, channels)
        hidden = hidden_width(channels, reduction)
        self.fusion = one_of("fusion", fusion, ("add", "mul"))
        self.identity_at_start = fusion == "add"
        self.score = pointwise_convolution(1)(channels, 1, 1)
        self.squeeze = nn.Linear(channels, hidden)
        self.norm = create_norm(norm, hidden)
        self.excite = nn.Linear(hidden, channels)
        nn.init.zeros_(self.excite.weight)
        nn.init.zeros_(self.excite.bias)

    def spatial_weights(self, x: Tensor) -> Tensor:
        """Returns alpha, (B, N)."""
        return at_least_single(self.score(x.flatten(2)).squeeze(1)).softmax(-1)

    def context(self, x: Tensor, weights: Tensor) -> Tensor:
        """Returns W2 relu(norm(W1 c)), (B, C, 1, ..)."""
        if torch.jit.is_scripting():
            pooled = _weighted_mean(x.flatten(2), weights)
        else:
            with no_autocast(x):
                pooled = _weighted_mean(x.flatten(2), weights)
        return broadcast_gate(self.excite(torch.relu(self.norm(self.squeeze(pooled)))), x)

    def forward(self, x: Tensor) -> Tensor:
        """Adds the context to (B, C, *S), or multiplies by its sigmoid."""
        self.check_input(x)
        context = self.context(x, self.spatial_weights(x))
        if self.fusion == "add":
            return x + context.to(x.dtype)
        return gate(x, torch.sigmoid(context))

    def attention_weights(self, x: Tensor, queries: Tensor | None = None) -> dict[str, Tensor]:
        """Returns alpha as "spatial", and the context as "added", or its sigmoid for "mul" as "channel"."""
        self.check_input(x)
        weights = self.spatial_weights(x)
        context = self.context(x, weights)
        of_channels = {"added": context} if self.fusion == "add" else {"channel": torch.sigmoid(context)}
        return {"spatial": weights.unflatten(1, spatial_shape(x)).unsqueeze(1), **of_channels}


def _weighted_mean(tokens: Tensor, weights: Tensor) -> Tensor:
    """Returns sum_j alpha_j x_j of (B, C, N) and (B, N), which is in at least single precision, in the dtype of x."""
    if tokens.dtype == weights.dtype:
        return torch.matmul(tokens, weights.unsqueeze(-1)).squeeze(-1)
    # A product of matrices would need the weights in half precision, where 1 / N of a large volume is rounded to 0.
    return (tokens * weights.unsqueeze(1)).sum(2).to(tokens.dtype)
