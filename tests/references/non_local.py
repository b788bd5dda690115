"""Non-local block, arXiv 1711.07971: z_i = BN(W y_i) + x_i, y_i = sum_j f(x_i, x_j) g(x_j) / norm."""

from __future__ import annotations

import torch

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
