"""Ablations on a real Postgres: what is planned, which seeds are spent, and what the runs say."""

import concurrent.futures
import math
import statistics

import pytest
from scipy.stats import t
from sqlalchemy import text

from nbtl_search.errors import SpecError, StudyNotFoundError
from nbtl_search.ledger import database, ledger, records
from nbtl_search.reports.terminal.status import status_of
from nbtl_search.spec import Budget, Dials, KnownRecipe
from nbtl_search.study import ablations, finals, stages, store, work
from tests.integration.test_finals import PLAN, run_all, run_one

OURS = {
    "reinit_layers": 3, "n_low": 5, "lr_low_ratio": 0.1, "n_l2sp": 14, "alpha": 1e-3,
}  # fmt: skip
VARIANTS = {
    "ours": Dials.parse(OURS),
    "without new layers": Dials.parse({**OURS, "reinit_layers": 1}),
    "without rates by depth": Dials.parse({**OURS, "n_low": 0, "lr_low_ratio": 1.0}),
    "without L2-SP": Dials.parse({**OURS, "n_l2sp": 0, "alpha": 0.0}),
    "default": Dials(),
}
FIRST = 2_000_000
N_VAL = 400


@pytest.fixture
def make(db, spec):
    """Make a study whose search is over: its recipes have ended with these values, in order."""

    def make(dials=OURS, *, values=(50.0, 60.0), n_trials=2):
        known = (KnownRecipe(name="default"), KnownRecipe(name="ours", dials=dials))
        search = spec.search.replace(known=known)
        study = store.create(db, spec.replace(search=search, budget=Budget(n_trials=n_trials)))
        given = iter(values)
        run_all(study, lambda _: next(given))
        return study

    return make


def stage_of(study):
    stage = ablations.next_stage(study)
    assert stage is not None
    return stage


def ablation_of(study):
    found = ablations.ablation_of(study)
    assert found is not None
    return found


def name_of(recipe):
    return next(name for name, dials in VARIANTS.items() if dials == recipe.dials)


def by_name(means):
    """Give each recipe its mean, one point below it with even seeds and one above with odd ones."""
    return lambda recipe: means[name_of(recipe)] + (1 if recipe.train.seed % 2 else -1)


MEANS = {
    "ours": 81.0,
    "without new layers": 61.0,
    "without rates by depth": 80.0,
    "without L2-SP": 85.0,
    "default": 51.0,
}


def run_to_its_end(study, value_of):
    """Run all that is planned; return the recipes' names and seeds, turn by turn."""
    turns = []
    while (stage := ablations.next_stage(study)) is not None:
        recipes = run_all(stage, value_of)
        turns.append([(name_of(recipe), recipe.train.seed - FIRST) for recipe in recipes])
    return turns


def binomial(accuracy):
    p = (accuracy / 100 * N_VAL + 1) / (N_VAL + 2)
    return 1e4 * p * (1 - p) / N_VAL


def half_width(mine, theirs, *, all_runs, n, confidence=0.95):
    """The half of a t interval, worked out here: noise pooled over all runs and the prior."""
    groups = [runs for runs in all_runs if len(runs) > 1]
    n_free = 4 + sum(len(runs) - 1 for runs in groups)
    scaled = [
        (len(runs) - 1) * statistics.variance(runs) / binomial(statistics.fmean(runs))
        for runs in groups
    ]
    dispersion = (4 * 1.0 + sum(scaled)) / n_free
    variance = dispersion * (binomial(mine) + binomial(theirs)) / n
    return t.ppf((1 + confidence) / 2, n_free) * math.sqrt(variance)


