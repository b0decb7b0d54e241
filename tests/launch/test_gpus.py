"""Which GPUs a sweep may use, and how sweeps share them: by locks that end with their holders."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mmrun.errors import UserError
from mmrun.launch import gpus
from mmrun.launch.gpu_locks import Locks, Taken
from mmrun.launch.gpus import Gpu, choose

UUIDS = [f"GPU-{k}{k}{k}{k}-aa" for k in range(4)]
FOUR = [Gpu(str(k), str(k)) for k in range(4)]


@pytest.fixture(autouse=True)
def a_machine_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing of this machine's GPUs, and a folder for temporary files."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(gpus, "SMI", ("no-such-program",))
    monkeypatch.setattr(gpus, "_device_files", list)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


@pytest.fixture
def smi(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An nvidia-smi that knows four GPUs."""
    path = tmp_path / "nvidia-smi"
    path.write_text(
        "#!/bin/sh\n" + "".join(f"echo '{k}, {uuid}'\n" for k, uuid in enumerate(UUIDS))
    )
    path.chmod(0o700)
    monkeypatch.setattr(gpus, "SMI", (str(path),))


@pytest.fixture
def locks() -> Iterator[Callable[..., Locks]]:
    made: list[Locks] = []

    def make(which: list[Gpu], size: int = 1) -> Locks:
        made.append(Locks(which, size))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.mark.usefixtures("smi")
@pytest.mark.parametrize(
    ("listed", "wanted", "entries", "keys"),
    [
        (None, "auto", UUIDS, UUIDS),
        (None, [2, 0], [UUIDS[2], UUIDS[0]], [UUIDS[2], UUIDS[0]]),
        ("3,1", "auto", ["3", "1"], [UUIDS[3], UUIDS[1]]),
        ("3,1", [1], ["1"], [UUIDS[1]]),
        ("GPU-2222, MIG-5/6", "auto", ["GPU-2222", "MIG-5/6"], [UUIDS[2], "MIG-5/6"]),
        ("0,-1,2", "auto", ["0"], [UUIDS[0]]),
        ("", "auto", [], []),
        ("NoDevFiles", "auto", [], []),
        (None, [], [], []),
    ],
)
def test_gpus_are_those_that_this_process_may_see(
    listed: str | None,
    wanted: object,
    entries: list[str],
    keys: list[str],
    monkeypatch: pytest.MonkeyPatch,
):
    if listed is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", listed)
    found = choose(wanted)  # pyright: ignore[reportArgumentType]
    assert [gpu.entry for gpu in found] == entries
    assert [gpu.key for gpu in found] == keys


def test_where_nothing_is_known_there_are_none(monkeypatch: pytest.MonkeyPatch):
    assert choose("auto") == []
    with pytest.raises(UserError, match="There are none"):  # points would train on the CPU
        choose([0, 2])
    monkeypatch.setattr(gpus, "_device_files", lambda: FOUR[:2])  # a container without nvidia-smi
    assert choose("auto") == FOUR[:2]


@pytest.mark.parametrize(
    ("listed", "wanted", "said"),
    [
        ("0,1", [2], "There are 2: give numbers from 0 to 1"),
        ("", [0], "There are none"),
        (None, [-1], "that is not here"),
        (None, [1, 1], "names a GPU twice"),
    ],
)
def test_a_gpu_that_is_not_there(
    listed: str | None, wanted: list[int], said: str, monkeypatch: pytest.MonkeyPatch
):
    if listed is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", listed)
    with pytest.raises(UserError, match=r"launcher\.gpus") as caught:
        choose(wanted)
    assert said in str(caught.value)


def names(taken: Taken | None) -> str:
    return "none" if taken is None else "".join(gpu.key for gpu in taken.gpus)


def test_a_gpu_is_held_by_one(locks: Callable[..., Locks]):
    a, b = locks(FOUR[:2]), locks(FOUR[:2])
    first = a.take([])
    second = b.take([])
    assert (names(first), names(second), names(a.take([])), names(b.take([]))) == (
        *("0", "1"),
        *("none", "none"),
    )
    assert a.holders() == []  # none but this process
    assert first is not None
    inherited = os.dup(first.files[0])  # as a worker does
    first.release()
    assert b.take([]) is None
    os.close(inherited)
    again = b.take([])
    assert names(again) == "0"
    for each in (second, again):
        assert each is not None
        each.release()


def test_several_are_taken_together_or_not_at_all(locks: Callable[..., Locks]):
    pairs, singles = locks(FOUR, 2), locks(FOUR[:1])
    one = singles.take([])
    pair = pairs.take([])
    assert pair is not None
    assert names(pair) == "12"
    assert pairs.take(pair.gpus) is None  # 3 alone is not enough, and is let go again
    rest = locks(FOUR).take([])
    assert names(rest) == "3"
    for each in (one, pair, rest):
        assert each is not None
        each.release()


def test_who_has_none_is_heard_by_who_has_several(locks: Callable[..., Locks]):
    rich, poor, other = locks(FOUR[:2]), locks(FOUR[:2]), locks(FOUR[2:])
    assert not rich.wanted(FOUR[:1])
    poor.want()
    poor.want()
    assert rich.wanted(FOUR[:1])
    assert rich.wanted(FOUR[1:2])
    assert not other.wanted(FOUR[2:])  # that is none of those it could use
    poor.content()
    assert not rich.wanted(FOUR[:1])
    greedy = locks(FOUR[:2], 2)
    greedy.want()
    assert not rich.wanted(FOUR[:1])  # with one GPU less it would not have two
    assert locks(FOUR).wanted(FOUR[:1])
    poor.want()
    poor.close()
    assert not rich.wanted(FOUR[:1])


def test_the_folder_is_the_user_s_own(
    locks: Callable[..., Locks], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = locks(FOUR).folder
    assert folder == tmp_path / f"mmrun-{os.getuid()}"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    (tmp_path / "mmrun-12345").mkdir()
    with pytest.raises(UserError, match="is not yours"):
        Locks(FOUR, 1)
    (tmp_path / "mmrun-12345").rmdir()
    (tmp_path / "mmrun-12345").symlink_to(folder)
    with pytest.raises(UserError, match="is not yours"):
        Locks(FOUR, 1)
