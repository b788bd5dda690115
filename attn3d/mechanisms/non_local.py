"""Non-local blocks: Wang, Girshick, Gupta, He, arXiv 1711.07971, equations 1 to 6.

Deviations: `concatenation` and `dot_product` are computed without building N x N. The batch norm of the compact form
starts with weight 1; that of the paper starts with 0, so that the block starts as the identity.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from attn3d.arguments import MemoryBudget, boolean, one_of, positive_integer, read_bytes
from attn3d.attention import (
    BACKENDS,
    Global,
    Pattern,
    PatternSpec,
    PositionSpec,
    VolumeAttention,
    create_features,
    create_pattern,
    dot_product,
    rectified_sum,
)
from attn3d.capture import NotScriptable, at_least_single
from attn3d.layers.norms import NormSpec, create_norm
from attn3d.layers.spatial import halve, keep_format, spatial_shape, to_tokens, to_volume
from attn3d.mechanisms.base import Mechanism
from attn3d.mechanisms.registry import register_attention

__all__ = ["NonLocal"]

MODES = ("embedded_gaussian", "gaussian", "dot_product", "concatenation")


@register_attention("non_local")
class NonLocal(Mechanism):
    """Adds to every voxel a sum over all voxels, weighted by pairwise similarity.

    z = x + norm(W y), y_i = sum_j f(x_i, x_j) g(x_j) / n, over the M voxels j of the keys, with
    theta, phi, g: C -> C' and W: C' -> C, C' = max(1, C // reduction), with biases, where f depends on ``mode``:

    - "embedded_gaussian": exp(theta_i . phi_j), n is the sum over j: a softmax without scaling;
    - "gaussian": exp(x_i . x_j), n is the sum over j;
    - "dot_product": theta_i . phi_j, n = M, computed as theta (phi^T g) / M;
    - "concatenation": relu(w_f . [theta_i; phi_j]), n = M, w_f without bias.

    Args:
        spatial_dims: 1, 2 or 3.
        channels: number of channels C.
        mode: the pairwise function f.
        reduction: ratio of C to the inner width C'.
        sub_sample: whether to max-pool keys and values by 2 along every axis.
        norm: spec of the norm after W. With None, W starts at 0 in the paper's form.
        position: rotary positions of queries and keys in the softmax modes: None, "rope" or
            ``("rope", {options})``, see `MultiHeadSelfAttention`.
        pattern: which voxels see which: a pattern such as ``attn3d.Window((4, 8, 8), shift=True)``, its name or
            ``(name, {options})``. "dot_product" and "concatenation" support Global and PooledKeys.
        backend: how the softmax modes are computed, see `attn3d.attend`.
        memory_budget: bytes that attention may use, see `attn3d.attend`.
        variant: "compact", or "paper", which starts as the identity.

    Raises:
        TypeError, ValueError: if an argument has the wrong type or is out of range.

    Shape:
        (B, C, *S) -> (B, C, *S). Parameters 4 C C' + 3 C' + C, with batch norm 2 C more. "gaussian" has
        2 (C C' + C') fewer, since there is no theta and phi; "concatenation" has 2 C' more, for w_f.

    Examples:
        >>> NonLocal(3, 32)(torch.randn(1, 32, 8, 16, 16)).shape
        torch.Size([1, 32, 8, 16, 16])
    """

    paper = "1711.07971"
    summary = "voxels, separately for each voxel"

    def __init__(
        self,
        spatial_dims: int,
        channels: int,
        *,
        mode: str = "embedded_gaussian",
        reduction: int = 2,
        sub_sample: bool = False,
        norm: NormSpec = "batch",
        position: PositionSpec = None,
        pattern: PatternSpec = "global",
        backend: str = "auto",
        memory_budget: MemoryBudget = None,
        variant: str = "compact",
    ) -> None:
        super().__init__(spatial_dims, channels, variant)
        self.mode = one_of("mode", mode, MODES)
        inner = max(1, channels // positive_integer("reduction", reduction))
        self.sub_sample = boolean("sub_sample", sub_sample)
        self.value = nn.Linear(channels, inner)
        self.query = nn.Identity() if mode == "gaussian" else nn.Linear(channels, inner)
        self.key = nn.Identity() if mode == "gaussian" else nn.Linear(channels, inner)
        pattern = create_pattern(pattern)
        if sub_sample and not isinstance(pattern, Global):
            raise ValueError(f"`sub_sample` supports only the pattern 'global', got {pattern}")
        if sub_sample and position is not None:
            raise ValueError("`position` must be None with `sub_sample`, which pools voxels; use pattern=PooledKeys(2)")
        if mode in ("dot_product", "concatenation"):
            if position is not None:
                raise ValueError(f"`position` is supported by the softmax modes only, got `mode` {mode!r}")
            if pattern.local:
                raise ValueError(f"`mode` {mode!r} supports the patterns Global and PooledKeys, got {pattern}")
            pattern.sizes(spatial_dims)
            one_of("backend", backend, BACKENDS)  # neither is used, but an error in it is not ignored
            read_bytes("memory_budget", memory_budget)
            self.pairwise: Any = DotProduct(pattern) if mode == "dot_product" else Concatenation(pattern, inner)
        else:
            self.pairwise = VolumeAttention(
                spatial_dims,
                1,
                pattern=pattern,
                features=create_features(spatial_dims, 1, channels if mode == "gaussian" else inner, position=position),
                scale=1.0,
                backend=backend,
                memory_budget=memory_budget,
            )
        self.out = nn.Linear(inner, channels)
        self.norm = create_norm(norm, channels)
        if variant == "paper":
            last: Any = self.out if getattr(self.norm, "weight", None) is None else self.norm
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
        self.identity_at_start = variant == "paper"

    def compared(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, list[int]]:
        """Returns queries, keys and values, each (B, 1, N or M, .), and the shape of the volume of keys."""
        shape = spatial_shape(x)
        tokens = to_tokens(x)
        q, k, v = self.query(tokens), self.key(tokens), self.value(tokens)
        if self.sub_sample:
            k, v = halve(to_volume(k, shape)), halve(to_volume(v, shape))
            shape = spatial_shape(k)
            k, v = to_tokens(k), to_tokens(v)
        return q.unsqueeze(1), k.unsqueeze(1), v.unsqueeze(1), shape

    def read_key_mask(self, key_mask: Tensor | None, x: Tensor) -> Tensor | None:
        """Returns a key mask (B, *S) as (B, N), and None as it is; raises a ValueError with ``sub_sample`` too."""
        if self.sub_sample and key_mask is not None:
            raise ValueError("`key_mask` must be None with `sub_sample`, which pools voxels; use pattern=PooledKeys(2)")
        return super().read_key_mask(key_mask, x)

    def forward(self, x: Tensor, key_mask: Tensor | None = None) -> Tensor:
        """Adds to (B, C, *S) the weighted sums over the voxels where ``key_mask`` (B, *S) is true.

        The statistics of the norm are over all voxels.
        """
        self.check_input(x)
        mask = None if key_mask is None else self.read_key_mask(key_mask, x)
        # Not assigned to names, so that queries, keys and values are freed on return unless saved for backward.
        y = self.pairwise(*self.compared(x), mask).squeeze(1)
        y = to_volume(self.out(y), spatial_shape(x))
        return keep_format(x + self.norm(y), x)

    def attention_weights(
        self, x: Tensor, queries: Tensor | None = None, key_mask: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Returns f(x_i, x_j) / n of the chosen voxels i as "query", (B, 1, Q, *S of the keys), 0 for masked keys."""
        self.check_input(x)
        q, k, _, shape = self.compared(x)
        chosen = self.read_queries(queries, x)
        mask = self.read_key_mask(key_mask, x)
        return {"query": self.pairwise.rows(q, k, chosen, shape, mask)}


