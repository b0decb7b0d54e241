"""``mmrun doctor``: does everything that mmrun needs work here?"""

from __future__ import annotations

from mmrun.verbs.words import Parser


def main(words: list[str]) -> int:
    """Print a report; 1 where something does not work."""
    Parser("doctor", "Does everything that mmrun needs work here?").parse_args(words)
    from mmrun import runs
    from mmrun.doctor import report

    text, well = report(runs.outputs())
    print(text)
    return 0 if well else 1
