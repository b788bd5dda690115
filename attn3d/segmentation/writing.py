"""Results that are whole or not there, also after a kill, a power cut or on a full disk.

All that the commands write goes through `finished_file` or `finished_folder`: to a name of its own beside the result,
to the disk, and then under the result's name. What a dead process left behind is removed by `sweep`.
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
_FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what a spreadsheet computes
_LONGEST = 120  # characters of a result's name that its unfinished one keeps: file systems end at 255


@contextmanager
def finished_file(path: Path | str) -> Iterator[Path]:
    """A name to write to; the file takes the name ``path`` when it is whole, and is removed if it fails.

    Raises:
        OSError: as what writes it, with ``path`` for the unfinished name or for none.
    """
    path = Path(path)
    unfinished = _unfinished(path)
    try:
        yield unfinished
        with unfinished.open("rb") as file:
            os.fsync(file.fileno())  # or a power cut could leave the name without the content
        mask = os.umask(0o077)  # what new files may not be; it can only be read by setting it
        os.umask(mask)
        unfinished.chmod(0o666 & ~mask)  # some writers let nobody else read
        unfinished.replace(path)
    except OSError as error:
        raise _naming(error, unfinished, path) from error
    finally:
        unfinished.unlink(missing_ok=True)


@contextmanager
def finished_folder(path: Path | str) -> Iterator[Path]:
    """A new folder to fill; it takes the name ``path`` when it is whole, in place of what is there.

    Raises:
        FileError: when ``path`` leads through a folder that does not exist to one that does. A caller that asked
            whether ``path`` exists was told no, and the folder would be lost.
        OSError: as what fills it, with the name that a file was to have there.
    """
    given, path = Path(path), Path(path).resolve()
    if path.exists() and not given.exists():
        raise FileError(given, f"leads through a folder that does not exist; give {path}")
    sweep(path.parent)
    unfinished, before = _unfinished(path), _unfinished(path, "before-")
    try:
        unfinished.mkdir(parents=True)
        yield unfinished
        if path.exists():
            path.replace(before)
        unfinished.replace(path)
    except OSError as error:
        raise _naming(error, unfinished, path) from error
    finally:
        for folder in (unfinished, before):
            shutil.rmtree(folder, ignore_errors=True)


def sweep(folder: Path | str, *, alone: bool = False) -> None:
    """Removes what writers left unfinished that died.

    Args:
        folder: where their results were to be.
        alone: whether nobody else can be writing there. Otherwise only what processes of this machine left is
            removed, that are not alive.
    """
    folder = Path(folder)
    for path in folder.iterdir() if folder.is_dir() else ():
        if not path.name.startswith(_MARK):
            continue
        machine, _, rest = path.name.removeprefix(_MARK).partition("--")
        process = rest.split("-")[0]
        if alone or (machine == platform.node() and process.isdecimal() and not _alive(int(process))):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def write_text(path: Path | str, text: str) -> None:
    """Writes text as UTF-8; a file name in it that is not UTF-8 is written with backslashes."""
    with finished_file(path) as unfinished:
        unfinished.write_bytes(text.encode("utf-8", "backslashreplace"))


def write_json(path: Path | str, content: Any) -> None:
    """Writes plain data."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def as_cell(value: Any) -> Any:
    """A value as tables hold it: UTF-8, with an apostrophe before what a spreadsheet would take for a formula."""
    if not isinstance(value, str):
        return value
    text = value.encode("utf-8", "backslashreplace").decode()
    return f"'{text}" if text.startswith(_FORMULA) else text


def write_table(path: Path | str, table: pd.DataFrame) -> None:
    """Writes a CSV file."""
    rows = [[as_cell(cell) for cell in row] for row in table.itertuples(index=False, name=None)]
    cells = pd.DataFrame(rows, columns=[as_cell(name) for name in table.columns], dtype=object)  # whole numbers stay so
    write_text(path, cells.to_csv(index=False))


def read_table(path: Path | str, missing: str = "is not there") -> pd.DataFrame:
    """A table of numbers from a CSV file; what is empty is NaN, and a column "case" holds names.

    Args:
        path: of the file.
        missing: what to say where there is no file.

    Raises:
        FileError: when it cannot be read, or holds anything else.
    """
    types: defaultdict[str, type] = defaultdict(lambda: float, case=str)
    with _readable(path, missing, "table of numbers"):
        return pd.read_csv(path, dtype=types, keep_default_na=False, na_values=[""])


def read_json(path: Path | str, *keys: str, missing: str = "is not there") -> Any:
    """Plain data from a file.

    Args:
        path: of the file.
        *keys: that it must have.
        missing: what to say where there is no file.

    Raises:
        FileError: when it cannot be read, is no JSON, or is no mapping with these keys.
    """
    with _readable(path, missing, "JSON"):
        content = json.loads(Path(path).read_text(encoding="utf-8"), object_pairs_hook=_each_once)
    for key in keys:
        if not isinstance(content, dict) or key not in content:
            raise FileError(path, f"has no {key!r}; it is not what this command writes")
    return content


@contextmanager
def _readable(path: Path | str, missing: str, kind: str) -> Iterator[None]:
    """Says in one line why a file cannot be read."""
    try:
        yield
    except FileNotFoundError as error:
        raise FileError(path, missing) from error
    except OSError as error:
        raise FileError(path, f"cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise FileError(path, f"is no {kind}: {' '.join(str(error).split())}") from error


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; of a key that is there twice, JSON would silently take the last."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} is there twice")
    return found


def _unfinished(path: Path, what: str = "") -> Path:
    """Beside a result, with the same ending, by which writers choose a format."""
    return path.with_name(f"{_MARK}{platform.node()}--{os.getpid()}-{what}{path.name[-_LONGEST:]}")


def _naming(error: OSError, unfinished: Path, path: Path) -> OSError:
    """The error with the name that was to be, where it has the unfinished one or none."""
    name = str(error.filename or path).replace(str(unfinished), str(path))
    return OSError(error.errno, error.strerror or str(error), name)


def _alive(process: int) -> bool:
    """Whether another process of this number is running; what has our own number is of one before us."""
    if process == os.getpid():
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        pass
    return True
