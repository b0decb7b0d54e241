"""A SLURM of one node on loopback, with GPUs that are only names: for tests. ``python tests/slurm_cluster.py FOLDER``.

Needs Debian's slurmctld, slurmd, slurm-client and munge; nothing of systemd, and no file outside FOLDER. A guard process
keeps the daemons: it says that they are up, and ends them and every process of their jobs when its standard input is
closed (the tests have ended, however) or its time is over.
"""

from __future__ import annotations

import argparse
import contextlib
import getpass
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

NEEDED = ("munged", "slurmctld", "slurmd", "sbatch")
DAEMONS = f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin"
UP_S = 30
LIFE_S = 900

SLURM_CONF = """\
ClusterName=mmrun-tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={root}/munge.socket
CredType=cred/munge
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/slurmd.pid
PlugStackConfig={root}/plugstack.conf
# No cgroups, no accounting, no mail: nothing that a container may lack.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MailProg=/bin/true
MpiDefault=none
# More CPUs than there may be: what waits for its turn would only make the tests longer.
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1,defer
ReturnToService=2
KillWait={kill_wait}
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
GresTypes=gpu
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} Boards=1 SocketsPerBoard=1 CoresPerSocket={cpus} ThreadsPerCore=1 RealMemory={memory} Gres=gpu:{gpus} State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=60 DefMemPerCPU=256 State=UP PriorityTier=1 GraceTime={kill_wait}
PartitionName=urgent Nodes=ALL MaxTime=60 DefMemPerCPU=256 State=UP PriorityTier=9 PreemptMode=OFF
"""


def missing() -> list[str]:
    """Programs of SLURM that are not installed."""
    return [name for name in NEEDED if shutil.which(name, path=DAEMONS) is None]


@contextlib.contextmanager
def cluster(root: Path, *, gpus: int = 4, cpus: int = 8) -> Iterator[dict[str, str]]:
    """A cluster while this lasts; the variables with which sbatch and the like find it."""
    guard = subprocess.Popen(
        [sys.executable, __file__, str(root), f"--gpus={gpus}", f"--cpus={cpus}"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert guard.stdin is not None
    assert guard.stdout is not None
    try:
        line = guard.stdout.readline().strip()
        if line != f"export SLURM_CONF={root}/slurm.conf":
            raise RuntimeError(f"SLURM did not start: {line}\n{guard.stdout.read()}")
        yield {"SLURM_CONF": f"{root}/slurm.conf"}
    finally:
        guard.stdin.close()
        guard.wait(timeout=60)
        guard.stdout.close()


def write_configuration(root: Path, *, gpus: int, cpus: int) -> None:
    """All that the daemons read, in ``root``."""
    for name in ("state", "spool", "log", "dev"):
        (root / name).mkdir(parents=True, exist_ok=True)
    root.chmod(0o755)
    key = root / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o600)
    host = socket.gethostname().split(".")[0]
    for number in range(gpus):  # slurmd asks for character devices whose names end in a number
        (root / "dev" / f"nvidia{number}").symlink_to("/dev/null")
    with open("/proc/meminfo") as file:
        memory = int(file.readline().split()[1]) // 1024 * 9 // 10
    text = SLURM_CONF.format(
        host=host,
        ports=_free_ports(2),
        user=getpass.getuser(),
        root=root,
        cpus=cpus,
        gpus=gpus,
        memory=memory,
        kill_wait=8,
    )
    (root / "slurm.conf").write_text(text)
    devices = f"{root}/dev/nvidia[0-{gpus - 1}]"
    (root / "gres.conf").write_text(f"NodeName={host} Name=gpu File={devices}\n")
    (root / "cgroup.conf").write_text("CgroupAutomount=no\n")
    (root / "plugstack.conf").touch()


def _free_ports(n: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(n)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


class Guard:
    """The daemons, as children of this process."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.environment = {
            **os.environ,
            "PATH": DAEMONS,
            "SLURM_CONF": f"{root}/slurm.conf",
        }
        self.daemons: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        """All three, and wait until the node takes jobs."""
        root = self.root
        munge = ["munged", "--foreground", "--force", f"--key-file={root}/munge.key"]
        munge += [f"--socket={root}/munge.socket", f"--pid-file={root}/munged.pid"]
        munge += [f"--log-file={root}/log/munged.log", f"--seed-file={root}/munge.seed"]
        self._daemon(munge)
        self._until(lambda: (root / "munge.socket").exists())
        self._daemon(["slurmctld", "-D", "-c", "-f", f"{root}/slurm.conf"])
        self._daemon(["slurmd", "-D", "-f", f"{root}/slurm.conf"])
        self._until(lambda: self._ask("sinfo", "-h", "-o", "%T", "-p", "main") in ("idle", "mixed"))

    def stop(self) -> None:
        """Jobs first, then the daemons, then whatever of the jobs is left."""
        self._ask("scancel", "--signal=KILL", "--full", "-u", getpass.getuser())
        for daemon in reversed(self.daemons):
            daemon.send_signal(signal.SIGTERM)
            try:
                daemon.wait(timeout=10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        for _ in range(20):
            left = list(self._left())
            if not left:
                return
            for pid in left:
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.1)

    def _daemon(self, command: list[str]) -> None:
        with open(self.root / "log" / f"{command[0]}.out", "wb") as log:
            daemon = subprocess.Popen(
                command, env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        self.daemons.append(daemon)

    def _ask(self, *command: str) -> str:
        done = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=20, check=False
        )
        return done.stdout.strip()

    def _until(self, up: Callable[[], bool]) -> None:
        end = time.monotonic() + UP_S
        while not up():
            if time.monotonic() > end or any(each.poll() is not None for each in self.daemons):
                logs = [
                    path.read_text(errors="replace")[-2000:] for path in self.root.glob("log/*")
                ]
                raise RuntimeError("\n".join(logs))
            time.sleep(0.1)

    def _left(self) -> Iterator[int]:
        """Processes that carry this cluster's configuration: slurmstepd and jobs."""
        mark = f"SLURM_CONF={self.root}/slurm.conf".encode()
        for folder in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                variables = (folder / "environ").read_bytes().split(b"\0")
                of_a_job = any(each.startswith(b"SLURM_JOB_ID=") for each in variables)
                if mark in variables and (
                    of_a_job or "slurmstepd" in (folder / "comm").read_text()
                ):
                    yield int(folder.name)


def main() -> int:
    """Start, say so, and wait for the end."""
    parser = argparse.ArgumentParser(description="A SLURM of one node, until standard input ends.")
    parser.add_argument("root", type=Path)
    parser.add_argument("--gpus", type=int, default=4)
    parser.add_argument("--cpus", type=int, default=8)
    given = parser.parse_args()
    root = given.root.absolute()
    write_configuration(root, gpus=given.gpus, cpus=given.cpus)
    guard = Guard(root)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        guard.start()
        sys.stdout.write(f"export SLURM_CONF={root}/slurm.conf\n")
        sys.stdout.flush()
        end = time.monotonic() + LIFE_S
        while (left := end - time.monotonic()) > 0:
            ready, _, _ = select.select([sys.stdin], [], [], left)
            if ready and not os.read(sys.stdin.fileno(), 4096):
                break
    except RuntimeError as error:
        sys.stdout.write(f"{error}\n")
        return 1
    finally:
        guard.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
