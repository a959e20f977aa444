"""Grants of epochs on a real Postgres: pauses, promotions, exact budgets, the end of a search."""

import multiprocessing
import time

import pytest
from sqlalchemy import select, text

from nbtl_search.errors import FencedError
from nbtl_search.ledger import database, records, schema
from nbtl_search.ledger.leases import Leases, TrialOutcome
from nbtl_search.ledger.ledger import Ledger, epochs_spent
from nbtl_search.postgres.connection import wait_for
from nbtl_search.spec import Budget, Epoch, SearchSettings, TrainSettings
from nbtl_search.spec.study import Pruning
from nbtl_search.study import sampling, store
from tests.integration.older_tables import as_version

RUNG, WHOLE = 3, 8
N_WORKERS = 4


def epoch(number, top1):
    return Epoch(
        epoch=number,
        train_loss=1.0,
        val_loss=1.0,
        val_top1=top1,
        val_top5=99.0,
        lr=0.1,
        n_images=32,
        seconds=0.1,
        micro_batch=32,
    )


@pytest.fixture
def searched(spec):
    """Trials of eight epochs that pause after the third."""
    return spec.replace(
        train=TrainSettings(epochs=WHOLE, batch_size=2),
        search=SearchSettings(
            n_startup=4, pruning=Pruning(rungs=(0.25,), reduction=3, min_epochs=RUNG, audit=0)
        ),
        budget=Budget(n_trials=7),
    )


class Worker:
    """A worker without a trainer."""

    def __init__(self, study, name="w", *, lease_s=60.0):
        self.study, self.name = study, name
        self.leases = Leases(study.storage.engine, study.id, ladder=study.ladder, lease_s=lease_s)
        self.ledger = Ledger(study.storage.engine, study.id)

    def take(self):
        return self.leases.take_over(self.name) or self.leases.grant(
            self.name,
            sampling.asking(self.study),
        )

    def train(self, lease, top1=None):
        """Train what is granted; later trials are weaker, unless the accuracy is given."""
        level = 80.0 - 5 * lease.number if top1 is None else top1
        done = range(lease.n_recorded + 1, lease.until + 1)
        self.leases.record(lease, [epoch(number, level + number / 10) for number in done])
        if lease.until < WHOLE:
            self.leases.pause(lease)
            return
        outcome = TrialOutcome(state="complete", value=level + WHOLE / 10, best_epoch=WHOLE)
        self.leases.finish(lease, outcome)

    def work(self):
        """Train until nothing is granted; return (trial, last epoch) of each grant."""
        found = []
        while (lease := self.take()) is not None:
            self.train(lease)
            found.append((lease.number, lease.until))
        return found


def spent(study):
    with study.storage.engine.connect() as connection:
        return connection.execute(select(epochs_spent(study.id))).scalar_one()


def states(study):
    return [trial.state for trial in records.trials(study.storage.engine, study.id)]


def test_the_default_runs_to_its_end_and_others_pause_at_the_rung(db, searched):
    worker = Worker(store.create(db, searched))
    assert worker.work() == [
        (0, WHOLE), (1, RUNG), (2, RUNG), (3, RUNG), (1, WHOLE), (4, RUNG), (5, RUNG), (6, RUNG),
        (2, WHOLE),
    ]  # fmt: skip
    assert worker.ledger.is_over()
    assert states(worker.study) == ["complete"] * 3 + ["pruned"] * 4


def test_a_paused_trial_goes_on_with_any_worker_and_its_first_is_fenced(db, searched):
    study = store.create(db, searched)
    first, second = Worker(study, "a"), Worker(study, "b")
    for top1 in (50.0, 60.0, 55.0):
        first.train(first.take(), top1)
    best = first.take()
    first.train(best, 90.0)
    promoted = second.take()
    assert (promoted.trial_id, promoted.until) == (best.trial_id, WHOLE)
    assert (promoted.n_recorded, promoted.attempt, promoted.worker) == (RUNG, 2, "b")
    assert promoted.token > best.token
    assert records.totals(db.engine, study.id, n_workers=1).paused == 2
    with pytest.raises(FencedError):
        first.leases.record(best, [epoch(RUNG + 1, 99.0)])
    with pytest.raises(FencedError):
        first.leases.pause(best)
    assert states(study)[best.number] == "running"


