"""Studies of a workspace: make one, look at it, steer it, delete it.

The arguments of the methods are explained at the functions of `nbtl_search.api`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from nbtl_search import space
from nbtl_search.advice import advise as advise_on
from nbtl_search.errors import NbtlError, SpecError, StudyExistsError, StudyNotFoundError
from nbtl_search.launchers import slurm
from nbtl_search.ledger import ledger, records
from nbtl_search.ledger.cancellation import Cancelled
from nbtl_search.ledger.database import Storage
from nbtl_search.ledger.leases import Desired
from nbtl_search.ledger.ledger import Ledger
from nbtl_search.ledger.recommendation import recommend
from nbtl_search.ledger.records import TrialRecord
from nbtl_search.reports.terminal.status import Queue, StatusReport, status_of
from nbtl_search.spec import Advised, Budget, Diagnosis, Fork, Progress, Recipe, StudySpec
from nbtl_search.spec.verdict import Estimate
from nbtl_search.study import diagnoses, extension, store, warm_start, work
from nbtl_search.study.store import Evidence, Study, StudySummary
from nbtl_search.workspace.drafts import draft, forked, with_starts, with_threads
from nbtl_search.workspace.workspace import Workspace

if TYPE_CHECKING:
    from nbtl_search.data.prepared import Prepared


Wish = Literal["pause", "resume", "stop"]

_DESIRED: Final[Mapping[Wish, Desired]] = {
    "pause": "pause",
    "resume": "run",
    "stop": "stop",
}


@dataclass(frozen=True)
class Studies:
    """The studies of a workspace's database."""

    workspace: Workspace

    def create(
        self,
        dataset: str | None = None,
        *,
        study: Path | None = None,
        name: str | None = None,
        settings: Sequence[str] = (),
        start: Sequence[str] = (),
        advise: bool | None = None,
        progress: Progress | None = None,
        checking: Progress | None = None,
    ) -> StudySpec:
        """Check data and weights, and store a new study; the same one again changes nothing."""
        return self.store(
            draft(dataset, study=study, name=name, settings=settings),
            start=start,
            advise=advise,
            progress=progress,
            checking=checking,
        )

    def store(
        self,
        spec: StudySpec,
        *,
        start: Sequence[str] = (),
        advise: bool | None = None,
        progress: Progress | None = None,
        checking: Progress | None = None,
    ) -> StudySpec:
        """Check the data and weights of a draft, and store it; again, it changes nothing.

        Raises:
            SpecError: the specification does not suit the data or the network, or advice is wanted
                and nothing was measured.
            DataError: the images cannot be had, or are not as they should be.
            WeightsError: the weights cannot be had, or are of another network.
            StudyExistsError: a study of this name has another specification.
            StorageError: the database refuses.
        """
        spec = self._measured(spec, start=start, progress=progress, checking=checking)
        with self.workspace.open_database_of_any_version() as database:
            return _stored(database, spec, advise=advise).spec

    def draft_fork(self, name: str, new: str, *, settings: Sequence[str] = ()) -> StudySpec:
        """Return the specification that `fork` would store, without looking at data or weights."""
        with self.workspace.open_study(name) as source:
            if source.stage is not None:
                message = f"a search is forked, got the final runs {name!r}; name their study"
                raise SpecError(message)
            asked = forked(source.spec, name=new, settings=settings)
        if asked.name == name:
            message = f"a fork needs a name of its own, got that of its source, {name!r}"
            raise SpecError(message)
        return asked

    def fork(
        self,
        name: str,
        new: str,
        *,
        settings: Sequence[str] = (),
        progress: Progress | None = None,
        checking: Progress | None = None,
    ) -> tuple[StudySpec, Fork]:
        """Store a study like another with settings changed, and what is comparable of its trials.

        It gets advice where its source has some; the same fork again changes nothing.
        """
        asked = self.draft_fork(name, new, settings=settings)
        spec = self._measured(asked, progress=progress, checking=checking)
        # A sampler's module, which the other verbs need not wait for.
        from nbtl_search.study.fork import evidence

        with self.workspace.open_database_of_any_version() as database:
            source = store.open_study(database, name)
            advise = None if source.spec.advice is not None else False
            study = _stored(database, spec, advise=advise, evidence=evidence(source, spec))
            fork = store.fork_of(study)
        assert fork is not None, "create() wants it"  # noqa: S101
        return study.spec, fork

    def _measured(
        self,
        spec: StudySpec,
        *,
        start: Sequence[str] = (),
        progress: Progress | None,
        checking: Progress | None,
    ) -> StudySpec:
        """Return a draft with its facts, and all that waits for them."""
        from nbtl_search.training.probe import probe

        spec = with_threads(spec)
        # Reading the images may take an hour: what cannot be started from is refused before.
        with_starts(spec, start)
        facts = probe(spec, home=self.workspace.home, progress=progress, checking=checking)
        return with_starts(spec.with_facts(facts), start)

    def prepare(
        self,
        dataset: str,
        *,
        settings: Sequence[str] = (),
        skip_corrupt: bool = False,
        progress: Progress | None = None,
    ) -> "Prepared":
        """Decode a dataset once, for every worker of this machine."""
        spec = draft(dataset, settings=settings)
        from nbtl_search.data.prepared import prepare as decode

        home = self.workspace.home
        return decode(spec.data, home=home, skip_corrupt=skip_corrupt, progress=progress)

    def status(self, name: str) -> tuple[StatusReport, list[TrialRecord]]:
        """Return where the study stands, and its trials."""
        with self.workspace.open_study(name) as study:
            trials = records.trials(study.storage.engine, study.id)
            return replace(status_of(study, trials), queue=_queue(study)), trials

    def have_trials(self, name: str) -> bool:
        """Tell whether any trial of a study was ever started."""
        with self.workspace.open_study(name) as study:
            return bool(Ledger(study.storage.engine, study.id).trial_ids())

    def all(self) -> list[StudySummary]:
        """Return all studies of the database."""
        with self.workspace.open_database() as database:
            return store.names(database)

    def steer(self, name: str, wish: Wish) -> None:
        """Pause, resume or stop a study, or the final runs or ablation that it is at."""
        with self.workspace.open_study(name) as study:
            ledger = Ledger(study.storage.engine, study.id)
            # Extended beside runs that were told to stop, a search goes on, and is what is meant.
            stage = None if ledger.goes_on() else work.open_stage(study)
            (ledger if stage is None else Ledger(study.storage.engine, stage.id)).want(
                _DESIRED[wish]
            )

    def extend(
        self,
        name: str,
        *,
        n_trials: int | None = None,
        epochs: int | None = None,
        gpu_h: float | None = None,
        deadline: datetime | None = None,
    ) -> Budget:
        """Give a study another budget, whether it runs or is over."""
        with self.workspace.open_study(name) as study:
            return extension.extend(
                study, n_trials=n_trials, epochs=epochs, gpu_h=gpu_h, deadline=deadline
            )

    def cancel(self, name: str, trial: int) -> Cancelled:
        """End one trial of a search that is wanted no more."""
        # It tells Optuna, which the other verbs need not import.
        from nbtl_search.study import cancellation

        with self.workspace.open_study(name) as study:
            return cancellation.cancel(study, trial)

    def delete(self, name: str) -> None:
        """Delete a study with all its trials."""
        with self.workspace.open_database() as database:
            store.delete(database, name)

    def best(
        self, name: str, *, trial: int | None = None
    ) -> tuple[Recipe, TrialRecord, Estimate | None]:
        """Return the recommended recipe or that of the trial named, its trial, and its value."""
        with self.workspace.open_study(name) as study:
            trials = records.trials(study.storage.engine, study.id)
            found = recommend(trials, n_images=study.facts.n_val)
            if trial is None:
                record = found.best
            else:
                record = next((record for record in trials if record.number == trial), None)
            if record is None:
                which = "trial that ran to its end" if trial is None else f"trial {trial}"
                message = f"the study {name!r} has no {which} yet; see: nbtl-search status {name}"
                raise StudyNotFoundError(message)
            recipe = records.recipe(study.storage.engine, study.id, record.number)
        assert recipe is not None, "a record has its recipe"  # noqa: S101
        return recipe, record, found.value_of(record)

    def dashboard(
        self,
        study: str | None = None,
        *,
        host: str = "127.0.0.1",
        port: int = 8080,
        writable: bool = False,
        ready: Callable[[str], None] = lambda _url: None,
    ) -> None:
        """Serve the dashboard until SIGINT or SIGTERM."""
        # A web application that the other verbs never need.
        from nbtl_search.reports.dashboard.server import page, serve

        with self.workspace.open_database() as database:
            path = "" if study is None else page(store.open_study(database, study).id)
            serve(
                database,
                host=host,
                port=port,
                writable=writable,
                ready=lambda url: ready(url + path),
            )


