"""What every test gets: one thread, folders of its own, no W&B key, no network but loopback."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
_HOME = tempfile.mkdtemp(prefix="mmrun-tests-")

# Before torch, wandb and child processes read them.
for _name in [name for name in os.environ if name.startswith(("WANDB_", "MMRUN_"))]:
    if not _name.startswith(("MMRUN_TEST", "MMRUN_VENV")):
        del os.environ[_name]
for _name in ("NETRC", "TORCHELASTIC_RUN_ID", "RANK", "LOCAL_RANK", "WORLD_SIZE"):
    os.environ.pop(_name, None)
os.environ.update(
    # Children find this checkout wherever they run, also those that mmrun starts itself.
    PYTHONPATH=os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")])),
    OMP_NUM_THREADS="1",
    MKL_NUM_THREADS="1",
    WANDB_MODE="offline",
    WANDB_SILENT="true",
    HOME=_HOME,
    WANDB_DIR=_HOME,
    WANDB_CACHE_DIR=f"{_HOME}/wandb-cache",
    WANDB_CONFIG_DIR=f"{_HOME}/wandb-config",
    WANDB_DATA_DIR=f"{_HOME}/wandb-data",
    XDG_CACHE_HOME=f"{_HOME}/cache",
    XDG_CONFIG_HOME=f"{_HOME}/config",
    COLUMNS="200",
)


def pytest_configure(config: pytest.Config) -> None:
    config.add_cleanup(lambda: shutil.rmtree(_HOME, ignore_errors=True))


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The working directory, and with it outputs/, is the test's own."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True, scope="session")
def loopback_only() -> Iterator[None]:
    """A connection to another machine is an error."""
    connect, connect_ex = socket.socket.connect, socket.socket.connect_ex

    def checked(self: socket.socket, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6):
            host = str(address[0])
            if not host.startswith("127.") and host not in ("localhost", "::1"):
                raise RuntimeError(f"a test wants to connect to {address}")

    def guarded(self: socket.socket, address: Any) -> None:
        checked(self, address)
        connect(self, address)

    def guarded_ex(self: socket.socket, address: Any) -> int:
        checked(self, address)
        return connect_ex(self, address)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", guarded)
        patch.setattr(socket.socket, "connect_ex", guarded_ex)
        yield
