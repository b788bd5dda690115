"""Windows with a joint position bias, compared with MONAI's Swin attention, which masks the pairs that a shift adds."""

from collections.abc import Iterator

from monai.networks.nets.swin_unetr import WindowAttention, compute_mask, window_partition, window_reverse
from torch import Tensor, nn

import attn3d
from examples.benchmarks.measuring import Bench, Row, sizes, training

WINDOWS = {4: 32, 7: 28, 8: 32}  # sizes of windows, and extents of volumes that are multiples of them
CHANNELS, HEADS = 128, 8  # 16 channels per head, as in Swin UNETR
MOST_TIME, MOST_MEMORY = 0.45, 0.15


class InWindows(nn.Module):
    """MONAI's Swin attention, with the roll, partition and mask of its block.

    The mask is computed once, in advance; MONAI computes it in every forward pass of a stage.
    """

    def __init__(self, channels: int, heads: int, size: int, extent: int, shifted: bool) -> None:
        super().__init__()
        self.size = (size,) * 3
        self.shift = size // 2 if shifted and extent > size else 0
        self.net = WindowAttention(channels, heads, self.size, qkv_bias=True)
        mask = compute_mask([extent] * 3, self.size, (self.shift,) * 3, "cpu") if self.shift else None
        self.register_buffer("mask", mask)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, *S) -> (B, C, *S)."""
        dims = [x.shape[0], *x.shape[2:]]
        x = x.movedim(1, -1).contiguous()
        if self.shift:
            x = x.roll([-self.shift] * 3, (1, 2, 3))
        windows = self.net(window_partition(x, self.size), self.mask)
        x = window_reverse(windows.unflatten(1, self.size), self.size, dims)
        if self.shift:
            x = x.roll([self.shift] * 3, (1, 2, 3))
        return x.movedim(-1, 1)


def in_windows(channels: int, size: int, shifted: bool) -> nn.Module:
    """Our module, with the same output as MONAI's for the same parameters."""
    pattern = attn3d.Window(size, shift=shifted)
    return attn3d.MultiHeadSelfAttention(3, channels, num_heads=HEADS, pattern=pattern, position_bias="joint")


def beside_swin(bench: Bench, threads: str) -> Iterator[Row]:
    """Time and memory in training, compared with MONAI's."""
    channels = bench.width(CHANNELS)
    for size, extent in WINDOWS.items():
        extent = bench.size(extent)
        x = bench.random(1, channels, extent, extent, extent)
        for shifted in (False, True):
            nets = in_windows(channels, size, shifted), InWindows(channels, HEADS, size, extent, shifted)
            steps = [training(bench.placed(net), x) for net in nets]
            what = f"mhsa, windows of {size}³{', shifted' if shifted else ''}, {sizes([extent] * 3, channels)}, "
            what += f"training, {threads}"
            yield bench.time(what, "MONAI Swin WindowAttention", *steps, MOST_TIME)
            yield bench.memory(what, "MONAI Swin WindowAttention", *steps, MOST_MEMORY)
