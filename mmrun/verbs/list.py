"""``mmrun list``: what there is to choose from."""

from __future__ import annotations

import textwrap

from mmrun.errors import UserError, nearest
from mmrun.verbs.terminal import width
from mmrun.verbs.words import Parser


def main(words: list[str]) -> int:
    """Print groups, options or settings."""
    parser = Parser(
        "list",
        "The options of every group, or of one; the settings of an option, with GROUP/OPTION.",
    )
    parser.add_argument(
        "group", metavar="GROUP", nargs="?", help="a group, e.g. clip, or an option, e.g. clip/norm"
    )
    parser.add_argument(
        "--config-dir", action="append", default=[], metavar="DIR", help="list your own options too"
    )
    given = parser.parse_args(words)
    from mmrun.options import ENCODER, checked_dirs, common, describe, groups, options

    dirs = checked_dirs(given.config_dir)
    known = groups(dirs)
    wanted, _, option = (given.group or "").partition("/")
    if given.group is not None and wanted not in known:
        raise UserError("there is no such group", given=given.group, remedy=nearest(wanted, known))
    if option in options(wanted, dirs):
        files = (options(wanted, dirs)[option], common(wanted))
        print("\n".join(each.read_text(encoding="utf-8") for each in files if each), end="")
        return 0
    if option and wanted != ENCODER:  # encoder/text is a group as well
        remedy = nearest(option, options(wanted, dirs))
        raise UserError(f"there is no {wanted} called {option}", given=given.group, remedy=remedy)
    for group in [wanted] if wanted else known:
        print(f"{group}/{option or 'MODALITY'}" if group == ENCODER else group)
        for name, path in options(group, dirs).items():
            print(_entry(name, describe(path)))
    return 0


def _entry(name: str, text: str) -> str:
    """A line of a list; wrapped in a terminal, whole in a pipe."""
    columns = width(None)
    lines = [text] if columns is None else textwrap.wrap(text, max(columns - 19, 20)) or [""]
    return "\n".join(f"  {name if k == 0 else '':16} {line}" for k, line in enumerate(lines))
