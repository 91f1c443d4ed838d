"""Columns of a CSV or Parquet file, as they stand there; what they mean is checked in `analysis.table`."""

import csv
from pathlib import Path
from typing import Any

from scaling.errors import UserError

_SEPARATORS = (",", ";", "\t")


def read_columns(path: Path) -> dict[str, list[Any]]:
    """The columns of a CSV, TSV or Parquet file. Raises UserError when it cannot be read or its rows are ragged."""
    try:
        return read_parquet(path) if path.suffix.lower() in (".parquet", ".pq") else read_csv(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}): give a CSV or Parquet file") from None


def read_csv(path: Path) -> dict[str, list[str]]:
    """The columns of a CSV file as text; the separator is what the header has most of: comma, semicolon or tab."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            header = next((line for line in file if line.strip()), "")
            file.seek(0)
            rows = [row for row in csv.reader(file, delimiter=max(_SEPARATORS, key=header.count)) if row]
    except UnicodeDecodeError:
        raise UserError(f"{path}: is not UTF-8 text: give a CSV or Parquet file") from None
    except csv.Error as error:
        raise UserError(f"{path}: not valid CSV ({error}): mend the file") from None
    if not rows:
        raise UserError(f"{path}: the file is empty: give a table with a header line and one run per line")
    header = [name.strip() for name in rows[0]]
    for name in header:
        if name and header.count(name) > 1:
            raise UserError(f"{path}: column {name!r} appears {header.count(name)} times: rename one")
    for number, row in enumerate(rows[1:], start=1):
        if len(row) != len(header):
            raise UserError(
                f"{path}: data row {number} has {len(row)} fields, the header has {len(header)}: mend the row"
            )
    return {name: [row[i] for row in rows[1:]] for i, name in enumerate(header)}


def read_parquet(path: Path) -> dict[str, list[Any]]:
    """The columns of a Parquet file."""
    import pandas
    import pyarrow

    try:
        frame = pandas.read_parquet(path)
    except pyarrow.ArrowException as error:
        problem = str(error).splitlines()[0]
        raise UserError(f"{path}: not a Parquet file ({problem}): give a CSV or Parquet file") from None
    return {str(name): plain_list(frame[name]) for name in frame.columns}


def plain_list(column: Any) -> list[Any]:
    """Python values, so that messages show 3.2 and not np.float64(3.2); None for what pandas calls missing."""
    if hasattr(column, "notna"):
        column = column.astype(object).where(column.notna(), None)
    return column.tolist() if hasattr(column, "tolist") else list(column)
