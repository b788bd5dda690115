"""The words in which a network says where attention can go."""

from dataclasses import dataclass

KINDS = ("encoder", "decoder", "bottleneck", "skip", "block", "residual", "conv")
INSERTED = "attn3d"  # begins the name of every child that insertion adds


@dataclass(frozen=True)
class Place:
    """A tensor of a network, found by its module.

    Attributes:
        path: of the module.
        tap: which tensor: "output", the module's own; "first" or "second", the argument it is called with;
            "joined", the first part of the concatenation that it returns, which is its input; "item", one of
            the list that it returns; "detour", its output for all readers but the module at ``rejoin``;
            "kernel", its output as the first branch of a selective kernel.
        index: of the item.
        rejoin: path of the module that goes on with the output as it was.
    """

    path: str
    tap: str = "output"
    index: int = 0
    rejoin: str = ""

    @property
    def label(self) -> str:
        """The path, with the index of the item where there is one."""
        return f"{self.path}[{self.index}]" if self.tap == "item" else self.path


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


def items(path: str, count: int) -> list[Place]:
    """The skips are the first ``count`` of the list that an encoder module returns."""
    return [Place(path, "item", index) for index in range(count)]


def detour(path: str, rejoin: str) -> Place:
    """The skip is the output of a stage, which the module ``rejoin`` reads too and is to read as it was."""
    return Place(path, "detour", rejoin=rejoin)
