"""Store of studies in the database: create, open, list, delete.

A study exists from the moment its row stands in our ledger, which is inserted last and deleted
first. An Optuna study without that row is half-made: nobody sees it, the next `create` clears it.
"""

import difflib
import json
import logging
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, Literal

from sqlalchemy import ColumnElement, Connection, case, exists, func, null, select, text
from sqlalchemy import delete as delete_from

from nbtl_search import space
from nbtl_search.errors import SpecError, StorageError, StudyExistsError, StudyNotFoundError
from nbtl_search.ledger import ledger, locks, schema
from nbtl_search.ledger.database import Storage
from nbtl_search.ledger.promotion import Ladder, ladder_of
from nbtl_search.ledger.records import DEFAULT
from nbtl_search.postgres.connection import storage_errors
from nbtl_search.space import effective
from nbtl_search.spec import (
    Advised,
    Dials,
    Facts,
    Fork,
    KnownRecipe,
    SearchSettings,
    StudySpec,
)
from nbtl_search.study.note import write_note

if TYPE_CHECKING:
    from optuna import Study as OptunaStudy
    from optuna.trial import FrozenTrial

logger = logging.getLogger(__name__)

SPEC: Final = "nbtl:spec"
"""The attribute of an Optuna study that says it is ours, and holds its specification."""

FORK: Final = "nbtl:fork"
"""The attribute of an Optuna study that says what it took over, if it is a fork."""

FINAL_MARK: Final = "@"
"""In the names of studies of final runs, and in no other."""

NAME: Final = "nbtl:name"
REASON: Final = "nbtl:reason"
PROTECTED: Final = "nbtl:protected"
DIALS: Final = "nbtl:dials"
SOURCE: Final = "nbtl:source"
"""The attribute of a trial that another study trained, and says which; our ledger has no such."""
_DELETIONS: Final = 5

Stage = Literal["confirm", "test", "ablation"]
"""What final runs are for."""


