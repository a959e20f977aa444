"""Cancellation of trials on a real Postgres: at once, by their worker, or when that is dead."""

import threading
import time

import optuna
import pytest
from sqlalchemy import text

from nbtl_search.errors import FencedError, SpecError, StudyNotFoundError
from nbtl_search.ledger import locks, records
from nbtl_search.ledger.cancellation import Cancelled
from nbtl_search.spec import Budget, SearchSettings, TrainSettings
from nbtl_search.spec.study import Pruning
from nbtl_search.study import finals, store
from nbtl_search.study.cancellation import cancel
from nbtl_search.study.extension import extend
from tests.integration.test_grants import RUNG, WHOLE, Worker, epoch, spent, states

PRUNED = optuna.trial.TrialState.PRUNED


@pytest.fixture
def make_study(db, spec):
    """Make a study whose trials of eight epochs pause after the third."""

    def make(**budget):
        pruning = Pruning(rungs=(0.25,), reduction=3, min_epochs=RUNG, audit=0)
        return store.create(
            db,
            spec.replace(
                train=TrainSettings(epochs=WHOLE, batch_size=2),
                search=SearchSettings(n_startup=4, pruning=pruning),
                budget=Budget(**{"n_trials": 5} | budget),
            ),
        )

    return make


@pytest.fixture
def study(make_study):
    """The default has ended, and trial 1 is the next."""
    study = make_study()
    worker = Worker(study)
    worker.train(worker.take())
    return study


def record(study, number):
    return records.trials(study.storage.engine, study.id)[number]


def told(study, number):
    return study.optuna.get_trials(deepcopy=False)[number]


def attempts(study, number):
    query = (
        "SELECT a.cause FROM nbtl_attempt a JOIN nbtl_trial t USING (trial_id)"
        " WHERE t.study_id = :study AND t.number = :number AND a.ended_at IS NOT NULL"
        " ORDER BY a.attempt"
    )
    with study.storage.engine.connect() as connection:
        found = connection.execute(text(query), {"study": study.id, "number": number})
        return list(found.scalars())


def wait_for_the_lease(worker, lease):
    """Wait until a lease has expired, as the database sees it."""
    query = text("SELECT lease_expires < clock_timestamp() FROM nbtl_trial WHERE trial_id = :id")
    engine, deadline = worker.study.storage.engine, time.monotonic() + 20
    while True:
        with engine.connect() as connection:
            if connection.execute(query, {"id": lease.trial_id}).scalar_one():
                return
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_paused_trial_ends_at_once_and_is_not_promoted(study):
    worker = Worker(study)
    first = worker.take()
    worker.train(first, 90.0)
    assert states(study) == ["complete", "paused"]
    assert cancel(study, 1) == Cancelled(trial=1, state="pruned", value=90.3, best_epoch=RUNG)
    ended = record(study, 1)
    assert (ended.state, ended.cause, ended.message) == ("pruned", "cancelled", None)
    assert ended.finished_at is not None
    assert attempts(study, 1) == ["paused"]
    assert told(study, 1).state is PRUNED
    assert told(study, 1).user_attrs["nbtl:cause"] == "cancelled"
    assert "trainable" not in told(study, 1).constraints, "it could be trained"
    assert worker.ledger.unnotified() == []
    assert 1 not in [number for number, _ in worker.work()], "the best of all, and nobody's"
    assert worker.ledger.is_over()
    assert len(states(study)) == 5, "it was one of the study's trials"


def test_a_waiting_trial_ends_at_once_with_what_it_has_trained(study):
    worker = Worker(study)
    lease = worker.take()
    worker.leases.record(lease, [epoch(1, 40.0), epoch(2, 30.0)])
    worker.leases.release(lease, cause="preempted")
    before = spent(study)
    assert cancel(study, 1) == Cancelled(trial=1, state="pruned", value=40.0, best_epoch=1)
    assert spent(study) == before - (RUNG - 2), "what it has not trained is others'"
    assert worker.take().number == 2


def test_a_running_trial_ends_when_its_worker_has_heard_of_it(study):
    worker = Worker(study)
    lease = worker.take()
    assert worker.leases.renew(lease) == "run"
    worker.leases.record(lease, [epoch(1, 40.0)])
    running = Cancelled(trial=1, state="running", value=None, best_epoch=None)
    assert cancel(study, 1) == cancel(study, 1) == running, "to say it again changes nothing"
    assert worker.leases.renew(lease) == "cancel"
    worker.leases.release(lease, cause="cancelled")
    ended = record(study, 1)
    assert (ended.state, ended.cause, ended.value) == ("pruned", "cancelled", 40.0)
    assert attempts(study, 1) == ["cancelled"]
    with pytest.raises(FencedError):
        worker.leases.renew(lease)
    assert worker.take().number == 2


