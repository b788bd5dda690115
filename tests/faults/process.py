"""Runs a command in its own process, which is killed at a point or has a small disk.

The processes are forks of a process that has imported everything, so that hundreds of them are cheap.
"""

import io
import os
import resource
import signal
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple

CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink")
LONGEST = 120  # seconds after which a command counts as hanging


class Outcome(NamedTuple):
    """How a command ended: its exit code (None if it was killed), its standard error, and the number of points."""

    code: int | None
    said: str
    points: int


def command(arguments: list[str], folder: Path, *, kill_at: int = 0, largest_file: int | None = None) -> Outcome:
    """Runs ``attn3d`` in a folder.

    Args:
        arguments: the arguments of the command line.
        folder: the working directory. A point is the moment before a file or folder in it is created, renamed or
            removed, or before a file in it is opened for writing.
        kill_at: the point at which the process gets SIGKILL, counted from 1; 0 for none.
        largest_file: size of a file in bytes at which writing fails.
    """
    read, write = os.pipe()
    child = os.fork()
    if not child:
        os.close(read)
        _run(arguments, folder, kill_at, largest_file, write)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        said = pipe.read().decode(errors="replace")
    _, status = os.waitpid(child, 0)
    points, _, said = said.partition("\n") if os.WIFEXITED(status) else ("0", "", said)
    return Outcome(os.WEXITSTATUS(status) if os.WIFEXITED(status) else None, said, int(points))


def _run(arguments: list[str], folder: Path, kill_at: int, largest_file: int | None, pipe: int) -> None:
    """The work of the child process. Does not return."""
    from attn3d.cli import app

    signal.alarm(LONGEST)
    os.chdir(folder)
    points = 0

    def hook(event: str, values: tuple) -> None:
        nonlocal points
        if event == "open":
            writes = isinstance(values[2], int) and values[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        else:
            writes = event in CHANGES
        named = writes and isinstance(values[0], str | os.PathLike)
        if named and Path(folder / os.fspath(values[0])).is_relative_to(folder):
            points += 1
            if points == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    if largest_file is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    said, code = io.TextIOWrapper(io.BytesIO(), encoding="utf-8"), 0
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(said):
            try:
                app(arguments)
            except SystemExit as ended:
                code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        import traceback

        said.write(traceback.format_exc())
        code = 99
    said.flush()
    os.write(pipe, f"{points}\n".encode() + said.buffer.getvalue())
    os._exit(code)
