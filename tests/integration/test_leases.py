"""Leases on a real Postgres: budget, fencing, take-over, and Optuna notified exactly once."""

import contextlib
import itertools
import multiprocessing
import time
from collections import Counter

import optuna
import pytest
from sqlalchemy import event, text

from nbtl_search.errors import FencedError, StorageLostError
from nbtl_search.ledger import database, optuna_storage, records
from nbtl_search.ledger.leases import (
    MAX_FAILURES,
    MAX_LOST,
    Leases,
    TrialOutcome,
)
from nbtl_search.ledger.ledger import Ledger
from nbtl_search.postgres.connection import wait_for
from nbtl_search.spec import Budget, Epoch
from nbtl_search.study import sampling, store

N_SLOTS = 24
N_WORKERS = 8


def epoch(number, top1=50.0):
    return Epoch(
        epoch=number,
        train_loss=1.0,
        val_loss=1.0,
        val_top1=top1,
        val_top5=90.0,
        lr=0.1,
        n_images=32,
        seconds=0.1,
        micro_batch=32,
    )


def acquire(study, leases, worker="w"):
    return leases.take_over(worker) or leases.grant(worker, sampling.asking(study))


def expire_all(db):
    """Move every lease into the past, as if its worker had been silent for long."""
    with db.engine.begin() as connection:
        connection.execute(
            text(
                "UPDATE nbtl_trial SET lease_expires = now() - interval '1 h'"
                " WHERE lease_expires IS NOT NULL"
            )
        )


@pytest.fixture
def study(db, spec):
    return store.create(db, spec)


@pytest.fixture
def leases(study):
    return Leases(study.storage.engine, study.id, ladder=study.ladder, lease_s=2.0)


@pytest.fixture
def ledger(study):
    return Ledger(study.storage.engine, study.id)


def work_through(url, name, index):
    """Be a worker without a trainer: end every trial at once, until there is none."""
    opened = database.connect(url, home=None)
    study = store.open_study(opened, name)
    leases, ledger = (
        Leases(opened.engine, study.id, ladder=study.ladder),
        Ledger(opened.engine, study.id),
    )
    # As a worker does: Optuna is opened before a reservation, and a queue that took too long is
    # joined again. On a busy machine eight first imports inside the lock outlast its limit.
    study.optuna.get_trials(deepcopy=False)

    def take():
        return wait_for(
            lambda: acquire(study, leases, f"w{index}"), deadline=time.monotonic() + 100
        )

    while (lease := take()) is not None:
        leases.record(lease, [epoch(1, float(lease.number))])
        leases.finish(
            lease, TrialOutcome(state="complete", value=float(lease.number), best_epoch=1)
        )
        for ended in ledger.unnotified():
            sampling.tell(study, ended)
            ledger.mark_notified(ended.trial_id)
    opened.close()


def test_eight_workers_racing_for_24_slots_give_24(db, database_url, spec):
    budget = spec.budget.replace(n_trials=N_SLOTS)
    study = store.create(db, spec.replace(budget=budget))
    context = multiprocessing.get_context("spawn")
    processes = [
        context.Process(target=work_through, args=(database_url, study.name, index))
        for index in range(N_WORKERS)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0] * N_WORKERS
    rows = records.trials(db.engine, study.id)
    assert len(rows) == N_SLOTS
    assert {row.state for row in rows} == {"complete"}
    assert Counter(row.n_attempts for row in rows) == {1: N_SLOTS}
    states = Counter(trial.state.name for trial in study.optuna.get_trials(deepcopy=False))
    assert states["COMPLETE"] == N_SLOTS
    assert states["RUNNING"] == states["FAIL"] == 0
    assert len({tuple(sorted(row.dials.model_dump().items())) for row in rows}) == N_SLOTS


