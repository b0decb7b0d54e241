"""A figure as a picture: png, svg or pdf, readable in print, in grey and by the colour-blind."""

from __future__ import annotations

import contextlib
import math
import os
import secrets
from pathlib import Path
from typing import Any, cast

from mmrun.compare.figures import Axis, Cell, Figure
from mmrun.errors import UserError, nearest, printable

SUFFIXES = (".png", ".svg", ".pdf")
_DPI = 200
_INK, _GREY, _BAD = "#222222", "#777777", "#b3261e"
_COLORS = "cividis"  # as clear to the colour-blind, and in grey
_STYLE = {
    "font.size": 9,
    "font.family": "DejaVu Sans",
    "axes.edgecolor": _GREY,
    "axes.labelcolor": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "hatch.linewidth": 0.6,
    "svg.fonttype": "none",
    "svg.hashsalt": "mmrun",
    "text.parse_math": False,  # a setting with dollars is no formula
}


def draw(figure: Figure, path: Path) -> None:
    """Draw a figure into a file, whole or not at all.

    Args:
        figure: what to show.
        path: a .png, .svg or .pdf file in a folder that is there.

    Raises:
        UserError: another kind of file, or one that cannot be written.
    """
    check(path)
    import matplotlib as mpl
    from matplotlib.figure import Figure as Canvas

    style: Any = cast("Any", mpl).rc_context
    with style(_STYLE):
        canvas: Any = Canvas(figsize=_size(figure), layout="constrained")
        _points(canvas, figure) if figure.y is None else _heat_map(canvas, figure, figure.y)
        temporary = path.with_name(
            f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}{path.suffix}"
        )
        try:
            # No date inside: the same runs give the same file.
            dated = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}
            canvas.savefig(temporary, dpi=_DPI, metadata=dated.get(path.suffix.lower()))
            temporary.replace(path)
        except OSError as error:
            raise UserError(
                f"cannot write the figure: {error.strerror or error}", given=path
            ) from error
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


def check(path: Path) -> None:
    """UserError for a file that is none of ``SUFFIXES``, or in a folder that is not there."""
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(
            "a figure is a .png, .svg or .pdf file",
            given=path,
            remedy=nearest(path.suffix or ".png", SUFFIXES),
        )
    if not path.parent.is_dir():
        raise UserError(
            "cannot write the figure: there is no such folder",
            given=path.parent,
            remedy="Make it first.",
        )


def _size(figure: Figure) -> tuple[float, float]:
    """Inches: cells that hold three lines of text, a page's width at most."""
    if figure.y is None:
        return (min(max(4.6, 1.2 + 0.7 * len(figure.x.labels)), 12.0), 3.2)
    width = 2.2 + 1.05 * len(figure.x.labels)
    height = 1.35 + 0.62 * len(figure.y.labels)
    return (min(max(width, 4.2), 14.0), min(max(height, 2.4), 14.0))


def _heat_map(canvas: Any, figure: Figure, y: Axis) -> None:
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.patches import Rectangle

    axes = canvas.add_subplot()
    means = [c.mean for c in figure.cells.values() if c.mean is not None and math.isfinite(c.mean)]
    low, high = (min(means), max(means)) if means else (0.0, 1.0)
    if low == high:
        low, high = low - 0.5, high + 0.5
    scale = Normalize(low, high)
    # Bright is good, whichever way the metric goes.
    colors: Any = colormaps[_COLORS if figure.higher else f"{_COLORS}_r"]
    form = _form(means)
    for i in range(len(figure.x.labels)):
        for j in range(len(y.labels)):
            cell = figure.cells.get((i, j))
            mean = None if cell is None else cell.mean
            face: Any = "#eeeeee"
            if mean is not None and math.isfinite(mean):
                face = colors(scale(mean))
            box = Rectangle((i - 0.5, j - 0.5), 1, 1, facecolor=face, edgecolor="white", lw=1.5)
            axes.add_patch(box)
            if cell is None:
                axes.text(i, j, "no run", ha="center", va="center", color=_GREY, fontsize=8)
                continue
            _label(axes, i, j, cell, form, _ink_on(face))
    axes.set_xlim(-0.5, len(figure.x.labels) - 0.5)
    axes.set_ylim(-0.5, len(y.labels) - 0.5)
    axes.set_xticks(range(len(figure.x.labels)), [_short(label) for label in figure.x.labels])
    axes.set_yticks(range(len(y.labels)), [_short(label) for label in y.labels])
    axes.tick_params(length=0)
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)
    axes.set_xlabel(printable(figure.x.key))
    axes.set_ylabel(printable(y.key))
    if means:
        bar = canvas.colorbar(ScalarMappable(scale, colors), ax=axes, pad=0.02, aspect=25)
        bar.outline.set_visible(False)
        bar.set_label(printable(figure.metric))
    _titles(canvas, axes, figure)


