"""The mean and the maximum over axes, which save no further map for backward."""

import pytest
import torch

from attn3d.layers.pooling import mean, mean_and_maximum
from tests.layers.gradients import assert_same, saved, volume

pytestmark = pytest.mark.usefixtures("several_blocks")
AXES = pytest.mark.parametrize("axes", [[1], [2, 3, 4], [3]], ids=str)


def gate_of(x):
    return torch.randn(*x.shape[:2], 1, 1, 1, dtype=x.dtype, requires_grad=True)


def both(x, axes, gate=None):
    """Mean and maximum combined, so that exchanging them changes the result."""
    average, largest = mean_and_maximum(x, axes, gate)
    return average + 2 * largest * largest


def plain(x, axes, gate=None):
    x = x if gate is None else x * gate
    return x.mean(axes, keepdim=True) + 2 * x.amax(axes, keepdim=True).square()


@pytest.mark.parametrize("shape", [(2, 3, 4, 3, 2), (1, 3, 1, 3, 2), (2, 1, 1, 1, 1), (0, 3, 2, 2, 2)], ids=str)
@AXES
def test_gradients_are_those_of_the_plain_operators(axes, shape):
    x = volume(*shape)
    gate = gate_of(x)
    assert_same(both(x, axes), plain(x, axes), [x])
    assert_same(both(x, axes, gate), plain(x, axes, gate), [x, gate])


@AXES
def test_ties_share_the_gradient(axes):
    """As in `torch.amax`."""
    x = torch.ones(2, 3, 4, 3, 2, dtype=torch.float64, requires_grad=True)
    x.data[0, 1, 2, 0, 1] = 5
    gate = torch.ones(2, 3, 1, 1, 1, dtype=torch.float64, requires_grad=True)
    assert_same(both(x, axes), plain(x, axes), [x])
    assert_same(both(x, axes, gate), plain(x, axes, gate), [x, gate])


@AXES
def test_first_and_second_derivatives(axes):
    x = volume(1, 2, 2, 2, 2)
    gate = gate_of(x)
    for check in (torch.autograd.gradcheck, torch.autograd.gradgradcheck):
        assert check(lambda x: both(x, axes), (x,))
        assert check(lambda x, gate: both(x, axes, gate), (x, gate))


@AXES
def test_no_map_is_saved_but_x(axes):
    x = volume(1, 8, 6, 6, 6)
    gate = gate_of(x)
    largest = []

    def function(x, gate):
        largest.append(mean_and_maximum(x, axes, gate)[1])

    found = saved(function, x, gate)
    assert found == {tensor.untyped_storage().data_ptr() for tensor in (x, gate, *largest)}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_dtypes_are_those_of_the_inputs(dtype):
    x = volume(2, 3, 4, 3, 2, dtype=dtype)
    gate = gate_of(x).detach().float().requires_grad_()
    sum(mean_and_maximum(x, [1], gate)).sum().backward()
    assert x.grad.dtype == dtype
    assert gate.grad.dtype == torch.float32


def test_transforms_of_functions():
    x = volume(3, 2, 2, 2, 2).detach()

    def loss(x):
        return both(x[None], [1]).sum()

    found = torch.func.vmap(torch.func.grad(loss))(x)
    expected = torch.stack([torch.func.grad(lambda x: plain(x[None], [1]).sum())(each) for each in x])
    torch.testing.assert_close(found, expected)


@AXES
def test_the_mean_is_that_of_pytorch(axes):
    x = volume(2, 3, 4, 3, 2)
    assert_same(mean(x, axes), x.mean(axes), [x])


def test_the_gradient_of_a_mean_is_not_written_out():
    """It is an expanded view of one value per channel."""
    x = volume(2, 3, 4, 3, 2)
    (gradient,) = torch.autograd.grad(mean(x, [2, 3, 4]).sum(), x)
    assert gradient.untyped_storage().nbytes() <= 2 * 3 * x.element_size()


def test_a_mean_in_half_precision_does_not_overflow():
    x = torch.full((1, 2, 40, 40, 40), 100.0, dtype=torch.float16)
    assert torch.equal(mean(x, [2, 3, 4]), torch.full((1, 2), 100.0, dtype=torch.float16))
