"""What a user did wrong, said so that they can mend it: problem, what was given, remedy."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

LONGEST = 300  # characters of what the user gave that are quoted back
_DOTS = "..."


class UserError(Exception):
    """A mistake in the user's input; the command line prints it without a traceback and exits 2.

    Args:
        problem: one clause that says what is wrong.
        given: what the user gave, quoted back; empty when the problem names it.
        remedy: what to do instead, with the options or the nearest names.
    """

    def __init__(self, problem: str, *, given: object = "", remedy: str = "") -> None:
        self.problem = problem
        self.given = str(given)
        self.remedy = remedy
        super().__init__(problem, self.given, remedy)

    def __str__(self) -> str:
        text = shortened(self.problem)
        if self.given:
            text += f" (given: {shortened(self.given)})"
        if self.remedy:
            text += f". {self.remedy}"
        return printable(text)


def shortened(text: str, longest: int = LONGEST) -> str:
    """The text; both ends of it, with dots between, where it is longer.

    >>> shortened("optimizer.lr=0.1,seed=0", 16)
    'optimizer...ed=0'
    """
    if len(text) <= longest:
        return text
    end = (longest - len(_DOTS)) // 3
    return f"{text[: longest - len(_DOTS) - end]}{_DOTS}{text[len(text) - end :]}"


def described(error: BaseException) -> str:
    """``ValueError: what it says``; the type alone where it says nothing."""
    return ": ".join(word for word in (type(error).__name__, str(error).strip()) if word)


def printable(text: str) -> str:
    """The text on one line, with escapes for what a terminal would act upon or could not show."""
    line = " ".join(part for part in text.split("\n") if part)
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode() for each in line
    )


def nearest(name: str, options: Iterable[str], *, limit: int = 12) -> str:
    """Which of the options did the user mean? A sentence for ``UserError.remedy``.

    Names the close matches where there are any, else lists the options (at most ``limit``).
    """
    known = sorted({str(option) for option in options})
    if not known:
        return "There is nothing to choose from."
    close = get_close_matches(str(name), known, n=3, cutoff=0.6)
    more = len(known) - limit
    listed = ", ".join(known[:limit]) + (f" and {more} more" if more > 0 else "")
    if close:
        return f"Did you mean {' or '.join(close)}? Available: {listed}."
    return f"Available: {listed}."