def _label(axes: Any, i: int, j: int, cell: Cell, form: str, ink: str) -> None:
    """Mean, sd and n of a cell; what went wrong gets a frame and a line of its own."""
    from matplotlib.patches import Rectangle

    up = 0.2 if cell.wrong else 0.12
    mean = "-" if cell.mean is None else f"{cell.mean:{form}}"
    spread = f"n={cell.n}" if cell.sd is None else f"±{cell.sd:{form}}  n={cell.n}"
    spread = ", ".join(cell.waiting) if cell.n == 0 and cell.waiting else spread
    axes.text(i, j + up, mean, ha="center", va="center", color=ink, fontsize=10, weight="bold")
    axes.text(i, j + up - 0.27, spread, ha="center", va="center", color=ink, fontsize=7)
    if cell.wrong:
        for color, line in (("white", 2.8), (_BAD, 1.5)):  # red is seen on dark ground too
            corner = (i - 0.465, j - 0.465)
            axes.add_patch(Rectangle(corner, 0.93, 0.93, fill=False, edgecolor=color, lw=line))
        axes.text(
            i,
            j - 0.31,
            ", ".join(cell.wrong),
            ha="center",
            va="center",
            fontsize=7,
            weight="bold",
            color="white",
            bbox={"boxstyle": "round,pad=0.15", "facecolor": _BAD, "edgecolor": "none"},
        )


def _points(canvas: Any, figure: Figure) -> None:
    axes = canvas.add_subplot()
    x = figure.x
    span = (x.positions[-1] - x.positions[0]) or 1.0
    wrong: list[tuple[float, str]] = []
    line: list[tuple[float, float]] = []
    for (i, _), cell in sorted(figure.cells.items()):
        at = x.positions[i]
        finite = [value for value in cell.values if math.isfinite(value)]
        beside = [at + 0.022 * span] * len(finite)
        axes.plot(beside, finite, "o", ms=3.5, color=_GREY, alpha=0.6, mew=0, zorder=2)
        if cell.mean is not None and math.isfinite(cell.mean):
            axes.errorbar(
                at,
                cell.mean,
                yerr=cell.sd,
                fmt="D" if cell.wrong else "o",
                ms=6,
                capsize=3,
                color="#00336f",
                mfc="white" if cell.wrong else "#00336f",
                mec=_BAD if cell.wrong else "#00336f",
                mew=1.4,
                zorder=3,
            )
            if i < x.numbers:
                line.append((at, cell.mean))
        if cell.wrong:
            wrong.append((at, "\n".join(cell.wrong)))
    if line:
        axes.plot(*zip(*line, strict=True), color="#00336f", lw=1, alpha=0.6, zorder=1)
    if 0 < x.numbers < len(x.labels):
        edge = (x.positions[x.numbers - 1] + x.positions[x.numbers]) / 2
        axes.axvline(edge, color=_GREY, lw=0.8, ls=":", zorder=0)
    for at, text in wrong:
        axes.annotate(
            text,
            (at, 1.0),
            xycoords=("data", "axes fraction"),
            ha="center",
            va="bottom",
            fontsize=7,
            weight="bold",
            color=_BAD,
        )
    margin = 0.5 * span / max(len(x.labels) - 1, 1)
    axes.set_xlim(
        x.positions[0] - min(margin, 0.2 * span), x.positions[-1] + min(margin, 0.2 * span)
    )
    axes.set_xticks(x.positions, [_short(label) for label in x.labels])
    axes.grid(axis="y", color="#dddddd", lw=0.6)
    axes.set_axisbelow(True)
    axes.set_xlabel(printable(x.key) + (" (log scale)" if x.log else ""))
    axes.set_ylabel(printable(figure.metric))
    _titles(canvas, axes, figure, lift=bool(wrong))


def _titles(canvas: Any, axes: Any, figure: Figure, *, lift: bool = False) -> None:
    axes.set_title(printable(figure.title), fontsize=10, loc="left", pad=18 if lift else 6)
    canvas.supxlabel(printable("; ".join(figure.notes)), fontsize=7, color=_GREY, x=0.01, ha="left")


def _form(means: list[float]) -> str:
    largest = max(map(abs, means), default=0.0)
    return ".3g" if 0 < largest < 0.01 or largest >= 1000 else ".3f" if largest < 10 else ".1f"


def _ink_on(face: Any) -> str:
    from matplotlib.colors import to_rgb

    red, green, blue = to_rgb(face)
    return _INK if 0.299 * red + 0.587 * green + 0.114 * blue > 0.45 else "white"


def _short(label: str) -> str:
    text = printable(label)
    return text if len(text) <= 18 else f"{text[:8]}…{text[-8:]}"
