"""``mmrun show``: what a run was and how it went."""

from __future__ import annotations

from mmrun.verbs.terminal import colored, width
from mmrun.verbs.words import RUN_HELP, Parser


def main(words: list[str]) -> int:
    """Print the run that the words name."""
    parser = Parser("show", "What a run was, how it went, and how to do it again.")
    parser.add_argument("run", metavar="RUN", nargs="?", default="last", help=RUN_HELP)
    given = parser.parse_args(words)
    from mmrun import runs
    from mmrun.compare.show import show

    print(show(runs.find(given.run, runs.outputs()), width=width(100), color=colored()))
    return 0
