"""First and second derivatives, and derivatives in forward mode, against float64 finite differences."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

import attn3d
from tests.configurations import CONFIGURATIONS, EVERY, SCOPED, attends_to_all, build
from tests.marks import some
from tests.mechanisms.cases import CASES
from tests.mechanisms.parity import assert_close, volume

pytestmark = pytest.mark.scorecard("gradients")

SHAPES = {1: (3,), 2: (2, 2), 3: (2, 1, 2)}
configurations = pytest.mark.parametrize("configuration", CONFIGURATIONS, ids=lambda cell: cell.id)
dimensions = pytest.mark.parametrize("spatial_dims", [1, 2, 3])


def as_function(configuration, spatial_dims, **options):
    """The mechanism as a function of the input and every parameter, and the values to evaluate it at.

    It is in training mode, so that the statistics of the batch are differentiated too.
    """
    case = CASES[configuration.name]
    channels = case.smaller_channels
    options = case.smaller | options  # small kernels keep the Jacobians small
    module = build(configuration, spatial_dims, channels, **options).train()
    names = [name for name, _ in module.named_parameters()]
    x = volume(2, channels, *SHAPES[spatial_dims])

    def function(x, *parameters):
        return torch.func.functional_call(module, dict(zip(names, parameters, strict=True)), (x,))

    return function, (x.requires_grad_(), *module.parameters())


def is_large(inputs) -> bool:
    """Whether the Jacobian is checked in a random direction rather than entry by entry."""
    return sum(tensor.numel() for tensor in inputs) > 80


@dimensions
@configurations
def test_first_derivative(configuration, spatial_dims):
    function, inputs = as_function(configuration, spatial_dims)
    assert gradcheck(function, inputs, fast_mode=is_large(inputs))


@pytest.mark.parametrize("spatial_dims", some([1, 2, 3], lambda dims: dims != 2))
@configurations
def test_second_derivative(configuration, spatial_dims):
    options = {"backend": "math"} if attends_to_all(configuration) else {}
    function, inputs = as_function(configuration, spatial_dims, **options)
    assert gradgradcheck(function, inputs, fast_mode=is_large(inputs))


@pytest.mark.parametrize("spatial_dims", some([1, 2, 3], lambda dims: dims != 2))
@configurations
def test_derivative_in_forward_mode(configuration, spatial_dims):
    options = {"backend": "math"} if attends_to_all(configuration) else {}
    function, inputs = as_function(configuration, spatial_dims, **options)
    check = {"check_forward_ad": True, "check_backward_ad": False}
    assert gradcheck(function, inputs, fast_mode=is_large(inputs), **check)


@pytest.mark.parametrize("configuration", EVERY, ids=lambda cell: cell.id)
def test_several_gradients_at_once(configuration):
    """As `torch.autograd.functional.jacobian` computes them with ``vectorize``, and as in a `vmap` over backward."""
    options = {"backend": "math"} if configuration in SCOPED else {}
    module, x = build(configuration, 2, 4, **options).eval(), volume(1, 4, 3, 2).requires_grad_()
    y, upstream = module(x), volume(3, 1, 4, 3, 2)

    def gradient(upstream):
        return torch.autograd.grad(y, x, upstream, retain_graph=True)[0]

    expected = torch.stack([gradient(one) for one in upstream])
    assert_close(torch.autograd.grad(y, x, upstream, retain_graph=True, is_grads_batched=True)[0], expected)
    assert_close(torch.vmap(gradient)(upstream), expected)


fused_backends = pytest.mark.parametrize("backend", ["sdpa", "chunked"])
with_softmax = pytest.mark.parametrize(
    "configuration",
    [configuration for configuration in CONFIGURATIONS if attends_to_all(configuration)],
    ids=lambda cell: cell.id,
)


@fused_backends
@with_softmax
def test_only_the_math_backend_has_a_second_derivative(configuration, backend):
    function, inputs = as_function(configuration, 3, backend=backend)
    (gradient,) = torch.autograd.grad(function(*inputs).square().sum(), inputs[:1], create_graph=True)
    with pytest.raises(RuntimeError, match=r"derivative|autograd formula"):
        torch.autograd.grad(gradient.square().sum(), inputs[:1])


@fused_backends
@with_softmax
def test_other_backends_refuse_forward_mode(configuration, backend):
    """PyTorch takes the result of a custom operator for a constant in `torch.func.jvp`, without an error."""
    function, inputs = as_function(configuration, 3, backend=backend)
    tangents = tuple(torch.ones_like(tensor) for tensor in inputs)
    with pytest.raises(RuntimeError, match="backend='math' has one"):
        torch.func.jvp(function, inputs, tangents)


local_patterns = pytest.mark.parametrize(
    "pattern", ["axial", ("window", {"size": 2, "shift": True}), ("neighborhood", {"size": 3})]
)


@pytest.mark.parametrize("backend", ["auto", "sdpa", "chunked"])
@local_patterns
def test_local_patterns_refuse_forward_mode_with_other_backends(pattern, backend):
    module = attn3d.MultiHeadSelfAttention(2, 4, num_heads=2, pattern=pattern, backend=backend)
    x = torch.randn(1, 4, 3, 5)
    with pytest.raises(RuntimeError, match="backend='math' has one"):
        torch.func.jvp(module, (x,), (x,))
    with torch.autograd.forward_ad.dual_level(), pytest.raises(RuntimeError, match="backend='math' has one"):
        module(torch.autograd.forward_ad.make_dual(x, x))


@local_patterns
def test_jvp_with_local_patterns(pattern):
    """The derivative in forward mode agrees with the gradient: u (J t) = (J^T u) t."""
    torch.manual_seed(0)
    module = attn3d.MultiHeadSelfAttention(2, 4, num_heads=2, pattern=pattern, backend="math").double()
    x, t, u = torch.randn(3, 1, 4, 3, 5, dtype=torch.float64)
    _, by_jvp = torch.func.jvp(module, (x,), (t,))
    _, vjp = torch.func.vjp(module, x)
    torch.testing.assert_close((u * by_jvp).sum(), (vjp(u)[0] * t).sum())
