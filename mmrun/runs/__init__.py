"""The run directory: the only contract between training and comparing.

A run is a folder. ``create`` makes one for a single run, ``freeze`` one for a point of a sweep; both
build it under a hidden name and rename it, so that a run directory exists whole or not at all::

    run = runs.create(point, outputs)           # status "queued": config and id are fixed from here
    run.start()                                 # status "running": host, pid, versions, commit
    with runs.Heartbeat(run.paths.record):      # "I live", every 10 s
        run.update(metrics={...})               # at every validation; temp file + os.replace
    run.finish("finished", test={...})

``read`` never raises: what cannot be read comes back as a record with status ``unreadable`` and the
reason in ``error``, and a run whose process died is ``killed``, whatever its file says. ``point``
gives back the Point a directory was frozen from; ``find`` turns what a user typed into a directory.

Who does what: ``layout`` names and paths; ``record`` the keys of run.json; ``writer`` create, freeze,
update; ``reader`` read, list; ``finder`` names to directories; ``table`` the CSV files; ``verdict``
what the clipping did; ``stability`` was the training stable; ``heartbeat`` is it alive; ``provenance`` versions
and commit; ``ledger`` the points of a sweep, and its lock; ``standing`` how it stands: the best so far, the time left. Nothing here imports torch, Lightning or Hydra;
what wants numpy or yaml is imported when it is first named, for who only reads run.json.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from mmrun.runs.finder import find, find_sweep, find_tree, outputs
from mmrun.runs.heartbeat import Heartbeat
from mmrun.runs.layout import SWEEP_RECORD, Paths, metrics_columns, point_directory
from mmrun.runs.reader import list_runs, point, read, read_all
from mmrun.runs.record import FORMAT

if TYPE_CHECKING:
    from mmrun.runs.table import CsvTable, read_columns, read_series, truncate
    from mmrun.runs.writer import Run, create, freeze

_LATER = {
    "table": ("CsvTable", "read_columns", "read_series", "truncate"),
    "writer": ("Run", "create", "freeze"),
}

__all__ = [
    "FORMAT",
    "SWEEP_RECORD",
    "CsvTable",
    "Heartbeat",
    "Paths",
    "Run",
    "create",
    "find",
    "find_sweep",
    "find_tree",
    "freeze",
    "list_runs",
    "metrics_columns",
    "outputs",
    "point",
    "point_directory",
    "read",
    "read_all",
    "read_columns",
    "read_series",
    "truncate",
]


def __getattr__(name: str) -> Any:
    for module, names in _LATER.items():
        if name in names:
            value = getattr(importlib.import_module(f"{__name__}.{module}"), name)
            globals()[name] = value
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
