"""The modules that hold inserted mechanisms."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from attn3d.mechanisms import SelectiveKernel


@dataclass(frozen=True)
class Record:
    """What was asked of an insertion, kept beside each mechanism that came of it.

    Attributes:
        call: number of the insertion, and of the site in it.
        site: name of the site.
        spec: name or class of the mechanism.
        options: of the mechanism.
        identity: whether the network was to go on computing what it did.
        input_shape: at which the network was probed, where it was given.
    """

    call: tuple[int, int]
    site: str
    spec: Any
    options: dict[str, Any]
    identity: bool
    input_shape: tuple[int, ...] | None


class Inserted(nn.Sequential):
    """The mechanisms at one site, in the order of their insertion."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[Record] = []
        self.handles: list[RemovableHandle] = []


class InsertedItems(nn.Module):
    """The mechanisms on the entries of a list, an `Inserted` for each."""

    def __init__(self) -> None:
        super().__init__()
        self.maps = nn.ModuleList()
        self.handles: list[RemovableHandle] = []

    def at(self, index: int) -> Inserted:
        """The mechanisms on one entry."""
        while len(self.maps) <= index:
            self.maps.append(Inserted())
        return self.maps[index]

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """A new list; what comes after the last site is passed on."""
        attended = list(maps)
        for index, mechanisms in enumerate(self.maps):
            attended[index] = mechanisms(attended[index])
        return attended


class Passage:
    """Carries a map past the attention on it: the stage leaves it here, the next stage takes it up.

    It is kept until the next forward pass where gradients are on, as the next stage may be computed again in
    backward (activation checkpointing, non-reentrant). It is no part of the network's state.
    """

    raw: Tensor | None = None

    def read(self) -> Tensor:
        """The map.

        Raises:
            RuntimeError: when the stage before has not run.
        """
        raw = self.raw
        if raw is None:
            raise RuntimeError(
                "a skip with attention was read before its stage ran: call the whole network, and checkpoint its"
                " activations with use_reentrant=False"
            )
        if not torch.is_grad_enabled() or torch.compiler.is_compiling():
            self.raw = None
        return raw

    def __getstate__(self) -> dict[str, Any]:
        return {}


class InsertedDetour(Inserted):
    """The mechanisms on the skip of a stage whose output goes on to the next stage as it is."""

    def __init__(self, passage: Passage) -> None:
        super().__init__()
        self.passage = passage

    def forward(self, x: Tensor) -> Tensor:
        """Attends (B, C, *S) and leaves the map for the next stage."""
        self.passage.raw = x
        return super().forward(x)

    def __prepare_scriptable__(self) -> nn.Module:
        """Refuses `torch.jit.script`, whose modules cannot hand each other a tensor."""
        raise ValueError(
            "attention on the skips of this network cannot be scripted, as the network sums or concatenates them"
            " inline; torch.jit.trace, torch.compile and torch.export take it, and attention elsewhere scripts"
        )


class InsertedBeside(Inserted):
    """The selective kernels that a convolution is the first branch of."""

    def forward(self, x: Tensor, convolved: Tensor) -> Tensor:
        """Selects between what the convolution made of ``x`` and the branches."""
        for branches in self:
            convolved = branches(x, convolved)
        return convolved


class BesideConvolution(nn.Module):
    """A selective kernel whose first convolution is one of the network."""

    def __init__(self, kernel: SelectiveKernel) -> None:
        super().__init__()
        kernel.branches[0][0] = nn.Identity()
        self.attention = kernel

    def convolve(self, x: Tensor, convolved: Tensor) -> list[Tensor]:
        """U_i of every branch, the first from what the convolution of the network made of ``x``."""
        maps: list[Tensor] = []
        for index, branch in enumerate(self.attention.branches):
            maps.append(branch(convolved if index == 0 else x))
        return maps

    def forward(self, x: Tensor, convolved: Tensor) -> Tensor:
        """Branches off ``x`` and selects."""
        return self.attention.merge(self.convolve(x, convolved), convolved)

    def attention_weights(self, x: Tensor, convolved: Tensor, queries: Tensor | None = None) -> dict[str, Tensor]:
        """The softmax over the branches as "branch"."""
        return self.attention.branch_weights(self.convolve(x, convolved))


class IdentityAtStart(nn.Module):
    """x + gate (attention(x) - x), with a gate that is learnt from 0."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.attention = attention
        self.gate = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """Attends (B, C, *S) as far as the gate is open."""
        return x + self.gate * (self.attention(x) - x)


class BesideConvolutionIdentityAtStart(IdentityAtStart):
    """As `IdentityAtStart`, for branches beside a convolution."""

    def forward(self, x: Tensor, convolved: Tensor) -> Tensor:
        """Selects as far as the gate is open."""
        return convolved + self.gate * (self.attention(x, convolved) - convolved)