class DotProduct(NotScriptable, nn.Module):
    """The pairwise function f = theta_i . phi_j, over the pooled keys of a pattern."""

    def __init__(self, pattern: Pattern) -> None:
        super().__init__()
        self.pattern = pattern

    def forward(self, q: Tensor, k: Tensor, v: Tensor, shape: list[int], key_mask: Tensor | None = None) -> Tensor:
        """Computes y_i = sum_j f_ij v_j / M, (B, 1, N, C')."""
        (k, v), _, key_mask = self.pattern.pool((k, v), shape, key_mask)
        return dot_product(q, k, _mean_over(key_mask, v))

    def rows(self, q: Tensor, k: Tensor, chosen: Tensor, shape: list[int], key_mask: Tensor | None = None) -> Tensor:
        """Returns f_ij / M of the queries ``chosen``, (Q,), over the volume of the keys: (B, 1, Q, *S)."""
        (k,), shape, key_mask = self.pattern.pool((k,), shape, key_mask)
        return _rows(k @ q[:, :, chosen].transpose(2, 3), shape, key_mask)


def _rows(pairs: Tensor, shape: list[int], key_mask: Tensor | None) -> Tensor:
    """Returns f_ij, (B, 1, M, Q), divided by the number of keys in ``key_mask``, (B, M): (B, 1, Q, *S)."""
    weights = _mean_over(key_mask, pairs) / pairs.shape[2]
    return weights.to(pairs.dtype).transpose(2, 3).unflatten(3, shape)


