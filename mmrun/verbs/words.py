"""The words of a verb: how they are parsed, and what is common to several verbs."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import NoReturn

from mmrun.errors import UserError

RUN_HELP = "a path, a name or unique id prefix below outputs/, or last"
FORMAT_HELP = "table, md, csv, json or latex"


class Parser(argparse.ArgumentParser):
    """A parser whose complaints are told as those of everything else."""

    def __init__(self, verb: str, description: str) -> None:
        super().__init__(prog=f"mmrun {verb}", description=description, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        """Raise what is wrong with the command line."""
        raise UserError(message, remedy=f"See {self.prog} --help.")


def parse_trusting(
    parser: argparse.ArgumentParser, words: list[str]
) -> tuple[argparse.Namespace, list[str]]:
    """Parsed words, and the packages that they say to trust; config folders go onto the module path."""
    parser.add_argument("--config-dir", metavar="DIR", help="the folder that the run was made with")
    parser.add_argument("--trust", metavar="PKG", help="a package that _target_ may name")
    config_dirs, trust, rest = take_trust(words)
    given = parser.parse_args(rest)
    from mmrun.options import existing_dirs
    from mmrun.user_code import add_to_path, packages_beside

    dirs = existing_dirs(config_dirs)
    add_to_path(dirs)
    return given, [*trust, *packages_beside(dirs)]


def take_trust(words: Sequence[str]) -> tuple[list[str], list[str], list[str]]:
    """(--config-dir folders, --trust packages, the other words)."""
    taken: dict[str, list[str]] = {"--config-dir": [], "-cd": [], "--trust": []}
    rest: list[str] = []
    iterator = iter(words)
    for word in iterator:
        flag, equals, value = word.partition("=")
        if flag not in taken:
            rest.append(word)
            continue
        found = value if equals else next(iterator, None)
        if not found:
            raise UserError(f"{flag} wants a value", given=word)
        taken[flag].append(found)
    return [*taken["--config-dir"], *taken["-cd"]], taken["--trust"], rest
