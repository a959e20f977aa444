"""Averages of weights in the two stages of a finalisation, as far as the database knows them."""

import concurrent.futures
import io
import time

import pytest
from rich.console import Console

from nbtl_search.ledger import database, ledger
from nbtl_search.reports.terminal.finals import render
from nbtl_search.spec import Budget, KnownRecipe
from nbtl_search.spec.study import Row
from nbtl_search.study import finals, stages, store
from nbtl_search.worker.retention import DAY_S, Retention, finals_of, leftovers
from nbtl_search.worker.settings import WorkerSettings
from tests.integration.test_finals import run_all, run_one, stage_of, verdict_of

pytestmark = [pytest.mark.postgres]

PLAN = {"n_candidates": 2, "n_confirm_seeds": 2, "n_test_seeds": 3}
ALONE = {0: 70.0, 5: 72.0, 4: 71.0}


def searched(db, spec):
    """Return a study of recipes with one new layer, worth more the later they come: 50, 51, …"""
    search = spec.search.replace(rows={"reinit_layers": Row(fixed=1)})
    study = store.create(db, spec.replace(search=search, budget=Budget(n_trials=6)))
    values = iter(range(50, 56))
    run_all(study, lambda _recipe: float(next(values)))
    return study


@pytest.fixture
def confirmed(db, spec):
    """A study whose candidates 0, 5 and 4 have ended in the first stage."""
    study = searched(db, spec)
    finals.begin(study, PLAN)
    order = iter([0, 5, 4] * 2)
    run_all(stage_of(study), lambda recipe: ALONE[next(order)] + recipe.train.seed / 10)
    return study


def planned(stage):
    """Return (trials, seed, state) of a stage's averages."""
    return [
        (tuple(run.averaged), run.recipe.train.seed, run.state)
        for run in stages.runs_of(stage, stage.id)
        if run.averaged
    ]


def in_turn(*values):
    """Return what gives each run of two seeds its value."""
    both = iter([value for value in values for _ in range(2)])
    return lambda _recipe: next(both)


def test_averages_are_added_one_after_the_other(confirmed):
    stage = stage_of(confirmed)
    assert stage.stage == "confirm"
    assert planned(stage) == [((5, 4), 1, None), ((5, 4), 2, None)]
    run_all(stage, in_turn(73.0))
    again = stage_of(confirmed)
    assert planned(again)[2:] == [((5, 4, 0), 1, None), ((5, 4, 0), 2, None)]
    run_all(again, in_turn(60.0))
    assert stage_of(confirmed).stage == "test"
    verdict = verdict_of(confirmed)
    assert [(one.name, one.search_top1) for one in verdict.contenders] == [
        ("default", 50.0),
        ("trial 5", 55.0),
        ("trial 4", 54.0),
        ("average of trial 5, trial 4", None),
        ("average of trial 5, trial 4, default", None),
    ]
    assert [one.is_winner for one in verdict.contenders] == [False, False, False, True, False]
    assert (verdict.winner, verdict.contenders[3].averaged) == (5, (5, 4))


def test_the_runs_that_are_averaged_are_those_of_its_seed(confirmed):
    stage = stage_of(confirmed)
    run_all(stage, in_turn(70.0))
    by_number = {run.number: run for run in stages.runs_of(stage, stage.id)}
    assert sorted(by_number) == list(range(8))
    for number, run in by_number.items():
        task = stages.task_of(stage, number)
        members = [by_number[member] for member in task.members]
        assert [member.candidate for member in members] == list(run.averaged or ())
        assert {member.recipe.train.seed for member in members} <= {run.recipe.train.seed}
        assert all(member.averaged is None for member in members)
        assert task.is_kept == (run.averaged is None), "the weights of what may be averaged"


@pytest.mark.parametrize("averages", [True, False])
def test_weights_that_nobody_averages_are_not_kept(db, spec, averages):
    study = searched(db, spec)
    finals.begin(study, PLAN | {"averages": averages})
    stage = stage_of(study)
    run_one(stage, lambda _: 70.0)
    assert stages.task_of(stage, 0).is_kept == averages


