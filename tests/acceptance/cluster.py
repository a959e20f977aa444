"""A real Slurm of two nodes on this machine, and nothing of it outside a temporary folder."""

import contextlib
import getpass
import os
import secrets
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

NODES = ("n1", "n2")
_CONF = """\
ClusterName=nbtl
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmUser={user}
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={root}/munge.socket
CryptoType=crypto/munge
StateSaveLocation={root}/state
SlurmctldPidFile={root}/slurmctld.pid
SlurmctldLogFile={root}/slurmctld.log
SlurmdPidFile={root}/slurmd-%n.pid
SlurmdLogFile={root}/slurmd-%n.log
SlurmdSpoolDir={root}/spool-%n
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2
ReturnToService=2
MpiDefault=none
JobRequeue=1
KillWait=15
MinJobAge=600
SlurmctldTimeout=30
SlurmdTimeout=60
InactiveLimit=0
SlurmdParameters=config_overrides
{nodes}
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP OverTimeLimit=0
"""


@dataclass
class Cluster:
    """The cluster; its programs find it by `environment`."""

    root: Path
    processes: list[subprocess.Popen[bytes]]

    @property
    def environment(self) -> dict[str, str]:
        return {"SLURM_CONF": str(self.root / "slurm.conf")}

    def run(self, *command: str) -> str:
        """Run one of Slurm's programs, which must succeed."""
        done = subprocess.run(
            command, env=os.environ | self.environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr + self.log()
        return done.stdout

    def resume(self, node: str) -> None:
        """Let a node that was set down work again; it may have come back by itself."""
        update = ["scontrol", "update", f"nodename={node}", "state=resume"]
        subprocess.run(update, env=os.environ | self.environment, capture_output=True, check=False)
        _wait(lambda: "down" not in self.run("sinfo", "--noheader", "--format=%t"), self)

    def start_now(self, task: str) -> None:
        """Let a task that waits start; it may have started by itself."""
        update = ["scontrol", "update", f"jobid={task}", "starttime=now"]
        subprocess.run(update, env=os.environ | self.environment, capture_output=True, check=False)

    def tasks(self) -> dict[str, tuple[str, str]]:
        """Return state and node of each task that the controller knows."""
        listing = self.run("squeue", "--noheader", "--array", "--states=all", "--format=%i|%T|%N")
        rows = [line.strip().split("|") for line in listing.splitlines()]
        return {row[0]: (row[1], row[2]) for row in rows}

    def running(self) -> dict[str, str]:
        """Return the node of each task that runs."""
        return {id_: node for id_, (state, node) in self.tasks().items() if state == "RUNNING"}

    def waiting(self) -> list[str]:
        """Return the tasks that wait to run."""
        return [id_ for id_, (state, _) in self.tasks().items() if state == "PENDING"]

    def left(self, job_id: str) -> bool:
        """Tell whether a job's script has ended on a node, at least once."""
        logs = (log.read_text() for log in self.root.glob("slurmd-*.log"))
        return any(f"[{job_id}.batch] done with job" in log for log in logs)

    def log(self) -> str:
        """Return the ends of the daemons' logs, for a failure's message."""
        logs = sorted(self.root.glob("*.log"))
        return "\n".join(f"== {log.name}\n{log.read_text()[-2000:]}" for log in logs)


def _free_ports(n: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        taken = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(n)]
        return [server.getsockname()[1] for server in taken]


def _start(cluster: Cluster, *command: str) -> None:
    with (cluster.root / "daemons.log").open("ab") as log:
        process = subprocess.Popen(
            command,
            env=os.environ | cluster.environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    cluster.processes.append(process)


def _wait(condition, cluster: Cluster, *, timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, cluster.log()
        time.sleep(0.2)


def _answers(cluster: Cluster) -> bool:
    done = subprocess.run(
        ["sinfo", "--noheader", "--Node", "--format=%N %t"],
        env=os.environ | cluster.environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.returncode == 0 and sorted(done.stdout.split()) == ["idle", "idle", *NODES]


@contextlib.contextmanager
def running_cluster(root: Path, *, cpus: int) -> Iterator[Cluster]:
    """Start munge, a controller and two nodes of so many CPUs each; stop them at the end."""
    root.chmod(0o755)
    (root / "state").mkdir()
    key = root / "munge.key"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o600)
    controller, *ports = _free_ports(1 + len(NODES))
    nodes = "\n".join(
        f"NodeName={name} NodeHostname={socket.gethostname()} NodeAddr=127.0.0.1 Port={port} "
        f"CPUs={cpus} RealMemory=20000 State=UNKNOWN"
        for name, port in zip(NODES, ports, strict=True)
    )
    conf = _CONF.format(
        host=socket.gethostname(), controller=controller, user=getpass.getuser(), root=root,
        nodes=nodes,
    )  # fmt: skip
    (root / "slurm.conf").write_text(conf)
    cluster = Cluster(root, [])
    try:
        _start(
            cluster, "munged", "--foreground", "--force", f"--socket={root}/munge.socket",
            f"--key-file={key}", f"--pid-file={root}/munged.pid", f"--log-file={root}/munged.log",
            f"--seed-file={root}/munged.seed",
        )  # fmt: skip
        _wait((root / "munge.socket").exists, cluster)
        _start(cluster, "slurmctld", "-D", "-c")
        for name in NODES:
            (root / f"spool-{name}").mkdir()
            _start(cluster, "slurmd", "-D", "-N", name)
        _wait(lambda: _answers(cluster), cluster)
        yield cluster
    finally:
        # One after the other, munge last: without it the others cannot say that they go.
        for process in reversed(cluster.processes):
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
