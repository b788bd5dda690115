"""What went wrong with a file, in one line: its name, the problem and what to do."""

from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from pathlib import Path


class FileError(ValueError):
    """A file that cannot be used: one line with its name, what is wrong and what to do."""

    def __init__(self, path: Path | str, problem: str):
        super().__init__(f"{path}: {problem}")
        self.path, self.problem = path, problem

    def __reduce__(self) -> tuple[type["FileError"], tuple[Path | str, str]]:
        return FileError, (self.path, self.problem)


class ProcessLost(RuntimeError):
    """One of the processes that do a batch together ended, or does not answer."""


class SaidByFirst(ValueError):
    """An error that the first of several processes raises too, and says for all."""


@contextmanager
def failing_as(path: Path | str) -> Iterator[None]:
    """Raises whatever a case raises as a `FileError`.

    Args:
        path: a file of the case, which is named where the error names none.
    """
    try:
        yield
    except FileError:
        raise
    except OSError as error:
        raise FileError(error.filename or path, error.strerror or str(error)) from error
    except Exception as error:  # of any library on the way, for a file that nobody has foreseen
        words = " ".join(str(error).split())
        raise FileError(path, words if isinstance(error, ValueError) else f"{type(error).__name__}: {words}") from error


@contextmanager
def failure_noted(path: Path | str, failed: MutableMapping[str, str]) -> Iterator[None]:
    """Notes whatever a case raises as that case's failure, so that it does not stop the others.

    Args:
        path: as `failing_as`.
        failed: the problem by the name of the file, added to.
    """
    try:
        with failing_as(path):
            yield
    except FileError as failure:
        failed[str(failure.path)] = failure.problem
