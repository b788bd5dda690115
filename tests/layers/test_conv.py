"""Convolutions with few channels."""

import pytest
import torch
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

from attn3d.layers.conv import along_axis, convolution, depthwise, map_convolution, pointwise_convolution


def same_size(kind, channels, *, kernel_size, dilation=1, out_channels=1):
    sizes, steps = ((value,) * 3 if isinstance(value, int) else value for value in (kernel_size, dilation))
    padding = tuple(size // 2 * step for size, step in zip(sizes, steps, strict=True))
    return kind(channels, out_channels, sizes, padding=padding, dilation=steps, bias=False).double()


class TestPointwiseConvolution:
    @pytest.mark.parametrize("layout", ["contiguous", "channels last", "strided"])
    @pytest.mark.parametrize("bias", [True, False])
    @pytest.mark.parametrize(("spatial_dims", "batch"), [(1, 2), (2, 2), (3, 2), (3, 1), (3, 0)])
    def test_equals_the_convolution_and_keeps_the_layout(self, spatial_dims, batch, bias, layout):
        conv = pointwise_convolution(spatial_dims)(3, 2, 1, bias=bias).double()
        x = torch.randn(batch, 3, *(4, 5, 6)[:spatial_dims], dtype=torch.float64)
        if layout == "channels last":
            x = x.movedim(1, -1).contiguous().movedim(-1, 1)
        elif layout == "strided":
            x = torch.stack([x, x], -1)[..., 0]
        x.requires_grad_()
        found, expected = conv(x), convolution(spatial_dims)._conv_forward(conv, x, conv.weight, conv.bias)
        torch.testing.assert_close(found, expected)
        upstream = torch.randn_like(expected)
        mine, theirs = (torch.autograd.grad(y, [x, *conv.parameters()], upstream) for y in (found, expected))
        torch.testing.assert_close(mine, theirs)
        if layout == "channels last" and batch:
            for y in (found, mine[0]):
                assert y.movedim(1, -1).is_contiguous()

    @pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d], ids=str)
    def test_autocast_gives_the_dtype_of_the_convolution(self, layout):
        conv, x = pointwise_convolution(3)(3, 2, 1), torch.randn(2, 3, 4, 5, 6).contiguous(memory_format=layout)
        with torch.autocast("cpu", torch.bfloat16):
            found, expected = conv(x), convolution(3)._conv_forward(conv, x, conv.weight, conv.bias)
        torch.testing.assert_close(found, expected, rtol=0.02, atol=0.02)  # also checks the dtype

    def test_other_kernels(self):
        """Wrappers such as LoRA build the class with others."""
        conv, x = pointwise_convolution(2)(3, 2, 3, padding=1), torch.randn(1, 3, 4, 5)
        torch.testing.assert_close(conv(x), functional.conv2d(x, conv.weight, conv.bias, padding=1))


class TestMapConvolution:
    """Compared with PyTorch's convolution, which it replaces on the CPU."""

    @pytest.mark.parametrize("depth", [1, 2, 6, 16, 17, 33])
    @pytest.mark.parametrize("kernel_size", [7, (1, 3, 5), (5, 1, 3)], ids=str)
    @pytest.mark.parametrize("channels", [1, 2])
    def test_equals_the_convolution(self, channels, kernel_size, depth):
        self.check(channels, (2, depth, 4, 5), kernel_size=kernel_size)

    @pytest.mark.parametrize("dilation", [2, (1, 2, 3), (2, 1, 1)], ids=str)
    def test_with_dilation(self, dilation):
        self.check(2, (1, 9, 6, 7), kernel_size=3, dilation=dilation)

    def test_other_numbers_of_output_channels(self):
        """Wrappers such as LoRA build the class with other channels."""
        self.check(2, (1, 5, 4, 3), kernel_size=3, out_channels=4)

    def test_with_the_bias_of_a_fused_norm(self):
        conv, norm = same_size(map_convolution(3), 2, kernel_size=3), torch.nn.BatchNorm3d(1).double().eval()
        torch.nn.init.normal_(norm.bias)
        x = torch.randn(2, 2, 5, 3, 4, dtype=torch.float64)
        torch.testing.assert_close(fuse_conv_bn_eval(conv.eval(), norm)(x), norm(conv(x)))

    def test_without_samples(self):
        self.check(2, (0, 5, 3, 2), kernel_size=3)

    def check(self, channels, shape, **options):
        plain = same_size(torch.nn.Conv3d, channels, **options)
        ours = same_size(map_convolution(3), channels, **options)
        ours.load_state_dict(plain.state_dict())
        x = torch.randn(shape[0], channels, *shape[1:], dtype=torch.float64, requires_grad=True)
        found, expected = ours(x), plain(x)
        torch.testing.assert_close(found, expected)
        upstream = torch.randn_like(expected)
        found = torch.autograd.grad(found, [x, ours.weight], upstream)
        expected = torch.autograd.grad(expected, [x, plain.weight], upstream)
        torch.testing.assert_close(found, expected)

    def test_scripts_and_traces_as_the_convolution(self):
        ours = same_size(map_convolution(3), 2, kernel_size=3)
        x = torch.randn(1, 2, 4, 5, 6, dtype=torch.float64)
        scripted, traced = torch.jit.script(ours), torch.jit.trace(ours, x)
        other = torch.randn(2, 2, 19, 3, 4, dtype=torch.float64)
        for captured in (scripted, traced):
            assert "convolution" in str(captured.inlined_graph) or "conv3d" in str(captured.inlined_graph)
            torch.testing.assert_close(captured(other), ours(other))

    @pytest.mark.parametrize("spatial_dims", [1, 2])
    def test_fewer_axes_have_the_convolution_of_pytorch(self, spatial_dims):
        assert map_convolution(spatial_dims) is convolution(spatial_dims)


def test_a_depthwise_kernel_along_an_axis():
    """It reaches every second voxel on a line along the axis, in the same channel."""
    conv = depthwise(2, along_axis(1, [5, 5, 5]), (1, 2, 1))
    assert conv.weight.shape == (2, 1, 1, 5, 1)
    torch.nn.init.ones_(conv.weight)
    x = torch.zeros(1, 2, 3, 9, 3)
    x[0, 0, 1, 4, 1] = 1.0
    reached = (conv(x) - conv(0 * x)).abs() > 0.5
    assert reached.nonzero().tolist() == [[0, 0, 1, place, 1] for place in (0, 2, 4, 6, 8)]
