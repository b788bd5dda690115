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
    """The arguments of an insertion, stored with each of its mechanisms.

    Attributes:
        order: index of the insertion, and of the site in it.
        site: name of the site.
        spec: name or class of the mechanism.
        options: options of the mechanism.
        identity: whether the network keeps its output until training.
        input_shape: the shape at which the network was probed, if it was given.
    """

    order: tuple[int, int]
    site: str
    spec: Any
    options: dict[str, Any]
    identity: bool
    input_shape: tuple[int, ...] | None


class Handles(list[RemovableHandle]):
    """Handles of hooks.

    Copies leave out the handles of modules that were not copied along, as in PEFT's copy of a container alone. PyTorch
    would not copy these a second time.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        return Handles, (), None, (handle for handle in self if handle.hooks_dict_ref() is not None)


# Containers are called by hooks, so their forward may take more arguments than that of `nn.Sequential`.


class Inserted(nn.Sequential):
    """The mechanisms at one site, in the order of their insertion.

    Attributes:
        records: records of the mechanisms.
        handles: handles of the hooks that call the container.
    """

    def __init__(self) -> None:
        super().__init__()
        self.records: list[Record] = []
        self.handles = Handles()


class InsertedAtSkip(Inserted):
    """The mechanisms on a skip, some of which may take the decoder's map as a gating signal."""

    def attend(self, x: Tensor, signal: Tensor) -> Tensor:
        """Attends (B, C, *S), given the decoder's map."""
        for mechanism in self:
            x = mechanism(x, signal) if hasattr(mechanism, "attn3d_signal") else mechanism(x)
        return x

    def forward(self, x: Tensor, signal: Tensor) -> Tensor:  # type: ignore[override]
        """Attends (B, C, *S), given the decoder's map."""
        return self.attend(x, signal)


class InsertedInConcatenation(InsertedAtSkip):
    """The mechanisms on a skip that is already concatenated with the decoder's map.

    Args:
        channels: number of channels of the skip.
        first: whether the skip is the first part of the concatenation; the last otherwise.
    """

    def __init__(self, channels: int, first: bool) -> None:
        super().__init__()
        self.channels = channels
        self.first = first

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """Attends the skip's part of (B, C, *S), with the other part as the signal."""
        if self.first:
            signal = x[:, self.channels :]
            return torch.cat([self.attend(x[:, : self.channels], signal), signal], 1)
        signal = x[:, : -self.channels]
        return torch.cat([signal, self.attend(x[:, -self.channels :], signal)], 1)


class InsertedInSum(InsertedAtSkip):
    """The mechanisms on a skip that the network adds inline, see `attn3d.insertion.sums`."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """Marks (B, C, *S) as a skip, which is attended when the network adds it, and returns it."""
        return leave_skip(x, self)

    def __prepare_scriptable__(self) -> nn.Module:
        """Raises an error in `torch.jit.script`."""
        raise ValueError(
            "attention on the skips of this network cannot be scripted, because the network adds them inline;"
            " use torch.jit.trace, torch.compile or torch.export, or attention at other sites"
        )


class InsertedItems(nn.Module):
    """The mechanisms on the entries of a list, a container for each.

    Args:
        kind: class of the containers.
    """

    def __init__(self, kind: type[Inserted]) -> None:
        super().__init__()
        self.maps = nn.ModuleList()
        self.kind = kind
        self.handles = Handles()

    def at(self, index: int) -> Inserted:
        """Returns the container of one entry."""
        while len(self.maps) <= index:
            self.maps.append(self.kind().train(self.training))
        return cast(Inserted, self.maps[index])

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Returns a new list, or tuple, with attended entries; entries after the last site are unchanged."""
        attended = list(maps)
        for index, mechanisms in enumerate(self.maps):
            attended[index] = mechanisms(attended[index])
        if not torch.jit.is_scripting():  # which has lists only
            return tuple(attended) if isinstance(maps, tuple) else attended
        return attended


class InsertedBeside(Inserted):
    """The selective kernels whose first branch is a convolution of the network."""

    def forward(self, x: Tensor, convolved: Tensor) -> Tensor:  # type: ignore[override]
        """Selects between the convolution's output for ``x`` and the other branches."""
        for branches in self:
            convolved = branches(x, convolved)
        return convolved


class BesideConvolution(nn.Module):
    """A selective kernel whose first convolution is a convolution of the network."""

    def __init__(self, kernel: SelectiveKernel) -> None:
        super().__init__()
        kernel.branches[0][0] = nn.Identity()
        self.attention = kernel

    def convolve(self, x: Tensor, convolved: Tensor) -> list[Tensor]:
        """Returns U_i of every branch, the first from the network's convolution of ``x``."""
        maps: list[Tensor] = []
        for index, branch in enumerate(self.attention.branches):
            maps.append(branch(convolved if index == 0 else x))
        return maps

    def forward(self, x: Tensor, convolved: Tensor) -> Tensor:
        """Computes the branches and selects between them."""
        return self.attention.merge(self.convolve(x, convolved), convolved)

    def attention_weights(self, x: Tensor, convolved: Tensor, queries: Tensor | None = None) -> dict[str, Tensor]:
        """Returns the softmax over the branches as "branch"."""
        return self.attention.branch_weights(self.convolve(x, convolved))


class IdentityAtStart(nn.Module):
    """Computes x + gate (attention(x) - x), with a gate that is learnt and starts at 0."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.attention = attention
        self.gate = nn.Parameter(torch.zeros(1))  # of one dimension, which FSDP2 needs to shard it

    def forward(self, x: Tensor) -> Tensor:
        """Interpolates between (B, C, *S) and its attention by the gate."""
        return x + (self.gate * (self.attention(x) - x)).to(x.dtype)


class IdentityAtStartWithSignal(IdentityAtStart):
    """`IdentityAtStart` for mechanisms that take a gating signal."""

    def forward(self, x: Tensor, signal: Tensor) -> Tensor:  # type: ignore[override]
        """Interpolates between (B, C, *S) and its attention by the gate."""
        return x + (self.gate * (self.attention(x, signal) - x)).to(x.dtype)


class BesideConvolutionIdentityAtStart(IdentityAtStart):
    """`IdentityAtStart` for the branches of a selective kernel."""

    def forward(self, x: Tensor, convolved: Tensor) -> Tensor:  # type: ignore[override]
        """Interpolates between the convolution's output and the selection by the gate."""
        return convolved + (self.gate * (self.attention(x, convolved) - convolved)).to(convolved.dtype)
