"""Places: descriptions of the tensors of a network where attention can be inserted."""

from collections.abc import Iterable
from dataclasses import dataclass

KINDS = ("encoder", "decoder", "bottleneck", "skip", "block", "residual", "conv")

# Names of inserted modules by the hook that calls them. A module may have several: it can be called with one skip and
# return the next.
INSERTED = {
    "output": "attn3d",
    "first": "attn3d_input",
    "second": "attn3d_skip",
    "joined": "attn3d_joined",
    "concatenated": "attn3d_concatenated",
    "concatenated_first": "attn3d_concatenated_first",
    "item": "attn3d_items",
    "summed": "attn3d_summed",
    "kernel": "attn3d_kernel",
}
_NAMES = frozenset(INSERTED.values())


@dataclass(frozen=True)
class Place:
    """A tensor of a network, relative to a module.

    Attributes:
        path: path of the module.
        hook: which tensor: "output", the output of the module; "first" or "second", its first or second argument;
            "joined", its input, which is the first part of the concatenation that it returns; "concatenated" or
            "concatenated_first", the last or first part of the concatenation that is its input; "item", an entry of the
            list that it returns; "summed", its output, which the network adds to another map; "kernel", its output as
            the first branch of a selective kernel.
        index: index of the entry in the list.
    """

    path: str
    hook: str = "output"
    index: int | None = None

    @property
    def label(self) -> str:
        """The path, followed by the index of the item if there is one."""
        return self.path if self.index is None else f"{self.path}[{self.index}]"

    @property
    def is_concatenated(self) -> bool:
        """Whether the tensor is a part of a concatenation that is the module's input."""
        return self.hook in ("concatenated", "concatenated_first")


def is_inserted(path: str) -> bool:
    """Returns whether the module at ``path`` is an inserted module or inside one."""
    return not _NAMES.isdisjoint(path.split("."))


def innermost(paths: Iterable[str], path: str) -> str | None:
    """Returns the innermost of ``paths`` that is ``path`` or contains it, or None; "", the network, contains all."""
    around = [each for each in paths if not each or f"{path}.".startswith(f"{each}.")]
    return max(around, key=len, default=None)


def first_argument(path: str) -> Place:
    """A map that is the first argument of a module."""
    return Place(path, "first")


def second_argument(path: str) -> Place:
    """A skip that is the second argument of a decoder module."""
    return Place(path, "second")


def joined(path: str) -> Place:
    """A skip that is the input of a module, which returns it as the first part of a concatenation."""
    return Place(path, "joined")


def concatenated(path: str, *, first: bool = False) -> Place:
    """A skip that is the last or first part of the concatenation that a decoder module takes as its input."""
    return Place(path, "concatenated_first" if first else "concatenated")


def items(path: str, count: int) -> list[Place]:
    """Skips that are the first ``count`` entries of the list that an encoder module returns."""
    return [Place(path, "item", index) for index in range(count)]


def summed(path: str, index: int | None = None) -> Place:
    """A skip that is the output of a stage, or an entry of it, and that the network adds to another map inline."""
    return Place(path, "summed", index)
