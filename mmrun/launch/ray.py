"""Points as tasks of Ray: on a Ray that is started for the sweep on this machine alone, or on an existing cluster."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import shutil
import signal
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from mmrun.errors import UserError, described
from mmrun.exits import say
from mmrun.launch import raytask
from mmrun.launch.executor import GRACE_S, Ended, Executor, Job
from mmrun.signals import STOPPED_BY, Interrupted
from mmrun.user_code import added_to_path, child_environment

CONNECT_S = 5.0
FORCED_S = 5.0  # what Ray has to end a process; it takes a fraction of a second
FRESH_S = 1.0  # how long what the cluster holds is believed
STORE_BYTES = 80 * 2**20  # Ray's least; tasks hand each other nothing
# Read by Ray when it is imported: addresses of this machine are loopback ones, and nobody else can connect.
LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
SILENT = {"RAY_USAGE_STATS_ENABLED": "0"}


class Ray(Executor):
    """A task per point; Ray gives it CPUs and GPUs of its own, and lets it wait while there are none free.

    A process serves many points, but for those with a GPU: CUDA keeps to the GPUs that it saw first, so Ray takes a fresh
    process for each. Ray keeps running after none of the ways in which a sweep ends; where the sweep's own process was killed
    by SIGKILL, tasks end at once, and Ray's last two processes after a minute.

    On a cluster the nodes share the file system, and have mmrun installed. Tasks get this process's folder and the modules
    beside its ``--config-dir``, and the environment variables of the cluster.

    Args:
        address: of an existing cluster; None starts one.
        num_cpus: CPUs of the one that is started; None is what there is.
        num_gpus: its GPUs.
        gpus_per_job: of one point, 0.25 or 2; None is one per process where the cluster has some and points use them.
        threads: CPU threads of one process.
        devices: processes of a point.
        accelerator: what points ask for, as ``trainer.accelerator``.
        fail_fast: whether the first failure ends the sweep.
        max_retries: how often a point that failed or was killed is tried again.
        timeout_s: seconds that a point may take once it has begun.
    """

    queues: ClassVar[bool] = True

    def __init__(
        self,
        *,
        address: str | None = None,
        num_cpus: int | None = None,
        num_gpus: int | None = None,
        gpus_per_job: float | None = None,
        threads: int = 1,
        devices: int = 1,
        accelerator: str = "auto",
        fail_fast: bool = False,
        max_retries: int = 0,
        timeout_s: float | None = None,
    ) -> None:
        super().__init__(fail_fast=fail_fast, max_retries=max_retries, timeout_s=timeout_s)
        _check_gpus(gpus_per_job)
        for name, value, least in (("num_cpus", num_cpus, 1), ("num_gpus", num_gpus, 0)):
            if value is not None and address is not None:
                raise UserError(
                    f"launcher.{name} is for a Ray that is started here",
                    given=f"launcher.address={address}",
                    remedy="Leave one of them out.",
                )
            if value is not None and value < least:
                raise UserError(
                    f"launcher.{name} is a whole number, {least} or more",
                    given=value,
                    remedy="Leave it out for what there is.",
                )
        self.address = address
        self.num_cpus = num_cpus
        self.num_gpus = num_gpus
        self.gpus_per_job = gpus_per_job
        self.processes = devices
        self.cpus = float(threads * devices)
        self.on_gpu = accelerator != "cpu"
        self._gpus = 0.0
        self._ray: Any = None
        self._session: Path | None = None  # of the Ray that was started
        self._task: Any = None
        self._active: set[Any] = set()
        self._slots = 0
        self._counted = -math.inf

    def prepare(self, jobs: int) -> None:  # noqa: ARG002 (contract)
        """Start Ray or connect to it, and see that it can hold a job."""
        with _handlers_kept():
            try:
                self._connect()
            except BaseException:
                self.close()
                raise
        nodes = self._nodes()
        given, has = self.gpus_per_job, any(node.get("GPU", 0) for node in nodes)
        self._gpus = float(self.processes if has and self.on_gpu else 0) if given is None else given
        self._check_fits(nodes)
        options = {"num_cpus": self.cpus, "num_gpus": self._gpus, "max_retries": 0}
        self._task = self._ray.remote(**options)(raytask.work)

    def room(self) -> int:
        """What all nodes hold, and one more: an autoscaler adds nodes for what waits."""
        now = time.monotonic()
        if now - self._counted > FRESH_S:
            self._counted = now
            with _interrupts_as_they_are():
                self._slots = sum(slots(node, self.cpus, self._gpus) for node in self._nodes())
        return max(self._slots + 1 - len(self._active), 0)

    def submit(self, jobs: Sequence[Job]) -> list[Any]:
        """A task for each."""
        given = raytask.Place(folder=os.getcwd(), modules=tuple(added_to_path))
        with _interrupts_as_they_are():
            handles = [self._task.remote(job, given) for job in jobs]
        self._active.update(handles)
        return handles

    def poll(self, handle: Any) -> Ended | None:
        """Whether the task is over; where its process died, in words."""
        with _interrupts_as_they_are():
            done, _ = self._ray.wait([handle], timeout=0)
            if not done:
                return None
            self._active.discard(handle)
            try:
                self._ray.get(handle)
            except self._ray.exceptions.RayError as error:
                return Ended(reason=self._reason(error))
            return Ended()

    def cancel(self, handles: Sequence[Any]) -> None:
        """What Ray calls cancelling raises SIGINT in the task; by force it ends the process."""
        left = list(handles)
        for force, seconds in ((False, GRACE_S), (True, FORCED_S)):
            for handle in left:
                self._ray.cancel(handle, force=force)
            if left:
                _, left = self._ray.wait(left, num_returns=len(left), timeout=seconds)
        self._active.difference_update(handles)

    def close(self) -> None:
        """End the Ray that was started, with its files; leave one that was there."""
        if self._ray is None:
            return
        with _handlers_kept():
            self._ray.shutdown()
        if self._session is not None:
            shutil.rmtree(self._session, ignore_errors=True)
            latest = self._session.parent / "session_latest"
            if latest.is_symlink() and not latest.exists():
                latest.unlink(missing_ok=True)
        self._ray = self._session = None

    def _connect(self) -> None:
        variables = SILENT
        if self.address is None:
            variables = {**SILENT, **LOOPBACK, **child_environment()}
        elif _check_reachable(self.address):
            variables = {**SILENT, **LOOPBACK}  # else Ray takes it for this machine's other address
        with _variables(variables):
            self._ray = _import_ray()
            options: dict[str, Any] = {"log_to_driver": False, "configure_logging": False}
            if self.address is None:
                options |= {
                    "num_cpus": self.num_cpus,
                    "num_gpus": self.num_gpus,
                    "include_dashboard": False,
                    "object_store_memory": STORE_BYTES,
                }
            # Half a Ray could not be ended; to connect to one may take minutes.
            signals = _interrupts_as_they_are() if self.address else _interrupts_later()
            try:
                with _elsewhere(), signals:
                    context = self._ray.init(address=self.address or "local", **options)
                    if self.address is None:
                        self._session = Path(context.address_info["session_dir"])
            except Exception as error:
                where = f"launcher.address={self.address}" if self.address else "launcher=ray"
                hint = ". A cluster that asks for a token needs RAY_AUTH_MODE=token" * bool(
                    self.address
                )
                raise UserError(
                    f"Ray cannot be {'reached' if self.address else 'started'}",
                    given=where,
                    remedy=f"It says: {described(error).splitlines()[0]}{hint}.",
                ) from error

    def _nodes(self) -> list[dict[str, float]]:
        """What every living node has."""
        return [node["Resources"] for node in self._ray.nodes() if node["Alive"]]

    def _check_fits(self, nodes: Sequence[Mapping[str, float]]) -> None:
        """A job that nothing can hold is refused, or waits for a node where some may still join."""
        if any(slots(node, self.cpus, self._gpus) for node in nodes):
            return
        job = f"{self.cpus:g} CPUs" + (f" and {self._gpus:g} GPUs" if self._gpus else "")
        most = {
            kind: max((n.get(kind, 0.0) for n in nodes), default=0.0) for kind in ("CPU", "GPU")
        }
        has = f"{most['CPU']:g} CPUs and {most['GPU']:g} GPUs"
        if self.address is None:
            raise UserError(
                "Ray has no room for one point",
                given=f"a point takes {job}; there are {has}",
                remedy="Set launcher.gpus_per_job, threads or trainer.devices, or launcher.num_cpus and num_gpus.",
            )
        say(
            f"ray      a point takes {job}; no node has that many (at most {has}): points wait for one that has"
        )

    def _reason(self, error: Exception) -> str:
        """Why a task ended that has come to no end of its own, in plain words."""
        exceptions = self._ray.exceptions
        if isinstance(error, exceptions.OutOfMemoryError):
            return "its node ran out of memory, and Ray ended its process"
        if isinstance(error, exceptions.WorkerCrashedError):
            return "its process died"
        if isinstance(error, exceptions.TaskCancelledError):
            return "its task was cancelled"
        if isinstance(error, exceptions.NodeDiedError):
            return "its node died"
        cause = getattr(error, "cause", None) or error
        return next(filter(None, described(cause).splitlines()), "Ray does not say why")


def slots(node: Mapping[str, float], cpus: float, gpus: float) -> int:
    """How many jobs a node holds at a time; a fraction is of one GPU, never of two.

    >>> slots({"CPU": 8.0, "GPU": 2.0}, 1.0, 0.4)
    4
    """
    by_cpu = math.floor(node.get("CPU", 0.0) / cpus)
    if not gpus:
        return by_cpu
    has = node.get("GPU", 0.0)
    by_gpu = has // gpus if gpus >= 1 else math.floor(has) * math.floor(1 / gpus + 1e-9)
    return min(by_cpu, int(by_gpu))


def _check_gpus(gpus: float | None) -> None:
    if gpus is None or gpus == 0 or 1e-4 <= gpus <= 1:
        return
    if not (gpus > 1 and isinstance(gpus, int)):  # as many processes as that, and no fewer
        raise UserError(
            "launcher.gpus_per_job is a share of one GPU, or a whole number of them",
            given=gpus,
            remedy="E.g. launcher.gpus_per_job=0.25, or 2.",
        )


def _import_ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise UserError(
            "launcher=ray needs Ray",
            given=str(error),
            remedy="Install it: pip install 'mmrun[ray]'.",
        ) from error
    logging.getLogger("ray").setLevel(
        logging.CRITICAL
    )  # that a token keeps others out, and the like
    # Ray prints to stdout that a process died, whatever is asked for; the point's own line says so.
    with contextlib.suppress(ImportError, AttributeError):
        worker: Any = __import__("ray._private.worker", fromlist=["worker"])
        worker.print_to_stdstream = _print_nothing
    return ray


def _print_nothing(*_: Any, **__: Any) -> None:
    pass


def _check_reachable(address: str) -> bool:
    """Raise UserError where nobody listens: Ray tries for minutes. Whether it is on loopback."""
    host, colon, port = address.removeprefix("ray://").rstrip("/").rpartition(":")
    if not colon or not port.isdecimal():
        if address == "auto":
            return False
        raise UserError(
            "launcher.address names no cluster",
            given=address,
            remedy="Write auto, HOST:PORT or ray://HOST:PORT; leave it out to start Ray here.",
        )
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_S) as link:
            return link.getpeername()[0] in ("127.0.0.1", "::1")
    except (OSError, OverflowError) as error:
        raise UserError(
            "Ray cannot be reached",
            given=f"launcher.address={address}",
            remedy=f"It says: {error}. Is it running there (ray status --address {address})?",
        ) from error


@contextlib.contextmanager
def _handlers_kept() -> Iterator[None]:
    """Ray takes SIGTERM for itself."""
    before = {signum: signal.getsignal(signum) for signum in STOPPED_BY}
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):  # only the main thread can say so
            for signum, handler in before.items():
                signal.signal(signum, handler)


@contextlib.contextmanager
def _interrupts_as_they_are() -> Iterator[None]:
    """An exception that a signal raises in a call of Ray comes out of it as another one."""
    try:
        yield
    except SystemExit as error:  # Ray's own answer to SIGTERM
        raise Interrupted(signal.SIGTERM) if error.code == signal.SIGTERM else error from None
    except (SystemError, KeyboardInterrupt) as error:
        cause = error.__cause__ or error.__context__
        if isinstance(cause, Interrupted):
            raise cause from None
        if isinstance(error, KeyboardInterrupt):
            raise Interrupted(signal.SIGINT) from None
        raise


@contextlib.contextmanager
def _interrupts_later() -> Iterator[None]:
    """SIGINT and SIGTERM are heard at the end; but for a SIGTERM that Ray has taken for itself."""
    heard: list[int] = []
    with contextlib.suppress(ValueError):  # only the main thread can say so
        for signum in STOPPED_BY:
            signal.signal(signum, lambda number, _: heard.append(number))
    with _interrupts_as_they_are():
        yield
    if heard:
        raise Interrupted(heard[0])


@contextlib.contextmanager
def _variables(given: Mapping[str, str]) -> Iterator[None]:
    """Environment variables for what is imported and started meanwhile."""
    before = {name: os.environ.get(name) for name in given}
    os.environ.update(given)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _elsewhere() -> Iterator[None]:
    """Ray puts the working folder before Python's own library on its workers' path: one that has no modules."""
    before = os.getcwd()
    os.chdir(os.path.abspath(os.sep))
    try:
        yield
    finally:
        os.chdir(before)