def _stored(
    database: Storage, spec: StudySpec, *, advise: bool | None, evidence: Evidence | None = None
) -> Study:
    """Store a study with its facts, its advice and the evidence of the study it is forked from."""
    diagnosis = diagnoses.latest(database, spec)
    if diagnosis is None and advise:
        message = (
            f"advice needs measures of {spec.data.dataset!r} with these weights at "
            f"{spec.data.image_px} px, got none; run nbtl-search diagnose with the same options"
        )
        raise SpecError(message)
    advice = None
    if diagnosis is not None and advise is not False:
        advice = _advice(database, spec, diagnosis, None if evidence is None else evidence.fork)
    study = store.create(database, spec.replace(advice=advice), evidence=evidence)
    _check_advice(study, advise=advise)
    if diagnosis is not None:
        diagnoses.show(study, diagnosis)
    return study


def _check_advice(study: Study, *, advise: bool | None) -> None:
    """Refuse a wish about advice that an existing study does not fulfil."""
    has = study.spec.advice is not None
    if advise is not None and advise != has:
        kind = "with" if has else "without"
        message = (
            f"study {study.name!r} must be new for this wish about advice, and it exists {kind} "
            "advice; give another name, or delete it"
        )
        raise StudyExistsError(message)


def _advice(database: Storage, spec: StudySpec, diagnosis: Diagnosis, fork: Fork | None) -> Advised:
    assert spec.facts is not None  # noqa: S101
    return advise_on(
        diagnosis,
        space=space.build_for(spec.search, spec.facts),
        known=(*spec.search.known, *(() if fork is None else fork.recipes)),
        n_trials=spec.budget.n_trials,
        earlier=warm_start.earlier_studies(
            database, spec, source=None if fork is None else fork.source
        ),
    )


def _queue(study: Study) -> Queue | None:
    """Ask the cluster's queue, where jobs were submitted and it can be asked from here."""
    if not ledger.submitted_jobs(study.storage.engine, study.id) or not slurm.is_here():
        return None
    try:
        tasks = slurm.tasks(slurm.job_name(study.name, study.uid))
    except NbtlError:
        return {"tasks": None}
    return {"tasks": [asdict(task) for task in tasks]}
