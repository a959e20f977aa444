import concurrent.futures
import io

import numpy as np
import pytest
from sqlalchemy import text

from nbtl_search.errors import DataError, SpecError, StudyNotFoundError
from nbtl_search.ledger import database, ledger
from nbtl_search.ledger.leases import Leases, TrialOutcome
from nbtl_search.spec import Budget, Epoch
from nbtl_search.spec.verdict import FinalResult, FinalWeights, TestScore
from nbtl_search.study import (
    finals,
    sampling,
    stages,
    store,
    verdicts,
)

PLAN = {"n_candidates": 2, "n_confirm_seeds": 2, "n_test_seeds": 2, "averages": False}


def epoch(top1):
    return Epoch(
        epoch=1, train_loss=1.0, val_loss=1.0, val_top1=top1, val_top5=100.0, lr=0.1, n_images=8,
        seconds=2.0, micro_batch=8,
    )  # fmt: skip


def predicted():
    """The content of a predictions.npz: two images, of which one is recognised."""
    content = io.BytesIO()
    np.savez(
        content,
        labels=np.array([0, 1]),
        single=np.array([0, 0]),
        probabilities=np.array([[0.9, 0.1], [0.8, 0.2]], np.float32),
    )
    return content.getvalue()


def run_one(study, value_of, *, state="complete"):
    """Take one slot of a study and end it as a worker would; return its recipe, or None."""
    leases, known = (
        Leases(study.storage.engine, study.id, ladder=study.ladder),
        ledger.Ledger(study.storage.engine, study.id),
    )
    lease = leases.grant("w", sampling.asking(study))
    if lease is None:
        return None
    recipe = lease.recipe
    value = value_of(recipe)
    result = None
    if study.stage == "test" and state == "complete":
        result = FinalResult(
            score=TestScore(
                n_images=12, top1=value, top5=100.0, ten_crop_top1=value, ten_crop_top5=100.0
            ),
            weights=FinalWeights(host="here", folder="/nowhere", digest="d"),
        )
    else:
        leases.record(lease, [epoch(value)])
    outcome = TrialOutcome(state=state, value=value, best_epoch=1)
    leases.finish(lease, outcome, result=result, predictions=predicted())
    sampling.tell(study, known.unnotified()[0])
    known.mark_notified(lease.trial_id)
    return recipe


def stage_of(study):
    stage = finals.next_stage(study)
    assert stage is not None
    return stage


def verdict_of(study):
    verdict = verdicts.verdict_of(study)
    assert verdict is not None
    return verdict


def run_all(study, value_of):
    recipes = []
    while (recipe := run_one(study, value_of)) is not None:
        recipes.append(recipe)
    return recipes


@pytest.fixture
def searched(db, spec):
    """A study whose trials are worth more the later they come: 50, 51, …"""
    study = store.create(db, spec.replace(budget=Budget(n_trials=6)))
    values = iter(range(50, 56))
    run_all(study, lambda _recipe: float(next(values)))
    return study


def by_reinit(recipe):
    return 60.0 + recipe.dials.reinit_layers + recipe.train.seed / 100


def test_the_best_and_the_default_are_tried_with_new_seeds(searched):
    finals.begin(searched, PLAN)
    stage = stage_of(searched)
    recipes = run_all(stage, by_reinit)
    assert [recipe.train.seed for recipe in recipes] == [1, 1, 1, 2, 2, 2]
    assert {recipe.data.train_on for recipe in recipes} == {"train"}
    verdict = verdict_of(searched)
    assert [(each.trial, each.name) for each in verdict.contenders] == [
        (0, "default"),
        (5, "trial 5"),
        (4, "trial 4"),
    ]
    assert [each.search_top1 for each in verdict.contenders] == [50.0, 55.0, 54.0]