def _mean_over(key_mask: Tensor | None, v: Tensor) -> Tensor:
    """Scales the values (B, H, M, d) so that their mean over all M is that over the keys in ``key_mask``, (B, M).

    With a mask, the result is in at least single precision: values scaled by M could overflow in half precision.
    """
    if key_mask is None:
        return v
    v = at_least_single(v)
    seen = key_mask.to(v.dtype)
    share = seen.mean(1, keepdim=True)
    return v * (seen / share.masked_fill(share == 0, 1.0))[:, None, :, None]


class Concatenation(NotScriptable, nn.Module):
    """The pairwise function f = relu(w_f . [theta_i; phi_j]), computed as f_ij = relu(a_i + b_j)."""

    def __init__(self, pattern: Pattern, inner: int) -> None:
        super().__init__()
        self.pattern = pattern
        self.inner = inner
        self.weight = nn.Parameter(torch.empty(1, 2 * inner))
        nn.init.kaiming_uniform_(self.weight, a=5**0.5)  # as nn.Linear

    def forward(self, q: Tensor, k: Tensor, v: Tensor, shape: list[int], key_mask: Tensor | None = None) -> Tensor:
        """Computes y_i = sum_j f_ij v_j / M, (B, 1, N, C')."""
        (k, v), _, key_mask = self.pattern.pool((k, v), shape, key_mask)
        return rectified_sum(*self._split(q, k), _mean_over(key_mask, v))

    def _split(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """Returns a and b, (B, H, N) and (B, H, M)."""
        # Not `q @ weight[0]`: ONNX Runtime drops the transpose before a product with a vector.
        query_weight, key_weight = self.weight[:, : self.inner], self.weight[:, self.inner :]
        return linear(q, query_weight).squeeze(3), linear(k, key_weight).squeeze(3)

    def rows(self, q: Tensor, k: Tensor, chosen: Tensor, shape: list[int], key_mask: Tensor | None = None) -> Tensor:
        """Returns f_ij / M of the queries ``chosen``, (Q,), over the volume of the keys: (B, 1, Q, *S)."""
        (k,), shape, key_mask = self.pattern.pool((k,), shape, key_mask)
        a, b = self._split(q[:, :, chosen], k)
        return _rows(torch.relu(a.unsqueeze(2) + b.unsqueeze(3)), shape, key_mask)
