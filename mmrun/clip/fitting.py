"""What the laws of an engine, and its settings, must be to go together."""

from __future__ import annotations

from collections.abc import Mapping

from mmrun.clip.bounded import Bounded
from mmrun.clip.law import Law, check_law
from mmrun.errors import UserError


def check(laws: Mapping[str, Law], *, floor: float, on_update: bool) -> None:
    """Raise UserError for what is no law, one that is there twice, or one that does not go with a setting.

    Args:
        laws: by scope.
        floor: what a smaller norm is raised to; 0 for none.
        on_update: whether updates are clipped.
    """
    for law in laws.values():
        check_law(law, "a Clipper is made", "E.g. Clipper(Norm(1.0), scopes={'text': Value(0.1)}).")
    every = [each for law in laws.values() for each in (law, *law.laws)]
    for law in every:
        if sum(each is law for each in every) > 1:
            raise UserError(
                "a law is there twice, and would learn from both places",
                given=f"{law!r}",
                remedy="Make one for each scope.",
            )
    for law in laws.values():
        last = (law, *law.laws)[-1]  # of a chain, the one that has its threshold
        if isinstance(last, Bounded) and last.threshold < floor:
            raise UserError(
                "clip.floor is above the threshold, and would undo what is clipped",
                given=f"floor={floor:g}, {law!r}",
                remedy="Give a floor below it.",
            )
    if on_update and any(each.percentile for each in laws.values()):
        raise UserError(
            "there is no update before training that a percentile could be taken of",
            given="clip.on=update with a threshold such as p90",
            remedy="Take it of a finished run, with clip.calibrate_from=RUN, or give a number.",
        )
