"""No NaN or infinity in outputs and gradients if the float64 result fits the dtype."""

from __future__ import annotations

import itertools

import pytest
import torch

from tests.configurations import CONFIGURATIONS, EVERY, attends_to_all, build
from tests.marks import some
from tests.mechanisms.parity import volume

pytestmark = pytest.mark.scorecard("finite")

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
SCALES = [1e-4, 1.0, 1e2, 1e3]
SLOW = ("sk-three_branches", "non_local-sub_sample")  # half-precision convolutions; all voxels with pooled ones


def contents(spatial_dims):
    """Inputs by name: random values of every scale, and constant, zero and one-hot volumes."""
    x = volume(2, 4, *(4, 5, 3)[:spatial_dims])
    one_hot = torch.zeros_like(x)
    one_hot[0].view(-1)[-1] = 1.0
    plain = {"zero": torch.zeros_like(x), "constant": torch.full_like(x, -3.0), "one-hot": one_hot}
    return {f"random, about {scale:g}": scale * x for scale in SCALES} | plain


def results(module, x):
    """The output and all gradients."""
    x = x.clone().requires_grad_()
    output = module(x)
    upstream = torch.linspace(1.0, 9.0, output.numel()).sin().view(output.shape).to(output.dtype)
    wanted = [x, *module.parameters()]
    return [output.detach(), *torch.autograd.grad(output, wanted, upstream)]


@pytest.mark.parametrize("spatial_dims", some([1, 2, 3], lambda dims: dims == 1))
@pytest.mark.parametrize("configuration", EVERY, ids=lambda cell: cell.id)
def test_every_dtype_scale_and_content(configuration, spatial_dims, count_cases):
    """In evaluation only: in training, a batch norm would scale large values into range.

    A case is an input whose output fits the dtype, partial sums included. Gradients are checked only if all of them
    fit, because one that overflows affects others.
    """
    for what, x in contents(spatial_dims).items():
        module = build(configuration, spatial_dims, 4).eval()
        sizes = [float(value.abs().max()) for value in results(module, x)]
        for dtype in DTYPES:
            largest = torch.finfo(dtype).max / 16
            if sizes[0] > largest:
                continue
            output, *gradients = results(module.to(dtype), x.to(dtype))
            assert output.isfinite().all(), f"output in {dtype} for {what}"
            if max(sizes) < largest:
                assert all(gradient.isfinite().all() for gradient in gradients), f"gradients in {dtype} for {what}"
            count_cases()


def large_cases():
    """Every configuration at 48³ voxels, in the nightly run also at 64³; all pairs of voxels also with pooled keys."""
    for configuration, size in itertools.product(CONFIGURATIONS, (48, 64)):
        nightly = [pytest.mark.nightly] if size == 64 else []
        pools = configuration.options.get("sub_sample")
        marks = [pytest.mark.nightly] if configuration.id in SLOW else nightly
        if configuration.name == "cpca":
            reason = "some processors with float16 do not finish PyTorch's convolutions of strips: on CUDA alone"
            marks = [pytest.mark.skipif(not torch.cuda.is_available(), reason=reason)]
        if attends_to_all(configuration) and (size == 64 or not pools):
            reason = f"all pairs of {size}³ voxels in float16 take a CPU many minutes: on CUDA alone"
            marks = [pytest.mark.skipif(not torch.cuda.is_available(), reason=reason)]
        if attends_to_all(configuration) and not pools:
            yield pytest.param(configuration, size, 8, id=f"{configuration.id}-{size}-pooled", marks=nightly)
        yield pytest.param(configuration, size, None, id=f"{configuration.id}-{size}", marks=marks)


@pytest.mark.parametrize(("configuration", "size", "stride"), [*large_cases()])
def test_large_volumes_in_half_precision(configuration, size, stride):
    """Sums over 110,592 and 262,144 voxels, of values with a mean of 1."""
    alone = attends_to_all(configuration) or configuration.name == "cpca"
    device = "cuda" if alone and torch.cuda.is_available() else "cpu"
    options = {} if stride is None else {"pattern": ("pooled_keys", {"stride": stride})}
    module = build(configuration, 3, 2, **options).eval().to(device, torch.float16)
    x = (1.0 + torch.randn(1, 2, size, size, size, generator=torch.Generator().manual_seed(0))).to(device).half()
    with torch.no_grad():
        found = module(x)
    assert found.dtype == torch.float16
    assert found.isfinite().all()
