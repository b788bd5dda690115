"""Global context, arXiv 1904.11492: y = x + W2 relu(LayerNorm(W1 c)), c = sum_j softmax_j(w x_j + b) x_j."""

from __future__ import annotations

from tests.references.plain import layer_norm, linear, relu, sigmoid, softmax, volume, voxels


def global_context(x, parameters, statistics, training, *, variant="compact", reduction=16, fusion="add"):
    channels = x.shape[1]
    hidden = max(1, channels // reduction)
    key_weight, key_bias, weight1, bias1, norm_weight, norm_bias, weight2, bias2 = parameters

    values = voxels(x)
    energies = [linear(value, key_weight.reshape(1, channels), key_bias) for value in values.values()]
    shares = softmax(energies)
    context = sum(share * value for share, value in zip(shares, values.values(), strict=True))

    squeezed = linear(context, weight1.reshape(hidden, channels), bias1)
    squeezed = relu(layer_norm(squeezed, norm_weight, norm_bias))
    transformed = linear(squeezed, weight2.reshape(channels, hidden), bias2)
    if fusion == "mul":
        return volume({index: value * sigmoid(transformed) for index, value in values.items()})
    return volume({index: value + transformed for index, value in values.items()})
