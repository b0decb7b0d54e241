"""No diagnostics: the training alone."""

from __future__ import annotations

from mmrun.diagnostics import Diagnostics


class NoDiagnostics(Diagnostics):
    """Nothing is due, nothing is measured, no column is added."""
