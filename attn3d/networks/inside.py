"""The places inside the stages of any network: blocks, their residual branches and convolutions."""

from collections.abc import Callable
from typing import Any

from torch import nn

from attn3d.capture import modules_by_path
from attn3d.layers.conv import is_convolution
from attn3d.networks.places import Place, innermost, is_inserted

Staged = list[tuple[int, Place]]

_BLOCKS: dict[type, tuple[Callable[[Any], str | None], Callable[[Any], bool]]] = {}


def register_block(
    block: type[nn.Module],
    residual: str | Callable[[Any], str | None] | None = None,
    *,
    when: Callable[[Any], bool] = lambda block: True,
) -> None:
    """Registers a class as a convolutional block, so that attention can be inserted at its end.

    Args:
        block: the class.
        residual: path inside the block of the module whose output is added to the shortcut, or a function of the block
            that returns this path; None without a shortcut.
        when: returns whether an instance counts as a block.
    """
    _BLOCKS[block] = (residual if callable(residual) else lambda block: residual, when)


def inside(network: nn.Module, stages: dict[str, Staged]) -> dict[str, Staged]:
    """Returns the places of the kinds "block", "residual" and "conv".

    Their stage is that of the encoder, bottleneck or decoder module that contains them, numbered from the input to the
    output. In a network without stages, each place has its own stage.
    """
    numbers = _stage_numbers(stages)
    found: dict[str, Staged] = {"block": [], "residual": [], "conv": []}

    def add(kind: str, number: int | None, place: Place) -> None:
        found[kind].append((len(found[kind]) if number is None else number, place))

    block_path = None
    for path, module in modules_by_path(network):
        stage = innermost(numbers, path)
        number = None if stage is None else numbers[stage]
        if is_inserted(path) or (numbers and number is None):
            continue
        nested = block_path is not None and path.startswith(f"{block_path}.")
        residual, when = _look_up(module)
        if not nested and when(module):
            block_path = path
            add("block", number, Place(path))
            branch = residual(module)
            if branch:
                add("residual", number, Place(f"{path}.{branch}"))
        if _takes_branches(module):
            add("conv", number, Place(path, "kernel"))
    return {kind: sorted(places, key=lambda staged: staged[0]) for kind, places in found.items() if places}


def _stage_numbers(stages: dict[str, Staged]) -> dict[str, int]:
    """Returns the number of each stage by its path. A module that only feeds a skip has that of the encoder stage."""
    numbers: dict[str, int] = {}
    start = 0
    for kind in ("encoder", "bottleneck", "decoder"):
        for stage, place in stages.get(kind, []):
            numbers.setdefault(place.path, start + stage)
        start = 1 + max(numbers.values(), default=-1)
    for stage, place in stages.get("skip", []):
        if place.hook == "output":
            numbers.setdefault(place.path, stage)
    return numbers


def _look_up(module: nn.Module) -> tuple[Callable[[Any], str | None], Callable[[Any], bool]]:
    known = (_BLOCKS[cls] for cls in type(module).__mro__ if cls in _BLOCKS)
    return next(known, (lambda block: None, lambda block: False))


def _takes_branches(module: Any) -> bool:
    """Returns whether `sk` can extend a module: a convolution with stride 1, C to C, and an odd, centred kernel."""
    if not is_convolution(module):
        return False
    reach = [dilation * (size - 1) // 2 for dilation, size in zip(module.dilation, module.kernel_size, strict=True)]
    return (
        all(stride == 1 for stride in module.stride)
        and module.in_channels == module.out_channels
        and all(size % 2 for size in module.kernel_size)
        and any(size > 1 for size in module.kernel_size)
        and (module.padding == "same" or list(module.padding) == reach)
    )
