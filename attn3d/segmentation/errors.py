"""The error of a file that cannot be used."""

from pathlib import Path


class FileError(ValueError):
    """A file that cannot be used: one line with its name, what is wrong and what to do."""

    def __init__(self, path: Path | str, problem: str):
        super().__init__(f"{path}: {problem}")
        self.path, self.problem = path, problem
