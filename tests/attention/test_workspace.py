"""What operators are said to take while they run, against what the allocator and a count by hand say."""

from __future__ import annotations

import math

import pytest
import torch
from attn3d.attention.workspace import operations
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from attn3d import Axial, Global, Grid, Neighborhood, PooledKeys, Window
from attn3d.attention import VolumeAttention, kernels, workspace
from attn3d.planning import estimate_cost
from tests.mechanisms.parity import volume
from tests.memory import peak

_ops, _aten = torch.ops.attn3d, torch.ops.aten


@pytest.fixture(autouse=True)
def one_thread():
    """Every thread of the kernel has a tile of its own."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def assert_foretold(operator, *args, within: float = 0.02) -> tuple[Tensor, ...]:
    """That the peak is the results and what is told, from above and from below."""
    operator(*args)  # first calls allocate what stays
    results: list[tuple[Tensor, ...]] = []
    real = peak(lambda: results.append(operator(*args)))
    of_results = sum(tensor.numel() * tensor.element_size() for tensor in results[0])
    assert of_results + workspace.workspace(operator, args) == pytest.approx(real, rel=within)
    return results[0]


def tokens(batch: int, heads: int, queries: int, keys: int, width: int, value_width: int) -> list[Tensor]:
    sizes = ((queries, width), (keys, width), (keys, value_width))
    return [volume(batch, heads, *size, seed=seed).float() for seed, size in enumerate(sizes)]


@pytest.mark.parametrize(
    ("sizes", "room"),
    [((1, 1, 400, 30, 40, 8), 2**16), ((1, 2, 30, 500, 8, 8), 2**18), ((1, 1, 200, 200, 4, 32), 2**13),
     ((1, 1, 60, 60, 2, 2), 2**20)],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_tiles_forward(sizes, room, dropout):
    seed = torch.tensor(3) if dropout else None
    assert_foretold(_ops.attend_tiled.default, *tokens(*sizes), None, None, seed, 0.5, dropout, room)


@pytest.mark.parametrize(
    ("sizes", "room"), [((2, 3, 64, 64, 4, 40), 2**14), ((1, 2, 30, 500, 8, 8), 2**18), ((1, 1, 60, 60, 2, 2), 2**20)]
)
def test_tiles_backward(sizes, room):
    q, k, v = tokens(*sizes)
    out, logsumexp = _ops.attend_tiled(q, k, v, None, None, None, 0.5, 0.0, room)
    args = (out, None, q, k, v, out, logsumexp, None, None, None, False, 0.5, 0.0, room)
    assert_foretold(_ops.attend_tiled_backward.default, *args)


CELLS = {
    "windows": ([8, 12], "window,window", [4, 4], [1, 1], False, 8, 2**16),
    "shifted": ([8, 12], "window,window", [4, 4], [1, 1], True, 8, 2**14),
    "neighborhood": ([9, 12], "neighborhood,neighborhood", [3, 3], [1, 2], False, 20, 2**15),
}


@pytest.mark.parametrize("table", [False, True])
@pytest.mark.parametrize("case", CELLS)
def test_cells(case, table):
    """Forward and backward."""
    shape, scope, size, dilation, shift, value_width, room = CELLS[case]
    count = math.prod(shape)
    q, k, v = tokens(1, 2, count, count, 8, value_width)
    table = volume(2, sum(2 * along - 1 for along in size)).float() if table else None
    args = (table, None, None, shape, scope, size, dilation, shift, 0.5, 0.0, room)
    out, logsumexp = assert_foretold(_ops.attend_cells.default, q, k, v, *args)
    assert_foretold(_ops.attend_cells_backward.default, out, None, q, k, v, out, logsumexp, *args)


@pytest.mark.parametrize("sizes", [(1, 1, 100, 50, 8), (1, 2, 300, 600, 8), (1, 1, 800, 800, 16)], ids=str)
def test_the_kernel(sizes):
    """Forward and backward, with few queries, with some and with many, of which its tiles are larger."""
    q, k, v = tokens(*sizes, sizes[-1])
    out, logsumexp = assert_foretold(_aten._scaled_dot_product_flash_attention_for_cpu.default, q, k, v)
    args = (out, q, k, v, out, logsumexp, 0.0, False)
    assert_foretold(_aten._scaled_dot_product_flash_attention_for_cpu_backward.default, *args)
    assert_foretold(_ops.attend_on_cores.default, q, k, v, 0.5)
    args = (out, q, k, v, out, logsumexp, 0.5)
    assert_foretold(_ops.attend_on_cores_backward.default, *args, within=0.07)


@pytest.mark.parametrize("parts", [2, 3])
def test_the_kernel_on_cores_of_which_some_are_idle(parts, monkeypatch):
    """What every part brings for a run of the keys is there at once; the parts themselves run on one thread here."""
    monkeypatch.setattr(kernels, "parallel_parts", lambda sequences: parts)
    monkeypatch.setattr(workspace, "parallel_parts", lambda sequences: parts)
    q, k, v = tokens(1, 1, 1200, 3000, 32, 32)
    out, logsumexp = _ops.attend_on_cores(q, k, v, 0.5)
    args = (out, q, k, v, out, logsumexp, 0.5)
    assert_foretold(_ops.attend_on_cores_backward.default, *args, within=0.1)


class Block(nn.Module):
    """Attention of the voxels as they are: no operation but its own."""

    def __init__(self, scope, **options) -> None:
        super().__init__()
        self.layer = VolumeAttention(2, 1, scope=scope, **options)

    def forward(self, x: Tensor) -> Tensor:
        voxels = x.flatten(2).transpose(1, 2).unsqueeze(1)
        return (
            self.layer(voxels, voxels, voxels, list(x.shape[2:])).squeeze(1).transpose(1, 2).unflatten(2, x.shape[2:])
        )


# Pairs that are compared in a volume of 8 x 8, with those that fill up cells.
PAIRS = [
    (Global(), 64 * 64),
    (Window(4), 64 * 16),
    (Window(4, shift=True), (3 * 4 * 4) ** 2),  # along an axis three windows, of which the outer are half empty
    (Grid(4), 64 * 16),
    (Axial(), 2 * 64 * 8),
    (Neighborhood(3), (2 * 4 * 6) ** 2),  # along an axis two tiles of four queries, with a halo of one on each side
    (Neighborhood(3, dilation=2), (2 * 4 * 4) ** 2),  # even and odd voxels apart, of which there are four
    (PooledKeys(2), 64 * 16),
]


@pytest.mark.parametrize(("scope", "pairs"), PAIRS, ids=str)
def test_operations_are_those_of_the_pairs(scope, pairs):
    """Two products of d channels, and in backward five; a multiplication and an addition each."""
    module, width = Block(scope, method="chunked"), 6
    pooling = 0
    if isinstance(scope, PooledKeys):  # products with who is a member of a cell, of keys and of values
        pooling = 2 * 2 * (4 * 8 * 8 + 4 * 8 * 4) * width
    costs = [estimate_cost(module, (3, width, 8, 8), training=training).flops for training in (False, True)]
    assert costs[0] == 3 * (2 * 2 * pairs * width + pooling)
    assert costs[1] == 3 * (7 * 2 * pairs * width + 2 * pooling)


@pytest.mark.parametrize("cores", [1, 2])
def test_operations_of_the_kernel_are_those_of_the_pairs(cores, monkeypatch):
    """On its own, and with a backward on idle cores."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: cores)
    found = estimate_cost(Block(Global(), method="fused"), (1, 4, 32, 32), training=True).flops
    assert found == 7 * 2 * 1024**2 * 4


def test_operations_of_values_of_another_width():
    """Products with keys are of d, those with values of d_v; of other operators what PyTorch counts."""
    q, k, v = tokens(2, 3, 5, 7, 4, 6)
    assert operations(_ops.attend_tiled.default, [q, k, v], {}, None) == 2 * 3 * 2 * 5 * 7 * (4 + 6)
    assert operations(_aten.mm.default, [q[0, 0], k[0, 0].T], {}, torch.empty(5, 7)) == 2 * 5 * 7 * 4
    assert operations(_aten.neg.default, [q], {}, q) == 0


def test_on_cuda_the_kernel_takes_nothing_beside():
    with FakeTensorMode():
        q = torch.empty(1, 1, 9, 4, device="cuda")
        assert workspace.fused_workspace(q, q, backward=True) == 0
    assert workspace.fused_workspace(*tokens(1, 1, 9, 9, 4, 4)[:2], backward=True) > 0
