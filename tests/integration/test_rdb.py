"""Our reading of Optuna's trials gives what Optuna's own gives."""

import math

import optuna
import pytest
from optuna.storages import RDBStorage
from optuna.trial import TrialState, create_trial
from sqlalchemy import event, text

from nbtl_search.errors import StorageLostError
from nbtl_search.ledger.optuna_storage import FastRDBStorage
from nbtl_search.postgres.connection import storage_errors

FLOAT = optuna.distributions.FloatDistribution
PARAMS = {
    "lr": (1e-3, FLOAT(1e-5, 1.0, log=True)),
    "step": (0.5, FLOAT(0.0, 1.0, step=0.25)),
    "n_new": (7, optuna.distributions.IntDistribution(0, 20)),
    "kind": (None, optuna.distributions.CategoricalDistribution((None, True, 2, 0.5, "x'y"))),
}
CURVE = {1: 12.5, 2: math.nan, 3: math.inf, 7: -math.inf}


@pytest.fixture
def backend(db):
    return db.optuna._backend


@pytest.fixture
def study_id(db):
    """A study with a trial of every kind, beside one that is not to be read."""
    study = optuna.create_study(storage=db.optuna, study_name="cats", direction="maximize")
    other = optuna.create_study(storage=db.optuna, study_name="dogs")
    params = {name: value for name, (value, _) in PARAMS.items()}
    distributions = {name: distribution for name, (_, distribution) in PARAMS.items()}
    for state, value in (
        (TrialState.COMPLETE, 71.25),
        (TrialState.COMPLETE, math.inf),
        (TrialState.COMPLETE, -math.inf),
        (TrialState.PRUNED, None),
        (TrialState.FAIL, None),
        (TrialState.RUNNING, None),
        (TrialState.WAITING, None),
    ):
        trial = create_trial(
            state=state,
            value=value,
            params=params,
            distributions=distributions,
            user_attrs={"a": {"nested": [1, None]}, "b": "é"},
            system_attrs={"fixed_params": {"lr": 0.1}},
            intermediate_values=CURVE,
        )
        study.add_trial(trial)
        other.add_trial(trial)
    study.enqueue_trial({"lr": 0.5})
    study.ask().suggest_float("lr", 1e-5, 1.0, log=True)
    study.ask()
    return study._study_id


def read_by(storage_class, backend, *arguments):
    """Return the trials in words: NaN is not equal to itself."""
    return [repr(trial) for trial in storage_class._get_trials(backend, *arguments)]


def test_every_kind_of_trial_is_read_as_optuna_reads_it(backend, study_id):
    ours = read_by(FastRDBStorage, backend, study_id, None, set(), -1)
    assert len(ours) == 8
    assert "nan" in ours[0]
    assert ours == read_by(RDBStorage, backend, study_id, None, set(), -1)


def test_two_objectives_are_read_in_their_order(db, backend):
    study = optuna.create_study(storage=db.optuna, directions=["maximize", "minimize"])
    study.add_trial(create_trial(values=[1.0, 2.0]))
    (trial,) = backend._get_trials(study._study_id, None, set(), -1)
    assert trial.values == [1.0, 2.0]


def test_only_what_may_have_changed_is_read(backend, study_id):
    ids = [trial._trial_id for trial in backend.get_all_trials(study_id, deepcopy=False)]
    for states in (None, (TrialState.COMPLETE,), (TrialState.RUNNING, TrialState.WAITING), ()):
        for known in (set(), set(ids[:2]), {ids[0], ids[-1]}):
            for last in (-1, ids[3], ids[-1], ids[-1] + 1000):
                wanted = (study_id, states, known, last)
                assert read_by(FastRDBStorage, backend, *wanted) == read_by(
                    RDBStorage, backend, *wanted
                ), wanted


def test_a_trial_that_ends_while_it_is_read_keeps_its_parts(db, database_url, backend):
    study = optuna.create_study(storage=db.optuna)
    trial = study.ask()
    trial.suggest_float("lr", 0.0, 1.0)
    trial.report(12.5, step=1)
    other = optuna.load_study(study_name=study.study_name, storage=database_url)

    def end(_connection, _cursor, statement, *_):
        if "trial_params" in statement and not other.best_trials:
            other.tell(trial.number, 3.0)

    event.listen(backend.engine, "before_cursor_execute", end)
    (found,) = backend._get_trials(study._study_id, (TrialState.RUNNING,), set(), -1)
    assert other.best_value == 3.0
    assert set(found.params) == {"lr"}
    assert found.intermediate_values == {1: 12.5}


def test_a_connection_that_is_cut_in_between_is_a_lost_database(db, backend, study_id):
    cuts: list[str] = []

    def cut(_connection, _cursor, statement, *_):
        if "trial_values" in statement and not cuts:
            cuts.append(statement)
            kill = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE"
            others = "pid <> pg_backend_pid() AND datname = current_database()"
            with db.engine.begin() as connection:
                connection.execute(text(f"{kill} {others}"))

    event.listen(backend.engine, "before_cursor_execute", cut)
    with pytest.raises(StorageLostError), storage_errors():
        backend._get_trials(study_id, None, set(), -1)
    assert len(backend._get_trials(study_id, None, set(), -1)) == 8


def test_a_study_that_is_not_there_is_named_as_optuna_does(backend, study_id):
    with pytest.raises(KeyError, match="Record does not exist"):
        backend._get_trials(study_id + 1000, None, set(), -1)


def test_more_trials_are_no_more_statements(backend, study_id):
    statements = []
    event.listen(
        backend.engine, "before_cursor_execute", lambda *given: statements.append(given[2])
    )
    backend._get_trials(study_id, None, set(), -1)
    assert len(statements) == 7
