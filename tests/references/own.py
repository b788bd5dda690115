"""Weights of the attention in other libraries' networks, computed in float64 from their parameters.

Each function gives, for one token, the weights of all tokens of its sample, (H, tokens), with zeros for hidden ones.
"""

import itertools

import numpy as np


def softmax(scores):
    shifted = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return shifted / shifted.sum(axis=-1, keepdims=True)


def array(tensor):
    return tensor.detach().double().numpy()


def linear(layer, x):
    y = x @ array(layer.weight).T
    return y if layer.bias is None else y + array(layer.bias)


def all_pairs(q, k, heads, token, scale, added=0.0):
    """The weights of a token of q, (N, H d), over k, (M, H d)."""
    width = q.shape[1] // heads
    scores = np.zeros((heads, len(k)))
    for head, key in itertools.product(range(heads), range(len(k))):
        part = slice(head * width, (head + 1) * width)
        scores[head, key] = scale * np.dot(q[token, part], k[key, part])
    return softmax(scores + added)


def self_attention(block, x, token, added=0.0):
    """MONAI's SABlock on x (N, C): the combined layer gives q, k and v of all heads in this order."""
    if block.use_combined_linear:
        q, k, _ = np.split(linear(block.qkv, x), 3, axis=1)
    else:
        q, k = linear(block.to_q, x), linear(block.to_k, x)
    return all_pairs(q, k, block.num_heads, token, block.dim_head**-0.5, added)


def cross_attention(block, x, context, token, added=0.0):
    """MONAI's CrossAttentionBlock on x (N, C) and a context (M, C')."""
    q, k = linear(block.to_q, x), linear(block.to_k, context)
    return all_pairs(q, k, block.num_heads, token, block.head_dim**-0.5, added)


def relative_positions(block, x, token):
    """The scores of a token that SABlock's decomposed positions add: q times a vector for each axis' distance."""
    shape = block.rel_positional_embedding.s_input_dims
    tables = [array(table) for table in block.rel_positional_embedding.rel_pos_arr]
    q = np.split(linear(block.qkv, x), 3, axis=1)[0][token].reshape(block.num_heads, -1)
    scores, here = np.zeros((block.num_heads, len(x))), np.unravel_index(token, shape)
    for key, there in enumerate(np.ndindex(*shape)):
        for table, size, at, other in zip(tables, shape, here, there, strict=True):
            scores[:, key] += q @ table[at - other + size - 1]
    return scores


def windows(block, x, voxel):
    """MONAI's SwinTransformerBlock on normalised x (*S, C): weights of all voxels, (H, *S).

    In padded windows, the padding has weights too, which are left out.
    """
    shape, attention = x.shape[:-1], block.attn
    window = [min(pair) for pair in zip(shape, block.window_size, strict=True)]
    shift = [
        0 if size <= width else by for size, width, by in zip(shape, block.window_size, block.shift_size, strict=True)
    ]
    padded = [-(-size // width) * width for size, width in zip(shape, window, strict=True)]

    def moved(place):  # to its position after the roll
        return [(at - by) % size for at, by, size in zip(place, shift, padded, strict=True)]

    def window_of(place):
        return [at // width for at, width in zip(moved(place), window, strict=True)]

    def region(place):  # voxels from opposite borders do not see each other
        return [by > 0 and at >= size - by for at, by, size in zip(moved(place), shift, padded, strict=True)]

    def number(place):  # index of the token, read in a window of full size
        inner = [at % width for at, width in zip(moved(place), window, strict=True)]
        return np.array(np.unravel_index(np.ravel_multi_index(inner, window), block.window_size))

    def tokens(place):
        inside = all(at < size for at, size in zip(place, shape, strict=True))
        return linear(attention.qkv, x[place] if inside else np.zeros(x.shape[-1]))

    heads = attention.num_heads
    q = np.split(tokens(voxel), 3)[0].reshape(heads, -1) * attention.scale
    table = array(attention.relative_position_bias_table)
    places = [place for place in np.ndindex(*padded) if window_of(place) == window_of(voxel)]
    scores = np.zeros((heads, len(places)))
    for index, place in enumerate(places):
        k = np.split(tokens(place), 3)[1].reshape(heads, -1)
        apart = number(voxel) - number(place) + np.array(block.window_size) - 1
        row = np.ravel_multi_index(apart, [2 * width - 1 for width in block.window_size])
        scores[:, index] = (q * k).sum(axis=1) + table[row] - 100 * (region(place) != region(voxel))
    volume = np.zeros((heads, *shape))
    for place, weights in zip(places, softmax(scores).T, strict=True):
        if all(at < size for at, size in zip(place, shape, strict=True)):
            volume[(slice(None), *place)] = weights
    return volume


def eva(block, x, rope, token):
    """timm's EvaAttention on x (N, C): rotates pairs of q and k as complex numbers, except for the prefix tokens."""
    heads, more = block.num_heads, block.num_prefix_tokens
    sin, cos = np.split(array(rope), 2, axis=1)

    def turned(y):
        y = y.reshape(len(y), heads, -1)
        pairs = y[..., ::2] + 1j * y[..., 1::2]
        pairs[more:] = pairs[more:] * (cos + 1j * sin)[:, None, ::2]
        return np.stack([pairs.real, pairs.imag], axis=-1).reshape(len(y), -1)

    q, k = turned(linear(block.q_proj, x)), turned(linear(block.k_proj, x))
    return all_pairs(q, k, heads, token, block.scale)


def gate(block, g, x):
    """MONAI's AttentionBlock on g and x (C, N): sigmoid(BN(psi relu(BN(W_g g) + BN(W_x x)))), (N,)."""

    def branch(layers, y):
        convolution, norm = layers[0].conv, layers[1]
        weight = array(convolution.weight).reshape(convolution.out_channels, -1)
        y = weight @ y + array(convolution.bias)[:, None]
        spread = np.sqrt(array(norm.running_var) + norm.eps)
        y = (y - array(norm.running_mean)[:, None]) / spread[:, None]
        return y * array(norm.weight)[:, None] + array(norm.bias)[:, None]

    hidden = np.maximum(branch(block.W_g, g) + branch(block.W_x, x), 0)
    return 1 / (1 + np.exp(-branch(block.psi, hidden)[0]))
