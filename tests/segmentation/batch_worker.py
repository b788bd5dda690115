"""One of two processes that share batches, for test_processes.py: ``python batch_worker.py FOLDER RANK``.

Writes the results of each batch, by name, as JSON.
"""

import json
import os
import signal
import sys
import time
from datetime import timedelta
from pathlib import Path

from torch import distributed

from attn3d.segmentation import processes
from attn3d.segmentation.errors import FileError, ProcessLost
from attn3d.segmentation.processes import joined


def shared(size=20):
    with joined() as both:
        taken = list(both.shared(range(size), "counting", quiet=True))
        return both.gathered(taken)


def disagreed():
    """An error in the second process, which `agreed` raises in both."""
    try:
        with joined() as both, both.agreed():
            if both.rank == 1:
                raise FileError("there.nii.gz", "is torn")
    except ValueError as error:
        return [type(error).__name__, str(error)]


def after_training():
    """A batch in a process group that exists already."""
    distributed.init_process_group("gloo")
    return [*shared(4), distributed.is_initialized()]


def silent(rank):
    done = Path(sys.argv[1]) / "has timed out"
    with joined() as both:
        both.gathered(None)  # both processes are here before the time is short
    processes.PATIENCE = timedelta(seconds=5)
    with joined() as both:
        both.gathered(None)
        if rank == 1:
            while not done.exists():
                time.sleep(0.05)
            return None
        try:
            both.gathered(None)
        except ProcessLost as error:
            return str(error)
        finally:
            done.touch()


def killed(rank):
    processes.PATIENCE = timedelta(minutes=5)
    taken = []
    with joined() as both:
        both.gathered(None)
        if rank == 1:
            next(both.shared(range(6), "counting", quiet=True))
            (Path(sys.argv[1]) / "has taken one").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        while not (Path(sys.argv[1]) / "has taken one").exists():
            time.sleep(0.05)
        for one in both.shared(range(6), "counting", quiet=True):
            taken.append(one)
        try:
            both.gathered(taken)
        except ProcessLost as error:
            return [taken, str(error)]


if __name__ == "__main__":
    folder, rank = Path(sys.argv[1]), int(os.environ["RANK"])
    found = {"shared": shared(), "again": shared(), "disagreed": disagreed()}
    found["after training"] = after_training()
    distributed.destroy_process_group()
    found["silent"] = silent(rank)
    (folder / f"{rank}.json").write_text(json.dumps(found))
    found["killed"] = killed(rank)
    (folder / f"{rank}.json").write_text(json.dumps(found))
