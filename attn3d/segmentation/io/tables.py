"""Tables with a row for each case, to which several processes can add rows."""

from collections.abc import Collection, Mapping
from pathlib import Path

import pandas as pd

from attn3d.segmentation.errors import FileError
from attn3d.segmentation.io.locks import locked
from attn3d.segmentation.io.writing import as_cell, read_table, write_table


def rows_in(path: Path, columns: Collection[str]) -> pd.DataFrame:
    """Reads a table of `add_row` and checks its columns. If the file does not exist, the table is empty."""
    needed = ["case", *(as_cell(name) for name in columns)]
    table = read_table(path) if path.exists() else pd.DataFrame(columns=needed)
    if list(table.columns) != needed:
        raise FileError(path, f"has other columns than {', '.join(needed)}; give another folder")
    return table


def add_row(path: Path, case: str, values: Mapping[str, float]) -> None:
    """Adds the row of a case to a table, or replaces it; NaN gives an empty cell. Only one process writes at a time."""
    with locked(path.parent, wait=True):
        table = rows_in(path, values)
        row = [as_cell(case), *values.values()]
        table = pd.concat([table[table["case"] != row[0]], pd.DataFrame([row], columns=table.columns)])
        write_table(path, table.sort_values("case"))
