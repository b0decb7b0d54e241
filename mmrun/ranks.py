"""Training on several processes: torchrun starts them, each runs the frozen point."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

from mmrun.runs import reader
from mmrun.runs.writer import Run


def rank_and_world() -> tuple[int, int] | None:
    """(rank, number of ranks) of a process that torchrun started; None for any other."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return None
    return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


def launch_ranks(
    directory: Path, processes: int, *, resume: bool, trust: Collection[str]
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
    for package in trust:
        command += ["--trust", package]
    started = reader.recorded(directory)["started"]
    # One thread pool per rank: torchrun warns unless it is told so.
    ranks = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"})
    try:
        ranks.wait()
    except BaseException:
        ranks.send_signal(signal.SIGTERM)
        try:
            ranks.wait(timeout=20)
        except subprocess.TimeoutExpired:
            ranks.kill()
        raise
    if ranks.returncode != 0 and reader.recorded(directory)["started"] == started:
        error = f"the ranks ended with exit code {ranks.returncode} before they trained"
        if reader.recorded(directory)["status"] == "queued":
            Run.open(directory).finish("failed", stopped_by="error", error=error)
        raise RuntimeError(error)
    return reader.read(directory)