def test_weights_of_a_recipe_that_starts_alone_are_not_kept(db, spec):
    alone = KnownRecipe(name="alone", dials={"reinit_layers": 3})
    known = (*spec.search.known, alone)
    study = searched(db, spec.replace(search=spec.search.replace(known=known)))
    finals.begin(study, PLAN | {"n_candidates": 5})
    stage = stage_of(study)
    run_all(stage, lambda _: 70.0)
    kept = {
        run.recipe.dials.reinit_layers: stages.task_of(stage, run.number).is_kept
        for run in stages.runs_of(stage, stage.id)
    }
    assert kept == {1: True, 3: False}


def test_an_average_that_won_is_made_anew_of_runs_on_new_seeds(confirmed):
    run_all(stage_of(confirmed), in_turn(73.0))
    run_all(stage_of(confirmed), in_turn(60.0))
    tested = stage_of(confirmed)
    order = iter([0, 5, 4] * 3)
    best = {0: 60.0, 5: 62.0, 4: 61.0}
    recipes = run_all(tested, lambda recipe: best[next(order)] + recipe.train.seed / 10)
    assert [recipe.train.seed for recipe in recipes] == [3, 3, 3, 4, 4, 4, 5, 5, 5]
    # Every run has ended that was planned; still it is not over.
    waiting = finals.open_stage(confirmed)
    assert waiting is not None
    half = verdict_of(confirmed)
    assert (half.stage, half.winning.averaged, half.gain) == ("test", (5, 4), None)
    stage = stage_of(confirmed)
    assert planned(stage) == [((5, 4), seed, None) for seed in (3, 4, 5)]
    recipes = run_all(stage, lambda recipe: 64.0 + recipe.train.seed / 10)
    assert {recipe.data.train_on for recipe in recipes} == {"train+val"}
    assert finals.next_stage(confirmed) is None
    assert finals.open_stage(confirmed) is None
    verdict = verdict_of(confirmed)
    assert verdict.stage == "done"
    assert [entry.name for entry in verdict.entries] == [
        "default",
        "trial 5",
        "trial 4",
        "average of trial 5, trial 4",
    ]
    assert [entry.single.n for entry in verdict.entries] == [3, 3, 3, 3]
    assert verdict.winning.single.mean == pytest.approx(64.4)
    assert verdict.gain.mean == pytest.approx(4.0)


def test_a_seed_whose_run_broke_has_no_average(confirmed):
    run_all(stage_of(confirmed), in_turn(73.0))
    run_all(stage_of(confirmed), in_turn(60.0))
    tested = stage_of(confirmed)
    states = iter(["complete", "pruned"])
    while run_one(tested, lambda _: 60.0, state=next(states, "complete")) is not None:
        pass
    assert planned(stage_of(confirmed)) == [((5, 4), seed, None) for seed in (4, 5)]


def test_where_the_average_cannot_be_made_its_best_recipe_stands_for_it(confirmed):
    run_all(stage_of(confirmed), in_turn(73.0))
    run_all(stage_of(confirmed), in_turn(60.0))
    run_all(stage_of(confirmed), lambda _: 60.0)
    while run_one(stage_of(confirmed), lambda _: 0.0, state="failed") is not None:
        if finals.open_stage(confirmed) is None:
            break
    verdict = verdict_of(confirmed)
    assert (verdict.stage, verdict.winner, verdict.unmade) == ("done", 5, (5, 4))
    assert [entry.name for entry in verdict.entries] == ["default", "trial 4", "trial 5"]
    assert [one.name for one in verdict.contenders if one.is_winner] == ["trial 5"]
    assert verdict.gain.n == 3
    drawn = io.StringIO()
    Console(file=drawn, width=200).print(render(verdict, name="cats"))
    assert "An average of 2 recipes had the highest bound" in drawn.getvalue()


