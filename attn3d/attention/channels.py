"""Attention over channels: El-Nouby et al., arXiv 2106.09681; Zamir et al., arXiv 2111.09881; Fu et al., 1809.02983."""

import torch
from torch import Tensor, nn

from attn3d.arguments import boolean, one_of, positive_integer
from attn3d.capture import NotScriptable, at_least_single, without_autocast

ENERGIES = ("paper", "official")
# The power of N that multiplies the energy.
SCALES = {"none": 0.0, "1/N": -1.0, "1/sqrt(N)": -0.5}


class ChannelwiseAttention(NotScriptable, nn.Module):
    """Attention between the channels of each head. The cost is linear in the number of voxels N.

    y = v softmax(E)^T with E = q^T k, where q, k and v are the (N, d) tokens of a head. E is computed in at least
    single precision.

    Args:
        heads: number of heads H.
        normalize: whether to scale q and k to unit length over the voxels, and multiply E by a temperature tau_h,
            which is learnt for every head and starts at 1.
        channel_energy: "paper" uses E; "official" uses the maximum of each row minus E.
        scale: factor of E, which grows with N unless ``normalize`` is set: "none", "1/N" or "1/sqrt(N)".

    Raises:
        TypeError, ValueError: if an argument has the wrong type or is out of range.
    """

    temperature: nn.Parameter | None

    def __init__(
        self, heads: int, *, normalize: bool = False, channel_energy: str = "paper", scale: str = "none"
    ) -> None:
        super().__init__()
        heads = positive_integer("heads", heads)
        self.official = one_of("channel_energy", channel_energy, ENERGIES) == "official"
        self.power = SCALES[one_of("scale", scale, SCALES)]
        learnt = nn.Parameter(torch.ones(heads)) if boolean("normalize", normalize) else None
        self.register_parameter("temperature", learnt)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None = None) -> Tensor:
        """Returns the attended values.

        Args:
            q: (B, H, N, d).
            k: (B, H, N, d).
            v: (B, H, N, d).
            key_mask: (B, N), true for the voxels that E sums over.

        Returns:
            (B, H, N, d), a view of a channels-first tensor.
        """
        return (self.affinity(q, k, key_mask).to(v.dtype) @ v.transpose(2, 3)).transpose(2, 3)

    @without_autocast
    def affinity(self, q: Tensor, k: Tensor, key_mask: Tensor | None = None) -> Tensor:
        """Returns softmax(E), (B, H, d, d)."""
        if key_mask is not None:
            q, k = (x.masked_fill(~key_mask[:, None, :, None], 0.0) for x in (q, k))
        q, k = at_least_single(q), at_least_single(k)
        energy = self.sum_over_voxels(q.transpose(2, 3) @ k)
        if self.temperature is not None:
            factor = at_least_single(self.temperature).view(-1, 1, 1)
            energy = energy * factor * self._reciprocal_length(q).unsqueeze(3) * self._reciprocal_length(k).unsqueeze(2)
        if self.power != 0.0:
            energy = energy * self.voxels(q) ** self.power
        if self.official:
            energy = energy.amax(3, keepdim=True) - energy
        return energy.softmax(3)

    def _reciprocal_length(self, x: Tensor) -> Tensor:
        """Returns the reciprocal of each channel's length over the voxels, (B, H, d)."""
        squares = self.sum_over_voxels(torch.linalg.vector_norm(x, dim=2).square())
        return squares.clamp(min=1e-24).rsqrt()

    def sum_over_voxels(self, sums: Tensor) -> Tensor:
        """Returns the sums over the whole volume, given those over the local voxels; overridden in context parallel."""
        return sums

    def voxels(self, tokens: Tensor) -> int:
        """Returns N of the whole volume; overridden in context parallel."""
        return tokens.shape[2]
