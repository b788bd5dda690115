"""Faults of published attention, including MONAI 1.6.1's.

Every fault has a faulty implementation and a check here. The check fails for the faulty implementation and passes for
this library's.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import dropout, pad

from attn3d import Window, attend
from attn3d.attention import VolumeAttention
from tests.mechanisms.parity import assert_close, volume
from tests.references.attention import Rule, attend_within
from tests.references.attention import attend as loops

HEADS, SHAPE, WINDOW = 2, (5, 6), 4


def tokens(count, width=3, seed=0):
    return [volume(2, HEADS, count, width, seed=seed + place).requires_grad_() for place in range(3)]


def softmax_rows(q, k, bias=0.0):
    return (q @ k.mT / math.sqrt(q.shape[-1]) + bias).softmax(3)


# Dropout of weights that stays on in evaluation: SABlock and CrossAttentionBlock with use_flash_attention.


def dropout_in_evaluation(q, k, v, training):
    return dropout(softmax_rows(q, k), 0.5, True) @ v


def dropout_of_ours(q, k, v, training):
    layer = VolumeAttention(1, HEADS, dropout=0.5).train(training)
    return layer(q, k, v, [q.shape[2]])


def check_dropout(run):
    q, k, v = tokens(9)
    torch.manual_seed(0)
    assert_close(run(q, k, v, False), loops(q, k, v)[0], 1e-12)
    assert not torch.allclose(run(q, k, v, True), loops(q, k, v)[0])


# A bias for each head that the fast path averages over the heads: CABlock with use_flash_attention. MONAI's test
# passes because all heads start with the same bias.


def bias_averaged_over_heads(q, k, v, bias):
    return softmax_rows(q, k, bias.mean(1, keepdim=True).detach()) @ v


def bias_of_ours(q, k, v, bias):
    return attend(q, k, v, bias=bias, backend="chunked")


def check_heads(run):
    q, k, v = tokens(9)
    bias = volume(1, HEADS, 1, 9, seed=5).requires_grad_()
    found, (expected, _) = run(q, k, v, bias), loops(q, k, v, bias=bias.expand(2, -1, 9, -1))
    assert_close(found, expected, 1e-12)
    gradients = [torch.autograd.grad(out.square().sum(), bias, allow_unused=True)[0] for out in (found, expected)]
    assert gradients[0] is not None
    assert_close(*gradients, 1e-10)


# Masks that broadcast along the wrong axis of the scores: with as many queries as keys and without a batch, queries
# are masked instead of keys, and no error is raised.


def mask_of_queries(q, k, v, key_mask):
    return (softmax_rows(q, k) * key_mask[:, None, :, None]) @ v


def mask_shared_by_the_batch(q, k, v, key_mask):
    return softmax_rows(q, k, torch.zeros(()).masked_fill(~key_mask[0], -math.inf)) @ v


def mask_after_the_softmax(q, k, v, key_mask):
    return (softmax_rows(q, k) * key_mask[:, None, None]) @ v


def mask_of_ours(q, k, v, key_mask):
    return attend(q, k, v, key_mask=key_mask)


def check_mask(run):
    q, k, v = tokens(9)
    key_mask = torch.arange(18).view(2, 9) % 4 > 0
    assert 0 < key_mask.sum() < key_mask.numel()  # the mask must hide some keys
    assert_close(run(q, k, v, key_mask), loops(q, k, v, key_mask=key_mask)[0], 1e-12)


# Windows: padding with attention weights (SwinUNETR), rolled windows that see across the border, and a clipped window
# with the bias index of the full window.


def joint_bias(table, size):
    """The biases of all pairs of a window that is not clipped, (1, H, n, n)."""
    layer = VolumeAttention(2, HEADS, pattern=Window(size), position_bias="joint").double()
    layer.position_table.data.copy_(table)
    return layer.bias_of(torch.arange(size * size), [size, size]).detach()


def in_windows(q, k, v, shape, size, shift=0, bias=0.0):
    """Attention in windows with zero padding and rolling, but without masks."""
    window = [min(size, extent) for extent in shape]
    padded = [-(-extent // width) * width for extent, width in zip(shape, window, strict=True)]

    def cut(x):
        x = x.unflatten(2, shape)
        x = pad(x, (0, 0, 0, padded[1] - shape[1], 0, padded[0] - shape[0]))
        x = x.roll((-shift, -shift), (2, 3)).unflatten(3, (-1, window[1])).unflatten(2, (-1, window[0]))
        return x.transpose(3, 4).flatten(4, 5)

    q, k, v = cut(q), cut(k), cut(v)
    out = softmax_rows(q.flatten(2, 3).transpose(1, 2).flatten(0, 1), k.flatten(2, 3).transpose(1, 2).flatten(0, 1),
                       bias) @ v.flatten(2, 3).transpose(1, 2).flatten(0, 1)  # fmt: skip
    counts = [extent // width for extent, width in zip(padded, window, strict=True)]
    out = out.unflatten(0, (q.shape[0], -1)).transpose(1, 2).unflatten(2, counts).unflatten(4, window)
    out = out.transpose(3, 4).flatten(4, 5).flatten(2, 3).roll((shift, shift), (2, 3))
    return out[:, :, : shape[0], : shape[1]].flatten(2, 3)


def windows_of_ours(q, k, v, shape, size, shift=0, table=None):
    joint = None if table is None else "joint"
    layer = VolumeAttention(2, HEADS, pattern=Window(size, shift=shift > 0), position_bias=joint).double()
    if table is not None:
        layer.position_table.data.copy_(table)
    return layer(q, k, v, list(shape))


def padding_that_takes_weight(q, k, v, shape, size, shift, table):
    return in_windows(q, k, v, shape, size)


def check_padding(run):
    q, k, v = tokens(30)
    expected, _ = attend_within(Rule("window", (WINDOW,) * 2), q, k, v, SHAPE)
    assert_close(run(q, k, v, SHAPE, WINDOW, 0, None), expected, 1e-12)


def shift_round_the_border(q, k, v, shape, size, shift, table):
    return in_windows(q, k, v, shape, size, shift)


def check_shift(run):
    q, k, v = tokens(64)  # a multiple of the window, so that nothing is padded
    expected, _ = attend_within(Rule("window", (WINDOW,) * 2, True), q, k, v, (8, 8))
    assert_close(run(q, k, v, (8, 8), WINDOW, WINDOW // 2, None), expected, 1e-12)


def index_of_the_full_window(q, k, v, shape, size, shift, table):
    count = math.prod(shape)
    full = joint_bias(table, size)
    return in_windows(q, k, v, shape, size, bias=full[..., :count, :count])


def check_clipped_index(run):
    shape = (WINDOW, 3)
    q, k, v = tokens(math.prod(shape))
    table = volume(HEADS, (2 * WINDOW - 1) ** 2, seed=8)
    expected, _ = attend_within(Rule("window", (WINDOW,) * 2), q, k, v, shape, table=table, table_kind="joint")
    assert_close(run(q, k, v, shape, WINDOW, 0, table), expected, 1e-12)


def transposed_index(q, k, v, shape, size, shift, table):
    return in_windows(q, k, v, shape, size, bias=joint_bias(table, size).mT)


def check_index(run):
    shape = (2 * WINDOW, WINDOW)
    q, k, v = tokens(math.prod(shape))
    table = volume(HEADS, (2 * WINDOW - 1) ** 2, seed=8)
    expected, _ = attend_within(Rule("window", (WINDOW,) * 2), q, k, v, shape, table=table, table_kind="joint")
    assert_close(run(q, k, v, shape, WINDOW, 0, table), expected, 1e-12)


# Half precision: products are computed before scaling, and sums overflow.


def products_in_half(q, k, v):
    return (q @ k.mT).softmax(3) @ v


def half_of_ours(q, k, v):
    return attend(q, k, v, scale=1.0)


def check_half(run):
    q, k, v = (x.detach() for x in tokens(9, 64))
    q, k, v = (200 * q.sign()).half(), (200 * q.sign()).half(), v.half()
    assert (q.double() @ k.double().mT).max() > 65504
    found = run(q, k, v)
    assert found.isfinite().all()
    assert_close(found.double(), loops(q.double(), k.double(), v.double(), scale=1.0)[0], 2e-3)


def keyless_row_is_nan(q, k, v, key_mask):
    return softmax_rows(q, k, torch.zeros(key_mask.shape).masked_fill(~key_mask, -math.inf)[:, None, None]) @ v


def check_keyless(run):
    q, k, v = tokens(9)
    key_mask = torch.ones(2, 9, dtype=torch.bool)
    key_mask[0] = False
    found = run(q, k, v, key_mask)
    assert (found[0] == 0).all()
    assert_close(found, loops(q, k, v, key_mask=key_mask)[0], 1e-12)


FAULTS = [
    (check_dropout, dropout_in_evaluation, dropout_of_ours),
    (check_heads, bias_averaged_over_heads, bias_of_ours),
    (check_mask, mask_of_queries, mask_of_ours),
    (check_mask, mask_shared_by_the_batch, mask_of_ours),
    (check_mask, mask_after_the_softmax, mask_of_ours),
    (check_keyless, keyless_row_is_nan, mask_of_ours),
    (check_padding, padding_that_takes_weight, windows_of_ours),
    (check_shift, shift_round_the_border, windows_of_ours),
    (check_clipped_index, index_of_the_full_window, windows_of_ours),
    (check_index, transposed_index, windows_of_ours),
    (check_half, products_in_half, half_of_ours),
]


@pytest.mark.parametrize(("check", "faulty", "ours"), FAULTS, ids=lambda one: getattr(one, "__name__", None))
def test_the_check_fails_for_the_fault_and_passes_for_ours(check, faulty, ours):
    check(ours)
    with pytest.raises(AssertionError):
        check(faulty)


def test_the_faulty_windows_are_right_without_their_fault():
    """Without padding, shift and bias the windows are right, and so is the index of a window that is not clipped."""
    q, k, v = tokens(64)
    expected, _ = attend_within(Rule("window", (WINDOW,) * 2), q, k, v, (8, 8))
    assert_close(in_windows(q, k, v, (8, 8), WINDOW), expected, 1e-12)
    table = volume(HEADS, (2 * WINDOW - 1) ** 2, seed=8)
    rule = Rule("window", (WINDOW,) * 2)
    expected, _ = attend_within(rule, q, k, v, (8, 8), table=table, table_kind="joint")
    found = in_windows(q, k, v, (8, 8), WINDOW, bias=joint_bias(table, WINDOW))
    assert_close(found, expected, 1e-12)
