"""Tables with a row for each case, which several processes add to."""

from collections.abc import Collection, Mapping
from pathlib import Path

import pandas as pd

from attn3d.segmentation.errors import FileError
from attn3d.segmentation.locks import locked
from attn3d.segmentation.writing import as_cell, read_table, write_table


def rows_in(path: Path, columns: Collection[str]) -> pd.DataFrame:
    """The rows that `add_row` wrote, none where there is no table.

    Args:
        path: of the table.
        columns: that it must have beside ``case``.

    Raises:
        FileError: when it cannot be added to.
    """
    needed = ["case", *(as_cell(name) for name in columns)]
    table = read_table(path) if path.exists() else pd.DataFrame(columns=needed)
    if list(table.columns) != needed:
        raise FileError(path, f"has other columns than {', '.join(needed)}; give another folder")
    return table


def add_row(path: Path, case: str, values: Mapping[str, float]) -> None:
    """Adds the row of a case to a table, one process at a time, in place of what it has of that case.

    Args:
        path: of the table.
        case: its name.
        values: by column; NaN leaves a cell empty.

    Raises:
        FileError: as `rows_in`.
    """
    with locked(path.parent, wait=True):
        table = rows_in(path, values)
        row = [as_cell(case), *values.values()]
        table = pd.concat([table[table["case"] != row[0]], pd.DataFrame([row], columns=table.columns)])
        write_table(path, table.sort_values("case"))