def test_known_recipes_come_first_exactly_as_written(study, leases):
    lease = acquire(study, leases)
    assert (lease.name, lease.protected) == ("default", True)
    recipe = lease.recipe
    assert recipe.dials.beta == 0  # outside the space, and run all the same
    second = acquire(study, leases).recipe
    assert second.dials.n_l2sp == 14


def test_a_trial_is_resumed_by_whoever_comes_when_its_lease_expires(db, study, leases, ledger):
    first = acquire(study, leases, "a")
    leases.record(first, [epoch(1)])
    assert leases.take_over("b") is None
    expire_all(db)
    second = leases.take_over("b")
    assert (second.trial_id, second.attempt, second.worker) == (first.trial_id, 2, "b")
    assert second.token > first.token
    for write in (
        lambda: leases.renew(first),
        lambda: leases.record(first, [epoch(2)]),
        lambda: leases.finish(first, TrialOutcome(state="complete", value=1.0, best_epoch=1)),
        lambda: leases.release(first, cause="preempted"),
        lambda: leases.fail_attempt(first, cause="infra", message=""),
    ):
        with pytest.raises(FencedError):
            write()
    assert [e.epoch for e in ledger.epochs(first.trial_id)] == [1]
    assert leases.renew(second) == "run"


def test_after_a_restart_of_the_database_owners_come_first(db, study, leases):
    lease = acquire(study, leases)
    expire_all(db)
    longer_than_the_server_runs = Leases(
        db.engine, study.id, ladder=study.ladder, lease_s=10 * 365 * 86_400
    )
    assert longer_than_the_server_runs.take_over("b") is None
    assert leases.take_over("b").trial_id == lease.trial_id


def test_an_expired_lease_that_nobody_took_is_renewed(db, study, leases):
    lease = acquire(study, leases)
    expire_all(db)
    assert leases.renew(lease) == "run"
    assert leases.take_over("b") is None


def test_epochs_sent_again_stay_as_they_were(study, leases, ledger):
    lease = acquire(study, leases)
    leases.record(lease, [epoch(1, 40.0)])
    leases.record(lease, [epoch(1, 99.0), epoch(2, 60.0)])
    assert [e.val_top1 for e in ledger.epochs(lease.trial_id)] == [40.0, 60.0]


def test_an_asker_that_dies_gives_its_slot_back_and_its_trial_is_adopted(study, leases, ledger):
    class Killed(BaseException):
        pass

    asked = []

    def ask_and_die(slot, repeat_of):
        asked.append(sampling.ask(study, slot=slot, repeat_of=repeat_of))
        raise Killed

    with pytest.raises(Killed):
        leases.grant("a", ask_and_die)
    assert ledger.trial_ids() == set()
    lease = acquire(study, leases, "b")
    assert lease.trial_id == asked[0].trial_id
    assert lease.recipe == asked[0].recipe
    running = study.optuna.get_trials(states=(optuna.trial.TrialState.RUNNING,))
    assert len(running) == 1


def test_a_released_trial_waits_and_preemption_is_no_failure(study, leases):
    lease = acquire(study, leases)
    for attempt in range(2, 3 + MAX_FAILURES):
        leases.release(lease, cause="preempted")
        lease = leases.take_over("w")
        assert lease.attempt == attempt


def test_failures_in_a_row_end_a_trial_and_progress_forgives_them(study, leases):
    lease = acquire(study, leases)
    for _ in range(MAX_FAILURES):
        assert leases.fail_attempt(lease, cause="infra", message="died")
        lease = leases.take_over("w")
    leases.record(lease, [epoch(1)])
    for _ in range(MAX_FAILURES):
        assert leases.fail_attempt(lease, cause="infra", message="died")
        lease = leases.take_over("w")
    assert not leases.fail_attempt(lease, cause="infra", message="died")
    (row,) = records.trials(study.storage.engine, study.id)
    assert (row.state, row.cause, row.message) == ("failed", "infra", "died")


