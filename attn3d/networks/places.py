"""The words in which a network says where attention can go."""

from dataclasses import dataclass

KINDS = ("encoder", "decoder", "bottleneck", "skip", "block", "residual", "conv")
INSERTED = "attn3d"  # begins the name of every child that insertion adds


@dataclass(frozen=True)
class Place:
    """A tensor of a network, found by its module.

    Attributes:
        path: of the module.
        hook: how it is reached: "output", the module's own; "first" or "second", the argument it is called with;
            "joined", the first part of the concatenation that it returns, which is its input; "concatenated", a
            part of the concatenation that it is called with; "item", one of the list that it returns; "summed",
            its output where the network adds it to another map; "kernel", its output as the first branch of a
            selective kernel.
        index: of the item in the list that the module returns, or of the part, 0 or -1.
    """

    path: str
    hook: str = "output"
    index: int | None = None

    @property
    def label(self) -> str:
        """The path, with the index of the item where there is one."""
        is_item = self.index is not None and self.hook != "concatenated"
        return f"{self.path}[{self.index}]" if is_item else self.path


def is_inserted(path: str) -> bool:
    """Whether the module at ``path`` is, or lies in, what insertion added."""
    return any(name.startswith(INSERTED) for name in path.split("."))


def first_argument(path: str) -> Place:
    """The map is what a module is called with."""
    return Place(path, "first")


def second_argument(path: str) -> Place:
    """The skip is what a decoder module is called with beside the map from below."""
    return Place(path, "second")


def joined(path: str) -> Place:
    """The skip is the input of a module that returns it concatenated before something else."""
    return Place(path, "joined")


def concatenated(path: str, *, first: bool = False) -> Place:
    """The skip is the last part, or the first, of the concatenation that a decoder module is called with."""
    return Place(path, "concatenated", 0 if first else -1)


def items(path: str, count: int) -> list[Place]:
    """The skips are the first ``count`` of the list that an encoder module returns."""
    return [Place(path, "item", index) for index in range(count)]


def summed(path: str, index: int | None = None) -> Place:
    """The skip is the output of a stage, or an item of it, which the network's own forward adds to another map."""
    return Place(path, "summed", index)
