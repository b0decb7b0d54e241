"""Two sweeps of one user on one machine share its GPUs: one lock per GPU, which the kernel lets go when its holders are dead.

A lock belongs to an open file that the workers on that GPU inherit: it is free when the sweep and all of those
are gone, however they went. A sweep that has no GPU says which ones it wants; who has several gives one back then.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import stat
import tempfile
from collections.abc import Generator, Iterable, Sequence
from pathlib import Path
from typing import Any

from mmrun.errors import UserError
from mmrun.launch.gpus import Gpu

_WANTED = ".wanted-"  # then the number of GPUs that each of the sweep's jobs takes


class Taken:
    """GPUs that this process holds, until ``release``.

    Args:
        gpus: which ones.
        files: their locks; whoever inherits these descriptors holds them too.
    """

    def __init__(self, gpus: Sequence[Gpu], files: Sequence[int]) -> None:
        self.gpus = tuple(gpus)
        self.files: tuple[int, ...] = tuple(files)

    def release(self) -> None:
        """Let go; workers that hold them still keep them until they have ended."""
        files, self.files = self.files, ()
        for file in files:
            os.close(file)  # never unlocked: that would take it from the workers too


class Locks:
    """The locks of the GPUs that a sweep may use.

    Args:
        gpus: those GPUs.
        size: how many of them a job takes.
    """

    def __init__(self, gpus: Sequence[Gpu], size: int) -> None:
        self.gpus = tuple(gpus)
        self.size = size
        self.folder = _folder()
        # A shared lock on the folder itself keeps those that clean up old temporary files out of it.
        self._open_folder = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        fcntl.flock(self._open_folder, fcntl.LOCK_SH)
        self._wishes: list[int] = []

    def take(self, held: Iterable[Gpu]) -> Taken | None:
        """Lock as many GPUs as a job takes, beside those held; None where fewer are free: all of them or none."""
        mine = set(held)
        files: dict[Gpu, int] = {}
        with self._alone():
            for gpu in self.gpus:
                if len(files) < self.size and gpu not in mine:
                    file = self._lock(gpu)
                    if file is not None:
                        files[gpu] = file
            taken = Taken(list(files), list(files.values()))
            if len(files) < self.size:
                taken.release()
                return None
            return taken

    def wanted(self, gpus: Iterable[Gpu]) -> bool:
        """Whether a sweep without any GPU waits for one of these, and could get all that it needs."""
        spare = len(self.gpus) - self.size
        for gpu in gpus:
            for path in self.folder.glob(f"{_file_name(gpu)}{_WANTED}*"):
                needed = path.name.rpartition("-")[2]
                if needed.isdigit() and int(needed) <= spare and _is_locked(path):
                    return True
        return False

    def want(self) -> None:
        """Tell the others that this sweep has no GPU; until ``content``, or this process dies."""
        if not self._wishes:
            for gpu in self.gpus:
                file = _open(self.folder / f"{_file_name(gpu)}{_WANTED}{self.size}")
                fcntl.flock(file, fcntl.LOCK_SH)
                self._wishes.append(file)

    def content(self) -> None:
        """Tell them no longer."""
        wishes, self._wishes = self._wishes, []
        for file in wishes:
            os.close(file)

    def holders(self) -> list[str]:
        """Who holds the GPUs, as they have said it: ``process 4711 in /home/me/project``."""
        found: dict[str, None] = {}
        for gpu in self.gpus:
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                said: Any = json.loads((self.folder / f"{_file_name(gpu)}.lock").read_text())
                if said["pid"] != os.getpid():
                    found[f"process {said['pid']} in {said['folder']}"] = None
        return list(found)

    def close(self) -> None:
        """Want nothing more."""
        self.content()
        if self._open_folder >= 0:
            os.close(self._open_folder)
            self._open_folder = -1

    @contextlib.contextmanager
    def _alone(self) -> Generator[None]:
        """One process takes at a time: two that need several could otherwise each get a part for ever."""
        file = _open(self.folder / "taking")
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
        finally:
            os.close(file)

    def _lock(self, gpu: Gpu) -> int | None:
        path = self.folder / f"{_file_name(gpu)}.lock"
        file = _open(path)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(file)
            return None
        with contextlib.suppress(OSError):  # a full disk: the lock is what counts
            os.ftruncate(file, 0)
            os.pwrite(file, json.dumps({"pid": os.getpid(), "folder": os.getcwd()}).encode(), 0)
        return file


def _folder() -> Path:
    """The user's own folder below the one for temporary files; $XDG_RUNTIME_DIR would go at logout, before the sweep."""
    folder = Path(tempfile.gettempdir()) / f"mmrun-{os.getuid()}"
    try:
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        about = folder.lstat()
        mine = stat.S_ISDIR(about.st_mode) and about.st_uid == os.getuid()
        if mine:
            folder.chmod(0o700)
    except OSError as error:
        raise UserError(
            f"the folder of the GPU locks cannot be made: {error.strerror or error}",
            given=folder,
            remedy="Name another folder for temporary files with TMPDIR=DIR.",
        ) from error
    if not mine:
        raise UserError(
            "the folder of the GPU locks is not yours",
            given=folder,
            remedy="Move it away, or name another folder for temporary files with TMPDIR=DIR.",
        )
    return folder


def _file_name(gpu: Gpu) -> str:
    return "gpu-" + "".join(each if each.isalnum() or each == "-" else "_" for each in gpu.key)


def _open(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)


def _is_locked(path: Path) -> bool:
    file = _open(path)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(file)
    return False