def lose(db, leases, n):
    """Lose the trial's worker so many times without an epoch; return the last lease."""
    lease = None
    for _ in range(n):
        expire_all(db)
        lease = leases.take_over("w")
    return lease


def test_a_trial_that_takes_down_every_worker_fails_in_the_end(db, study, leases, ledger):
    acquire(study, leases)
    assert lose(db, leases, MAX_LOST).attempt == 1 + MAX_LOST
    assert lose(db, leases, 1) is None
    (row,) = records.trials(study.storage.engine, study.id)
    assert (row.state, row.cause) == ("failed", "infra")
    assert row.message is not None
    assert f"{MAX_LOST + 1} workers in a row" in row.message
    assert [ended.state for ended in ledger.unnotified()] == ["failed"]


def test_an_epoch_forgives_lost_workers_and_a_release_is_no_loss(db, study, leases):
    acquire(study, leases)
    lease = lose(db, leases, MAX_LOST)
    leases.record(lease, [epoch(1)])
    lease = lose(db, leases, MAX_LOST)
    for _ in range(3):
        leases.release(lease, cause="preempted")
        lease = leases.take_over("w")
    assert lease is not None
    assert lose(db, leases, 1) is None


def test_an_asker_waits_in_line_only_so_long(db, study, leases, monkeypatch):
    monkeypatch.setattr("nbtl_search.ledger.locks.QUEUE_S", 0.2)
    with db.engine.begin() as connection:
        connection.execute(text("SELECT 1 FROM nbtl_study FOR UPDATE"))
        with pytest.raises(StorageLostError):
            acquire(study, leases)
    assert acquire(study, leases).number == 0


@pytest.mark.parametrize(("wish", "word"), [("pause", "paused"), ("stop", "stopped")])
def test_a_wish_reaches_the_worker_and_no_trial_starts(study, leases, ledger, wish, word):
    lease = acquire(study, leases)
    ledger.want(wish)
    assert leases.renew(lease) == wish
    leases.release(lease, cause="stopped")
    assert acquire(study, leases) is None
    assert not ledger.is_over()
    assert records.totals(study.storage.engine, study.id, n_workers=1).state == word
    ledger.want("run")
    assert acquire(study, leases).trial_id == lease.trial_id


@pytest.mark.parametrize(
    "budget", [{"epochs": 2}, {"gpu_h": 0.2 / 3600}, {"wall_clock_h": 1e-9}], ids=str
)
def test_every_kind_of_budget_ends_the_study(db, spec, budget):
    study = store.create(db, spec.replace(budget=spec.budget.replace(**budget)))
    leases, ledger = Leases(db.engine, study.id, ladder=study.ladder), Ledger(db.engine, study.id)
    if "wall_clock_h" not in budget:
        lease = acquire(study, leases)
        leases.record(lease, [epoch(1), epoch(2)])
        assert not ledger.is_over()
        leases.finish(lease, TrialOutcome(state="complete", value=50.0, best_epoch=1))
    assert acquire(study, leases) is None
    assert ledger.is_over()


@pytest.mark.parametrize("cause", ["oom", "diverged", "infeasible"])
def test_what_cannot_be_trained_is_told_as_pruned_and_infeasible(study, leases, ledger, cause):
    lease = acquire(study, leases)
    leases.finish(lease, TrialOutcome(state="pruned", cause=cause, message="no"))
    (ended,) = ledger.unnotified()
    sampling.tell(study, ended)
    sampling.tell(study, ended)
    ledger.mark_notified(ended.trial_id)
    assert ledger.unnotified() == []
    told = study.optuna.get_trials()[lease.number]
    assert told.state is optuna.trial.TrialState.PRUNED
    assert told.constraints == {"trainable": 1.0}


