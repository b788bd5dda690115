"""Non-local block, arXiv 1711.07971: z_i = BN(W y_i) + x_i, y_i = sum_j f(x_i, x_j) g(x_j) / norm."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.mechanisms.case import NORMS, PAPER, REDUCTIONS, Case, Floor, norm_keys
from tests.references.plain import batch_norm, dot, max_pool, pointwise, relu, softmax, volume, voxels


def non_local(
    x,
    parameters,
    statistics,
    training,
    *,
    variant="compact",
    mode="embedded_gaussian",
    reduction=2,
    sub_sample=False,
    norm="batch",
):
    channels = x.shape[1]
    inner = max(1, channels // reduction)
    remaining = iter(parameters)

    values = voxels(x)
    content = pointwise(values, next(remaining).reshape(inner, channels), next(remaining))
    queries = keys = values
    if mode != "gaussian":
        queries = pointwise(values, next(remaining).reshape(inner, channels), next(remaining))
        keys = pointwise(values, next(remaining).reshape(inner, channels), next(remaining))
    pair_weight = next(remaining).reshape(2 * inner) if mode == "concatenation" else None
    if sub_sample:
        content, keys = max_pool(content), max_pool(keys)

    attended = {}
    for index, query in queries.items():
        if mode == "concatenation":
            energies = [relu(dot(torch.cat([query, key], 1), pair_weight)) for key in keys.values()]
        else:
            energies = [dot(query, key) for key in keys.values()]
        if mode in ("embedded_gaussian", "gaussian"):
            weights = softmax(energies)
        else:
            weights = [energy / len(keys) for energy in energies]
        attended[index] = sum(weight[:, None] * value for weight, value in zip(weights, content.values(), strict=True))

    update = pointwise(attended, next(remaining).reshape(channels, inner), next(remaining))
    if norm == "batch":
        update = batch_norm(update, next(remaining), next(remaining), statistics[0], training)
    assert not list(remaining)
    return volume({index: update[index] + value for index, value in values.items()})


class PlainNonLocal(nn.Module):
    """The non-local block, embedded Gaussian, with a score for every pair."""

    def __init__(self, channels: int, reduction: int = 2) -> None:
        super().__init__()
        inner = max(1, channels // reduction)
        self.value, self.query, self.key = (nn.Conv3d(channels, inner, 1) for _ in range(3))
        self.out = nn.Sequential(nn.Conv3d(inner, channels, 1), nn.BatchNorm3d(channels))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).flatten(2).mT for layer in (self.query, self.key, self.value))
        y = (q @ k.mT).softmax(-1) @ v
        return x + self.out(y.mT.unflatten(2, x.shape[2:]))


def count(c, n, variant):
    inner = max(1, c // 2)
    return 4 * c * inner + 3 * inner + c + 2 * c


def keys(n):
    value, out, norm = "value.weight 4x8, value.bias 4", "out.weight 8x4, out.bias 8", norm_keys("norm", 8)
    compared = f"{value}, query.weight 4x8, query.bias 4, key.weight 4x8, key.bias 4"
    usual = f"{compared}, {out}, {norm}"
    return {
        "default": usual,
        "paper": usual,
        "without_norm": f"{compared}, {out}",
        "gaussian": f"{value}, {out}, {norm}",
        "dot_product": usual,
        "concatenation": f"{compared}, pairwise.weight 1x8, {out}, {norm}",
        "sub_sample": usual,
        "axial": usual,
    }


CASE = Case(
    forms={
        "default": {},
        "paper": PAPER,
        "without_norm": {"norm": None},
        "gaussian": {"mode": "gaussian"},
        "dot_product": {"mode": "dot_product"},
        "concatenation": {"mode": "concatenation"},
        "sub_sample": {"sub_sample": True},
    },
    patterns={"axial": {"pattern": "axial"}},
    reference=non_local,
    count=count,
    keys=keys,
    plain=PlainNonLocal,
    floor=Floor(3, 5, "keys and values: x; the rest: x, y", "keys and values: dy, x; input: dy, x, dx"),
    weights={"query": (2, 1, 3, 4, 3, 5)},
    identity=["paper"],
    values=[{"mode": "gausian"}],
    kinds=[{"sub_sample": "yes"}],
    drawn={
        "reduction": REDUCTIONS,
        "mode": ["embedded_gaussian", "gaussian", "dot_product", "concatenation"],
        "sub_sample": [True, False],
        "norm": NORMS,
    },
    is_set=True,
)
