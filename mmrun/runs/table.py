"""The CSV files of a run: columns fixed from the start, rows appended, safe to cut and to tear."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmrun.errors import nearest

Column = NDArray[np.float64]
_TIME = "time"
# A missing cell comes back as a NaN with its sign set, one that was logged as a NaN without. numpy's
# parser drops the sign, so that it is given a number that nine digits cannot write.
_MISSING = float("-nan")
_MISSING_TEXT = b"-1.7976931348623157e+308"


class CsvTable:
    """A CSV file that grows by rows; its columns never change.

    Numbers are written with nine digits, so that a float32 comes back as it was; integers as such;
    ``time`` (seconds since the start) to the millisecond; a missing value as an empty cell, and
    nan, inf and -inf by these names. Opening an existing file appends to it; a row torn by a kill is
    cut off first.

    Args:
        path: the file.
        columns: names in order; the first is ``step``, which every row has.

    Raises:
        ValueError: the file exists with other columns, or a name cannot be a column.
    """

    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        self.path = path
        self.columns = tuple(columns)
        self._rows: list[str] = []
        self._known = frozenset(self.columns)
        if not self.columns or len(self._known) != len(self.columns):
            raise ValueError(f"{path.name}: columns must be there and differ: {self.columns}")
        for name in self.columns:
            if not name or any(mark in name for mark in ',"\r\n'):
                raise ValueError(f"{path.name}: no column can be called {name!r}")
        header = ",".join(self.columns)
        found = _mend(path)
        if found and found != header:
            raise ValueError(f"{path} has other columns: {found}, not {header}")
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("ab")
        if not found:
            self._file.write(header.encode() + b"\n")
            self._file.flush()

    def append(self, row: Mapping[str, Any]) -> None:
        """Add one row; what it does not name stays empty.

        Raises:
            KeyError: a name that is no column.
        """
        self._check(row)
        self._rows.append(",".join(_cell(name, row.get(name)) for name in self.columns))

    def extend(self, columns: Mapping[str, Sequence[Any] | NDArray[Any]]) -> None:
        """Add many rows at once, given as columns of equal length.

        Raises:
            KeyError: a name that is no column.
            ValueError: columns of different lengths.
        """
        self._check(columns)
        lengths = {len(values) for values in columns.values()}
        if len(lengths) > 1:
            raise ValueError(f"{self.path.name}: columns of different lengths {sorted(lengths)}")
        n_rows = lengths.pop() if lengths else 0
        cells: list[list[str]] = []
        for name in self.columns:
            values = columns.get(name)
            if values is None:
                cells.append([""] * n_rows)
            else:
                listed = values.tolist() if isinstance(values, np.ndarray) else values
                cells.append([_cell(name, value) for value in listed])
        self._rows += [",".join(row) for row in zip(*cells, strict=True)]

    def flush(self) -> None:
        """Write the buffered rows to the file, in one piece."""
        if self._rows:
            self._file.write(("\n".join(self._rows) + "\n").encode())
            self._rows.clear()
        self._file.flush()

    def close(self) -> None:
        """Flush and close; a second call does nothing."""
        if not self._file.closed:
            self.flush()
            self._file.close()

    def _check(self, names: Mapping[str, Any]) -> None:
        unknown = names.keys() - self._known
        if unknown:
            name = min(unknown)
            raise KeyError(f"{self.path.name} has no column '{name}'. {nearest(name, self._known)}")

    def __enter__(self) -> CsvTable:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def truncate(path: Path, after_step: int) -> int:
    """Drop the rows of later steps and any torn row; returns how many. No file is no row.

    For resuming from a checkpoint: rows up to and including ``after_step`` stay.
    """
    if not path.exists():
        return 0
    header, _, body = path.read_bytes().partition(b"\n")
    names = header.rstrip(b"\r").split(b",")
    at, width = (names.index(b"step") if b"step" in names else 0), len(names)
    lines = body.split(b"\n")
    kept = [line for line in lines[:-1] if _step(line, at, width) <= after_step]
    dropped = len(lines) - 1 - len(kept) + (lines[-1] != b"")
    if dropped:
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        temporary.write_bytes(b"\n".join([header, *kept, b""]))
        temporary.replace(path)
    return dropped


def read_columns(path: Path) -> dict[str, Column]:
    """{column: float64 values}, rows in file order; a missing cell is NaN (see ``read_series``).

    Empty for a file that is not there yet. A torn row is left out, and so is any row that does not
    fit the header.
    """
    try:
        data = path.read_bytes()
    except OSError:
        return {}
    end = data.rfind(b"\n")
    if end < 0:
        return {}
    header, _, body = data[: end + 1].replace(b"\r", b"").partition(b"\n")
    names = header.decode(errors="replace").split(",")
    table = _parse(body, len(names))
    return {name: np.ascontiguousarray(table[:, at]) for at, name in enumerate(names)}


def read_series(path: Path, name: str) -> tuple[Column, Column]:
    """(steps, values) of the rows that have a value in this column; a logged NaN counts as one."""
    columns = read_columns(path)
    if name not in columns or "step" not in columns:
        return np.empty(0), np.empty(0)
    values = columns[name]
    present = ~(np.isnan(values) & np.signbit(values))
    return columns["step"][present], values[present]


def _cell(name: str, value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, int):
        return str(int(value))  # a bool is 0 or 1
    if isinstance(value, np.integer):
        return str(value.item())  # pyright: ignore[reportUnknownMemberType, reportUnknownArgumentType]
    return ("%.3f" if name == _TIME else "%.9g") % float(value)


def _mend(path: Path) -> str:
    """Cut a torn last row off an existing file; its header, empty where there is none."""
    if not path.exists():
        return ""
    with path.open("r+b") as file:
        header = file.readline()
        if not header.endswith(b"\n"):
            file.truncate(0)
            return ""
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - (1 << 20)))  # no row is a megabyte
        tail = file.read()
        torn = len(tail) - (tail.rfind(b"\n") + 1)
        if torn:
            file.truncate(size - torn)
    return header.decode(errors="replace").rstrip("\r\n")


def _step(line: bytes, at: int, width: int) -> float:
    """Step of a row; infinity, thus dropped, for a row that does not fit the header."""
    cells = line.split(b",")
    try:
        return float(cells[at]) if len(cells) == width else np.inf
    except ValueError:
        return np.inf


def _parse(body: bytes, width: int) -> NDArray[np.float64]:
    """Rows [N, width]; the whole text at once, row by row only where that fails."""
    n_rows = body.count(b"\n")
    if n_rows == 0:
        return np.empty((0, width))
    if body.count(b",") == n_rows * (width - 1):
        empty = b"," + _MISSING_TEXT
        filled = body.replace(b",,", empty + b",").replace(b",,", empty + b",")
        filled = filled.replace(b",\n", empty + b"\n").replace(b"\n", b",")
        with warnings.catch_warnings():
            warnings.simplefilter("error", DeprecationWarning)  # how numpy says "not a number"
            try:
                flat = np.fromstring(filled[:-1].decode("ascii"), dtype=np.float64, sep=",")
                if flat.size == n_rows * width:
                    flat[flat == float(_MISSING_TEXT)] = _MISSING
                    return flat.reshape(n_rows, width)
            except (DeprecationWarning, ValueError):
                pass
    rows: list[list[float]] = []
    for line in body.split(b"\n"):
        cells = line.split(b",")
        if len(cells) == width:
            try:
                rows.append([float(cell) if cell else _MISSING for cell in cells])
            except ValueError:
                continue
    return np.array(rows, dtype=np.float64).reshape(len(rows), width)
