"""Attention over a volume as the layer that mechanisms hold: a pattern, a position bias, a backend."""

import functools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from attn3d.arguments import MemoryBudget, one_of, probability, read_bytes
from attn3d.attention import sdpa
from attn3d.attention.bias import POSITION_BIASES, ContinuousBias, entries, look_up
from attn3d.attention.captured import attend_captured
from attn3d.attention.features import Features
from attn3d.attention.functional import BACKENDS, attend, attention_rows, draw_seed
from attn3d.attention.grouped import attend_groups
from attn3d.attention.groups import outer
from attn3d.attention.patterns import Pattern, create_pattern
from attn3d.capture import NotScriptable, is_captured, needs_plain_operators, no_autocast

Tokens = tuple[Tensor, Tensor]  # keys and values


class VolumeAttention(NotScriptable, nn.Module):
    """softmax(scale q k^T + position bias) v over the tokens of a volume, among those that see each other.

    Args:
        spatial_dims: 1, 2 or 3.
        heads: H.
        pattern: who sees whom: a pattern, its name or ``(name, {options})``.
        features: what is made of queries and keys before they are compared; None: they are compared as they are.
        scale: of the products; 1 / sqrt(d) by default, of cosines 1.
        position_bias: learnt for every head and distance, 0 at start: "axis", one for the distance along each
            axis, which add up; "joint", one for every offset; "continuous", of a network that is given the offset,
            so that the pattern may get another size later, see `ContinuousBias`; None. It needs a pattern of fixed
            size: Window, Grid, or, but for "joint", Neighborhood.
        dropout: probability of dropping a weight in training.
        backend: "auto", "sdpa", "chunked" or "math", see `attn3d.attend`.
        memory_budget: see `attn3d.attend`. The features, and the means of `PooledKeys`, come on top. A capture, and on
            CUDA "sdpa", takes all groups of a pattern at once and heeds no budget.

    Raises:
        TypeError, ValueError: when an argument is of the wrong kind or out of range.
    """

    def __init__(
        self,
        spatial_dims: int,
        heads: int,
        *,
        pattern: Pattern | str | Sequence[Any] = "global",
        features: Features | None = None,
        scale: float | None = None,
        position_bias: str | None = None,
        dropout: float = 0.0,
        backend: str = "auto",
        memory_budget: MemoryBudget = None,
    ) -> None:
        super().__init__()
        self.pattern = create_pattern(pattern)
        self.spatial_dims = spatial_dims
        sizes = self.pattern.sizes(spatial_dims)
        self.features = features
        self.scale = 1.0 if features is not None and features.cosine and scale is None else scale
        self.dropout = probability("dropout", dropout)
        self.backend = one_of("backend", backend, BACKENDS)
        self.memory_budget = read_bytes("memory_budget", memory_budget)
        self.position_bias = one_of("position_bias", position_bias, POSITION_BIASES)
        if position_bias is not None and position_bias not in self.pattern.biases:
            raise ValueError(
                f"`position_bias` {position_bias!r} needs a pattern of fixed size that serves it, got {self.pattern}"
            )
        tabled = position_bias in ("axis", "joint")
        table = nn.Parameter(torch.zeros(heads, entries(str(position_bias), sizes))) if tabled else None
        self.register_parameter("position_table", table)
        self.continuous_bias = ContinuousBias(spatial_dims, heads) if position_bias == "continuous" else None

    def extra_repr(self) -> str:
        """The pattern and the backend."""
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
        """Attends.

        Args:
            q: (B, H, N, d).
            k: (B, H, M, d); M is N but for the patterns Global and PooledKeys.
            v: (B, H, M, d_v).
            shape: S of the keys, whose product is M.
            key_mask: (B, M), true where a key may be seen. A query that sees none gets 0.
            registers: keys and values beside the volume, (H, R, d) and (H, R, d_v), for the patterns Global and
                PooledKeys.

        Returns:
            (B, H, N, d_v).
        """
        dropout = self.dropout if self.training else 0.0
        scale = 1.0 / math.sqrt(max(1, q.shape[-1])) if self.scale is None else self.scale
        q, k, v, key_mask = self._compared(q, k, v, shape, key_mask, registers)
        if not self.pattern.local:
            return self._attend_all(q, k, v, key_mask, scale, dropout)
        if is_captured():
            by_distance = functools.partial(self._bias, self._table())
            return attend_captured(q, k, v, shape, self.pattern, by_distance, key_mask, scale, dropout)
        if self.backend == "math" or q.shape[0] == 0:
            bias = self.bias_of(torch.arange(q.shape[2], device=q.device), shape)
            return attend(q, k, v, scale=scale, key_mask=key_mask, bias=bias, dropout=dropout, backend="math")
        fused = self.backend != "chunked" and dropout == 0.0 and key_mask is None
        table = self._table() if self.position_bias is not None else None
        if self.backend == "sdpa" or q.device.type != "cpu":
            fused = self._kernel_serves(q, k, v, table, key_mask, dropout)
            if fused and q.device.type != "cpu":
                by_distance = functools.partial(self._bias, table)
                return attend_captured(q, k, v, shape, self.pattern, by_distance, key_mask, scale, dropout)
        groups = self.pattern.groups(shape)
        biases: list[Tensor | None] = [None] * len(groups)
        if table is not None:
            distances = [[torch.tensor(along, device=q.device) for along in one.distances] for one in groups]
            biases = [self._bias(table, along) for along in distances]
        seed = draw_seed(q) if dropout > 0.0 else None
        with no_autocast(q):
            return attend_groups(q, k, v, groups, biases, key_mask, seed, fused, scale, dropout, self.memory_budget)

    def _compared(
        self, q: Tensor, k: Tensor, v: Tensor, shape: list[int], key_mask: Tensor | None, registers: Tokens | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Queries, and the keys and values that the pattern leaves with their mask, those of the registers last."""
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
        """Every query with all keys."""
        if needs_plain_operators():
            width = v.shape[-1]
            q, k, v = sdpa.equal_widths(q, k, v)
            mask, keyless = None, None
            if key_mask is not None:  # an empty softmax would be nan
                keyless = ~key_mask.any(1)[:, None, None, None]
                mask = key_mask[:, None, None] | keyless
            out = functional.scaled_dot_product_attention(q, k, v, mask, dropout, scale=scale)[..., :width]
            return out if keyless is None else out.masked_fill(keyless, 0.0)
        return attend(
            q,
            k,
            v,
            scale=scale,
            key_mask=key_mask,
            dropout=dropout,
            backend=self.backend,
            memory_budget=self.memory_budget,
        )

    def _kernel_serves(
        self, q: Tensor, k: Tensor, v: Tensor, table: Tensor | None, key_mask: Tensor | None, dropout: float
    ) -> bool:
        """Whether PyTorch's kernel can compute the groups; a ValueError if it cannot and is asked for."""
        reason = sdpa.refusal(q[:, :, :1], k[:, :, :1], v, None, table, dropout)
        if not reason and key_mask is not None and q.device.type == "cpu":
            reason = "a key mask within groups on this device"
        if not reason and self.backend == "auto" and self.memory_budget is not None:
            reason = "a budget on this device"
        if reason and self.backend == "sdpa":
            raise ValueError(f"`backend` 'sdpa' does not serve {reason}; backend='chunked' does")
        return self.backend != "chunked" and not reason

    def _table(self) -> Tensor | None:
        """The values of the position bias."""
        if self.continuous_bias is None:
            table: Any = self.position_table
            return table
        return self.continuous_bias(self.pattern.sizes(self.spatial_dims))

    def _bias(self, table: Tensor | None, distances: list[Tensor], shared: int = 0) -> Tensor | None:
        """The position bias at distances, see `look_up`."""
        if table is None:
            return None
        return look_up(table, self.position_bias, self.pattern.sizes(self.spatial_dims), distances, shared)

    def bias_of(self, chosen: Tensor, shape: list[int]) -> Tensor:
        """What is added to the scores of the queries ``chosen``, (Q,), against all keys: (1, H or 1, Q, N)."""
        positions, table = torch.unravel_index(chosen, shape), self._table()
        seen, bias = torch.zeros(len(chosen), 1, dtype=torch.bool, device=chosen.device), None
        for axes in self.pattern.relations(shape):
            rows = [
                [x.to(chosen.device)[at] for x in relation] for relation, at in zip(axes, positions, strict=True)
            ]  # of every axis which positions each query sees, and how far they are, (Q, S_a)
            seen = seen | functools.reduce(lambda x, y: outer(torch.logical_and, x, y, 1), [row[0] for row in rows])
            bias = self._bias(table, [row[1] for row in rows], shared=1)
        bias = torch.zeros(1, *seen.shape, device=chosen.device) if bias is None else bias
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
        """The weights of the queries ``chosen``, (Q,), over the volume of the keys: (B, H, Q, *S).

        They are built whole: ask for few. With pooled keys, S is the shape of the pooled volume. What the registers
        weigh is missing in their sum.
        """
        bias = self.bias_of(chosen, shape) if self.pattern.local else None
        _, keys_shape, _ = self.pattern.pool((), shape)
        q, k, _, key_mask = self._compared(q, k, k, shape, key_mask, registers)
        scale = 1.0 / math.sqrt(max(1, q.shape[-1])) if self.scale is None else self.scale
        weights = attention_rows(q[:, :, chosen], k, scale, key_mask, bias)
        return weights[..., : math.prod(keys_shape)].unflatten(3, keys_shape)