def test_the_recipe_the_same_without_each_group_and_the_default_have_the_same_new_seeds(make, db):
    study = make()
    ablations.begin(study)
    stage = stage_of(study)
    assert (stage.name, stage.stage) == ("cats@ablation-1", "ablation")
    recipes = run_all(stage, by_name(MEANS))
    assert [recipe.dials for recipe in recipes] == [*VARIANTS.values()] * 2
    assert [recipe.train.seed - FIRST for recipe in recipes] == [0] * 5 + [1] * 5
    assert {recipe.data.train_on for recipe in recipes} == {"train"}
    whole = records.recipe(db.engine, study.id, 1)
    assert whole is not None
    for recipe in recipes:
        same = recipe.replace(dials=whole.dials, train=recipe.train.replace(seed=0))
        assert same == whole, "nothing else differs"
    assert [trial.name for trial in records.trials(db.engine, stage.id)][:2] == [
        "ours, seed 2000000",
        "without new layers, seed 2000000",
    ]
    assert [each.name for each in store.names(db)] == ["cats"]
    tasks = {stages.task_of(stage, number) for number in range(10)}
    assert tasks == {stages.FinalTask()}, "weights are not kept"


def test_seeds_go_to_what_cannot_be_told_yet(make):
    study = make()
    ablations.begin(study)
    first, second, third = run_to_its_end(study, by_name(MEANS))
    assert first == [(name, seed) for seed in (0, 1) for name in VARIANTS]
    # 20 and 30 points are beyond doubt. L2-SP costs 4, more than the 95 % interval, which counts
    # only with the last seed, but less than the 99 % one.
    runs = {name: [mean - 1, mean + 1] for name, mean in MEANS.items()}
    widths = [
        half_width(81, 85, all_runs=runs.values(), n=2, confidence=confidence)
        for confidence in (0.95, 0.99)
    ]
    assert widths[0] < 4 < widths[1]
    assert second == [(name, 2) for name in ("ours", "without rates by depth", "without L2-SP")]
    # With the even seed all three have one more at a point below their mean.
    for name in ("ours", "without rates by depth", "without L2-SP"):
        runs[name].append(MEANS[name] - 1)
    width = half_width(81 - 1 / 3, 85 - 1 / 3, all_runs=runs.values(), n=3, confidence=0.99)
    assert width < 4
    assert third == [(name, 3) for name in ("ours", "without rates by depth")]


def test_each_group_has_its_worth_with_an_interval_and_a_word(make):
    study = make()
    ablations.begin(study)
    run_to_its_end(study, by_name(MEANS))
    found = ablation_of(study)
    assert (found.trial, found.name, found.is_done, found.n_seeds) == (1, "ours", True, 4)
    assert (found.recipe.n, found.recipe.mean) == (4, 81.0)
    layers, rates, l2sp = found.groups
    assert [one.group for one in found.groups] == ["new layers", "rates by depth", "L2-SP"]
    assert [one.need for one in found.groups] == ["needed", "cannot be told", "harmful"]
    assert layers.changes == {"reinit_layers": (3, 1)}
    assert rates.changes == {"n_low": (5, 0), "lr_low_ratio": (0.1, 1.0)}
    assert l2sp.changes == {"n_l2sp": (14, 0), "alpha": (1e-3, 0.0)}
    n_runs = {"ours": 4, "without rates by depth": 4, "without L2-SP": 3}
    runs = {
        name: [mean - 1, mean + 1, mean - 1, mean + 1][: n_runs.get(name, 2)]
        for name, mean in MEANS.items()
    }
    for worth, gain, n, name in (
        (layers, 20.0, 2, "without new layers"),
        (rates, 1.0, 4, "without rates by depth"),
        (l2sp, -4.0, 3, "without L2-SP"),
        (found.total, 30.0, 2, "default"),
    ):
        half = half_width(
            statistics.fmean(runs["ours"][:n]),
            statistics.fmean(runs[name]),
            all_runs=runs.values(),
            n=n,
        )
        assert worth.gain.n == worth.without.n == n
        assert worth.gain.mean == pytest.approx(gain)
        assert worth.gain.low == pytest.approx(gain - half)
        assert worth.gain.high == pytest.approx(gain + half)
    assert found.total.group == "all"
    assert found.total.need == "needed"


