"""Channel self-attention, arXiv 2106.09681 and 2111.09881: y = W_o [v_h softmax(tau_h q^_h^T k^_h)^T] + b_o."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

import attn3d
from tests.mechanisms.case import Case, Floor
from tests.references.plain import Volume, dot, largest_divisor, pointwise, softmax, volume, voxels


def default_heads(channels: int) -> int:
    """At most 8 heads, with at least two channels each."""
    return largest_divisor(channels, max(1, min(8, channels // 2)))


def channel_self_attention(x, parameters, statistics, training, *, num_heads=None):
    weight, bias, temperature, out_weight, out_bias = parameters
    channels = x.shape[1]
    projected = pointwise(voxels(x), weight.reshape(3 * channels, channels), bias)
    q, k, v = (
        {index: value[:, part * channels :][:, :channels] for index, value in projected.items()} for part in range(3)
    )
    attended = over_channels(q, k, v, temperature, num_heads or default_heads(channels))
    return volume(pointwise(attended, out_weight.reshape(channels, channels), out_bias))


def over_channels(q: Volume, k: Volume, v: Volume, temperature: Tensor, heads: int) -> Volume:
    """Each channel becomes a weighted sum of the channels of its head."""
    of_q, of_k, of_v = (torch.stack(list(values.values()), 2).unbind(1) for values in (q, k, v))  # rows (B, N)
    of_q, of_k = ([row / torch.sqrt(dot(row, row))[:, None] for row in rows] for rows in (of_q, of_k))
    width, attended = len(of_v) // heads, []
    for channel, query in enumerate(of_q):
        head = channel // width
        others = range(head * width, (head + 1) * width)
        shares = softmax([temperature[head] * dot(query, of_k[other]) for other in others])
        attended.append(sum(share[:, None] * of_v[other] for share, other in zip(shares, others, strict=True)))
    return dict(zip(v, torch.stack(attended, 1).unbind(2), strict=True))


class PlainChannel(nn.Module):
    """Channel self-attention as it is commonly written, with normalised copies of queries and keys."""

    def __init__(self, channels: int, heads: int | None = None) -> None:
        super().__init__()
        self.heads = heads or default_heads(channels)
        self.qkv = nn.Conv3d(channels, 3 * channels, 1)
        self.scales = nn.ParameterList([torch.ones(self.heads)])
        self.out = nn.Conv3d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).flatten(2).unflatten(1, (3, self.heads, -1)).unbind(1)
        q, k = functional.normalize(q, dim=3), functional.normalize(k, dim=3)
        weights = (q @ k.mT * self.scales[0][:, None, None]).softmax(3)
        return self.out((weights @ v).flatten(1, 2).view_as(x))


def count(c, n, variant):
    return 4 * c * c + 4 * c + default_heads(c)


def keys(n):
    def every(heads: int) -> str:
        return f"qkv.weight 24x8, qkv.bias 24, attention.temperature {heads}, out.weight 8x8, out.bias 8"

    return {"default": every(4), "one_head": every(1)}


def channels_of_unit_length_give_the_channel_branch_of_danet():
    """With a temperature of 1 and identity projections, it equals Q, which is DANet's y - x at beta 1."""
    x = torch.randn(2, 4, 3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = x / x.flatten(2).norm(dim=2)[..., None, None]
    module, branch = attn3d.ChannelSelfAttention(2, 4, num_heads=1).double(), attn3d.ChannelAttention(2, 4).double()
    with torch.no_grad():
        module.qkv.weight.copy_(torch.eye(4, dtype=x.dtype).repeat(3, 1))
        module.out.weight.copy_(torch.eye(4, dtype=x.dtype))
        module.qkv.bias.zero_()
        module.out.bias.zero_()
        branch.beta.fill_(1)
    torch.testing.assert_close(module(x), branch(x) - x)


def a_channel_of_zeros_gives_finite_values_and_gradients():
    x = torch.randn(1, 4, 6, generator=torch.Generator().manual_seed(0)).requires_grad_()
    module = attn3d.ChannelSelfAttention(1, 4, num_heads=2)
    with torch.no_grad():
        module.qkv.weight[:8].zero_()
        module.qkv.bias[:8].zero_()
    y = module(x)
    assert y.isfinite().all()
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(y.sum(), [x, *module.parameters()]))


def weights_do_not_grow_with_the_volume():
    """Repeating a volume does not change the weights, because channels are divided by their lengths."""
    x = torch.randn(1, 8, 4, 5, generator=torch.Generator().manual_seed(0)).double()
    module = attn3d.ChannelSelfAttention(2, 8, num_heads=2).double()
    twice = torch.cat([x, x], 3)
    affinities = [module.attention_weights(volume)["affinity"] for volume in (x, twice)]
    torch.testing.assert_close(*affinities)


def heads_are_separate():
    module = attn3d.ChannelSelfAttention(1, 6, num_heads=3)
    rows = module.attention_weights(torch.randn(2, 6, 7, generator=torch.Generator().manual_seed(0)))["affinity"]
    assert ((rows > 0) == torch.block_diag(*[torch.ones(2, 2)] * 3).bool()).all()
    torch.testing.assert_close(rows.sum(2), torch.ones(2, 6))


CASE = Case(
    forms={"default": {}, "one_head": {"num_heads": 1}},
    reference=channel_self_attention,
    count=count,
    keys=keys,
    plain=PlainChannel,
    floor=Floor(3, 5, "energies: x; the rest: x, y", "weights: dy, x; input: dy, x, dx"),
    weights={"affinity": (2, 8, 8)},
    values=[{"num_heads": 3}, {"num_heads": 0}],
    kinds=[{"num_heads": 2.0}],
    is_set=True,
    faults=[
        channels_of_unit_length_give_the_channel_branch_of_danet,
        a_channel_of_zeros_gives_finite_values_and_gradients,
        weights_do_not_grow_with_the_volume,
        heads_are_separate,
    ],
)
