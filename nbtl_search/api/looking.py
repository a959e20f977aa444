"""Look at studies, and steer them."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Final, Literal

from nbtl_search.api.home import default_home
from nbtl_search.api.place import opened, opened_study
from nbtl_search.errors import NbtlError, StudyNotFoundError
from nbtl_search.launchers import queue
from nbtl_search.reports.standing import best_of
from nbtl_search.reports.terminal.status import Queue, StatusReport, status_of
from nbtl_search.spec import Recipe
from nbtl_search.study import jobs, records, rounds, store
from nbtl_search.study.lease import Desired
from nbtl_search.study.ledger import Ledger
from nbtl_search.study.records import TrialRecord
from nbtl_search.study.store import Study, StudySummary

Wish = Literal["pause", "resume", "stop"]

_DESIRED: Final[Mapping[Wish, Desired]] = {
    "pause": "pause",
    "resume": "run",
    "stop": "stop",
}


def status(
    name: str, *, home: Path | None = None, storage: str | None = None
) -> tuple[StatusReport, list[TrialRecord]]:
    """Return where the study stands, and its trials.

    Raises:
        StudyNotFoundError: no such study.
    """
    with opened_study(name, storage, home or default_home()) as study:
        trials = records.trials(study.storage.engine, study.id)
        return replace(status_of(study, trials), queue=_queue(study)), trials


def _queue(study: Study) -> Queue | None:
    """Ask the cluster's queue, where jobs were submitted and it can be asked from here."""
    if not jobs.submitted(study.storage.engine, study.id) or not queue.is_here():
        return None
    try:
        tasks = queue.tasks(queue.job_name(study.name, study.uid))
    except NbtlError:
        return {"tasks": None}
    return {"tasks": [asdict(task) for task in tasks]}


def studies(*, home: Path | None = None, storage: str | None = None) -> list[StudySummary]:
    """Return all studies of the database."""
    with opened(storage, home or default_home()) as database:
        return store.names(database)


def steer(name: str, wish: Wish, *, home: Path | None = None, storage: str | None = None) -> None:
    """Pause, resume or stop a study, or the final runs that it is at, with the next heartbeat.

    Raises:
        StudyNotFoundError: no such study.
    """
    with opened_study(name, storage, home or default_home()) as study:
        at_work = rounds.open_stage(study) or study
        Ledger(study.storage.engine, at_work.id).want(_DESIRED[wish])


def delete(name: str, *, home: Path | None = None, storage: str | None = None) -> None:
    """Delete a study with all its trials.

    Raises:
        StudyNotFoundError: no such study.
    """
    with opened(storage, home or default_home()) as database:
        store.delete(database, name)


def best(
    name: str,
    *,
    trial: int | None = None,
    home: Path | None = None,
    storage: str | None = None,
) -> tuple[Recipe, TrialRecord]:
    """Return the recipe of the best trial that ran to its end, or of the trial with this number.

    Raises:
        StudyNotFoundError: no such study, or no such trial, or none has ended yet.
    """
    with opened_study(name, storage, home or default_home()) as study:
        trials = records.trials(study.storage.engine, study.id)
        if trial is None:
            record = best_of(trials)
        else:
            record = next((record for record in trials if record.number == trial), None)
        if record is None:
            which = "trial that ran to its end" if trial is None else f"trial {trial}"
            message = f"the study {name!r} has no {which} yet; see: nbtl-search status {name}"
            raise StudyNotFoundError(message)
        recipe = records.recipe(study.storage.engine, study.id, record.number)
    assert recipe is not None, "a record has its recipe"  # noqa: S101
    return recipe, record


def dashboard(
    study: str | None = None,
    *,
    host: str = "127.0.0.1",
    port: int = 8080,
    writable: bool = False,
    home: Path | None = None,
    storage: str | None = None,
    ready: Callable[[str], None] = lambda _url: None,
) -> None:
    """Serve the dashboard until SIGINT or SIGTERM.

    Args:
        study: whose page `ready` is told; by default the list of all.
        host: address to listen on.
        port: to listen on; 0 for any free one.
        writable: whether notes may be edited there; nothing else ever may.
        home: see above.
        storage: see above.
        ready: called with the address once it answers.

    Raises:
        StudyNotFoundError: no such study.
    """
    from nbtl_search.reports.dashboard.server import (  # a web application others never need
        page,
        serve,
    )

    with opened(storage, home or default_home()) as database:
        place = "" if study is None else page(store.open_study(database, study).id)
        serve(
            database,
            host=host,
            port=port,
            writable=writable,
            ready=lambda url: ready(url + place),
        )
