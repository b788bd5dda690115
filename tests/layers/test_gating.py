"""Products of x and gates that save only x and the gates for backward."""

import pytest
import torch

from attn3d.layers.gating import gate, joint_gate, larger_product, weighted_sum
from tests.layers.gradients import assert_same, saved, volume

pytestmark = pytest.mark.usefixtures("several_blocks")


def two_gates(x: torch.Tensor) -> list[torch.Tensor]:
    """One per channel, one per voxel."""
    shapes = [(*x.shape[:2], *(1 for _ in x.shape[2:])), (x.shape[0], 1, *x.shape[2:])]
    return [torch.randn(shape, dtype=x.dtype, requires_grad=True) for shape in shapes]


def rows_and_columns(x: torch.Tensor) -> list[torch.Tensor]:
    """One along all axes but the last, one along the last."""
    shapes = [(*x.shape[:-1], 1), (*x.shape[:2], *(1 for _ in x.shape[3:]), x.shape[-1])]
    return [torch.randn(shape, dtype=x.dtype, requires_grad=True) for shape in shapes]


def plain(x: torch.Tensor, a: torch.Tensor, b: torch.Tensor, product: bool, offset: float) -> torch.Tensor:
    return x * (offset + torch.sigmoid(a * b if product else a + b))


# Sizes of 1 along every axis, which must not be summed or squeezed by mistake; an empty batch.
SHAPES = [(2, 3, 4, 3, 2), (1, 3, 4, 3, 2), (2, 1, 4, 3, 2), (2, 3, 1, 1, 2), (2, 3, 4, 3, 1), (2, 3, 5), (0, 3, 4, 2)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("gates_of", [two_gates, rows_and_columns])
class TestGradients:
    def test_are_those_of_the_product(self, gates_of, shape):
        x = volume(*shape)
        a, b = gates_of(x)
        assert_same(gate(x, a), x * a, [x, a])
        assert_same(gate(x, a, b), x * a * b, [x, a, b])

    def test_are_those_of_the_sum(self, gates_of, shape):
        x, y = volume(*shape), volume(*shape)
        a, b = gates_of(x)
        assert_same(weighted_sum([x, y], [a, b]), x * a + y * b, [x, y, a, b])
        assert_same(weighted_sum([x, x, x], [a, b, a]), x * (a + b + a), [x, a, b])

    def test_are_those_of_the_maximum(self, gates_of, shape):
        x = volume(*shape)
        a, b = gates_of(x)
        assert_same(larger_product(x, a, b), torch.maximum(x * a, x * b), [x, a, b])

    @pytest.mark.parametrize("offset", [0.0, 1.0])
    @pytest.mark.parametrize("product", [False, True])
    def test_are_those_of_the_sigmoid(self, gates_of, shape, product, offset):
        x = volume(*shape)
        a, b = gates_of(x)
        assert_same(joint_gate(x, a, b, product, offset), plain(x, a, b, product, offset), [x, a, b])


FUNCTIONS = {
    "one": lambda x, a, b: gate(x, a),
    "two": gate,
    "weighted": lambda x, a, b: weighted_sum([x, x], [a, b]),
    "sum": joint_gate,
    "larger": larger_product,
    "product": lambda x, a, b: joint_gate(x, a, b, True, 1.0),
}
functions = pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)


@functions
def test_first_and_second_derivatives(function):
    x = volume(1, 2, 2, 2, 2)
    inputs = (x, *two_gates(x))
    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)


@functions
def test_a_gradient_with_a_graph_is_the_same(function):
    """With a graph, backward must not overwrite its tensors."""
    x = volume(2, 3, 4, 3, 2)
    inputs = [x, *two_gates(x)]
    y = function(*inputs)
    with_graph = torch.autograd.grad(y.square().sum(), inputs, create_graph=True, allow_unused=True)
    without = torch.autograd.grad(y.square().sum(), inputs, allow_unused=True)
    torch.testing.assert_close(with_graph, without)


@functions
def test_only_x_and_the_gates_are_saved(function):
    x = volume(1, 8, 6, 6, 6)
    inputs = [x, *two_gates(x)]
    assert saved(function, *inputs) <= {tensor.untyped_storage().data_ptr() for tensor in inputs}


@functions
def test_inputs_are_not_changed(function):
    x = volume(1, 8, 6, 6, 6)
    inputs = [x, *two_gates(x)]
    before = [tensor.detach().clone() for tensor in inputs]
    function(*inputs).sum().backward()
    with torch.no_grad():
        function(*inputs)
    for tensor, copy in zip(inputs, before, strict=True):
        assert torch.equal(tensor, copy)


@pytest.mark.parametrize("frozen", range(3))
@pytest.mark.parametrize("function", [gate, joint_gate])
def test_frozen_inputs_get_no_gradient(function, frozen):
    x = volume(1, 2, 3, 3, 3)
    inputs = [x, *two_gates(x)]
    inputs[frozen].requires_grad_(False)
    function(*inputs).sum().backward()
    assert [tensor.grad is None for tensor in inputs] == [index == frozen for index in range(3)]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@functions
def test_dtype_and_memory_format_are_those_of_x(function, dtype):
    x = torch.randn(2, 3, 4, 3, 2, dtype=dtype).contiguous(memory_format=torch.channels_last_3d).requires_grad_()
    gates = [one.detach().float().requires_grad_() for one in two_gates(x)]
    y = function(x, *gates)
    assert y.dtype == dtype
    assert y.is_contiguous(memory_format=torch.channels_last_3d)
    y.sum().backward()
    assert x.grad.dtype == dtype
    assert gates[0].grad.dtype == torch.float32


@functions
def test_gradients_under_autocast_are_in_full_precision(function):
    """In a backward pass under autocast, matrix products have the dtype of their inputs."""
    x = volume(2, 3, 4, 3, 2, dtype=torch.float32)
    inputs = [x, *two_gates(x)]
    expected = torch.autograd.grad(function(*inputs).sum(), inputs, allow_unused=True)
    with torch.autocast("cpu", torch.bfloat16):
        found = torch.autograd.grad(function(*inputs).sum(), inputs, allow_unused=True)
    torch.testing.assert_close(found, expected)


def test_transforms_of_functions():
    """`torch.func` supports the functions only if they have a rule for it."""
    x = volume(3, 2, 2, 2, 2).detach()
    gates = [one.detach() for one in two_gates(x)]

    def loss(x, a, b):
        return (gate(x[None], a[None], b[None]) + joint_gate(x[None], a[None], b[None])).sum()

    found = torch.func.vmap(torch.func.grad(loss))(x, *gates)
    expected = gates[0] * gates[1] + torch.sigmoid(gates[0] + gates[1])
    torch.testing.assert_close(found, expected)


def test_a_function_mode_keeps_the_custom_backward():
    class Mode(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, types, arguments=(), options=None):
            return function(*arguments, **(options or {}))

    x = volume(1, 4, 8)
    without = type(gate(x, *two_gates(x)).grad_fn)
    with Mode():
        assert type(gate(x, *two_gates(x)).grad_fn).__name__ == without.__name__
    assert without.__name__ == "_ElementwiseBackward"
