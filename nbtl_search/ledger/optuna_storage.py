"""Optuna's storage and its cache, with quicker and fewer readings of many trials.

A worker that joins, and a dashboard that starts, read all trials of a study. Optuna makes an object
of every parameter and of every reported value on the way. Here they stay rows, and Optuna's own
code makes trials of them as before. And a proposal, for which Optuna reads six times what has
changed, reads once. benchmarks/README.md has what both save. Methods are replaced, not wrapped:
Optuna calls these ones of its own objects.
"""

from collections import defaultdict
from collections.abc import Container, Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, Final, cast, final

from optuna.storages import RDBStorage, _CachedStorage
from optuna.storages._rdb import models  # its tables have no other door
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import Connection, Select, and_, or_, select
from sqlalchemy.orm import Session

_PARTS: Final[dict[str, Any]] = {
    "params": models.TrialParamModel,
    "values": models.TrialValueModel,
    "user_attributes": models.TrialUserAttributeModel,
    "system_attributes": models.TrialSystemAttributeModel,
    "intermediate_values": models.TrialIntermediateValueModel,
}
_OWN: Final = ("trial_id", "number", "state", "datetime_start", "datetime_complete")

ByTrial = defaultdict[int, list[Any]]


@final
class FastRDBStorage(RDBStorage):
    """Optuna's storage, quick at reading a large study."""

    def _get_trials(
        self,
        study_id: int,
        states: Container[TrialState] | None,
        included_trial_ids: set[int],
        trial_id_greater_than: int,
    ) -> list[FrozenTrial]:
        """Return the trials above an id, and some below it; as Optuna's method of this name.

        Raises:
            KeyError: there is no such study.
        """
        trial = models.TrialModel
        wanted = trial.study_id == study_id
        if trial_id_greater_than > -1:
            newer = trial.trial_id > trial_id_greater_than
            wanted = and_(wanted, or_(newer, trial.trial_id.in_(included_trial_ids)))
        ids = select(trial.trial_id).where(wanted)  # of any state: it may change meanwhile
        query = select(trial).where(wanted).order_by(trial.trial_id)
        if states is not None:
            query = query.where(trial.state.in_(cast("Iterable[TrialState]", states)))
        with Session(self.engine) as session:
            models.StudyModel.find_or_raise_by_id(study_id, session)
            found = session.scalars(query).all()
            connection = session.connection()
            parts = {name: _by_trial(connection, model, ids) for name, model in _PARTS.items()}
        return [self._build_frozen_trial_from_trial_model(_with_rows(one, parts)) for one in found]


@final
class CachedStorage(_CachedStorage):
    """Optuna's cache, which can be told that nobody else asks. For one thread at a time."""

    def __init__(self, backend: FastRDBStorage) -> None:
        super().__init__(backend)
        self._seen: set[int] | None = None

    @contextmanager
    def one_reading(self) -> Iterator[None]:
        """While the block runs, read the trials of a study from the database at most once.

        What others tell or report meanwhile is seen after it; what is asked in it, at once.
        """
        self._seen = set()
        try:
            yield
        finally:
            self._seen = None

    def _read_trials_from_remote_storage(self, study_id: int) -> None:
        if self._seen is None:
            super()._read_trials_from_remote_storage(study_id)
        elif study_id not in self._seen:
            super()._read_trials_from_remote_storage(study_id)
            self._seen.add(study_id)


def _with_rows(trial: models.TrialModel, parts: Mapping[str, ByTrial]) -> models.TrialModel:
    """Return what Optuna needs of a trial, as if its mapper had read all of it."""
    rows = {name: by_trial[cast("int", trial.trial_id)] for name, by_trial in parts.items()}
    own = {name: getattr(trial, name) for name in _OWN}
    return cast("models.TrialModel", SimpleNamespace(**own, **rows))


def _by_trial(connection: Connection, model: Any, ids: Select[Any]) -> ByTrial:
    grouped: ByTrial = defaultdict(list)
    query = select(model.__table__).where(model.trial_id.in_(ids))
    for row in connection.execute(query).all():
        grouped[row.trial_id].append(row)
    return grouped
