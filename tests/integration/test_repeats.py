"""Repeats on a real Postgres: trials of the same ledger, with other seeds, and what they change."""

import optuna
import pytest

from nbtl_search.ledger import records
from nbtl_search.ledger.leases import TrialOutcome
from nbtl_search.ledger.recommendation import recommend
from nbtl_search.spec import Budget, SearchSettings
from nbtl_search.spec.study import Pruning
from nbtl_search.study import finals, sampling, store
from tests.integration.test_grants import WHOLE, Worker, epoch, spent

VALUES = [75.0, 80.0, 79.0, 76.0, 60.0, 61.0]


@pytest.fixture
def searched(spec):
    return spec.replace(
        train=spec.train.replace(epochs=WHOLE, batch_size=2),
        search=SearchSettings(n_startup=3, pruning=Pruning(rungs=())),
        budget=Budget(n_trials=12),
    )


def train(worker, *, value_of):
    """Train one trial; return its lease."""
    lease = worker.take()
    if lease is not None:
        value = value_of(lease)
        worker.leases.record(lease, [epoch(n, value - 8 + n) for n in range(1, WHOLE + 1)])
        outcome = TrialOutcome(state="complete", value=value, best_epoch=WHOLE)
        worker.leases.finish(lease, outcome)
        for ended in worker.ledger.unnotified():
            sampling.tell(worker.study, ended)
            worker.ledger.mark_notified(ended.trial_id)
    return lease


def trained(study, n):
    """Train so many trials: the first by `VALUES`, the second lucky by ten points."""
    worker, firsts = Worker(study), iter(VALUES * 2)
    return [
        train(worker, value_of=lambda lease: 70.0 if "run" in lease.name else next(firsts))
        for _ in range(n)
    ]


def test_the_best_recipe_runs_again_with_another_seed(db, searched):
    study = store.create(db, searched)
    leases = trained(study, 5)
    repeat = leases[4]
    first = leases[1]
    assert repeat.name == "trial 1, run 2"
    assert repeat.recipe.dials == first.recipe.dials
    assert repeat.recipe.train.seed == first.recipe.train.seed + 1_000_002
    assert repeat.recipe == first.recipe.replace(train=repeat.recipe.train)
    trials = records.trials(db.engine, study.id)
    assert [trial.repeat_of for trial in trials] == [None] * 4 + [1]
    assert spent(study) == 5 * WHOLE


def test_the_sampler_learns_from_both_runs(db, searched):
    study = store.create(db, searched)
    trained(study, 5)
    told = study.optuna.get_trials(states=(optuna.trial.TrialState.COMPLETE,))
    assert told[4].params == told[1].params
    assert (told[1].value, told[4].value) == (80.0, 70.0)


def test_a_lucky_run_is_not_recommended(db, searched):
    study = store.create(db, searched)
    trained(study, 5)
    found = recommend(records.trials(db.engine, study.id), n_images=study.facts.n_val)
    numbers = [one.number for one, _ in found.ranked]
    assert numbers[0] == 2
    assert sorted(numbers) == [0, 1, 2, 3], "one entry for each recipe"
    trial, value = found.ranked[numbers.index(1)]
    assert (trial.number, value.n) == (1, 2)
    assert value.low < value.mean < 77.0


def test_budgets_are_exact_with_repeats(db, searched):
    study = store.create(db, searched.replace(budget=Budget(n_trials=40, epochs=7 * WHOLE)))
    leases = [lease for lease in trained(study, 9) if lease is not None]
    assert len(leases) == 7
    assert spent(study) == 7 * WHOLE
    trials = records.trials(db.engine, study.id)
    assert sum(trial.repeat_of is not None for trial in trials) == 1, "a quarter at most"


def test_an_asker_that_dies_leaves_a_repeat_that_another_adopts(db, searched):
    class Killed(BaseException):
        pass

    study = store.create(db, searched)
    trained(study, 4)
    worker = Worker(study)

    def ask_and_die(slot, repeat_of):
        sampling.ask(study, slot=slot, repeat_of=repeat_of)
        raise Killed

    with pytest.raises(Killed):
        worker.leases.grant("a", ask_and_die)
    assert len(records.trials(db.engine, study.id)) == 4
    lease = Worker(study, "b").take()
    assert lease.name == "trial 1, run 2"
    assert records.trials(db.engine, study.id)[4].repeat_of == 1
    assert len(study.optuna.get_trials()) == len(store.open_study(db, "cats").optuna.get_trials())


def test_final_runs_try_recipes_and_not_their_repeats(db, searched):
    study = store.create(db, searched.replace(budget=Budget(n_trials=6)))
    trained(study, 6)
    chosen = finals.candidates(study, n=3)
    assert chosen[0].number == 0
    assert all(trial.repeat_of is None for trial in chosen)
    assert len({trial.number for trial in chosen}) == len(chosen)


def test_a_study_without_a_share_has_none(db, searched):
    study = store.create(db, searched.replace(search=searched.search.replace(repeats=0.0)))
    trained(study, 8)
    assert all(trial.repeat_of is None for trial in records.trials(db.engine, study.id))
