"""The modules that hold inserted mechanisms."""

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from attn3d.insertion.sums import leave_skip
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


# Hooks call a container with what it needs, so its forward may take more than that of `nn.Sequential`.


class Inserted(nn.Sequential):
    """The mechanisms at one site, in the order of their insertion.

    Attributes:
        records: of the mechanisms.
        handles: of the hooks that call it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.records: list[Record] = []
        self.handles: list[RemovableHandle] = []


class InsertedAtSkip(Inserted):
    """The mechanisms on a skip, some of which may take what it meets as a gating signal."""

    def attend(self, x: Tensor, signal: Tensor) -> Tensor:
        """Attends (B, C, *S), given the decoder's map."""
        for mechanism in self:
            if hasattr(mechanism, "takes_signal"):  # noqa: SIM108 - TorchScript compiles one branch alone
                x = mechanism(x, signal)
            else:
                x = mechanism(x)
        return x

    def forward(self, x: Tensor, signal: Tensor) -> Tensor:  # type: ignore[override]
        """Attends (B, C, *S), given the decoder's map."""
        return self.attend(x, signal)


class InsertedInConcatenation(InsertedAtSkip):
    """The mechanisms on a skip that comes concatenated with what it meets.

    Args:
        channels: of the skip.
        first: whether the skip is the first part, or the last.
    """

    def __init__(self, channels: int, first: bool) -> None:
        super().__init__()
        self.channels = channels
        self.first = first

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """Attends a part of (B, C, *S), given the other."""
        if self.first:
            signal = x[:, self.channels :]
            return torch.cat([self.attend(x[:, : self.channels], signal), signal], 1)
        signal = x[:, : -self.channels]
        return torch.cat([signal, self.attend(x[:, -self.channels :], signal)], 1)


class InsertedInSum(InsertedAtSkip):
    """The mechanisms on a skip that the network adds inline, see `attn3d.insertion.sums`."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """Passes (B, C, *S) on, which is attended where it is added."""
        return leave_skip(x, self)

    def __prepare_scriptable__(self) -> nn.Module:
        """Refuses `torch.jit.script`."""
        raise ValueError(
            "attention on the skips of this network cannot be scripted, as the network adds them inline;"
            " torch.jit.trace, torch.compile and torch.export take it, and attention elsewhere scripts"
        )


class InsertedItems(nn.Module):
    """The mechanisms on the entries of a list, a container for each.

    Args:
        kind: the class of the containers.
    """

    def __init__(self, kind: type[Inserted]) -> None:
        super().__init__()
        self.maps = nn.ModuleList()
        self.kind = kind
        self.handles: list[RemovableHandle] = []

    def at(self, index: int) -> Inserted:
        """The mechanisms on one entry."""
        while len(self.maps) <= index:
            self.maps.append(self.kind())
        return cast(Inserted, self.maps[index])

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """A new list; what comes after the last site is passed on."""
        attended = list(maps)
        for index, mechanisms in enumerate(self.maps):
            attended[index] = mechanisms(attended[index])
        return attended


class InsertedBeside(Inserted):
    """The selective kernels that a convolution is the first branch of."""

    def forward(self, x: Tensor, convolved: Tensor) -> Tensor:  # type: ignore[override]
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
        self.gate = nn.Parameter(torch.zeros(1))  # of one dimension, which FSDP2 needs to shard it

    def forward(self, x: Tensor) -> Tensor:
        """Attends (B, C, *S) as far as the gate is open."""
        return x + self.gate * (self.attention(x) - x)


class IdentityAtStartWithSignal(IdentityAtStart):
    """As `IdentityAtStart`, for mechanisms that take a gating signal."""

    takes_signal = True

    def forward(self, x: Tensor, signal: Tensor) -> Tensor:  # type: ignore[override]
        """Attends (B, C, *S) as far as the gate is open."""
        return x + self.gate * (self.attention(x, signal) - x)


class BesideConvolutionIdentityAtStart(IdentityAtStart):
    """As `IdentityAtStart`, for branches beside a convolution."""

    def forward(self, x: Tensor, convolved: Tensor) -> Tensor:  # type: ignore[override]
        """Selects as far as the gate is open."""
        return convolved + self.gate * (self.attention(x, convolved) - convolved)
