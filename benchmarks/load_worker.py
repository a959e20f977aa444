"""The processes of `load.py`: real supervisors, and plain Optuna's, that write down their times."""

import json
import logging
import os
import signal
import sys
import time
import warnings
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
import psutil

from nbtl_search import space
from nbtl_search.ledger.database import Storage
from nbtl_search.ledger.leases import Leases
from nbtl_search.spec import StudySpec
from nbtl_search.study import sampling
from nbtl_search.worker.attempt import Attempt
from nbtl_search.worker.settings import Timing, WorkerSettings
from nbtl_search.worker.signals import stop_on_signals
from nbtl_search.worker.supervisor import Supervisor
from nbtl_search.workspace.workspace import Workspace

_FINISHED = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)
TRAINER = Path(__file__).with_name("idle_trainer.py")


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a process is to do."""

    url: str
    study: str
    home: Path
    epoch_s: float
    rss_at: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Notes:
    """What a process has seen."""

    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    rss_mb: dict[int, float] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)

    def timed(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        """Return the method, whose seconds are written down where it gives a result or none is due.

        A reservation that finds the budget spent is none.
        """

        def call(*arguments: Any, **options: Any) -> Any:
            started = time.perf_counter()
            result = method(*arguments, **options)
            if name != "reserve + ask" or result is not None:
                self.seconds[name].append(time.perf_counter() - started)
            return result

        return call

    def write(self, home: Path) -> None:
        """Write them where the main process finds them."""
        (home / f"notes-{os.getpid()}.json").write_text(json.dumps(vars(self)))


def supervise(job: Job) -> None:
    """Be a worker, as `nbtl-search worker` is one, until the study is over."""
    logging.basicConfig(filename=job.home / "workers.log", level=logging.WARNING)
    notes = Notes()
    _watch(notes, job.rss_at)
    command = (sys.executable, "-I", "-S", str(TRAINER), str(job.epoch_s))
    try:
        workspace = Workspace(job.home, job.url)
        with stop_on_signals() as stop, workspace.open_study(job.study) as study:
            settings = WorkerSettings(home=job.home, trainer=command)
            supervisor = Supervisor(study, settings=settings, stop=stop, timing=Timing())
            try:
                supervisor.run()
            finally:
                supervisor.close()
    except Exception as error:  # noqa: BLE001  (each is a finding)
        notes.errors.append(repr(error)[:300])
    finally:
        notes.write(job.home)


def _watch(notes: Notes, rss_at: tuple[int, ...]) -> None:
    """Wrap, in this process only, the methods that talk with the database."""
    for owner, method, name in (
        (Leases, "reserve", "reserve + ask"),
        (sampling, "ask", "of it, under the lock: ask"),
        (Attempt, "_heartbeat", "heartbeat: renew + show"),
        (Attempt, "_record_and_compare", "record + report + compare"),
        (Leases, "finish", "finish"),
        (sampling, "tell", "tell"),
        (Storage, "revive", "database lost"),
    ):
        setattr(owner, method, notes.timed(name, getattr(owner, method)))
    train = Supervisor._train  # noqa: SLF001
    n_trained = 0

    def counted(self: Supervisor, lease: Any) -> None:
        nonlocal n_trained
        train(self, lease)
        n_trained += 1
        if n_trained in rss_at:
            notes.rss_mb[n_trained] = psutil.Process().memory_info().rss / 2**20

    Supervisor._train = counted  # type: ignore[method-assign]  # noqa: SLF001


def optimise(job: Job, spec: StudySpec, n_trials: int) -> None:
    """Do the same with `Study.optimize` alone."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore")
    notes = Notes()
    searched = space.build(spec.search, n_blocks=22)
    asked = [0.0]
    _watch_optuna(notes, asked)

    def objective(trial: optuna.Trial) -> float:
        dials = space.suggest(searched, trial)
        notes.seconds["ask + suggest"].append(time.perf_counter() - asked[0])
        for epoch in range(1, spec.train.epochs + 1):
            time.sleep(job.epoch_s)
            started = time.perf_counter()
            trial.report(50 + dials.lr_high + epoch, epoch)
            pruned = trial.should_prune()
            notes.seconds["report + should_prune"].append(time.perf_counter() - started)
            if pruned:
                raise optuna.TrialPruned
        return 50 + dials.lr_high

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    try:
        study = optuna.load_study(
            study_name=job.study,
            storage=job.url,
            sampler=sampling.sampler(spec, slot=os.getpid()),
            pruner=optuna.pruners.SuccessiveHalvingPruner(),
        )
        enough = optuna.study.MaxTrialsCallback(n_trials, states=_FINISHED)
        study.optimize(objective, callbacks=[enough])
    except Exception as error:  # noqa: BLE001  (each is a finding)
        notes.errors.append(repr(error)[:300])
    finally:
        notes.write(job.home)


def _watch_optuna(notes: Notes, asked: list[float]) -> None:
    from optuna.study import _optimize  # noqa: PLC0415  (private: only here)

    ask = optuna.Study.ask

    def timed(self: optuna.Study, *arguments: Any, **options: Any) -> optuna.Trial:
        asked[0] = time.perf_counter()
        return ask(self, *arguments, **options)

    optuna.Study.ask = timed  # type: ignore[method-assign]
    _optimize._tell_with_warning = notes.timed("tell", _optimize._tell_with_warning)  # noqa: SLF001
