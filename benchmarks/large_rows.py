"""The rows of a study of many trials, in our tables and Optuna's, as workers leave them."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import optuna
from optuna.distributions import distribution_to_json
from optuna.storages._rdb import models  # its tables have no other door
from sqlalchemy import delete, func, insert, select, text, update

from nbtl_search import space
from nbtl_search.ledger import schema
from nbtl_search.spec import Dials, Epoch
from nbtl_search.study import sampling, store
from nbtl_search.study.store import Study
from tests.plausible_study import curve

_FIXED = "fixed_params"  # Optuna's name of what a waiting trial is to be asked with


def fill(study: Study, *, n_trials: int) -> None:
    """Put trials that ran through all their epochs into our tables and Optuna's."""
    rows = Rows(study)
    searched = space.build_for(study.spec.search, study.facts)
    known = study.spec.search.known
    for recipe in known[:n_trials]:
        dials = space.known_dials(recipe, space=searched)
        fixed = optuna.trial.FixedTrial(space.params_of(searched, dials))
        for name in fixed.params:
            space.suggest_row(searched, name, fixed)
        attributes = {
            store.NAME: recipe.name, store.REASON: recipe.reason, store.PROTECTED: True,
            store.DIALS: dials.model_dump_json(),
        }  # fmt: skip
        rows.add(dials, fixed, attributes)
    for point in space.design(searched, n=n_trials - len(known), seed=0):
        fixed = optuna.trial.FixedTrial(point)
        rows.add(space.suggest(searched, fixed), fixed, {})
    rows.insert()


class Rows:
    """The rows of a study's trials, by table."""

    def __init__(self, study: Study) -> None:
        self._study = study
        with study.storage.engine.connect() as connection:
            last = connection.execute(select(func.max(models.TrialModel.trial_id))).scalar()
        self._first_id = (last or 0) + 1
        self._n = 0
        tables = (
            models.TrialModel, models.TrialParamModel, models.TrialValueModel,
            models.TrialIntermediateValueModel, models.TrialUserAttributeModel,
            models.TrialSystemAttributeModel,
        )  # fmt: skip
        self._rows: dict[Any, list[dict[str, Any]]] = {
            table: []
            for table in (
                *(model.__table__ for model in tables),
                schema.trial, schema.attempt, schema.epoch,
            )
        }  # fmt: skip

    def add(self, dials: Dials, fixed: optuna.trial.FixedTrial, attributes: dict[str, Any]) -> None:
        """Add the next trial."""
        number = self._n
        self._n += 1
        spec, facts = self._study.spec, self._study.facts
        epochs = curve(dials, n_epochs=spec.train.epochs, n_val=facts.n_val, seed=number)
        self._add_ours(number, dials, epochs, attributes.get(store.NAME, ""))
        self._add_optunas(number, fixed, epochs, attributes)

    def _add_ours(self, number: int, dials: Dials, epochs: Sequence[Epoch], name: str) -> None:
        key = {"trial_id": self._first_id + number}
        best = max(epochs, key=lambda epoch: epoch.val_top1 or 0.0)
        now, state, token = datetime.now(UTC), _state(number), self._first_id + number
        self._rows[schema.trial].append(
            key
            | {
                "study_id": self._study.id, "number": number, "slot": number + 1, "name": name,
                "protected": bool(name), "recipe": self._study.spec.recipe(dials),
                "state": state, "token": token, "value": best.val_top1, "notified": True,
                "best_epoch": best.epoch, "worker": f"node{number % 8}-1-0", "finished_at": now,
            }
        )  # fmt: skip
        self._rows[schema.attempt].append(
            key
            | {
                "attempt": 1, "token": token, "worker": f"node{number % 8}-1-0", "ended_at": now,
                "cause": state, "message": "",
            }
        )  # fmt: skip
        self._rows[schema.epoch] += [key | epoch.model_dump() | {"attempt": 1} for epoch in epochs]

    def _add_optunas(
        self,
        number: int,
        fixed: optuna.trial.FixedTrial,
        epochs: Sequence[Epoch],
        attributes: dict[str, Any],
    ) -> None:
        key = {"trial_id": self._first_id + number}
        now, state = datetime.now(UTC).replace(tzinfo=None), _state(number)
        top1 = [epoch.val_top1 or 0.0 for epoch in epochs]
        self._rows[models.TrialModel.__table__].append(
            key
            | {
                "number": number, "study_id": self._study.id, "state": state.upper(),
                "datetime_start": now - timedelta(minutes=8), "datetime_complete": now,
            }
        )  # fmt: skip
        self._rows[models.TrialParamModel.__table__] += [
            key
            | {
                "param_name": name,
                "param_value": fixed.distributions[name].to_internal_repr(value),
                "distribution_json": distribution_to_json(fixed.distributions[name]),
            }
            for name, value in fixed.params.items()
        ]
        value = max(top1) if state == "complete" else top1[-1]
        self._rows[models.TrialValueModel.__table__].append(
            key | {"objective": 0, "value": value, "value_type": "FINITE"}
        )
        rungs = self._study.ladder.rungs
        self._rows[models.TrialIntermediateValueModel.__table__] += [
            key
            | {
                "step": step,
                "intermediate_value": top1[step - 1],
                "intermediate_value_type": "FINITE",
            }
            for step in range(1, len(top1) + 1)
            if sampling.is_reported(step, n_epochs=len(top1), rungs=rungs)
        ]
        self._rows[models.TrialUserAttributeModel.__table__] += [
            key | {"key": name, "value_json": json.dumps(one)} for name, one in attributes.items()
        ]
        if number < self._study.spec.search.n_startup:
            self._rows[models.TrialSystemAttributeModel.__table__].append(
                key | {"key": _FIXED, "value_json": json.dumps(fixed.params)}
            )

    def insert(self) -> None:
        """Put them in, instead of the trials that wait since the study was created."""
        study = schema.study
        with self._study.storage.engine.begin() as connection:
            mine = select(models.TrialModel.trial_id).where(
                models.TrialModel.study_id == self._study.id
            )
            for table in reversed(self._rows):
                if not table.name.startswith("nbtl_") and table.name != "trials":
                    connection.execute(delete(table).where(table.c.trial_id.in_(mine)))
            trials = models.TrialModel.__table__
            connection.execute(delete(trials).where(trials.c.study_id == self._study.id))
            for table, rows in self._rows.items():
                if rows:
                    connection.execute(insert(table), rows)
            started = update(study).where(study.c.study_id == self._study.id)
            connection.execute(started.values(started=self._n))
            last = self._first_id + self._n - 1
            for sequence in ("pg_get_serial_sequence('trials', 'trial_id')", "'nbtl_token'"):
                connection.execute(text(f"SELECT setval({sequence}, {last})"))


def _state(number: int) -> str:
    return "complete" if number % 3 == 0 else "pruned"
