"""Extension of a study's budget on a real Postgres."""

from datetime import UTC, datetime, timedelta

import pytest

from nbtl_search.errors import SpecError
from nbtl_search.ledger import records
from nbtl_search.ledger.ledger import Ledger
from nbtl_search.spec import Budget, SearchSettings, TrainSettings
from nbtl_search.spec.study import Pruning
from nbtl_search.study import finals, store
from nbtl_search.study.extension import extend
from tests.integration.test_grants import RUNG, WHOLE, Worker, spent, states

PLAN = {"n_candidates": 1, "n_confirm_seeds": 2, "n_test_seeds": 2, "averages": False}


@pytest.fixture
def over(db, spec):
    """Make a study of eight epochs a trial with a budget that is spent."""

    def make(**budget):
        study = store.create(
            db,
            spec.replace(
                train=TrainSettings(epochs=WHOLE, batch_size=2),
                search=SearchSettings(
                    n_startup=4,
                    pruning=Pruning(rungs=(0.25,), reduction=3, min_epochs=RUNG, audit=0),
                ),
                budget=Budget(**{"n_trials": 2} | budget),
            ),
        )
        Worker(study).work()
        assert is_over(study)
        return study

    return make


def is_over(study):
    return Ledger(study.storage.engine, study.id).is_over()


def opened(study):
    return store.open_study(study.storage, study.name)


def test_a_search_that_is_over_goes_on_to_exactly_the_new_number(over):
    study = over(n_trials=2)
    before = states(study)
    budget = extend(study, n_trials=5)
    assert budget.n_trials == opened(study).spec.budget.n_trials == 5
    assert not is_over(study)
    Worker(study).work()
    assert is_over(study)
    assert len(states(study)) == 5
    assert states(study)[:2] == before, "what has ended stays"


def test_epochs_that_were_of_no_use_are_with_more_of_them(over):
    study = over(n_trials=4, epochs=WHOLE + RUNG - 1)
    assert spent(study) == WHOLE
    extend(study, epochs=WHOLE + RUNG)
    assert Worker(study).work() == [(1, RUNG)]
    assert spent(study) == WHOLE + RUNG
    assert is_over(study)


def test_limits_that_are_not_given_stay_as_they_are_now(over):
    study = over(n_trials=2, epochs=40, gpu_h=3.0)
    assert extend(study, epochs=50) == Budget(n_trials=2, epochs=50, gpu_h=3.0)
    # The same object, opened before: what it says of the budget is old by now.
    assert extend(study, n_trials=6) == Budget(n_trials=6, epochs=50, gpu_h=3.0)


def test_a_deadline_counts_from_when_the_study_was_made(over):
    study = over(n_trials=2)
    deadline = datetime.now(UTC) + timedelta(hours=5)
    budget = extend(study, n_trials=3, deadline=deadline)
    assert budget.wall_clock_h == pytest.approx(5.0, abs=0.1)
    assert not is_over(study)


@pytest.mark.parametrize(
    ("limits", "says"),
    [
        ({}, "needs a limit"),
        ({"n_trials": 1}, "--trials must be at least what was spent, 2, got 1"),
        ({"epochs": 10}, "--epochs must be at least what was spent, 16, got 10"),
        ({"deadline": datetime(2020, 1, 1, tzinfo=UTC)}, "in the future"),
        ({"gpu_h": 1e-9}, "--gpu-h must be at least what was spent"),
    ],
)
def test_what_cannot_be_is_refused_and_changes_nothing(over, limits, says):
    study = over(n_trials=2)
    with pytest.raises(SpecError, match=says):
        extend(study, **limits)
    assert opened(study).spec == study.spec
    assert is_over(study)


def test_a_search_whose_final_runs_are_at_work_is_not_extended(over):
    study = over(n_trials=4)
    finals.begin(study, PLAN)
    stage = finals.next_stage(study)
    assert stage is not None
    for refused in (study, stage):
        with pytest.raises(SpecError, match="final runs"):
            extend(refused, n_trials=50)
    assert opened(study).spec == study.spec


def test_an_extended_study_is_the_same_study(over):
    study = over(n_trials=2)
    extend(study, n_trials=3)
    again = store.create(study.storage, study.spec)
    assert (again.id, again.spec.budget.n_trials) == (study.id, 3)
    assert records.totals(study.storage.engine, study.id, n_workers=0).n_trials == 3