def test_of_two_workers_that_tell_at_once_the_later_one_goes_on(
    study, leases, ledger, database_url, monkeypatch
):
    lease = acquire(study, leases)
    leases.finish(lease, TrialOutcome(state="complete", value=50.0, best_epoch=1))
    (ended,) = ledger.unnotified()
    other = database.connect(database_url, home=None)
    write = study.storage.optuna.set_trial_state_values

    def write_late(*arguments, **options):
        sampling.tell(store.open_study(other, study.name), ended)
        return write(*arguments, **options)

    monkeypatch.setattr(study.storage.optuna, "set_trial_state_values", write_late)
    sampling.tell(study, ended)
    other.close()
    assert study.optuna.get_trials()[lease.number].value == 50.0


def test_optuna_gets_few_reports_of_a_long_trial_and_the_rungs(study, leases):
    lease = acquire(study, leases)
    curve = [epoch(number) for number in range(1, 425)]
    sampling.report(study, lease.trial_id, curve[:200], n_epochs=424, rungs=(106, 212))
    sampling.report(study, lease.trial_id, curve, n_epochs=424, rungs=(106, 212))
    steps = sorted(study.optuna.get_trials()[lease.number].intermediate_values)
    assert {106, 212, 424} <= set(steps)
    assert len(steps) <= sampling.MAX_REPORTS + 2
    assert max(later - earlier for earlier, later in itertools.pairwise([0, *steps])) <= 43


def test_optuna_gets_every_epoch_of_a_short_trial(study, leases):
    lease = acquire(study, leases)
    sampling.report(study, lease.trial_id, [epoch(number) for number in (1, 2, 3)], n_epochs=8)
    assert set(study.optuna.get_trials()[lease.number].intermediate_values) == {1, 2, 3}


def trained(study, n):
    """Train this many trials of a study; return its next proposal, with what was read for it."""
    leases, ledger = (
        Leases(study.storage.engine, study.id, ladder=study.ladder),
        Ledger(study.storage.engine, study.id),
    )
    for number in range(n):
        lease = acquire(study, leases)
        leases.record(lease, [epoch(1, 50.0 + number % 3)])
        sampling.report(study, lease.trial_id, [epoch(1, 50.0 + number % 3)], n_epochs=1)
        if number % 4:  # the others keep running
            leases.finish(
                lease, TrialOutcome(state="complete", value=50.0 + number % 3, best_epoch=1)
            )
        for ended in ledger.unnotified():
            sampling.tell(study, ended)
            ledger.mark_notified(ended.trial_id)
    readings: list[str] = []

    def note(_connection, _cursor, statement, *_):
        if "FROM trial_params" in statement and " IN " in statement:
            readings.append(statement)

    engine = study.storage.optuna._backend.engine
    event.listen(engine, "before_cursor_execute", note)
    lease = acquire(study, leases)
    event.remove(engine, "before_cursor_execute", note)
    return study.optuna.get_trials(deepcopy=False)[lease.number].params, len(readings)


def test_a_proposal_needs_one_reading_and_is_what_it_was_with_many(db, spec, monkeypatch):
    spec = spec.replace(budget=Budget(n_trials=20))
    cats, dogs = store.create(db, spec), store.create(db, spec.replace(name="dogs"))
    n = spec.search.n_startup + 8  # the sampler has begun
    proposed, n_readings = trained(cats, n)
    monkeypatch.setattr(
        optuna_storage.CachedStorage, "one_reading", lambda _: contextlib.nullcontext()
    )
    same, n_readings_without = trained(dogs, n)
    assert proposed == same
    assert len(proposed) > 2
    assert n_readings == 1
    assert n_readings_without > 3


def test_asks_are_seeded_by_study_and_slot(db, spec):
    def points(seed, name):
        search = spec.search.replace(seed=seed, n_startup=0)
        study = store.create(db, spec.replace(name=name, search=search))
        leases = Leases(db.engine, study.id, ladder=study.ladder)
        return [acquire(study, leases).recipe for _ in range(5)]

    first = points(7, "one")
    assert first == points(7, "two")
    assert first[2:] != points(8, "three")[2:]
    assert len(set(first)) == 5