@dataclass(frozen=True, kw_only=True)
class Study:
    """A study that exists; `id` is Optuna's and the ledger's, `uid` is never used again.

    Final runs of a study are studies themselves; theirs have its specification, and a `stage`.
    """

    name: str
    id: int
    uid: str
    spec: StudySpec
    storage: Storage
    stage: Stage | None = None

    @cached_property
    def optuna(self) -> "OptunaStudy":
        """Optuna's part of it, opened at first use.

        Raises:
            StorageError: it was deleted meanwhile, or the database refuses.
        """
        with storage_errors():
            try:
                opened = _optuna_study(self.storage, self.name)
            except KeyError:
                opened = None
        if opened is None or opened._study_id != self.id:  # noqa: SLF001  (another of its name)
            raise StorageError(_without_optuna(self.name))
        return opened

    @cached_property
    def ladder(self) -> Ladder:
        """The rungs of its trials, and what repeats may take; final runs have neither."""
        n_updates = self.spec.train.updates_per_epoch(self.facts.n_train)
        ladder = ladder_of(self.spec, n_updates=n_updates, n_images=self.facts.n_val)
        return ladder if self.stage is None else replace(ladder, rungs=(), repeats=0.0)

    @property
    def facts(self) -> Facts:
        """What was measured of the data and weights when the study was created."""
        assert self.spec.facts is not None, "create() wants them"  # noqa: S101
        return self.spec.facts


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What a fork takes over: ended trials, with their dials and source as attributes."""

    fork: Fork
    trials: tuple["FrozenTrial", ...] = ()

    @property
    def tried(self) -> set[Dials]:
        """Return the dials of its trials, without those that have no effect."""
        return {effective(Dials.parse_json(trial.user_attrs[DIALS])) for trial in self.trials}


@dataclass(frozen=True, kw_only=True)
class StudySummary:
    """A line in the list of studies."""

    name: str
    desired: str
    n_trials: int
    n_finished: int
    created_at: datetime


def create(storage: Storage, spec: StudySpec, *, evidence: Evidence | None = None) -> Study:
    """Create the study; where it exists with the same fingerprint, return it as it is.

    Args:
        storage: of the database.
        spec: with its facts.
        evidence: of the study that it is forked from. Its trials come first, so that the study's
            own have consecutive numbers.

    Raises:
        StudyExistsError: the name is taken by another specification, or by no such fork.
        SpecError: the facts are missing, or a known recipe or the space is not valid.
        SchemaError: the tables are missing or of another version.
        StorageError: the database refuses.
    """
    facts = _facts(spec)
    searched = space.build_for(spec.search, facts)
    fork = None if evidence is None else evidence.fork
    trials = [
        *(() if evidence is None else evidence.trials),
        *_waiting_trials(spec, searched, evidence),
    ]
    note = write_note(spec, facts, fork)  # before anything is written: it may find the spec wrong
    with storage_errors(), locks.holding_name(storage.engine, spec.name) as connection:
        if _row(connection, spec.name) is not None:
            return _same(open_study(storage, spec.name), spec, fork)
        # Under the lock a study without a row of ours is nobody's work in progress.
        clear_half_made(storage, spec.name)
        study_id = make_optuna_study(storage, spec.name, spec)
        if fork is not None:
            storage.optuna.set_study_user_attr(study_id, FORK, fork.model_dump_json())
        for trial in trials:
            storage.optuna.create_new_trial(study_id, trial)
        _attach_note(_optuna_study(storage, spec.name), note)
        # The row makes it exist. Written without the lock it could stand for an Optuna study that
        # another process has cleared meanwhile.
        locks.make_sure(connection)
        n_waiting = sum(trial.state.name == "WAITING" for trial in trials)
        ledger.register(storage.engine, study_id, spec, n_first=n_waiting)
    logger.info("study created", extra={"action": "create", "study": spec.name})
    return open_study(storage, spec.name)


def open_study(storage: Storage, name: str) -> Study:
    """Open a study that exists.

    Raises:
        StudyNotFoundError: it does not; the message lists those that do, nearest first.
        SchemaError: the tables are missing or of another version.
        StorageError: the database refuses, or Optuna's part of the study is gone.
    """
    with storage_errors():
        with storage.engine.connect() as connection:
            row = _row(connection, name)
            found = None if row is None else _attribute(connection, row.study_id, SPEC)
        if row is None:
            raise StudyNotFoundError(_not_found(storage, name))
        if found is None:
            raise StorageError(_without_optuna(name))
        return Study(
            name=name,
            id=row.study_id,
            uid=row.uid,
            spec=StudySpec.parse_json(found),
            storage=storage,
            stage=row.stage,
        )


def fork_of(study: Study) -> Fork | None:
    """Return what the study took over when it was forked; None for one that is no fork.

    Raises:
        StorageError: the database refuses.
    """
    with storage_errors(), study.storage.engine.connect() as connection:
        found = _attribute(connection, study.id, FORK)
    return None if found is None else Fork.parse_json(found)


def names(storage: Storage) -> list[StudySummary]:
    """Return all studies but those of final runs, the newest first.

    Raises:
        StorageError: the database refuses.
    """
    study, trial = schema.study.c, schema.trial.c
    n_finished = (
        select(func.count())
        .where(trial.study_id == study.study_id, trial.finished_at.is_not(None))
        .scalar_subquery()
    )
    query = (
        select(
            study.name,
            study.desired,
            study.n_trials,
            n_finished.label("n_finished"),
            study.created_at,
        )
        .where(_stage().is_(None))
        .order_by(study.created_at.desc())
    )
    with storage_errors(), storage.engine.connect() as connection:
        return [StudySummary(**row) for row in connection.execute(query).mappings()]


def open_all(storage: Storage, *, without: Collection[str | None] = ()) -> Iterator[Study]:
    """Open all studies but those of final runs and those named, the newest first.

    Raises:
        StorageError: the database refuses.
    """
    for summary in names(storage):
        if summary.name in without:
            continue
        try:
            study = open_study(storage, summary.name)
        except (LookupError, StorageError):
            continue  # deleted since the list was read, or half of it from outside: one less
        yield study


def delete(storage: Storage, name: str) -> None:
    """Delete the study with its final runs, or what is left of one half made or half deleted.

    Raises:
        StudyNotFoundError: there is none; the message lists those that are.
        StorageError: the database refuses, or workers keep writing.
    """
    with storage_errors(), locks.holding_name(storage.engine, name) as connection:
        names = [name, *names_of_final_runs(storage, name)]
        # Our rows first, the reverse of `create`: killed in between, we leave an Optuna study
        # without a row, which is half-made, and not a row without a study. Leases go with the row,
        # so that workers are fenced before Optuna's part goes.
        with storage.engine.begin() as ours:
            gone = ours.execute(delete_from(schema.study).where(schema.study.c.name.in_(names)))
        cleared = [clear_half_made(storage, each) for each in names]
        if not any(cleared) and gone.rowcount == 0:
            raise StudyNotFoundError(_not_found(storage, name))
        locks.make_sure(connection)
    logger.info("study deleted", extra={"action": "delete", "study": name})


def _facts(spec: StudySpec) -> Facts:
    if spec.facts is None:
        message = f"study {spec.name!r} must have its facts, got none; probe data and weights first"
        raise SpecError(message)
    return spec.facts


def _waiting_trials(
    spec: StudySpec, searched: space.Space, evidence: Evidence | None
) -> Iterator["FrozenTrial"]:
    """Yield what is tried first: known recipes, and start-up points as far as evidence is wanting.

    What the evidence holds is not tried again, but for the default.
    """
    advice = spec.advice or Advised()
    tried = set() if evidence is None else evidence.tried
    of_source = () if evidence is None else evidence.fork.recipes
    yield from _known_trials(
        (*spec.search.known, *of_source, *advice.recipes), searched, tried=tried
    )
    # Those that were chosen for this study count among the start-up points, and so does evidence.
    n_had = len(advice.recipes) + len(of_source)
    n_had += 0 if evidence is None else len(evidence.trials)
    n = max(0, spec.search.n_startup - n_had)
    for point in _design(spec.search, advice, searched, n=n, tried=tried):
        yield _waiting(point, {})


def _design(
    search: SearchSettings, advice: Advised, searched: space.Space, *, n: int, tried: set[Dials]
) -> list[dict[str, Any]]:
    """Return n start-up points; a fork has its source's seed, and leaves out what was tried."""
    n_drawn = search.n_startup if tried and n else n
    points = space.design(searched, n=n_drawn, seed=search.seed, prior=advice.prior)
    if tried:
        points = [one for one in points if effective(space.dials_of(searched, one)) not in tried]
    return points[:n]


