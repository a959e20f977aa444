"""Real supervisors as processes that start at once: forked from one that has imported all."""

import logging
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from nbtl_search.errors import NbtlError
from nbtl_search.postgres.connection import wait_for
from nbtl_search.worker.settings import Timing, WorkerSettings
from nbtl_search.worker.signals import stop_on_signals
from nbtl_search.worker.supervisor import Supervisor
from nbtl_search.workspace.workspace import Workspace
from tests.processes import CONTEXT

STUB = Path(__file__).with_name("stub_trainer.py")
BEAT_S = 0.25
LEASE_S = 6 * BEAT_S


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a worker is to do, and how."""

    url: str
    study: str
    home: Path
    epoch_s: float = 0.04
    fault: str = "none"
    hang_s: float = 30.0
    answer_s: float = 5.0
    free_gb: float = 0.0

    @property
    def trainer(self):
        return (sys.executable, str(STUB), str(self.home), str(self.epoch_s), self.fault)


def work(job):
    """Be a worker, as `nbtl-search worker` is one."""
    logging.basicConfig(
        filename=job.home / "workers.log", level=logging.INFO,
        format="%(asctime)s %(process)d %(message)s",
    )  # fmt: skip
    timing = Timing(
        heartbeat_s=BEAT_S, lease_s=LEASE_S, poll_s=0.1, halt_s=2.0, hang_s=job.hang_s, retry_s=0.1
    )
    settings = WorkerSettings(home=job.home, trainer=job.trainer, free_gb=job.free_gb)
    try:
        with stop_on_signals() as stop, ExitStack() as stack:
            workspace = Workspace(job.home, job.url)
            opening = partial(workspace.open_study, job.study, answer_s=job.answer_s)
            study = wait_for(
                lambda: stack.enter_context(opening()), deadline=time.monotonic() + 60, longest_s=1
            )
            supervisor = Supervisor(study, settings=settings, stop=stop, timing=timing)
            stack.callback(supervisor.close)
            supervisor.run()
    except NbtlError as error:
        logging.getLogger().error("%s", error)  # noqa: TRY400
        sys.exit(2)


def start(job):
    """Start a worker."""
    process = CONTEXT.Process(target=work, args=(job,))
    process.start()
    return process
