"""Errors of files: one line with the name of the file, the problem and what to do."""

from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from pathlib import Path

_NAMED = 10  # files that an error names


class FileError(ValueError):
    """A file that cannot be used. The message is one line with its name, the problem and what to do."""

    def __init__(self, path: Path | str, problem: str):
        super().__init__(f"{path}: {problem}")
        self.path, self.problem = path, problem

    def __reduce__(self) -> tuple[type["FileError"], tuple[Path | str, str]]:
        return FileError, (self.path, self.problem)


class ProcessLost(RuntimeError):
    """A process that shares a batch has ended or does not answer."""


class ReportedByFirst(ValueError):
    """An error that the first of several processes raises and prints."""


@contextmanager
def failing_as(path: Path | str) -> Iterator[None]:
    """Turns any error of a case into a `FileError`, with ``path`` for errors that do not name a file."""
    try:
        yield
    except FileError:
        raise
    except OSError as error:
        raise FileError(error.filename or path, error.strerror or str(error)) from error
    except Exception as error:  # libraries raise many kinds for unusual files
        words = " ".join(str(error).split())
        raise FileError(path, words if isinstance(error, ValueError) else f"{type(error).__name__}: {words}") from error


@contextmanager
def failure_noted(path: Path | str, failed: MutableMapping[str, str]) -> Iterator[None]:
    """Records any error of a case in ``failed``, by the file of `failing_as`, so that the other cases continue."""
    try:
        with failing_as(path):
            yield
    except FileError as failure:
        failed[str(failure.path)] = failure.problem


def failure_of(folder: Path | str, failed: Mapping[str, str]) -> FileError:
    """One error for all files in ``failed``, at least one, with their problems; it names ten of them."""
    if len(failed) == 1:
        return FileError(*next(iter(failed.items())))
    named = [f"({number}) {path}: {problem}" for number, (path, problem) in enumerate(failed.items(), 1)][:_NAMED]
    more = f"; and {len(failed) - _NAMED} more" if len(failed) > _NAMED else ""
    return FileError(folder, f"{len(failed)} files cannot be used: {'; '.join(named)}{more}")
