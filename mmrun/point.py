"""The entry that runs a frozen point: ``python -m mmrun.point DIR [--resume] [--brief] [--trust PKG] [--path DIR]``.

Pool workers, cluster tasks, DDP ranks and ``mmrun resume`` all come through ``run``. Nothing that a run directory says is
trusted by itself: the caller names the packages that it may use, and the folders where they are found.
"""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from mmrun.errors import UserError, described
from mmrun.ranks import rank_and_world
from mmrun.runs import reader
from mmrun.runs.claim import claimed
from mmrun.runs.writer import Run
from mmrun.signals import end_with_parent

EXIT_INTERRUPTED = {"interrupt": 130, "terminate": 143}


def run(
    directory: Path,
    *,
    resume: bool = False,
    changes: Mapping[str, Any] | None = None,
    trust: Collection[str] = (),
    brief: bool = False,
) -> dict[str, Any]:
    """Train the point that ``directory`` was frozen from, and return its record.

    Args:
        directory: a run directory.
        resume: continue from its last.ckpt.
        changes: {dotted key: value} that differ from the frozen config, besides those recorded.
        trust: packages beside mmrun and torch.optim that its ``_target_`` may name. They must be
            importable: the folders that the run recorded are not, by themselves.
        brief: print no line, as one of many points.

    Raises:
        UserError: for what the user can mend.
    """
    from mmrun.train import train  # torch and Lightning: 4 s that a caller may have paid already

    if rank_and_world() is not None:  # its parent holds the run
        return _run(train, directory, resume, changes, trust, brief)
    reader.recorded(directory)
    with claimed(directory):
        return _run(train, directory, resume, changes, trust, brief)


def _run(
    train: Callable[..., dict[str, Any]],
    directory: Path,
    resume: bool,
    changes: Mapping[str, Any] | None,
    trust: Collection[str],
    brief: bool,
) -> dict[str, Any]:
    record = reader.recorded(directory)
    frozen = reader.point(directory)
    try:
        return train(
            frozen,
            directory,
            resume=resume,
            changes={**(record["resumed"] if resume else {}), **(changes or {})},
            trust=trust,
            brief=brief,
        )
    except Exception as error:
        # What cannot be built is this point's failure; what trained has written its ending itself.
        unbuilt = reader.recorded(directory)["started"] == record["started"]
        if unbuilt and not resume and rank_and_world() is None:
            said = str(error) if isinstance(error, UserError) else described(error)
            run = Run.open(directory)
            run.paths.log.write_text(traceback.format_exc(), encoding="utf-8")
            run.finish("failed", stopped_by="error", error=said)
        raise


def main(arguments: list[str] | None = None) -> int:
    """The command-line form of ``run``; exit codes as those of mmrun."""
    parser = argparse.ArgumentParser(
        prog="python -m mmrun.point", description="Run a frozen point."
    )
    parser.add_argument("directory", type=Path)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--brief", action="store_true")
    parser.add_argument("--trust", action="append", default=[], metavar="PKG")
    parser.add_argument("--path", action="append", default=[], metavar="DIR")
    given = parser.parse_args(arguments)
    from mmrun.exits import guarded
    from mmrun.user_code import add_folders

    add_folders(given.path)
    if rank_and_world() is not None:
        end_with_parent()

    def command() -> int:
        options = {"resume": given.resume, "trust": given.trust, "brief": given.brief}
        return _code(run(given.directory, **options))

    return guarded(command)


def _code(record: Mapping[str, Any]) -> int:
    """How the run ended; a rank that writes no record and comes back has ended well."""
    rank, _ = rank_and_world() or (0, 1)
    if rank > 0:
        return 0
    return EXIT_INTERRUPTED.get(record["stopped_by"], int(record["status"] != "finished"))


if __name__ == "__main__":
    sys.exit(main())
