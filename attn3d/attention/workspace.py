"""What operators take while they run, beyond what they return: bytes, and floating point operations.

For `attn3d.planning`, which runs a mechanism on tensors without memory. The figures are those of the CPU.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import flop_registry

from attn3d.attention import cell_operators  # noqa: F401  registers its operators, as `kernels` those of the others
from attn3d.attention.cells import axis_adds, axis_cells
from attn3d.attention.kernels import keys_at_a_time
from attn3d.attention.memory import parallel_parts, tile_copies, tile_within

_aten, _attn3d = torch.ops.aten, torch.ops.attn3d


def kernel_workspace(q: Tensor, k: Tensor, backward: bool) -> int:
    """PyTorch's CPU kernel: a tile for every thread; in backward of several heads a copy of the gradient too."""
    rows = _kernel_rows(q.shape[2])
    tile = min(rows, q.shape[2]) * min(512, k.shape[2])
    if backward:
        return 8 * torch.get_num_threads() * tile + (q.shape[1] > 1) * _bytes(q)
    return 4 * torch.get_num_threads() * (tile + 2 * rows + rows * q.shape[3])


def fused_workspace(q: Tensor, k: Tensor, backward: bool) -> int:
    """What the kernel takes while it runs, in backward with its own or with the one that uses all cores."""
    if q.device.type != "cpu":
        return 0
    if not backward:
        return kernel_workspace(q, k, False)
    return max(kernel_workspace(q, k, True), _on_cores_backward(q, q, k))


def _kernel_rows(queries: int) -> int:
    """How many queries a tile of the kernel's has."""
    return 256 if queries >= 768 else 64 if queries >= 192 else 32


def _bytes(x: Tensor) -> int:
    return x.numel() * x.element_size()


def _wide(x: Tensor) -> int:
    return max(4, x.element_size())


def _on_cores(q: Tensor, k: Tensor, *_: Any) -> int:
    return kernel_workspace(q, k, False)


