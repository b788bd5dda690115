"""The benchmark of attention in groups: it counts the right pairs, and Swin's attention gives the same output."""

import pytest
import torch

import attn3d
from examples.benchmarks import groups, measuring, swin


def test_the_table_of_an_older_checkout_is_optional():
    first = next(groups.groups(measuring.Bench("cpu", 1, True, threads=[1])))
    assert first.ours is None
    assert first.note == "left out without --beside"


def test_pairs_are_counted_as_the_pattern_defines_them():
    for extent, size, shift in ((8, 4, False), (8, 4, True), (7, 3, True), (5, 8, True)):
        pattern = attn3d.Window(size, shift=shift)
        seen = [torch.stack([sees for sees, _ in axes]).sum((1, 2)).prod() for axes in pattern.relations([extent] * 3)]
        assert groups.pairs(extent, size, shift) == sum(seen)


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize(("size", "extent"), [(4, 8), (3, 9), (4, 4)])
def test_swin_gives_the_same_output(size, extent, shifted):
    torch.manual_seed(0)
    ours, theirs = swin.in_windows(16, size, shifted), swin.InWindows(16, swin.HEADS, size, extent, shifted)
    ours.qkv.load_state_dict(theirs.net.qkv.state_dict())
    ours.out.load_state_dict(theirs.net.proj.state_dict())
    with torch.no_grad():
        theirs.net.relative_position_bias_table.normal_()
        # MONAI's offsets are from keys to queries, ours from queries to keys.
        ours.attention.position_table.copy_(theirs.net.relative_position_bias_table.mT.flip(1))
    x = torch.randn(2, 16, extent, extent, extent)
    torch.testing.assert_close(ours(x), theirs(x))