def test_where_no_seed_has_all_its_runs_the_finalisation_ends_without(confirmed):
    run_all(stage_of(confirmed), in_turn(73.0))
    run_all(stage_of(confirmed), in_turn(60.0))
    tested = stage_of(confirmed)
    states = iter(["complete", "pruned", "complete"] * 3)
    while run_one(tested, lambda _: 60.0, state=next(states, "complete")) is not None:
        pass
    assert finals.next_stage(confirmed) is None
    verdict = verdict_of(confirmed)
    assert (verdict.stage, verdict.unmade) == ("done", (5, 4))
    assert (verdict.winning.name, verdict.winning.single.n, verdict.gain) == ("trial 5", 0, None)


def test_a_round_that_waits_for_its_averages_is_not_left_for_another(confirmed):
    assert finals.begin(confirmed, {}, again="a reason") == finals.Plan().replace(**PLAN)
    assert len(stages.every_round(confirmed)) == 1


def test_an_average_that_failed_neither_wins_nor_is_extended(confirmed):
    stage = stage_of(confirmed)
    while run_one(stage, lambda _: 99.0, state="failed") is not None:
        pass
    assert planned(stage_of(confirmed))[2:] == [((5, 0), 1, None), ((5, 0), 2, None)]
    run_all(stage_of(confirmed), in_turn(10.0))
    assert stage_of(confirmed).stage == "test"
    verdict = verdict_of(confirmed)
    assert [entry.name for entry in verdict.entries] == ["default", "trial 5"]


@pytest.mark.usefixtures("confirmed")
def test_all_workers_add_the_same_averages_once(database_url):
    others = [database.connect(database_url, home=None) for _ in range(3)]
    with concurrent.futures.ThreadPoolExecutor(len(others)) as pool:
        found = list(pool.map(lambda db: stage_of(store.open_study(db, "cats")), others))
    assert len({stage.id for stage in found}) == 1
    assert len(planned(found[0])) == 2
    for db in others:
        db.close()


def test_without_averages_the_test_stage_follows_at_once(db, spec):
    study = searched(db, spec)
    finals.begin(study, PLAN | {"averages": False})
    run_all(stage_of(study), lambda _: 70.0)
    assert stage_of(study).stage == "test"


def test_a_round_that_was_stopped_between_its_runs_and_its_averages_goes_on(confirmed):
    stage = finals.open_stage(confirmed)
    assert stage is not None
    ledger.Ledger(confirmed.storage.engine, stage.id).want("stop")
    assert finals.next_stage(confirmed) is None
    ledger.Ledger(confirmed.storage.engine, stage.id).want("run")
    assert len(planned(stage_of(confirmed))) == 2


def weights_of(stage, home):
    folder = finals_of(stage, home)
    (folder / "0").mkdir(parents=True)
    (folder / "0" / "model.safetensors").write_bytes(b"x" * 1000)
    return folder


def found(stages_, home, *, all_studies):
    every = leftovers(
        home, stages_, all_studies=all_studies, logs_older_than_s=DAY_S, now_s=time.time()
    )
    return {item.path: item.why for item in every}


def test_weights_of_the_first_stage_go_when_the_second_has_begun(confirmed, tmp_path):
    settings = WorkerSettings(home=tmp_path)
    first = stage_of(confirmed)
    confirm = weights_of(first, tmp_path)
    Retention(study=first, settings=settings).sweep()
    assert confirm.exists(), "they are still to be averaged"
    assert found([confirmed, first], tmp_path, all_studies=True) == {}
    run_all(first, in_turn(60.0))
    run_all(stage_of(confirmed), in_turn(60.0))
    second = stage_of(confirmed)
    assert second.stage == "test"
    test = weights_of(second, tmp_path)
    assert found([confirmed, first, second], tmp_path, all_studies=False) == {
        confirm: "weights of a confirm stage that is over"
    }
    Retention(study=second, settings=settings).sweep()
    assert not confirm.exists()
    assert test.exists(), "the verdict speaks of them"


def test_weights_of_a_first_stage_that_was_deleted_are_found(confirmed, db, tmp_path):
    first = stage_of(confirmed)
    confirm = weights_of(first, tmp_path)
    store.delete(db, "cats")
    assert found([], tmp_path, all_studies=False) == {}, "of another database, perhaps"
    assert found([], tmp_path, all_studies=True) == {
        confirm: "weights of a confirm stage that is not in the database"
    }