def test_a_worker_that_dies_before_it_could_pause_leaves_the_trial_with_its_grant(db, searched):
    study = store.create(db, searched)
    worker = Worker(study, lease_s=1.0)  # less than the server has run
    worker.train(worker.take())
    lost = worker.take()
    with db.engine.begin() as connection:
        connection.execute(
            text(
                "UPDATE nbtl_trial SET lease_expires = now() - interval '1 h' WHERE trial_id = :t"
            ),
            {"t": lost.trial_id},
        )
    again = worker.take()
    assert (again.trial_id, again.until, again.attempt) == (lost.trial_id, RUNG, 2)
    assert spent(study) == WHOLE + RUNG


@pytest.mark.parametrize("budget", [1, 4, 8, 9, 11, 12, 20, 29, 30, 31, 40, 56])
def test_a_budget_of_epochs_is_never_passed_and_used_where_it_can_be(db, searched, budget):
    study = store.create(db, searched.replace(budget=Budget(n_trials=7, epochs=budget)))
    worker = Worker(study)
    worker.work()
    assert worker.ledger.is_over()
    assert {*states(study)} <= {"complete", "pruned"}
    trained = sum(trial.n_epochs for trial in records.trials(db.engine, study.id))
    assert trained == spent(study)
    # Of nine the default has eight, and with one no other trial would come to its rung. And with
    # 36 the seven trials are trained, and those promoted that the rung promotes.
    assert trained == {9: 8}.get(budget, min(budget, 36))


def test_epochs_trained_again_for_a_lost_checkpoint_are_spent(db, searched):
    study = store.create(db, searched.replace(budget=Budget(n_trials=7, epochs=17)))
    worker = Worker(study)
    worker.train(worker.take())
    lease = worker.take()
    worker.leases.record(lease, [epoch(1, 50.0), epoch(2, 51.0)])
    worker.leases.release(lease, cause="preempted")
    lease = worker.take()
    assert lease.n_recorded == 2
    worker.leases.record(lease, [], n_repeated=2)
    worker.train(lease)
    assert spent(study) == WHOLE + RUNG + 2
    assert [(number, until) for number, until in worker.work()] == [(2, RUNG), (1, RUNG + 1)]
    assert spent(study) == 17


def test_what_is_paused_ends_with_the_value_of_its_best_epoch(db, searched):
    study = store.create(db, searched.replace(budget=Budget(n_trials=3)))
    worker = Worker(study)
    for _ in range(2):
        worker.train(worker.take())
    lease = worker.take()
    worker.leases.record(lease, [epoch(1, 50.0), epoch(2, 70.0), epoch(3, 70.0)])
    worker.leases.pause(lease)
    assert worker.work() == [(1, WHOLE)]
    weak = records.trials(db.engine, study.id)[-1]
    assert (weak.state, weak.value, weak.best_epoch) == ("pruned", 70.0, 2)
    assert weak.finished_at is not None
    assert (2, "pruned") in [(one.number, one.state) for one in worker.ledger.unnotified()]
    assert worker.ledger.is_over()


def test_a_search_does_not_end_with_the_default_alone(db, searched):
    study = store.create(db, searched.replace(budget=Budget(n_trials=2)))
    assert Worker(study).work() == [(0, WHOLE), (1, RUNG), (1, WHOLE)]
    assert states(study) == ["complete", "complete"]


def test_nothing_ends_while_a_trial_runs(db, searched):
    study = store.create(db, searched.replace(budget=Budget(n_trials=3)))
    worker, other = Worker(study), Worker(study, "other")
    default = other.take()
    worker.train(worker.take(), 70.0)
    worker.train(worker.take(), 60.0)
    worker.train(worker.take(), 70.0)
    assert worker.take() is None
    assert states(study) == ["running", "complete", "paused"]
    assert not worker.ledger.is_over()
    other.train(default)
    worker.leases.end_if_spent()
    assert states(study) == ["complete", "complete", "pruned"]
    assert worker.ledger.is_over()


def test_without_room_a_spent_search_ends_and_another_grants_nothing(db, searched):
    study = store.create(db, searched)
    worker = Worker(study)
    worker.train(worker.take())
    worker.leases.end_if_spent()
    assert states(study) == ["complete"]
    assert not worker.ledger.is_over()


def test_what_a_diverged_trial_did_not_train_others_may_have(db, searched):
    study = store.create(db, searched.replace(budget=Budget(n_trials=7, epochs=WHOLE + RUNG)))
    worker = Worker(study)
    default = worker.take()
    worker.leases.record(default, [epoch(1, 10.0)])
    worker.leases.finish(default, TrialOutcome(state="pruned", cause="diverged", message="NaN"))
    assert spent(study) == 1
    worker.work()
    assert spent(study) == WHOLE + RUNG


