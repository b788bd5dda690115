"""Inputs, float64 references and tolerances for the tests of attention backends."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from tests.mechanisms.parity import assert_close, assert_gradients_close, volume
from tests.references.attention import attend

BATCH, HEADS, QUERIES, KEYS, WIDTH, VALUE_WIDTH = 2, 2, 13, 11, 5, 6
SCALE = WIDTH**-0.5
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
BACKENDS = ["sdpa", "chunked", "math", "auto"]
EXACT = ["sdpa", "chunked", "auto"]
MASKS = ["none", "keys", "keyless", "bias", "hiding_bias", "keys_and_bias", "keys_and_key_bias"]

# Computes the output from q, k, v, the key mask and the bias.
Method = Callable[[Tensor, Tensor, Tensor, Tensor | None, Tensor | None], Tensor]


class Case(NamedTuple):
    """Inputs in one dtype, their results in float64, and the errors of the plain form in their dtype."""

    inputs: list[Tensor]  # q, k, v
    key_mask: Tensor | None
    bias: Tensor | None
    upstream: Tensor
    expected: list[Tensor]  # the output and the gradients of q, k, v and the bias
    plain_errors: list[float]


@functools.cache
def case(dtype: torch.dtype, mask: str) -> Case:
    generator = torch.Generator("cpu").manual_seed(MASKS.index(mask))

    def values(*shape: int) -> Tensor:
        values = torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu")
        return values.to(torch.get_default_device(), dtype)

    inputs = [
        values(BATCH, HEADS, QUERIES, WIDTH),
        values(BATCH, HEADS, KEYS, WIDTH),
        values(BATCH, HEADS, KEYS, VALUE_WIDTH),
    ]
    upstream = values(BATCH, HEADS, QUERIES, VALUE_WIDTH)
    key_mask = bias = None
    if mask.startswith("key"):
        key_mask = torch.arange(BATCH * KEYS).view(BATCH, KEYS) % 3 > 0
    if mask == "keyless":
        key_mask[1] = False
    if mask.endswith("bias"):
        bias = values(1, HEADS, 1 if mask == "keys_and_key_bias" else QUERIES, KEYS)
    if mask == "hiding_bias":  # hides a pair, a key, and all keys of a query
        bias[:, :, 0, 0] = bias[:, :, :, 4] = bias[:, :, 3] = -math.inf

    def loops(q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None, bias: Tensor | None) -> Tensor:
        return attend(q, k, v, scale=SCALE, key_mask=key_mask, bias=bias)[0]

    doubles = [tensor.double() for tensor in inputs]
    double_bias = None if bias is None else bias.double()
    expected = _results(loops, doubles, key_mask, double_bias, upstream.double())
    plain = _results(_plain_form, inputs, key_mask, bias, upstream)
    errors = [error_of(found, reference) for found, reference in zip(plain, expected, strict=True)]
    return Case(inputs, key_mask, bias, upstream, expected, errors)


def assert_as_exact_as_the_plain_form(
    backend: Method, dtype: torch.dtype, mask: str, *, trains_the_bias: bool = True
) -> None:
    """Checks that the error is at most 2 times (gradients: 3 times) that of the plain form, as root mean squares.

    A twentieth of a unit in the last place is added, because the plain form may be exact by chance.
    """
    inputs, key_mask, bias, upstream, expected, plain_errors = case(dtype, mask)
    results = _results(backend, inputs, key_mask, bias, upstream, trains_the_bias)
    names = ["output", "q", "k", "v", "bias"]
    for name, found, reference, plain in zip(names, results, expected, plain_errors, strict=False):
        assert found.dtype == dtype
        allowed = (2 if name == "output" else 3) * plain
        allowed += 0.05 * torch.finfo(dtype).eps * reference.square().mean().sqrt().item()
        error = error_of(found, reference)
        assert error <= allowed, f"{name}: error {error:.3g}, {plain:.3g} in the plain form"


def _results(
    backend: Method,
    inputs: Sequence[Tensor],
    key_mask: Tensor | None,
    bias: Tensor | None,
    upstream: Tensor,
    trains_the_bias: bool = True,
) -> list[Tensor]:
    leaves = [tensor.clone().requires_grad_() for tensor in inputs]
    if bias is not None:
        bias = bias.clone().requires_grad_(trains_the_bias)
    output = backend(*leaves, key_mask, bias)
    trained = leaves if bias is None or not trains_the_bias else [*leaves, bias]
    return [output.detach(), *torch.autograd.grad(output, trained, upstream)]


def _plain_form(q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None, bias: Tensor | None) -> Tensor:
    """The formula in plain operators, in the dtype of its inputs; 0 for a query without a key."""
    scores = q @ k.transpose(2, 3) * SCALE
    if bias is not None:
        scores = scores + bias
    if key_mask is not None:
        scores = scores.masked_fill(~key_mask[:, None, None], -math.inf)
    keyless = (scores == -math.inf).all(3, keepdim=True)
    weights = scores.masked_fill(keyless, 0.0).softmax(3).masked_fill(keyless, 0.0)
    return weights @ v


def set_tile_bytes(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """Sets the size of a tile where no budget is given."""
    for file in ("memory", "grouped"):
        monkeypatch.setattr(f"attn3d.attention.{file}.TILE_BYTES", count)


def error_of(found: Tensor, reference: Tensor) -> float:
    """The root mean square of the differences."""
    return (found.double() - reference).square().mean().sqrt().item()


def inputs(queries=QUERIES, keys=KEYS, width=5, value_width=6, batch=BATCH, heads=HEADS) -> list[Tensor]:
    """q, k and v in float64 that require gradients."""
    sizes = [(queries, width), (keys, width), (keys, value_width)]
    return [volume(batch, heads, *size, seed=seed).requires_grad_() for seed, size in enumerate(sizes)]


def assert_as_reference(leaves: Sequence[Tensor], found: Tensor, expected: Tensor) -> None:
    """Checks the output to 1e-12, and the gradients of the leaves, against the reference."""
    assert_close(found, expected, 1e-12)
    assert_gradients_close(found, leaves, expected, leaves, [str(place) for place in range(len(leaves))])


LAYOUTS = {
    "channels_first": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "heads_last": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
    "heads_inside": lambda x: x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2),
    "every_second": lambda x: x.repeat_interleave(2, 2)[:, :, ::2],
    "every_second_channel": lambda x: x.repeat_interleave(2, 3)[..., ::2],
    "offset": lambda x: torch.cat([x, x, x])[2:4],
    "part_of_qkv": lambda x: torch.stack([x, x, x], 2).unbind(2)[1],
    "one_for_all": lambda x: x[:1, :1, :1, :1].expand(x.shape),
    "one_for_all_heads": lambda x: x[:, :1].expand(x.shape),
}
