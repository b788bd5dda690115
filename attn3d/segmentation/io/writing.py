"""Writes files that are either complete or absent, even after a kill, a power cut or on a full disk.

All commands write through `finished_file` or `finished_folder`: first to a temporary name in the same folder, which is
renamed when the data are complete. Those of a file are then on the disk. `sweep` removes temporary files of processes
that have ended.
"""

import json
import os
import platform
import shutil
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd

from attn3d.segmentation.errors import FileError

_MARK = ".unfinished-"
_FORMULA = ("=", "+", "-", "@", "\t", "\r")  # the first characters of formulas in spreadsheets
_LONGEST = 120  # bytes of the final name in a temporary name; file systems allow 255 in all


@contextmanager
def finished_file(path: Path | str) -> Iterator[Path]:
    """A temporary name to write to. The file is renamed to ``path`` when it is complete, and removed on an error.

    Raises:
        OSError: an error of the writer; its file name is ``path`` instead of the temporary name or of none.
    """
    path = Path(path)
    unfinished = _temporary(path)
    try:
        yield unfinished
        with unfinished.open("rb") as file:
            os.fsync(file.fileno())  # otherwise a power cut could leave an empty file with the final name
        mask = os.umask(0o077)  # permissions that new files do not get; it can only be read by setting it
        os.umask(mask)
        unfinished.chmod(0o666 & ~mask)  # some writers make files that only their owner can read
        unfinished.replace(path)
    except OSError as error:
        raise _naming(error, unfinished, path) from error
    finally:
        unfinished.unlink(missing_ok=True)


@contextmanager
def finished_folder(path: Path | str) -> Iterator[Path]:
    """A temporary folder to write to. It is renamed to ``path`` when it is complete, and removed on an error.

    Raises:
        OSError: when ``path`` is a file, or a folder that is not empty; an error of the writer, with the final name of
            the file.
    """
    path = Path(path).resolve()
    sweep(path.parent)
    unfinished = _temporary(path)
    try:
        unfinished.mkdir(parents=True)
        yield unfinished
        unfinished.replace(path)
    except OSError as error:
        raise _naming(error, unfinished, path) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def sweep(folder: Path | str, *, alone: bool = False) -> None:
    """Removes temporary files and folders of processes that have ended.

    Args:
        folder: the folder of the results.
        alone: whether no other process can be writing there. If not, only temporary files of processes on this machine
            that have ended are removed.
    """
    for path in Path(folder).glob(f"{_MARK}*"):
        machine, _, rest = path.name.removeprefix(_MARK).partition("@")
        process = rest.partition("-")[0]
        if alone or (machine == platform.node() and process.isdecimal() and not _alive(int(process))):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def write_text(path: Path | str, text: str) -> None:
    """Writes text as UTF-8. Parts of it that are not UTF-8, such as file names, are written with backslashes."""
    with finished_file(path) as unfinished:
        unfinished.write_bytes(text.encode("utf-8", "backslashreplace"))


def write_json(path: Path | str, content: Any) -> None:
    """Writes plain data as JSON."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def as_cell(value: Any) -> Any:
    """A value for a table: text becomes UTF-8, with an apostrophe if a spreadsheet would read it as a formula."""
    if not isinstance(value, str):
        return value
    text = value.encode("utf-8", "backslashreplace").decode()
    return f"'{text}" if text.startswith(_FORMULA) else text


def write_table(path: Path | str, table: pd.DataFrame) -> None:
    """Writes a CSV file."""
    rows = [[as_cell(cell) for cell in row] for row in table.itertuples(index=False, name=None)]
    cells = pd.DataFrame(rows, columns=[as_cell(name) for name in table.columns], dtype=object)  # keeps integers
    write_text(path, cells.to_csv(index=False))


def read_table(path: Path | str, missing: str = "does not exist") -> pd.DataFrame:
    """Reads a CSV file of numbers. Empty cells are NaN, and the column "case" has names.

    It raises a `FileError` if it cannot be read or has other content, with the text ``missing`` if it does not exist.
    """
    types: defaultdict[str, type] = defaultdict(lambda: float, case=str)
    with _readable(path, missing, "a table of numbers"):
        return pd.read_csv(path, dtype=types, keep_default_na=False, na_values=[""])


def read_json(path: Path | str, *keys: str, missing: str = "does not exist") -> Any:
    """Reads plain data from a JSON file. With ``keys``, it must be an object that has them.

    It raises a `FileError` if it cannot be read or has other content, with the text ``missing`` if it does not exist.
    """
    with _readable(path, missing, "valid JSON"):
        content = json.loads(Path(path).read_text(encoding="utf-8-sig"), object_pairs_hook=_each_once)
    for key in keys:
        if not isinstance(content, dict) or key not in content:
            raise FileError(path, f"has no {key!r}; it was not written by this command")
    return content


@contextmanager
def _readable(path: Path | str, missing: str, kind: str) -> Iterator[None]:
    """Turns errors of reading a file into a `FileError` of one line."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FileError(path, missing) from error
    except OSError as error:
        raise FileError(path, f"cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise FileError(path, f"is not {kind}: {' '.join(str(error).split())}") from error


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Checks that a JSON object has no repeated keys. `json` would use the last one without a warning."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} is repeated")
    return found


def _temporary(path: Path) -> Path:
    """A temporary name in the folder of the result, with the same ending, since writers infer the format from it."""
    end = os.fsdecode(os.fsencode(path.name)[-_LONGEST:])
    return path.with_name(f"{_MARK}{platform.node()}@{os.getpid()}-{end}")


def _naming(error: OSError, unfinished: Path, path: Path) -> OSError:
    """The error with the final name instead of the temporary name or of none."""
    name = str(error.filename or path).replace(str(unfinished), str(path))
    return OSError(error.errno, error.strerror or str(error), name)


def _alive(process: int) -> bool:
    """Whether another process with this ID is running. Files with our own ID are from an earlier process."""
    if process == os.getpid():
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # the process of another user
        pass
    return True