def test_a_difference_too_small_to_matter_is_not_needed(make):
    study = make()
    large = study.spec.facts.replace(n_val=200_000)
    study = store.Study(
        name=study.name, id=study.id, uid=study.uid, storage=study.storage,
        spec=study.spec.replace(facts=large),
    )  # fmt: skip
    ablations.begin(study)
    means = MEANS | {"without rates by depth": 80.9, "without L2-SP": 81.02}
    turns = []
    while (stage := ablations.next_stage(study)) is not None:
        turns.append(len(run_all(stage, lambda recipe: means[name_of(recipe)])))
    assert turns == [10], "nothing is gained by further seeds"
    assert [one.need for one in ablation_of(study).groups] == ["needed", "not needed", "not needed"]


def test_begun_again_it_is_the_same_and_more_seeds_go_on(make):
    study = make()
    ablations.begin(study)
    stage = stage_of(study)
    run_one(stage, by_name(MEANS))
    before = ablations.latest_round(study)
    ablations.begin(study)
    ablations.begin(study, trial=1, n_seeds=4)
    assert ablations.latest_round(study) == before
    turns = run_to_its_end(study, by_name(MEANS))
    found = ablation_of(study)
    assert [len(turn) for turn in turns] == [9, 3, 2]
    ablations.begin(study)
    assert ablations.next_stage(study) is None
    assert ablations.open_stage(study) is None
    assert ablation_of(study) == found
    ablations.begin(study, n_seeds=5)
    assert run_to_its_end(study, by_name(MEANS)) == [
        [(name, 4) for name in ("ours", "without rates by depth")]
    ]
    assert ablation_of(study).n_seeds == 5


def test_many_workers_plan_the_next_seed_once(make, database_url):
    study = make()
    ablations.begin(study)
    run_all(stage_of(study), by_name(MEANS))
    others = [database.connect(database_url, home=None) for _ in range(3)]
    with concurrent.futures.ThreadPoolExecutor(len(others)) as pool:
        found = list(pool.map(lambda db: stage_of(store.open_study(db, "cats")), others))
    assert len({stage.id for stage in found}) == 1
    assert stages.counts(found[0]) == (10, 13)
    for db in others:
        db.close()


def test_a_half_made_one_is_made_anew(make):
    study = make()
    half = study.storage.optuna.create_new_study(study.optuna.directions, "cats@ablation-1")
    study.storage.optuna.set_study_user_attr(half, store.SPEC, "{}")
    ablations.begin(study)
    assert stage_of(study).id != half
    assert stages.counts(stage_of(study)) == (0, 10)


def test_what_fails_runs_no_more_and_cannot_be_told(make):
    study = make()
    ablations.begin(study)
    stage = stage_of(study)
    states = iter(["complete"] * 3 + ["failed"] + ["complete"] * 4 + ["failed"])
    while run_one(stage, by_name(MEANS), state=next(states, "complete")) is not None:
        pass
    assert [name for name, _ in run_to_its_end(study, by_name(MEANS))[0]] == [
        "ours",
        "without rates by depth",
    ]
    l2sp = ablation_of(study).groups[2]
    assert (l2sp.gain, l2sp.need, l2sp.n_failed) == (None, "cannot be told", 2)


def test_a_recipe_that_fails_ends_its_ablation(make):
    study = make()
    ablations.begin(study)
    run_one(stage_of(study), by_name(MEANS), state="failed")
    assert [len(turn) for turn in run_to_its_end(study, by_name(MEANS))] == [9]
    found = ablation_of(study)
    assert found.is_done
    assert [one.gain.n for one in found.groups] == [1, 1, 1]


