"""``mmrun suggest``: thresholds worth trying."""

from __future__ import annotations

from mmrun.verbs.terminal import colored, width
from mmrun.verbs.words import FORMAT_HELP, RUN_HELP, Parser


def main(words: list[str]) -> int:
    """Print what a run's raw gradient norms suggest."""
    parser = Parser(
        "suggest", "Thresholds worth trying, from the raw gradient norms that a run recorded."
    )
    parser.add_argument("run", metavar="RUN", nargs="?", default="last", help=RUN_HELP)
    parser.add_argument("--format", default="table", metavar="FORMAT", help=FORMAT_HELP)
    given = parser.parse_args(words)
    from mmrun import runs
    from mmrun.compare import suggest

    found = suggest.suggest(runs.find(given.run, runs.outputs()))
    print(suggest.text(found, format=given.format, width=width(None), color=colored()))
    return 0
