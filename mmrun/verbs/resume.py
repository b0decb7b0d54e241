"""``mmrun resume``: go on with a run or a sweep that was interrupted."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mmrun.errors import UserError
from mmrun.signals import ending
from mmrun.verbs.words import RUN_HELP, Parser, parse_trusting


def main(words: list[str]) -> int:
    """Continue what the words name."""
    parser = Parser("resume", "Continue an interrupted run from its last checkpoint, or a sweep.")
    parser.add_argument("run", metavar="RUN|SWEEP", help=RUN_HELP)
    parser.add_argument(
        "changes", nargs="*", default=[], metavar="KEY=VALUE", help="e.g. trainer.max_epochs=40"
    )
    given, trust = parse_trusting(parser, words)
    from mmrun import compose, runs

    directory = runs.find_tree(given.run, runs.outputs())
    if (directory / runs.SWEEP_RECORD).is_file():
        return _resume_sweep(directory, given.changes, trust)
    directory = runs.find(given.run, runs.outputs())
    changes = compose.resumable(given.changes)
    from mmrun import point
    from mmrun.compare.summary import summary

    with ending():
        from mmrun.train import main_exit_code
    record = point.run(directory, resume=True, changes=changes, trust=trust)
    print(summary(record))
    return main_exit_code(record)


def _resume_sweep(sweep: Path, changes: Sequence[str], trust: Sequence[str]) -> int:
    if changes:
        raise UserError(
            "a sweep is resumed as it was recorded",
            given=" ".join(changes),
            remedy="Resume a single point with changes, or give the sweep's command with others.",
        )
    from mmrun import runs
    from mmrun.launch import loop
    from mmrun.launch.executor import make_executor
    from mmrun.launch.inline import Inline
    from mmrun.verbs.outcome import closing

    for record in runs.read_all([sweep]).values():
        if "launcher" in record["config"]:
            executor = make_executor(record["config"]["launcher"], trust)
            break
    else:
        executor = Inline(fail_fast=False)
    return closing(loop.resume(sweep, executor, trust=trust))
