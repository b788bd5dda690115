"""A batch of cases over several processes, which ``torchrun`` starts on one machine or on many."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from itertools import count
from typing import TypeVar

import torch
from rich.progress import Progress
from torch import distributed

from attn3d.segmentation.errors import ProcessLost, SaidByFirst

T = TypeVar("T")
PATIENCE = timedelta(hours=2)  # with a process that is silent, as it is while it does its last case
_batches = count()  # of this process: the store that torchrun keeps outlives a batch


class Processes:
    """The processes that do a batch together.

    Args:
        rank: which of them this is.
        size: how many there are.
        take: the index of the first case that none of them has taken yet.
        group: in which they talk to each other; None for the default one.
    """

    def __init__(self, rank: int, size: int, take: Callable[[], int], group: distributed.ProcessGroup | None = None):
        self.rank, self.size, self._take, self._group = rank, size, take, group

    def shared(self, cases: Sequence[T], description: str, *, quiet: bool) -> Iterator[T]:
        """The cases that this process does, each as soon as it is done with the one before.

        Args:
            cases: of the batch, the same for all.
            description: beside the first process's bar, which shows how many were taken by all.
            quiet: no progress bar.

        Raises:
            ProcessLost: when the one that counts is gone.
        """
        with Progress(disable=quiet or self.rank > 0) as bar:
            task = bar.add_task(description, total=len(cases))
            while (index := self._next()) < len(cases):
                bar.update(task, completed=index)
                yield cases[index]
            bar.update(task, completed=len(cases))

    def _next(self) -> int:
        with _lost_told():
            return self._take()

    def gathered(self, part: T) -> list[T]:
        """What each of them gives, by rank, for all of them.

        Raises:
            ProcessLost: when one is gone, or silent for longer than `PATIENCE`.
        """
        parts = [part] * self.size
        if self.size > 1:
            with _lost_told():
                distributed.all_gather_object(parts, part, self._group)
        return parts

    @contextmanager
    def agreed(self) -> Iterator[None]:
        """An error that a user can mend, of one of them, is raised by all.

        Raises:
            SaidByFirst: by all but the first, which raises the error itself.
        """
        problem = None
        try:
            yield
        except (ValueError, TypeError, OSError) as error:
            problem = error
        for one in self.gathered(problem):
            if one is not None:
                raise one if self.rank == 0 else SaidByFirst(str(one))


@contextmanager
def joined() -> Iterator[Processes]:
    """The processes that ``torchrun`` started with this one, each with a GPU where there are any; or this one alone.

    Raises:
        ProcessLost: when one of them does not come within `PATIENCE`.
        ValueError: when the environment does not say where the others are.
    """
    if not several():
        yield Processes(0, 1, count().__next__)
        return
    _take_gpu()
    with _lost_told():
        store, rank, size = next(distributed.rendezvous("env://", timeout=PATIENCE))
        store.set_timeout(PATIENCE)
        store = distributed.PrefixStore(f"attn3d/{next(_batches)}", store)
        group = None
        if distributed.is_initialized():  # by a training before
            group = distributed.new_group(backend="gloo", timeout=PATIENCE)
        else:
            distributed.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=PATIENCE)
    try:
        yield Processes(rank, size, lambda: store.add("taken", 1) - 1, group)
    finally:
        distributed.destroy_process_group(group)


def several() -> bool:
    """Whether ``torchrun`` started others with this process."""
    return int(os.environ.get("WORLD_SIZE", 1)) > 1


def is_first() -> bool:
    """Whether this process speaks for all."""
    return not several() or os.environ.get("RANK") == "0"


def _take_gpu() -> None:
    """Each process of a machine has a GPU of its own; where there are fewer GPUs they share them."""
    if torch.cuda.is_available():
        index = int(os.environ.get("LOCAL_RANK", os.environ.get("RANK", 0)))
        torch.cuda.set_device(index % torch.cuda.device_count())


@contextmanager
def _lost_told() -> Iterator[None]:
    """Says what it means that PyTorch gets no answer of a process, for which it has many errors."""
    try:
        yield
    except RuntimeError as error:
        raise ProcessLost(
            f"another process of the batch ended, or was silent for {PATIENCE} h; what is done is kept, and the same "
            "command goes on"
        ) from error
