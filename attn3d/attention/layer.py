"""Attention over a volume as a layer: a pattern, a position bias and a backend. Mechanisms are built on it."""

import functools
import math
import operator

import torch
from torch import Tensor, nn
from torch.nn import functional

from attn3d.arguments import MemoryBudget, one_of, positive_integer, probability, read_bytes
from attn3d.attention import sdpa
from attn3d.attention.bias import POSITION_BIASES, ContinuousBias, entries, look_up
from attn3d.attention.captured import attend_captured
from attn3d.attention.features import Features
from attn3d.attention.functional import BACKENDS, attend, attention_rows, check_scale, draw_seed
from attn3d.attention.grouped import attend_groups
from attn3d.attention.groups import outer
from attn3d.attention.patterns import PatternSpec, create_pattern
from attn3d.attention.tiled import refuse_forward_mode
from attn3d.capture import NotScriptable, is_captured, is_eager, is_forward_mode, needs_plain_operators, no_autocast
from attn3d.layers.spatial import check_spatial_dims

Tokens = tuple[Tensor, Tensor]  # keys and values


class VolumeAttention(NotScriptable, nn.Module):
    """Computes softmax(scale q k^T + position bias) v over the tokens of a volume that see each other.

    Args:
        spatial_dims: 1, 2 or 3.
        heads: number of heads H.
        pattern: which voxels see which: a pattern, its name or ``(name, {options})``.
        features: transform of queries and keys before their product; None leaves them unchanged.
        scale: factor of the products q k^T; 1 / sqrt(d) by default, 1 for cosine scores.
        position_bias: a bias that is learnt for every head and distance. "axis" is a sum of one bias per axis, by the
            distance along it, and "joint" has one bias for every offset; both are 0 at start. "continuous" computes
            the bias from the offset by a network, so that the size of the pattern may change later, see
            `ContinuousBias`. Requires a pattern of fixed size: Window, Grid or, except with "joint", Neighborhood.
        dropout: probability of dropping a weight in training.
        backend: "auto", "sdpa", "chunked" or "math", see `attn3d.attend`.
        memory_budget: see `attn3d.attend`. It does not include the features, the network of a continuous position
            bias, the means of `PooledKeys`, and the copies of keys and values to which registers are appended. Captured
            graphs, and "sdpa" on CUDA, compute all groups of a pattern at once and ignore the budget.

    Raises:
        TypeError, ValueError: if an argument has the wrong type or is out of range.
    """

    position_table: nn.Parameter | None

    def __init__(
        self,
        spatial_dims: int,
        heads: int,
        *,
        pattern: PatternSpec = "global",
        features: Features | None = None,
        scale: float | None = None,
        position_bias: str | None = None,
        dropout: float = 0.0,
        backend: str = "auto",
        memory_budget: MemoryBudget = None,
    ) -> None:
        super().__init__()
        self.pattern = create_pattern(pattern)
        self.spatial_dims = check_spatial_dims(spatial_dims)
        heads, sizes = positive_integer("heads", heads), self.pattern.sizes(self.spatial_dims)
        if not isinstance(features, Features | None):
            raise TypeError(f"`features` must be attn3d.attention.Features or None, got {features!r:.80}")
        check_scale(scale)
        self.features = features
        self.scale = 1.0 if features is not None and features.cosine and scale is None else scale
        self.dropout = probability("dropout", dropout)
        self.backend = one_of("backend", backend, BACKENDS)
        self.memory_budget = read_bytes("memory_budget", memory_budget)
        self.position_bias = one_of("position_bias", position_bias, POSITION_BIASES)
        if position_bias is not None and position_bias not in self.pattern.biases:
            raise ValueError(
                f"`position_bias` {position_bias!r} needs a pattern of fixed size that supports it, got {self.pattern}"
            )
        tabled = position_bias in ("axis", "joint")
        table = nn.Parameter(torch.zeros(heads, entries(str(position_bias), sizes))) if tabled else None
        self.register_parameter("position_table", table)
        self.continuous_bias = ContinuousBias(spatial_dims, heads) if position_bias == "continuous" else None

    def extra_repr(self) -> str:
        """Returns the pattern and the backend."""
        return f"{self.pattern}, backend={self.backend!r}"

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        shape: list[int],
        key_mask: Tensor | None = None,
        registers: Tokens | None = None,
    ) -> Tensor:
        """Returns the attended values.

        Args:
            q: (B, H, N, d).
            k: (B, H, M, d). M must be N, except with the patterns Global and PooledKeys.
            v: (B, H, M, d_v).
            shape: S of the keys, whose product is M.
            key_mask: (B, M), true where a key may be seen. The output of a query that sees no key is 0.
            registers: additional keys and values that belong to no voxel, (H, R, d) and (H, R, d_v), for the patterns
                Global and PooledKeys.

        Returns:
            (B, H, N, d_v).
        """
        dropout = self.dropout if self.training else 0.0
        scale = 1.0 / math.sqrt(max(1, q.shape[-1])) if self.scale is None else self.scale
        q, k, v, key_mask = self._compared(q, k, v, shape, key_mask, registers)
        if not self.pattern.local:
            return self._attend_all(q, k, v, key_mask, scale, dropout)
        if self.backend == "math" and not is_captured():
            bias = self.bias_of(torch.arange(q.shape[2], device=q.device), shape)
            return attend(q, k, v, scale=scale, key_mask=key_mask, bias=bias, dropout=dropout, backend="math")
        table = None if self.position_bias is None else self._table()
        bias_at = functools.partial(self._bias, table)
        at_once = functools.partial(attend_captured, q, k, v, shape, self.pattern, bias_at, key_mask, scale, dropout)
        if not is_eager():
            if is_forward_mode():
                refuse_forward_mode()
            return at_once()
        groups = self.pattern.groups(shape)
        if self.backend == "auto" and q.device.type == "cpu":
            fused = dropout == 0.0 and key_mask is None  # with a learnt bias too, whose gradients tiles compute
        else:
            fused = self._kernel_serves(q, k, v, table, key_mask, dropout, merged=groups[-1].again)
        if fused and q.device.type != "cpu" and q.shape[0] > 0:  # the kernels do not accept an empty batch
            return at_once()
        biases: list[Tensor | None] = [None] * len(groups)
        if table is not None:
            for index, batch in enumerate(groups):
                distances = [torch.tensor(along, device=q.device) for along in batch.distances]
                biases[index] = bias_at(distances)
        seed = draw_seed(q) if dropout > 0.0 else None
        with no_autocast(q):
            return attend_groups(q, k, v, groups, biases, key_mask, seed, fused, scale, dropout, self.memory_budget)

    def _compared(
        self, q: Tensor, k: Tensor, v: Tensor, shape: list[int], key_mask: Tensor | None, registers: Tokens | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Returns transformed queries, and pooled keys, values and mask with those of the registers appended."""
        k, v = k.to(q.dtype), v.to(q.dtype)
        if not self.pattern.local:
            (k, v), _, key_mask = self.pattern.pool((k, v), shape, key_mask)
        if self.features is not None:
            q, k = self.features(q, k, self.pattern, shape)
        if registers is None:
            return q, k, v, key_mask
        if self.features is not None:
            registers = self.features.keys(registers[0]), registers[1]
        k, v = (
            torch.cat([x, beside.to(x.dtype).expand(x.shape[0], -1, -1, -1)], 2)
            for x, beside in zip((k, v), registers, strict=True)
        )
        if key_mask is not None:
            key_mask = functional.pad(key_mask, [0, registers[0].shape[1]], value=True)
        return q, k, v, key_mask

    def _attend_all(
        self, q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None, scale: float, dropout: float
    ) -> Tensor:
        """Attends from every query to all keys."""
        if needs_plain_operators():
            width = v.shape[-1]
            q, k, v = sdpa.equal_widths(q, k, v)
            mask, keyless = None, None
            if key_mask is not None:  # an empty softmax would be nan
                keyless = ~key_mask.any(1)[:, None, None, None]
                mask = key_mask[:, None, None] | keyless
            out = functional.scaled_dot_product_attention(q, k, v, mask, dropout, scale=scale)[..., :width]
            return out if keyless is None else out.masked_fill(keyless, 0.0)
        budget = self.memory_budget
        return attend(
            q, k, v, scale=scale, key_mask=key_mask, dropout=dropout, backend=self.backend, memory_budget=budget
        )

    def _kernel_serves(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        table: Tensor | None,
        key_mask: Tensor | None,
        dropout: float,
        merged: bool,
    ) -> bool:
        """Returns whether to compute the groups by PyTorch's kernel. Several covers are ``merged``.

        Raises:
            ValueError: if ``backend`` is "sdpa" and the kernel does not support the arguments.
        """
        if self.backend == "chunked":
            return False
        reason = sdpa.refusal(q[:, :, :1], k[:, :, :1], v, None, table, dropout)
        if self.backend == "auto":
            # On a GPU, all groups are computed at once, with a bias for each group, or with the scores of all pairs if
            # the results of several covers are merged.
            return not reason and self.memory_budget is None and table is None and not merged
        if not reason and key_mask is not None and q.device.type == "cpu":
            reason = "a key mask within groups on this device"
        if reason:
            raise ValueError(f"`backend` 'sdpa' does not support {reason}; backend='chunked' does")
        return True

    def _table(self) -> Tensor | None:
        """Returns the values of the position bias."""
        if self.continuous_bias is None:
            return self.position_table
        return self.continuous_bias(self.pattern.sizes(self.spatial_dims))

    def _bias(self, table: Tensor | None, distances: list[Tensor], shared: int = 0) -> Tensor | None:
        """Returns the position bias at distances, see `look_up`."""
        if table is None:
            return None
        return look_up(table, self.position_bias, self.pattern.sizes(self.spatial_dims), distances, shared)

    def bias_of(self, chosen: Tensor, shape: list[int]) -> Tensor:
        """Returns the bias of the queries ``chosen``, (Q,), and all keys, -inf for unseen keys: (1, H or 1, Q, N)."""
        positions, covers = torch.unravel_index(chosen, shape), []
        for axes in self.pattern.relations(shape):
            pairs = zip(axes, positions, strict=True)
            visible = [seen.to(chosen.device)[position] for (seen, _), position in pairs]  # (Q, S_a) each
            covers.append(outer(operator.and_, visible, shared=1))
        seen = functools.reduce(operator.or_, covers)
        pairs = zip(axes, positions, strict=True)  # of the only cover: a pattern with several covers has no bias
        distances = [distance.to(chosen.device)[position] for (_, distance), position in pairs]
        bias = self._bias(self._table(), distances, shared=1)
        if bias is None:
            bias = torch.zeros(1, *seen.shape, dtype=torch.float32, device=chosen.device)
        return bias.masked_fill(~seen, float("-inf")).unsqueeze(0)

    def rows(
        self,
        q: Tensor,
        k: Tensor,
        chosen: Tensor,
        shape: list[int],
        key_mask: Tensor | None = None,
        registers: Tokens | None = None,
    ) -> Tensor:
        """Returns the weights of the queries ``chosen``, (Q,), over the volume of the keys: (B, H, Q, *S).

        The rows are built in full: pass few queries. With pooled keys, S is the shape of the pooled volume. The
        weights of registers are left out, so a row then sums to less than 1.
        """
        bias = self.bias_of(chosen, shape) if self.pattern.local else None
        _, keys_shape, _ = self.pattern.pool((), shape)
        q, k, _, key_mask = self._compared(q, k, k, shape, key_mask, registers)
        scale = 1.0 / math.sqrt(max(1, q.shape[-1])) if self.scale is None else self.scale
        weights = attention_rows(q[:, :, chosen], k, scale, key_mask, bias)
        return weights[..., : math.prod(keys_shape)].unflatten(3, keys_shape)