def _known_trials(
    known: Sequence[KnownRecipe], searched: space.Space, *, tried: set[Dials]
) -> Iterator["FrozenTrial"]:
    for recipe in known:
        dials = space.known_dials(recipe, space=searched)
        if effective(dials) in tried and recipe.name != DEFAULT:
            continue
        attributes = {
            NAME: recipe.name,
            REASON: recipe.reason,
            # The default runs to its end, as everything is compared with it.
            PROTECTED: recipe.name == DEFAULT,
            DIALS: dials.model_dump_json(),
        }
        yield _waiting(space.params_of(searched, dials), attributes)


def _waiting(params: dict[str, object], attributes: dict[str, object]) -> "FrozenTrial":
    """Return a trial as `Study.enqueue_trial` would add it."""
    from optuna.trial import TrialState, create_trial  # noqa: PLC0415  (slow, not always used)

    return create_trial(
        state=TrialState.WAITING,
        system_attrs={"fixed_params": params},
        user_attrs=attributes,
    )


def _optuna_study(storage: Storage, name: str) -> "OptunaStudy":
    import optuna  # noqa: PLC0415  (slow, not always used)

    return optuna.load_study(
        study_name=name, storage=storage.optuna, pruner=optuna.pruners.NopPruner()
    )


def _same(existing: Study, spec: StudySpec, fork: Fork | None) -> Study:
    if existing.spec.fingerprint() == spec.fingerprint():
        there = fork_of(existing)
        if fork is None or (there is not None and there.source == fork.source):
            return existing
        message = (
            f"study {spec.name!r} exists and is no fork of {fork.source!r}; give the new one "
            "another name, or delete the old one"
        )
        raise StudyExistsError(message)
    differences = existing.spec.differences(spec)
    counting = [line for line in differences if not line.startswith(("budget", "description"))]
    first = "; ".join((counting or differences)[:3])
    message = (
        f"study {spec.name!r} exists with another specification ({first}); give the new one "
        "another name, or delete the old one"
    )
    raise StudyExistsError(message)