def test_the_winner_and_the_default_go_on_to_the_test_images(searched):
    finals.begin(searched, PLAN)
    first = stage_of(searched)
    assert verdict_of(searched).readings == ()
    best = {0: 70.0, 5: 60.0, 4: 80.0}
    order = iter([0, 5, 4] * 2)
    run_all(first, lambda recipe: best[next(order)] + recipe.train.seed / 10)
    second = stage_of(searched)
    assert (second.name, second.stage) == ("cats@test-1", "test")
    verdict = verdict_of(searched)
    assert (verdict.winner, verdict.stage) == (4, "test")
    assert len(verdict.readings) == 1, "recorded before an image is read"
    recipes = run_all(second, lambda recipe: 90.0 + recipe.train.seed)
    assert [recipe.train.seed for recipe in recipes] == [3, 3, 4, 4]
    assert {recipe.data.train_on for recipe in recipes} == {"train+val"}
    assert finals.next_stage(searched) is None


SEEDS = PLAN | {"n_confirm_seeds": 5}


def test_seeds_are_spent_one_at_a_time_until_the_winner_is_clear(searched):
    finals.begin(searched, SEEDS)
    first = stage_of(searched)
    trained = run_all(first, lambda recipe: {0: 45.0, 5: 57.0, 4: 44.0}[number_of(first, recipe)])
    assert [recipe.train.seed for recipe in trained] == [1, 1, 1, 2, 2, 2]
    assert stage_of(searched).stage == "test", "two seeds are enough where nobody comes near"
    verdict = verdict_of(searched)
    assert [each.confirmed.n for each in verdict.contenders] == [2, 2, 2]
    assert verdict.contenders[1].is_winner
    assert not any(each.is_tied_with_winner for each in verdict.contenders)


def test_who_can_hardly_win_any_more_gets_no_more_seeds(searched):
    finals.begin(searched, SEEDS)
    seeds: dict[int, list[int]] = {0: [], 5: [], 4: []}
    while (stage := stage_of(searched)).stage == "confirm":

        def value_of(recipe, stage=stage):
            number = number_of(stage, recipe)
            seeds[number].append(recipe.train.seed)
            return {0: 71.0, 5: 72.0, 4: 40.0}[number] + recipe.train.seed % 2

        run_all(stage, value_of)
    assert seeds == {0: [1, 2, 3, 4, 5], 5: [1, 2, 3, 4, 5], 4: [1, 2]}
    default, other, last = verdict_of(searched).contenders
    assert other.is_winner
    assert default.is_tied_with_winner
    assert not last.is_tied_with_winner
    assert other.gain.low < other.gain.mean == 1.0 < other.gain.high
    assert other.value.n == 6, "with the run of the search"


def test_a_gain_of_less_than_one_image_goes_to_the_default(searched):
    finals.begin(searched, PLAN)
    first = stage_of(searched)
    run_all(first, lambda recipe: {0: 75.0, 5: 72.6, 4: 60.0}[number_of(first, recipe)])
    # The search had 50 of the default and 55 of trial 5: by all three runs of each, that is ahead
    # by 0.07 points, and an image is 0.25.
    stage_of(searched)
    assert verdict_of(searched).winner == 0


def number_of(stage, recipe):
    """The trial of the search whose recipe this run of the first stage trains."""
    rows = stages.runs_of(stage, stage.id)
    return next(row.candidate for row in rows if row.recipe == recipe)


def test_a_candidate_that_broke_once_cannot_win(searched):
    finals.begin(searched, PLAN)
    stage = stage_of(searched)
    states = iter(["complete", "pruned", "complete"] + ["complete"] * 3)
    values = iter([50.0, 99.0, 60.0, 51.0, 99.0, 61.0])
    while run_one(stage, lambda _: next(values), state=next(states, "complete")) is not None:
        pass
    stage_of(searched)
    assert verdict_of(searched).winner == 4


def test_where_every_candidate_broke_another_round_can_be_begun(searched):
    finals.begin(searched, PLAN)
    stage = stage_of(searched)
    while run_one(stage, lambda _: 50.0, state="pruned") is not None:
        pass
    with pytest.raises(StudyNotFoundError, match="--again REASON"):
        finals.next_stage(searched)
    finals.begin(searched, PLAN, again="the machine was mended")
    assert stage_of(searched).name == "cats@confirm-2"
    assert verdict_of(searched).readings == ()