def test_an_epoch_repeated_by_two_attempts_counts_as_often_and_told_again_once(db, searched):
    study = store.create(db, searched)
    worker = Worker(study)
    lease = worker.take()
    worker.leases.record(lease, [epoch(1, 50.0), epoch(2, 51.0)])
    for _ in range(2):
        worker.leases.release(lease, cause="preempted")
        lease = worker.take()
        assert lease.n_recorded == 2
        worker.leases.record(lease, [epoch(1, 50.0)], n_repeated=1)
        worker.leases.record(lease, [epoch(1, 50.0)], n_repeated=1)
    assert spent(study) == WHOLE + 2


@pytest.mark.parametrize("wish", ["pause", "stop"])
def test_a_study_that_is_not_to_run_keeps_what_is_paused(db, searched, wish):
    study = store.create(db, searched.replace(budget=Budget(n_trials=3)))
    worker = Worker(study)
    for _ in range(3):
        worker.train(worker.take())
    worker.ledger.want(wish)
    assert worker.take() is None
    assert states(study) == ["complete", "paused", "paused"]
    worker.ledger.want("run")
    assert worker.work() == [(1, WHOLE)]
    assert states(study) == ["complete", "complete", "pruned"]


def test_a_budget_of_time_promotes_nobody_after_its_end(db, searched):
    study = store.create(db, searched.replace(budget=Budget(n_trials=7, gpu_h=1.35 / 3600)))
    worker = Worker(study)
    assert worker.work() == [(0, WHOLE), (1, RUNG), (2, RUNG)]  # 14 epochs of 0.1 s
    assert states(study) == ["complete", "pruned", "pruned"]
    assert worker.ledger.is_over()


def _work_through(url, name, index):
    opened = database.connect(url, home=None)
    worker = Worker(store.open_study(opened, name), f"w{index}")
    worker.study.optuna.get_trials(deepcopy=False)
    deadline = time.monotonic() + 100
    while not wait_for(worker.ledger.is_over, deadline=deadline):
        lease = wait_for(worker.take, deadline=deadline)
        if lease is not None:
            worker.train(lease)
    opened.close()


@pytest.mark.parametrize("epochs", [None, 50])
def test_workers_that_race_grant_no_epoch_twice_and_leave_nothing_paused(
    db, database_url, searched, epochs
):
    budget = Budget(n_trials=15, epochs=epochs)
    study = store.create(db, searched.replace(budget=budget))
    context = multiprocessing.get_context("spawn")
    processes = [
        context.Process(target=_work_through, args=(database_url, study.name, index))
        for index in range(N_WORKERS)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0] * N_WORKERS
    found = records.trials(db.engine, study.id)
    assert {trial.state for trial in found} == {"complete", "pruned"}
    assert sum(trial.n_epochs for trial in found) == spent(study)
    if epochs is None:
        assert len(found) == 15
        assert sum(trial.state == "complete" for trial in found) >= 5  # one in three
    else:
        assert spent(study) == epochs


def test_trials_of_an_older_program_go_on_to_their_end(db, searched):
    study = store.create(db, searched)
    worker = Worker(study)
    worker.train(worker.take())
    waiting = worker.take()
    worker.leases.record(waiting, [epoch(1, 50.0)])
    worker.leases.release(waiting, cause="preempted")
    as_version(db.engine, 5)
    schema.create_or_upgrade(db.engine)
    assert spent(study) == WHOLE + WHOLE
    again = worker.take()
    assert (again.number, again.until, again.n_recorded) == (1, WHOLE, 1)


def test_audited_trials_run_to_their_end_and_take_their_place_at_the_rung(db, searched):
    pruning = searched.search.pruning.replace(audit=0.5)
    spec = searched.replace(
        search=searched.search.replace(pruning=pruning, repeats=0.0), budget=Budget(n_trials=12)
    )
    worker = Worker(store.create(db, spec))
    grants = worker.work()
    trials = records.trials(db.engine, worker.study.id)
    audited = {trial.number for trial in trials if trial.audited}
    assert 2 <= len(audited) <= 9, "by lot"
    assert 0 not in audited or trials[0].name == "default"
    assert all((number, WHOLE) in grants and (number, RUNG) not in grants for number in audited)
    # Later trials are weaker: a third of the eleven others is promoted, audited or not.
    whole = {trial.number for trial in trials if trial.state == "complete"}
    assert whole == {0, 1, 2, 3} | audited
    again = store.create(db, spec.replace(name="again"))
    Worker(again).work()
    ours = records.trials(db.engine, again.id)
    assert {trial.number for trial in ours if trial.audited} == audited, "the same lot"
