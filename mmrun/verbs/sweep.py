"""``mmrun sweep status|cancel``: how a sweep stands, and its end."""

from __future__ import annotations

from mmrun.errors import UserError, nearest
from mmrun.verbs.garbage import uncollected
from mmrun.verbs.words import Parser, parse_trusting

STATUS, CANCEL = "status", "cancel"


def main(words: list[str]) -> int:
    """Look at the sweep that the words name, or end it; 1 where its end is still to come."""
    parser = Parser(
        "sweep",
        "status: points by status, the time that is left, the best so far, what runs, what failed. "
        "cancel: end what runs and what is queued; results stay, and mmrun resume takes the rest up again.",
    )
    parser.add_argument(
        "action", metavar=f"{STATUS}|{CANCEL}", help="how the sweep stands, or end it"
    )
    parser.add_argument(
        "sweep",
        metavar="SWEEP",
        nargs="?",  # where the first word is wrong that is what is to be said
        help="a path, a name or unique start of one below outputs/, or last",
    )
    parser.add_argument("--format", choices=["table", "json"], help="of status; table by default")
    given, trust = parse_trusting(parser, words)
    if given.action not in (STATUS, CANCEL):
        remedy = f"{nearest(given.action, (STATUS, CANCEL))} E.g. mmrun sweep {STATUS} last."
        raise UserError("sweep does no such thing", given=given.action, remedy=remedy)
    if given.sweep is None:
        parser.error("the following arguments are required: SWEEP")
    from mmrun import runs

    if given.action == STATUS and trust:
        raise UserError("status runs no code: it takes no --trust and no --config-dir")
    if given.action == CANCEL and given.format:
        raise UserError("cancel takes no --format", given=given.format)
    sweep = runs.find_sweep(given.sweep, runs.outputs())
    if given.action == STATUS:
        from mmrun.launch import status

        with uncollected():
            found = status.look(sweep)
        if given.format == "json":
            from mmrun.compare.formats import json_of

            print(json_of(status.facts(found)))
        else:
            print("\n".join(status.lines(found)))
        return 0
    from mmrun.exits import say
    from mmrun.launch import cancel

    done = cancel.cancel(sweep, trust=trust, say=say)
    for line in cancel.lines(done):
        say(line)
    return 0 if done.heard else 1
