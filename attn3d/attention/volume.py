"""Attention over a volume as the layer that mechanisms hold: a scope, computed by a method."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import sdpa_kernel

from attn3d.arguments import one_of, probability
from attn3d.attention.budget import (
    fused_bytes,
    fused_cells_bytes,
    least_bytes,
    means_like,
    over_budget,
    pooling_bytes,
    room_for_cells,
    room_for_scores,
    scopes_of_axes,
    scopes_within,
)
from attn3d.attention.cell_operators import attend_cells
from attn3d.attention.cells import MASKED, joint_bias
from attn3d.attention.dense import dense_axial, dense_bias
from attn3d.attention.memory import MemoryBudget, read_bytes
from attn3d.attention.methods import KERNELS, METHODS, attend, attention_rows, draw_seed, refusal_of_fused
from attn3d.attention.plain import plain_attention, plain_axial, plain_cells, pool_tokens, pooled_shape
from attn3d.attention.scopes import Scope, create_scope, name_of
from attn3d.capture import at_least_single, needs_plain_operators, without_autocast

POSITION_BIASES = (None, "axis", "joint")


class VolumeAttention(nn.Module):
    """softmax(scale q k^T + position bias) v over the tokens of a volume, among those that see each other.

    Args:
        spatial_dims: 1, 2 or 3.
        heads: H.
        scope: who sees whom: a scope, its name or ``(name, {options})``.
        scale: of the products; 1 / sqrt(d) by default.
        position_bias: learnt for every head and distance, 0 at start: "axis", one for the distance along each
            axis, which add up; "joint", one for every offset; None. It needs a scope of fixed size: Window,
            Grid, or, for "axis", Neighborhood.
        dropout: probability of dropping a weight in training.
        method: "auto", "fused", "chunked" or "reference", see `attn3d.attend`.
        memory_budget: see `attn3d.attend`.

    Raises:
        TypeError, ValueError: when an argument is of the wrong kind or out of range.
    """

    def __init__(
        self,
        spatial_dims: int,
        heads: int,
        *,
        scope: Scope | str | Sequence[Any] = "global",
        scale: float | None = None,
        position_bias: str | None = None,
        dropout: float = 0.0,
        method: str = "auto",
        memory_budget: MemoryBudget = None,
    ) -> None:
        super().__init__()
        self.scope = create_scope(scope)
        self.kind = name_of(self.scope)
        self.size = self.scope.per_axis(spatial_dims) or [1] * spatial_dims
        self.dilation = self.scope.dilation_per_axis(spatial_dims)
        self.shift = bool(getattr(self.scope, "shift", False))
        self.scale = scale
        self.dropout = probability("dropout", dropout)
        self.method = one_of("method", method, METHODS)
        read_bytes("memory_budget", memory_budget)
        self.memory_budget = memory_budget
        self.position_bias = one_of("position_bias", position_bias, POSITION_BIASES)
        fitting = {None: [self.kind], "axis": ["window", "grid", "neighborhood"], "joint": ["window", "grid"]}
        if self.kind not in fitting[position_bias]:
            raise ValueError(
                f"`position_bias` {position_bias!r} needs a scope of fixed size, {' or '.join(fitting[position_bias])},"
                f" got {self.scope}"
            )
        lengths = [2 * size - 1 for size in self.size]
        if position_bias is not None:
            entries = sum(lengths) if position_bias == "axis" else math.prod(lengths)
            self.position_table = nn.Parameter(torch.zeros(heads, entries))
        else:
            self.register_parameter("position_table", None)
        self.lengths = lengths
        self.ranks = None  # those that the volume is cut over, see `attn3d.shard_over`

    def forward(self, q: Tensor, k: Tensor, v: Tensor, shape: list[int]) -> Tensor:
        """Attends.

        Args:
            q: (B, H, N, d).
            k: (B, H, M, d); M is N but for the scopes "global" and "pooled_keys".
            v: (B, H, M, d_v).
            shape: S of the keys, whose product is M.

        Returns:
            (B, H, N, d_v).
        """
        if self.ranks is not None:
            return self._attend_over_ranks(q, k, v, shape)
        if not torch.jit.is_scripting():
            if not needs_plain_operators():
                return self._attend_within_budget(q, k, v, shape)
        if self.kind == "pooled_keys":
            k, v = pool_tokens(k, shape, self.size), pool_tokens(v, shape, self.size)
        dropout = self.dropout if self.training else 0.0
        scale = self._scale_of(q)
        if self.kind == "global" or self.kind == "pooled_keys":
            return plain_attention(q, k, v, scale, dropout)
        if self.kind == "axial":
            return plain_axial(q, k, v, shape, scale, dropout)
        tables, bias = self._position_bias(shape)
        return plain_cells(
            q,
            k,
            v,
            tables,
            bias,
            shape,
            [self.kind] * len(shape),
            self.size,
            self.dilation,
            self.shift,
            scale,
            dropout,
        )

    @torch.jit.unused
    @without_autocast
    def _attend_within_budget(self, q: Tensor, k: Tensor, v: Tensor, shape: list[int]) -> Tensor:
        """By the method that fits, keys and values being the voxels'."""
        k, v = k.to(q.dtype), v.to(q.dtype)
        method, budget = self._method_within_budget(q, k, v, shape)
        if self.kind == "pooled_keys":
            if budget is not None:
                budget -= pooling_bytes(q, k, v, shape, self.size)
            k, v = pool_tokens(k, shape, self.size), pool_tokens(v, shape, self.size)
        return self._attend(q, k, v, shape, method, budget)

    def _method_within_budget(self, q: Tensor, k: Tensor, v: Tensor, shape: list[int]) -> tuple[str, int | None]:
        """The method, and the budget as a number of bytes.

        Raises:
            ValueError: when the budget cannot be met, naming the scopes that would fit.
        """
        dropout = self.dropout if self.training else 0.0
        in_cells = self.kind not in ("global", "pooled_keys")
        methods = [self.method]
        if self.method == "auto":
            refused = self._refusal_of_fused(q) if in_cells else refusal_of_fused(q, k, v, None, None, dropout)
            # The tiles gather a few cells at a time; the kernel, all, which pays where it is much faster.
            suits = not in_cells or (q.is_cuda and self.kind in ("window", "grid"))
            methods = ["chunked"] if refused or not suits else ["fused", "chunked"]
        limit = read_bytes("memory_budget", self.memory_budget)
        if self.kind == "pooled_keys" and torch.compiler.is_compiling():
            limit = None  # a compiler takes minutes over numbers of means that are symbols
        if limit is None or self.method == "reference":
            return methods[0], limit
        needed = {method: self._least_bytes(method, q, k, v, shape, dropout > 0.0) for method in methods}
        for method, least in needed.items():
            if least <= limit:
                return method, limit
        raise over_budget(limit, needed, scopes_within(limit, q, k, v, dropout > 0.0, shape))

    def _least_bytes(self, method: str, q: Tensor, k: Tensor, v: Tensor, shape: list[int], dropout: bool) -> int:
        table = self.position_table
        if method == "chunked":
            return least_bytes(self.scope, q, k, v, table, self.position_bias == "joint", dropout, shape)
        if self.kind == "global":
            return fused_bytes(q, k, v, None)
        if self.kind == "pooled_keys":
            means = means_like(k, v, shape, self.size)
            return fused_bytes(q, *means, None) + pooling_bytes(q, k, v, shape, self.size)
        return fused_cells_bytes(q, k, v, table, shape, self.kind, self.size, self.dilation, self.shift)

    @without_autocast
    def _attend(self, q: Tensor, k: Tensor, v: Tensor, shape: list[int], method: str, budget: int | None) -> Tensor:
        """With the operators that are made for it."""
        dropout = self.dropout if self.training else 0.0
        scale = self._scale_of(q)
        if self.kind in ("global", "pooled_keys"):
            return attend(q, k, v, scale=scale, dropout=dropout, method=method, memory_budget=budget)
        if method == "reference" or q.shape[0] == 0:
            every = torch.arange(q.shape[2], device=q.device)
            bias = self.bias_of(every, shape)
            return attend(q, k, v, scale=scale, bias=bias, dropout=dropout, method="reference")
        seed = draw_seed(q) if dropout > 0.0 else None
        if method == "fused":
            return self._fused_cells(q, k, v, shape, scale)
        table = self.position_table if self.position_bias == "axis" else None
        scopes = scopes_of_axes(self.kind, len(shape))
        room = room_for_cells(
            q,
            k,
            v,
            self.position_table,
            self.position_bias == "joint",
            seed is not None,
            shape,
            scopes,
            self.size,
            self.dilation,
            self.shift,
            budget,
        )
        constants = (self.size, self.dilation, self.shift, scale, dropout, room)
        if self.kind == "axial":
            return self._axial(q, k, v, seed, shape, scopes, constants)
        _, bias = self._position_bias(shape)
        return attend_cells(q, k, v, table, bias, seed, shape, scopes[0], *constants)[0]

    @torch.jit.unused
    def _attend_over_ranks(self, q: Tensor, k: Tensor, v: Tensor, shape: list[int]) -> Tensor:
        """The queries of a shard with the keys that they see, wherever those are."""
        if self.dropout > 0.0 and self.training:
            raise ValueError("`dropout` on the weights is not served over ranks: set it to 0, or call `eval`")
        if self.ranks.sharing == "ring" and self.kind == "global":
            room = room_for_scores(q, k, v, None, 0.0, self.memory_budget)
            return self.ranks.ring(q, k, v, shape, self._scale_of(q), room)
        q, k, v, shape, own = self.ranks.gather(q, k, v, shape, self)
        method, budget = self._method_within_budget(q, k, v, shape)
        return self._attend(q, k, v, shape, method, budget)[:, :, own]

    def _refusal_of_fused(self, q: Tensor) -> str:
        """Why PyTorch's kernel cannot serve the cells, or an empty string."""
        if self.kind == "axial":
            return "the scope 'axial', which merges parts of a softmax"
        if self.dropout > 0.0 and self.training:
            return "dropout on the weights"
        if self.position_bias == "joint" and torch.is_grad_enabled():
            return "a joint position bias that is learnt"
        if q.dtype == torch.float16:
            return "cells in half precision, which has no room for their masks"
        return ""

    def _fused_cells(self, q: Tensor, k: Tensor, v: Tensor, shape: list[int], scale: float) -> Tensor:
        reason = self._refusal_of_fused(q)
        if reason:
            raise ValueError(f"`method` 'fused' does not serve {reason}; method='chunked' does")
        tables, bias = self._position_bias(shape)
        scope = [self.kind] * len(shape)
        with sdpa_kernel(KERNELS):
            return plain_cells(q, k, v, tables, bias, shape, scope, self.size, self.dilation, self.shift, scale, 0.0)

    def _axial(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        seed: Tensor | None,
        shape: list[int],
        scopes: list[str],
        constants: tuple[Any, ...],
    ) -> Tensor:
        """The lines along each axis apart, then as parts of one softmax."""
        outs, sums = [], []
        for axis, (extent, scope) in enumerate(zip(shape, scopes, strict=True)):
            bias = None
            if axis > 0:  # the query itself is on every line, and counts once
                itself = torch.eye(extent, dtype=torch.bool, device=q.device)
                bias = at_least_single(q.new_zeros([1, 1, extent, extent])).masked_fill(itself, MASKED)
                bias = bias.expand(-1, q.shape[1], -1, -1)
            out, logsumexp = attend_cells(q, k, v, None, bias, seed, shape, scope, *constants)
            outs.append(out)
            sums.append(logsumexp)
        return merge(outs, sums)

    def _position_bias(self, shape: list[int]) -> tuple[list[Tensor], Tensor | None]:
        """The tables of the axes, and the bias of the pairs of a cell."""
        tables: list[Tensor] = []
        bias: Tensor | None = None
        table = self.position_table
        if table is not None:
            if self.position_bias == "axis":
                tables = list(table.split(self.lengths, 1))
            else:
                bias = joint_bias(table, self.size, shape)
        return tables, bias

    @torch.jit.unused
    def bias_of(self, chosen: Tensor, shape: list[int]) -> Tensor:
        """What is added to the scores of the queries ``chosen``, (Q,), against all keys: (1, H or 1, Q, N)."""
        if self.kind in ("global", "pooled_keys"):
            raise ValueError(f"the scope {self.kind!r} adds nothing")
        if self.kind == "axial":
            return dense_axial(chosen, shape)
        table = self.position_table
        tables = table.split(self.lengths, 1) if self.position_bias == "axis" else None
        joint = table if self.position_bias == "joint" else None
        return dense_bias(chosen, shape, self.kind, self.size, self.dilation, self.shift, tables, joint)

    @torch.jit.unused
    def rows(self, q: Tensor, k: Tensor, chosen: Tensor, shape: list[int]) -> Tensor:
        """The weights of the queries ``chosen``, (Q,), over the volume of the keys: (B, H, Q, *S).

        They are built whole: ask for few. With pooled keys, S is the shape of the pooled volume.
        """
        if self.ranks is not None:
            raise ValueError("a shard has no row of weights: ask a copy, which works on whole volumes")
        bias = None
        if self.kind == "pooled_keys":
            k, shape = pool_tokens(k, shape, self.size), pooled_shape(shape, self.size)
        elif self.kind != "global":
            bias = self.bias_of(chosen, shape)
        return attention_rows(q[:, :, chosen], k, self._scale_of(q), bias=bias).unflatten(3, shape)

    def _scale_of(self, q: Tensor) -> float:
        scale = self.scale
        return 1.0 / math.sqrt(q.shape[-1]) if scale is None else scale

    def extra_repr(self) -> str:
        """The options."""
        return f"scope={self.scope}, method={self.method!r}, position_bias={self.position_bias!r}"


def merge(outs: list[Tensor], sums: list[Tensor]) -> Tensor:
    """Parts of a softmax over disjoint keys, (B, H, N, d) with their log-sum-exp (B, H, N), as one.

    A query that no part has a key for, log-sum-exp -inf in all, gets 0.
    """
    logsumexp = torch.stack(sums)
    largest = logsumexp.detach().amax(0)
    shares = torch.exp(logsumexp - largest.masked_fill(largest == -math.inf, 0.0))
    total = shares.sum(0)
    shares = shares / total.masked_fill(total == 0, 1.0)
    parts = [out * share.unsqueeze(3) for out, share in zip(outs, shares, strict=True)]
    return torch.stack(parts).sum(0).to(outs[0].dtype)