def test_whatever_sets_a_trial_aside_ends_it_where_it_is_cancelled(study):
    worker = Worker(study)
    paused, failed = worker.take(), worker.take()
    for lease in (paused, failed):
        cancel(study, lease.number)
    worker.train(paused, 60.0)
    worker.leases.fail_attempt(failed, cause="infra", message="it died")
    assert states(study)[1:] == ["pruned", "pruned"]
    assert [record(study, n).cause for n in (1, 2)] == ["cancelled", "cancelled"]
    assert (record(study, 1).value, record(study, 2).value) == (60.3, None)
    assert (attempts(study, 1), attempts(study, 2)) == (["paused"], ["infra"])


def test_a_trial_that_completes_before_its_worker_hears_of_it_is_complete(study):
    worker = Worker(study)
    for _ in range(3):
        worker.train(worker.take())
    promoted = worker.take()
    assert (promoted.number, promoted.until) == (1, WHOLE)
    cancel(study, 1)
    worker.train(promoted)
    assert (record(study, 1).state, record(study, 1).cause) == ("complete", None)


def test_a_cancelled_trial_of_a_dead_worker_is_nobodys_and_ends(study):
    dead, other = Worker(study, "dead", lease_s=0.2), Worker(study, "other")
    lease = dead.take()
    dead.leases.record(lease, [epoch(1, 40.0)])
    assert cancel(study, 1).state == "running"
    wait_for_the_lease(dead, lease)
    assert other.leases.take_over("other") is None
    assert record(study, 1).state == "running"
    assert other.take().number == 2
    ended = record(study, 1)
    assert (ended.state, ended.cause, ended.value) == ("pruned", "cancelled", 40.0)
    assert attempts(study, 1) == ["cancelled"]


def test_where_the_worker_is_dead_already_the_trial_ends_at_once(study):
    dead = Worker(study, "dead", lease_s=0.2)
    lease = dead.take()
    wait_for_the_lease(dead, lease)
    dead.ledger.want("stop")
    assert cancel(study, 1) == Cancelled(trial=1, state="pruned", value=None, best_epoch=None)
    with pytest.raises(FencedError):
        dead.leases.record(lease, [epoch(1, 40.0)])
    assert told(study, 1).state is PRUNED


def test_epochs_of_a_cancelled_trial_go_to_the_others(make_study):
    study = make_study(n_trials=9, epochs=WHOLE + 3 * RUNG)
    worker = Worker(study)
    for _ in range(3):
        worker.train(worker.take())
    lease = worker.take()
    assert spent(study) == WHOLE + 3 * RUNG
    assert worker.take() is None
    cancel(study, lease.number)
    worker.leases.release(lease, cause="cancelled")
    assert spent(study) == WHOLE + 2 * RUNG
    assert worker.take().until == RUNG


def test_a_cancellation_waits_for_whoever_grants(study):
    """Else a worker could promote what has just ended."""
    worker = Worker(study)
    worker.train(worker.take(), 60.0)
    found = []
    thread = threading.Thread(target=lambda: found.append(cancel(study, 1)))
    with study.storage.engine.begin() as connection:
        locks.take_reservations(connection, study.id)
        thread.start()
        thread.join(0.5)
        assert thread.is_alive()
    thread.join(20)
    assert [one.state for one in found] == ["pruned"]


@pytest.mark.parametrize(
    ("number", "error", "says"),
    [
        (0, SpecError, "the default recipe is trained to its end"),
        (1, SpecError, "before it has ended, got trial 1 of study 'cats', which has"),
        (7, StudyNotFoundError, "got 7, and study 'cats' has trials 0 to 2"),
    ],
)
def test_what_cannot_be_cancelled_is_refused_and_changes_nothing(study, number, error, says):
    worker = Worker(study)
    worker.train(worker.take())
    cancel(study, 1)
    worker.take()
    before = records.trials(study.storage.engine, study.id)
    with pytest.raises(error, match=says) as caught:
        cancel(study, number)
    assert "\n" not in str(caught.value)
    assert records.trials(study.storage.engine, study.id) == before


def test_a_study_without_trials_says_so(make_study):
    with pytest.raises(StudyNotFoundError, match="no trial yet"):
        cancel(make_study(), 0)


def test_final_runs_are_not_cancelled(make_study):
    study = make_study(n_trials=4)
    Worker(study).work()
    finals.begin(study, {"n_candidates": 1, "n_confirm_seeds": 2, "n_test_seeds": 2})
    stage = finals.next_stage(study)
    assert stage is not None
    lease = Worker(stage).take()
    with pytest.raises(SpecError, match="compared seed by seed"):
        cancel(stage, lease.number)
    assert Worker(stage).leases.renew(lease) == "run"


def test_a_search_whose_last_open_trial_is_cancelled_is_over_and_can_be_extended(make_study):
    study = make_study(n_trials=2)
    worker = Worker(study)
    worker.train(worker.take())
    lease = worker.take()
    worker.leases.release(lease, cause="stopped")
    assert not worker.ledger.is_over()
    cancel(study, 1)
    assert worker.ledger.is_over()
    extend(study, n_trials=3)
    assert worker.take().number == 2
