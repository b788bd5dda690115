"""Distributes a batch of cases over the processes that ``torchrun`` starts, on one or several machines."""

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

from attn3d.segmentation.errors import ProcessLost, ReportedByFirst

T = TypeVar("T")
PATIENCE = timedelta(hours=2)  # the time limit for an answer; at the end, processes wait for the last case of others
_batches = count()  # numbers the batches, since they share the store of torchrun


class Processes:
    """The processes that share a batch.

    Args:
        rank: the rank of this process.
        size: the number of processes.
        take: returns the index of the next case; no two calls, in any process, return the same index.
        group: the process group; None for the default group.
    """

    def __init__(self, rank: int, size: int, take: Callable[[], int], group: distributed.ProcessGroup | None = None):
        self.rank, self.size, self._take, self._group = rank, size, _raising_process_lost()(take), group

    def shared(self, cases: Sequence[T], description: str, *, quiet: bool) -> Iterator[T]:
        """Yields the cases for this process. It takes the next case when it has finished the previous one.

        All processes give the same list. The progress bar shows how many cases all have taken.
        """
        with Progress(disable=quiet or self.rank > 0) as bar:
            task = bar.add_task(description, total=len(cases))
            while (index := self._take()) < len(cases):
                self._shown = bar, task, index
                self.show(0.0)
                yield cases[index]
            bar.update(task, completed=len(cases))

    def show(self, share: float) -> None:
        """Shows in the progress bar of `shared` which fraction of the current case is finished."""
        bar, task, taken = self._shown
        bar.update(task, completed=taken + share)

    def gathered(self, part: T) -> list[T]:
        """Returns the parts of all processes by rank, in every process.

        Raises:
            ProcessLost: when a process has ended, or has not answered within `PATIENCE`.
        """
        parts = [part] * self.size
        if self.size > 1:
            with _raising_process_lost():
                distributed.all_gather_object(parts, part, self._group)
        return parts

    @contextmanager
    def agreed(self) -> Iterator[None]:
        """Raises a user's error in all processes if one of them raises it, so that none waits for another.

        Raises:
            ReportedByFirst: in all processes but the first, which raises the error itself.
        """
        problem = None
        try:
            yield
        except (ValueError, TypeError, OSError) as error:
            problem = error
        for one in self.gathered(problem):
            if one is not None:
                raise one if self.rank == 0 else ReportedByFirst(str(one))


@contextmanager
def joined() -> Iterator[Processes]:
    """Connects the processes of ``torchrun``, each with its own GPU if there are any.

    Without ``torchrun`` there is only this process.

    Raises:
        ProcessLost: when a process does not connect within `PATIENCE`.
        ValueError: when the environment variables of ``torchrun`` are incomplete.
    """
    if not several():
        yield Processes(0, 1, count().__next__)
        return
    _take_gpu()
    with _raising_process_lost():
        store, rank, size = next(distributed.rendezvous("env://", timeout=PATIENCE))
        store.set_timeout(PATIENCE)
        store = distributed.PrefixStore(f"attn3d/{next(_batches)}", store)
        group = None
        if distributed.is_initialized():  # by an earlier training in the same script
            group = distributed.new_group(backend="gloo", timeout=PATIENCE)
        else:
            distributed.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=PATIENCE)
    try:
        yield Processes(rank, size, lambda: store.add("taken", 1) - 1, group)
    finally:
        distributed.destroy_process_group(group)


def several() -> bool:
    """Whether ``torchrun`` started several processes."""
    return int(os.environ.get("WORLD_SIZE", 1)) > 1


def is_first() -> bool:
    """Whether this process prints the results of all."""
    return not several() or os.environ.get("RANK") == "0"


def _take_gpu() -> None:
    """Selects a GPU for this process. Processes share GPUs if there are more processes than GPUs."""
    if torch.cuda.is_available():
        index = int(os.environ.get("LOCAL_RANK", os.environ.get("RANK", 0)))
        torch.cuda.set_device(index % torch.cuda.device_count())


@contextmanager
def _raising_process_lost() -> Iterator[None]:
    """Raises a `ProcessLost` instead of PyTorch's various errors for a process that does not answer."""
    try:
        yield
    except RuntimeError as error:
        raise ProcessLost(
            f"another process of the batch ended, or did not answer for {PATIENCE.total_seconds():g} seconds; "
            "finished cases are kept; run the same command again to continue"
        ) from error
