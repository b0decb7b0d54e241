"""Training on several processes: torchrun starts them, each runs the frozen point."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Collection
from pathlib import Path
from typing import Any

from mmrun.runs import reader
from mmrun.runs.writer import Run
from mmrun.user_code import added_to_path, child_environment

# torchrun gives its ranks 30 s before it kills them; killed itself before that, it would leave them behind.
SHUTDOWN_S = 45


def rank_and_world() -> tuple[int, int] | None:
    """(rank, number of ranks) of a process that torchrun started; None for any other."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return None
    return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


def launch_ranks(
    directory: Path, processes: int, *, resume: bool, trust: Collection[str], brief: bool
) -> dict[str, Any]:
    """Run a frozen point in ``processes`` ranks of this machine; the record that rank 0 wrote.

    Lightning's own launcher would run the whole command line again in every rank; it is told that the
    processes were made outside.

    Raises:
        RuntimeError: the ranks ended before one of them began to train.
    """
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc-per-node={processes}", "-m", "mmrun.point", str(directory)]
    command += ["--resume"] if resume else []
    command += ["--brief"] if brief else []
    for package in trust:
        command += ["--trust", package]
    for folder in added_to_path:
        command += ["--path", folder]
    started = reader.recorded(directory)["started"]
    ranks = subprocess.Popen(
        command,
        # One thread pool per rank: torchrun warns unless it is told so.
        env={**child_environment(), "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        # A session of their own: Ctrl-C comes to them through us, once.
        start_new_session=True,
    )
    said = threading.Thread(target=_relay, args=(ranks,), daemon=True)
    said.start()
    try:
        ranks.wait()
        said.join()
    except BaseException as error:
        _quiet.add(ranks.pid)  # torchrun would print a traceback of its own
        ranks.send_signal(getattr(error, "signum", signal.SIGTERM))
        try:
            ranks.wait(timeout=SHUTDOWN_S)
        except subprocess.TimeoutExpired:
            ranks.kill()
        raise
    if ranks.returncode != 0 and reader.recorded(directory)["started"] == started:
        error = f"the ranks ended with exit code {ranks.returncode} before they trained"
        if reader.recorded(directory)["status"] == "queued":
            Run.open(directory).finish("failed", stopped_by="error", error=error)
        raise RuntimeError(error)
    return reader.read(directory)


_quiet: set[int] = set()


def _relay(ranks: subprocess.Popen[bytes]) -> None:
    """Pass on what the ranks write to stderr, until they are told to stop."""
    assert ranks.stderr is not None
    with ranks.stderr as stream:
        for line in stream:
            if ranks.pid not in _quiet:
                sys.stderr.write(line.decode(errors="replace"))
