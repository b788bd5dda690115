"""x times gates, keeping x and the gates alone."""

import pytest
import torch

from attn3d.gating import gate


def gates_of(x: torch.Tensor, count: int) -> list[torch.Tensor]:
    batch, channels, *shape = x.shape
    shapes = [(batch, channels, *(1 for _ in shape)), (batch, 1, *shape), (batch, channels, *shape[:1], 1, 1)]
    return [torch.rand(shape, dtype=x.dtype, requires_grad=True) for shape in shapes[:count]]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_gradients_are_those_of_the_product(count):
    x = torch.randn(2, 3, 4, 3, 2, dtype=torch.float64, requires_grad=True)
    gates = gates_of(x, count)
    product = x
    for one in gates:
        product = product * one
    torch.testing.assert_close(gate(x, gates), product)
    weight = torch.randn_like(x)
    ours = torch.autograd.grad(gate(x, gates), [x, *gates], weight)
    theirs = torch.autograd.grad(product, [x, *gates], weight)
    torch.testing.assert_close(ours, theirs)


def test_first_and_second_derivatives():
    x = torch.randn(1, 2, 2, 2, 2, dtype=torch.float64, requires_grad=True)
    gates = gates_of(x, 2)
    assert torch.autograd.gradcheck(lambda x, *gates: gate(x, list(gates)), (x, *gates))
    assert torch.autograd.gradgradcheck(lambda x, *gates: gate(x, list(gates)), (x, *gates))


def test_only_x_and_the_gates_are_kept():
    x = torch.randn(1, 8, 6, 6, 6, requires_grad=True)
    gates = gates_of(x, 3)
    kept = set()

    def keep(tensor):
        kept.add(tensor.untyped_storage().data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        gate(x, gates)
    assert kept == {tensor.untyped_storage().data_ptr() for tensor in (x, *gates)}


@pytest.mark.parametrize("frozen", range(3))
def test_what_needs_no_gradient_gets_none(frozen):
    x = torch.randn(1, 2, 3, 3, 3, requires_grad=True)
    inputs = [x, *gates_of(x, 2)]
    inputs[frozen].requires_grad_(False)
    gate(inputs[0], inputs[1:]).sum().backward()
    assert [tensor.grad is None for tensor in inputs] == [index == frozen for index in range(3)]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtype_and_memory_format_are_those_of_x(dtype):
    x = torch.randn(2, 3, 4, 3, 2, dtype=dtype).contiguous(memory_format=torch.channels_last_3d)
    gates = [one.float() for one in gates_of(x, 2)]
    y = gate(x, gates)
    assert y.dtype == dtype
    assert y.is_contiguous(memory_format=torch.channels_last_3d)
