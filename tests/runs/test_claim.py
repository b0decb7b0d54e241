"""One process trains a run at a time."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mmrun.runs.claim import ClaimedError, claimed, is_claimed
from mmrun.runs.writer import Run, freeze
from mmrun.spec import Point

HOLD = """\
import sys
from pathlib import Path
from mmrun.runs.claim import claimed
with claimed(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return freeze(Point(config={"seed": 1}, choices={}, name="a"), tmp_path / "a")


def test_who_comes_second_is_refused_until_the_first_is_dead(run: Run):
    words = [sys.executable, "-c", HOLD, str(run.directory)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as first:
        assert first.stdout is not None
        first.stdout.readline()
        assert is_claimed(run.directory)
        with pytest.raises(ClaimedError, match="being trained now"), claimed(run.directory):
            pass
        first.kill()
    assert not is_claimed(run.directory)
    with claimed(run.directory):
        assert is_claimed(run.directory)


def test_who_only_looks_is_in_nobody_s_way(run: Run):
    with claimed(run.directory):
        pass
    assert not is_claimed(run.directory)
    assert not is_claimed(run.directory / "gone")


def test_a_child_that_outlives_the_training_holds_nothing(run: Run):
    read, write = os.pipe()
    begun, begins = os.pipe()
    with claimed(run.directory):
        child = os.fork()
        if not child:
            os.close(write)
            os.write(begins, b" ")
            os.read(read, 1)  # until the parent has looked
            os._exit(0)
        os.read(begun, 1)
    held = is_claimed(run.directory)
    os.close(write)
    os.waitpid(child, 0)
    for file in (read, begun, begins):
        os.close(file)
    assert not held