def _attribute(connection: Connection, study_id: int, key: str) -> str | None:
    """Read a text where Optuna keeps a study's attributes, without waking Optuna."""
    query = text(
        "SELECT value_json FROM study_user_attributes WHERE study_id = :study AND key = :key"
    )
    found = connection.execute(query, {"study": study_id, "key": key}).scalar()
    return None if found is None else str(json.loads(found))


def _row(connection: Connection, name: str) -> Any:
    study = schema.study.c
    query = select(study.study_id, study.uid, _stage().label("stage")).where(study.name == name)
    return connection.execute(query).one_or_none()


def _stage() -> ColumnElement[str | None]:
    """Return the stage whose final runs the row of `nbtl_study` holds; null for a search."""
    final, study_id = schema.final.c, schema.study.c.study_id
    return case(
        (exists().where(final.confirm_id == study_id), "confirm"),
        (exists().where(final.test_id == study_id), "test"),
        (exists().where(schema.ablation.c.study_id == study_id), "ablation"),
        else_=null(),
    )


def _not_found(storage: Storage, name: str) -> str:
    known = [summary.name for summary in names(storage)]
    near = difflib.get_close_matches(name, known, n=len(known) or 1, cutoff=0.0)
    if not near:
        return f"no study {name!r}: the database has none yet; make one with: nbtl-search create"
    more = f" and {len(near) - 10} more" if len(near) > 10 else ""
    return f"no study {name!r} in this database; it has: {', '.join(near[:10])}{more}"


def _without_optuna(name: str) -> str:
    return (
        f"study {name!r} must have its Optuna part, and it was deleted from outside; "
        f"run: nbtl-search delete {name}"
    )


def _attach_note(study: "OptunaStudy", note: str) -> None:
    from optuna_dashboard import save_note  # noqa: PLC0415  (a web application, for one function)

    save_note(study, note)


def clear_half_made(storage: Storage, name: str) -> bool:
    """Delete the Optuna study of this name, of which our ledger does not know; tell if any was.

    Raises:
        StudyExistsError: it is not one that we began.
    """
    for deletion in range(_DELETIONS):  # Optuna ignores it when a late writer gets in between
        try:
            study_id = storage.optuna.get_study_id_from_name(name)
        except KeyError:
            return deletion > 0
        began_here = SPEC in storage.optuna.get_study_user_attrs(study_id)
        if not began_here and storage.optuna.get_n_trials(study_id) > 0:
            message = (
                f"the name {name!r} is taken by an Optuna study that nbtl-search did not make; "
                "give another name"
            )
            raise StudyExistsError(message)
        storage.optuna.delete_study(study_id)
    message = f"study {name!r} must be left alone while it is deleted; stop its workers, try again"
    raise StorageError(message)


def make_optuna_study(storage: Storage, name: str, spec: StudySpec) -> int:
    """Make the Optuna study of this name, half made until our ledger knows it; return its id."""
    from optuna.study import StudyDirection  # noqa: PLC0415  (slow, and not always used)

    study_id = storage.optuna.create_new_study([StudyDirection.MAXIMIZE], name)
    storage.optuna.set_study_user_attr(study_id, SPEC, spec.model_dump_json())
    return study_id


def names_of_final_runs(storage: Storage, name: str) -> list[str]:
    """Return the names of all Optuna studies that hold final runs of a study, half-made ones too.

    The name of a study has no '@'.
    """
    every = [found.study_name for found in storage.optuna.get_all_studies()]
    return [found for found in every if found.startswith(f"{name}{FINAL_MARK}")]