def test_two_workers_open_one_second_stage(searched, database_url):
    finals.begin(searched, PLAN)
    run_all(stage_of(searched), by_reinit)
    others = [database.connect(database_url, home=None) for _ in range(3)]
    with concurrent.futures.ThreadPoolExecutor(len(others)) as pool:
        stages = list(pool.map(lambda db: stage_of(store.open_study(db, "cats")), others))
    assert len({stage.id for stage in stages}) == 1
    verdict = verdict_of(searched)
    assert len(verdict.readings) == 1
    assert len([run for run in verdict.runs if run.stage == "test"]) == 2 * len(verdict.entries)
    for db in others:
        db.close()


def test_a_half_made_stage_is_made_anew(searched):
    half = searched.storage.optuna.create_new_study(searched.optuna.directions, "cats@confirm-1")
    searched.storage.optuna.set_study_user_attr(half, store.SPEC, "{}")
    finals.begin(searched, PLAN)
    stage = stage_of(searched)
    assert stage.id != half
    assert len(run_all(stage, by_reinit)) == 6


def test_planning_again_changes_nothing_and_another_plan_is_refused(searched):
    finals.begin(searched, PLAN)
    before = stages.latest_round(searched)
    assert finals.begin(searched, {}) == finals.begin(searched, PLAN)
    with pytest.raises(SpecError, match="is being finalised with n_test_seeds = 2"):
        finals.begin(searched, {"n_test_seeds": 3})
    assert stages.latest_round(searched) == before


def test_what_cannot_be_finalised_is_refused_and_leaves_nothing(db, spec):
    empty = store.create(db, spec)
    with pytest.raises(SpecError, match="nbtl-search stop cats"):
        finals.begin(empty, PLAN)
    ledger.Ledger(db.engine, empty.id).want("stop")
    with pytest.raises(StudyNotFoundError, match="has not trained the default recipe"):
        finals.begin(empty, PLAN)
    untested = store.create(db, spec.replace(name="untested", facts=spec.facts.replace(n_test=0)))
    with pytest.raises(DataError, match="test_fraction"):
        finals.begin(untested, PLAN)
    assert verdicts.verdict_of(empty) is None
    assert [each.name for each in store.names(db)] == ["untested", "cats"]
    assert {each.study_name for each in db.optuna.get_all_studies()} == {"cats", "untested"}


def test_final_runs_that_were_told_to_stop_wait(searched):
    finals.begin(searched, PLAN)
    stage = stage_of(searched)
    ledger.Ledger(searched.storage.engine, stage.id).want("stop")
    assert finals.next_stage(searched) is None
    waiting = finals.open_stage(searched)
    assert waiting is not None
    assert waiting.name == stage.name


def test_a_deleted_study_takes_its_final_runs_along(searched, db):
    finals.begin(searched, PLAN)
    run_all(stage_of(searched), by_reinit)
    stage_of(searched)
    store.delete(db, "cats")
    assert db.optuna.get_all_studies() == []
    with db.engine.connect() as connection:
        for table in ("study", "trial", "final", "final_run", "final_result"):
            assert connection.execute(text(f"SELECT count(*) FROM nbtl_{table}")).scalar() == 0


def test_final_runs_that_were_stopped_between_the_stages_do_not_open_the_test_images(searched):
    finals.begin(searched, PLAN)
    stage = stage_of(searched)
    run_all(stage, by_reinit)
    ledger.Ledger(searched.storage.engine, stage.id).want("stop")
    assert finals.next_stage(searched) is None
    assert verdict_of(searched).readings == ()
    ledger.Ledger(searched.storage.engine, stage.id).want("run")
    assert stage_of(searched).stage == "test"


def test_a_search_that_goes_on_afterwards_changes_nothing_of_how_the_winner_was_chosen(searched):
    finals.begin(searched, PLAN)
    run_all(stage_of(searched), by_reinit)
    stage_of(searched)
    before = verdict_of(searched).contenders
    with searched.storage.engine.begin() as connection:
        connection.execute(text("UPDATE nbtl_study SET n_trials = 8 WHERE name = 'cats'"))
    run_all(searched, lambda _recipe: 99.0)
    assert verdict_of(searched).contenders == before
