"""``mmrun compare``: settings side by side."""

from __future__ import annotations

import sys
from pathlib import Path

from mmrun.verbs.garbage import uncollected
from mmrun.verbs.terminal import colored, width
from mmrun.verbs.words import FORMAT_HELP, Parser


def main(words: list[str]) -> int:
    """Print, and draw where asked, the settings of the runs that the words name."""
    parser = Parser(
        "compare",
        "Settings side by side: mean and sd over seeds, best first by validation, never by test.",
    )
    parser.add_argument(
        "paths",
        metavar="PATH",
        nargs="*",
        help="a run, a sweep, a folder of runs, a name or unique id prefix below outputs/, or last; "
        "all of outputs/ by default",
    )
    parser.add_argument(
        "--by",
        metavar="KEY,KEY",
        help="what makes a row, e.g. clip,optimizer.lr; by default everything that differs but the seeds",
    )
    parser.add_argument(
        "--select",
        metavar="val",
        help="of the settings of each row, report the one that is best on validation",
    )
    parser.add_argument(
        "--metric",
        metavar="NAME",
        help="accuracy, test/accuracy, test_last/loss, train_eval/accuracy, ...",
    )
    parser.add_argument(
        "--where",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="only these runs: clip=none,0.5 or status=finished or 'optimizer.lr>0.1'; may be repeated",
    )
    parser.add_argument("--format", default="table", metavar="FORMAT", help=FORMAT_HELP)
    parser.add_argument(
        "--figure",
        type=Path,
        metavar="FILE",
        help="draw it too: .png, .svg or .pdf; a heat map over two keys of --by, or points over one",
    )
    given = parser.parse_args(words)
    with uncollected():
        from mmrun import runs
        from mmrun.compare import table

        comparison = table.compare(
            given.paths,
            outputs=runs.outputs(),
            by=None if given.by is None else [key for key in given.by.split(",") if key],
            asked=given.metric,
            conditions=given.where,
            select=given.select,
        )
        text = table.text(comparison, format=given.format, width=width(None), color=colored())
        if given.figure is not None:
            from mmrun.compare import draw, figures

            draw.draw(figures.figure(comparison), given.figure)
        print(text)
        if given.figure is not None:
            print(f"figure: {given.figure}", file=sys.stderr)
    return 0
