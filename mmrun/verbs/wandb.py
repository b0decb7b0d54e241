"""``mmrun wandb sync``: upload the runs that W&B does not have yet."""

from __future__ import annotations

from mmrun.verbs.words import RUN_HELP, Parser


def main(words: list[str]) -> int:
    """Upload the runs that the words name."""
    parser = Parser(
        "wandb",
        "sync: upload to W&B the runs that are on this machine only; done ones are left alone.",
    )
    parser.add_argument(
        "action", choices=["sync"], metavar="sync", help="upload what is not there yet"
    )
    parser.add_argument(
        "paths",
        nargs="*",
        metavar="PATH",
        help=f"a folder, a sweep or a run ({RUN_HELP}); all without",
    )
    parser.add_argument("--dry-run", action="store_true", help="say what would be uploaded")
    given = parser.parse_args(words)
    from mmrun import runs
    from mmrun.wandb_sync import sync

    def say(line: str) -> None:
        print(line, flush=True)

    return sync(given.paths, runs.outputs(), say, dry_run=given.dry_run)
