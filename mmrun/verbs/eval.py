"""``mmrun eval``: score a finished run under other test conditions."""

from __future__ import annotations

from mmrun.signals import ending
from mmrun.verbs.words import RUN_HELP, Parser, parse_trusting


def main(words: list[str]) -> int:
    """Score the run that the words name."""
    parser = Parser("eval", "Score a finished run once under other test conditions.")
    parser.add_argument("run", metavar="RUN", help=RUN_HELP)
    parser.add_argument(
        "changes", nargs="*", default=[], metavar="KEY=VALUE", help="e.g. missing.test_rate=0.3"
    )
    given, trust = parse_trusting(parser, words)
    from mmrun import compose, runs

    with ending():
        from mmrun.evaluate import evaluate
    directory = runs.find(given.run, runs.outputs())
    path, scores = evaluate(directory, compose.changes(given.changes), trust=trust)
    recorded = runs.read(directory)["test"]
    print(f"{'condition':16} {' '.join(given.changes) or 'as trained'}")
    for name, value in scores.items():
        before = f"   as trained {recorded[name]:.4f}" if name in recorded else ""
        print(f"{name:16} {value:.4f}{before if given.changes else ''}")
    print(f"{'written to':16} {path}")
    return 0