def test_of_a_single_group_the_default_is_what_is_left(make):
    study = make({"reinit_layers": 2})
    ablations.begin(study, n_seeds=2)
    recipes = run_all(stage_of(study), lambda recipe: 70.0 + recipe.dials.reinit_layers)
    assert [recipe.dials.reinit_layers for recipe in recipes] == [2, 1, 2, 1]
    found = ablation_of(study)
    (layers,) = found.groups
    assert layers.gain == found.total.gain
    assert layers.variant == found.total.variant == 1
    assert {run.name for run in found.runs} == {"ours", "default"}


def test_another_recipe_is_another_round_with_other_seeds(make):
    study = make(values=(50.0, 60.0, 40.0), n_trials=3)
    ablations.begin(study, n_seeds=2)
    with pytest.raises(SpecError, match=r"that of trial 1 .* has not; finish it first"):
        ablations.begin(study, trial=2)
    run_all(stage_of(study), lambda _: 60.0)
    ablations.begin(study, trial=2, n_seeds=2)
    stage = stage_of(study)
    assert stage.name == "cats@ablation-2"
    recipes = run_all(stage, lambda _: 60.0)
    assert {recipe.train.seed for recipe in recipes} == {FIRST + 1000, FIRST + 1001}
    assert ablation_of(study).trial == 2
    ablations.begin(study)
    assert stage_of(study).name == "cats@ablation-3", "of the recommended recipe again"


def test_what_cannot_be_ablated_is_refused_and_leaves_nothing(make, db, spec):
    empty = store.create(db, spec.replace(name="empty"))
    with pytest.raises(SpecError, match="nbtl-search stop empty"):
        ablations.begin(empty)
    ledger.Ledger(db.engine, empty.id).want("stop")
    with pytest.raises(StudyNotFoundError, match="has not trained the default recipe"):
        ablations.begin(empty)
    study = make(values=(70.0, 60.0))
    with pytest.raises(SpecError, match=r"trial 0 \(default\) of study 'cats' does not"):
        ablations.begin(study)
    with pytest.raises(StudyNotFoundError, match="has not trained trial 9 to its end"):
        ablations.begin(study, trial=9)
    assert ablations.ablation_of(study) is None
    assert {each.study_name for each in db.optuna.get_all_studies()} == {"cats", "empty"}
    ablations.begin(study, trial=1)
    with pytest.raises(SpecError, match="got the final runs 'cats@ablation-1'"):
        ablations.begin(stage_of(study))


def test_final_runs_and_an_ablation_are_not_at_work_at_once(make, db):
    study = make()
    work.check_alone(study, "finalize")
    ablations.begin(study)
    work.check_alone(study, "ablate")
    with pytest.raises(SpecError, match=r"'cats@ablation-1' is at work; .* ablate cats"):
        work.check_alone(study, "finalize")
    stage = stage_of(study)
    assert work.open_stage(study) == work.next_stage(study) == stage
    ledger.Ledger(db.engine, stage.id).want("stop")
    assert work.next_stage(study) is None, "it waits"
    work.check_alone(study, "finalize")
    finals.begin(study, PLAN)
    with pytest.raises(SpecError, match=r"'cats@confirm-1' is at work; .* finalize cats"):
        work.check_alone(study, "ablate")
    assert work.open_stage(study).name == work.next_stage(study).name == "cats@confirm-1"


def test_the_status_of_its_study_tells_of_it_and_deleting_takes_it_along(make, db):
    study = make()
    assert status_of(study).ablation is None
    ablations.begin(study)
    stage = stage_of(study)
    run_one(stage, by_name(MEANS))
    assert status_of(study).ablation == {"stage": "ablation", "n_done": 1, "n_runs": 10}
    assert status_of(study).complete == 2, "its runs do not count as trials"
    own = status_of(stage)
    assert (own.measure, own.n_trials, own.complete) == ("validation top-1", 10, 1)
    store.delete(db, "cats")
    assert db.optuna.get_all_studies() == []
    with db.engine.connect() as connection:
        for table in ("study", "trial", "ablation", "final_run"):
            assert connection.execute(text(f"SELECT count(*) FROM nbtl_{table}")).scalar() == 0