def _on_cores_backward(gradient: Tensor, q: Tensor, k: Tensor, *_: Any) -> int:
    parts = parallel_parts(q.shape[0] * q.shape[1])
    keys = min(k.shape[2], keys_at_a_time(k.shape[2], parts))
    sequences = q.shape[0] * q.shape[1]
    parts_of_gradients = sequences * q.shape[3] * (q.shape[2] + 3 * parts * keys) * q.element_size()
    tile = _kernel_rows(q.shape[2] // parts) * min(512, keys)
    return parts_of_gradients + 8 * torch.get_num_threads() * tile


def _tiled(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, key_mask: Tensor | None, seed: Tensor | None,
           scale: float, dropout: float, room: int) -> int:  # fmt: skip
    return tiles_workspace(
        q.shape[0] * q.shape[1], q.shape[2], k.shape[2], q.shape[3], v.shape[3], room, False, seed is not None, _wide(q)
    )


def _tiled_backward(*args: Any) -> int:
    q, k, v, seed, room = args[2], args[3], args[4], args[9], args[-1]
    return tiles_workspace(
        q.shape[0] * q.shape[1], q.shape[2], k.shape[2], q.shape[3], v.shape[3], room, True, seed is not None, _wide(q)
    )


def tiles_workspace(
    sequences: int,
    queries: int,
    keys: int,
    width: int,
    value_width: int,
    room: int,
    backward: bool,
    dropout: bool,
    element: int,
) -> int:
    """The scores of a tile, and the rows and keys that go with them."""
    tile = tile_within(room, sequences, queries, keys)
    scores = tile.queries * tile.keys * tile_copies(backward, dropout)
    if backward:
        beside = tile.queries * (2 * width + 4) + tile.keys * max(width, value_width)
    else:
        beside = tile.queries * (width + value_width * (1 if tile.keys == keys else 2) + 3)
    return element * sequences * (scores + beside)


def _cells(args: tuple[Any, ...], backward: bool) -> int:
    first = 2 if backward else 0
    q, v, table = args[first], args[first + 2], args[first + 5 if backward else 3]
    seed = args[first + 7 if backward else 5]
    shape, scope, size, dilation, shift, _, _, room = args[first + 8 if backward else 6 :]
    return cells_workspace(q, v, table, seed is not None, shape, scope, size, dilation, shift, room, backward)


def cells_workspace(
    q: Tensor,
    v: Tensor,
    table: Tensor | None,
    dropout: bool,
    shape: Sequence[int],
    scope: str,
    size: Sequence[int],
    dilation: Sequence[int],
    shift: bool,
    room: int,
    backward: bool,
) -> int:
    """What is gathered of a run of cells, and their tiles; arguments as of `attend_cells`."""
    axes = [
        axis_cells(kind, *one, shift, extent)
        for kind, one, extent in zip(scope.split(","), zip(size, dilation, strict=True), shape, strict=True)
    ]
    queries = math.prod(axis[0].shape[1] for axis in axes)
    keys = math.prod(axis[1].shape[1] for axis in axes)
    count = math.prod(axis[0].shape[0] for axis in axes)
    adds = [
        table is not None or axis_adds(kind, along, shift, extent)
        for kind, along, extent in zip(scope.split(","), size, shape, strict=True)
    ]
    features = sum(axis[0].shape[1] for axis, add in zip(axes, adds, strict=True) if add)
    heads, batch, width, value_width = q.shape[1], q.shape[0], q.shape[3], v.shape[3]
    sequences = batch * heads
    tile = tile_within(room, sequences, queries, keys)
    run = min(count, max(1, room // (4 * max(1, sequences) * queries * keys))) if tile == (queries, keys) else 1
    wide = _wide(q)
    whole = width + features
    if backward:
        of_query, of_key = 2 * whole + 2 * value_width + 1, 2 * whole + 2 * value_width
    else:
        of_query, of_key = whole + value_width + 1, whole + value_width
    gathered = wide * sequences * run * (queries * of_query + keys * of_key)
    indices = 8 * (count * len(shape) + run * (queries + 2 * keys))
    tiles = tiles_workspace(sequences * run, queries, keys, whole, value_width, room * run, backward, dropout, wide)
    return gathered + indices + tiles


def _convolution(x: Tensor, weight: Tensor, *_: Any) -> int:
    """The library lays input and output out anew."""
    return _bytes(x) + _bytes(x) // x.shape[1] * weight.shape[0]


def _convolution_backward(gradient: Tensor, x: Tensor, *_: Any) -> int:
    return max(_bytes(gradient), _bytes(x))


_WORKSPACES: dict[Any, Callable[..., int]] = {
    _aten._scaled_dot_product_flash_attention_for_cpu.default: lambda q, k, *_: kernel_workspace(q, k, False),
    _aten._scaled_dot_product_flash_attention_for_cpu_backward.default: lambda g, q, k, *_: kernel_workspace(
        q, k, True
    ),
    _attn3d.attend_on_cores.default: _on_cores,
    _attn3d.attend_on_cores_backward.default: _on_cores_backward,
    _attn3d.attend_tiled.default: _tiled,
    _attn3d.attend_tiled_backward.default: _tiled_backward,
    _attn3d.attend_cells.default: lambda *args: _cells(args, False),
    _attn3d.attend_cells_backward.default: lambda *args: _cells(args, True),
    _aten.convolution.default: _convolution,
    _aten.convolution_backward.default: _convolution_backward,
}


def workspace(operator: Any, args: Sequence[Any]) -> int:
    """The bytes that an operator takes while it runs, beyond its results; 0 for those that take few."""
    measure = _WORKSPACES.get(operator)
    return 0 if measure is None else measure(*args)


def operations(operator: Any, args: Sequence[Any], kwargs: dict[str, Any], result: Any) -> int:
    """The floating point operations of an operator's products, two for a multiplication and an addition."""
    packet = getattr(operator, "_overloadpacket", None)
    if packet in _PRODUCTS:
        products, first = _PRODUCTS[packet]
        q, k, v = args[first : first + 3]
        return q.shape[0] * q.shape[1] * _pairs(q, k, args[first + 3 :]) * (q.shape[3] + v.shape[3]) * products
    return flop_registry[packet](*args, **kwargs, out_val=result) if packet in flop_registry else 0


def _pairs(q: Tensor, k: Tensor, rest: Sequence[Any]) -> int:
    """How many pairs of a query and a key are compared."""
    names = [one for one in rest if isinstance(one, str)]
    if not names:
        return q.shape[2] * k.shape[2]
    place = rest.index(names[0])
    shape, scope, size, dilation, shift = rest[place - 1 : place + 4]
    pairs = 1
    for kind, along, step, extent in zip(scope.split(","), size, dilation, shape, strict=True):
        queries, keys = axis_cells(kind, along, step, shift, extent)[:2]
        pairs *= queries.numel() * keys.shape[1]
    return pairs


# Matrix products over all pairs, and the place of q among the arguments. Forward has two; backward five, with the
# scores again and the gradients of weights, values, queries and keys.
_PRODUCTS: dict[Any, tuple[int, int]] = {
    _attn3d.attend_on_cores: (2, 0),
    _attn3d.attend_on_cores_backward: (5, 1),
    _attn3d.attend_tiled: (2, 0),
    _attn3d.attend_tiled_backward: (5, 2),
    _attn3d.attend_cells: (2, 0),
    _attn3d.attend_cells_backward: (5, 2),
    _aten._scaled_dot_product_flash_attention_for_cpu: (2, 0),
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: (5, 1),
}
