"""Forks of a study on a real Postgres: what is taken over, what is not, and why."""

import json

import pytest
from optuna.trial import TrialState
from optuna_dashboard import get_note

from nbtl_search import space
from nbtl_search.errors import SpecError, StudyExistsError, StudyNotFoundError
from nbtl_search.ledger import records
from nbtl_search.ledger.leases import TrialOutcome
from nbtl_search.ledger.ledger import Ledger
from nbtl_search.ledger.recommendation import recommend
from nbtl_search.reports.dashboard.pages import AnnotatedStorage, Pages
from nbtl_search.reports.terminal.status import status_of
from nbtl_search.spec import Budget, Row, SearchSettings, TrainSettings
from nbtl_search.spec.study import Pruning
from nbtl_search.study import finals, sampling, store, warm_start
from nbtl_search.study.fork import evidence, incomparable
from nbtl_search.workspace.workspace import Workspace
from tests.integration.test_extension import PLAN
from tests.integration.test_grants import RUNG, WHOLE, Worker

N_DESIGN = 4


@pytest.fixture
def past(spec):
    """The specification of the source: eight epochs, a rung after the third."""
    return spec.replace(
        train=TrainSettings(epochs=WHOLE, batch_size=2),
        search=SearchSettings(
            n_startup=N_DESIGN,
            pruning=Pruning(rungs=(0.25,), reduction=3, min_epochs=RUNG, audit=0),
            known=tuple(  # inside the space
                one.replace(dials={**one.dials, "beta": 1e-3}) for one in spec.search.known
            ),
        ),
        budget=Budget(n_trials=10),
    )


@pytest.fixture
def source(db, past):
    """A search that is over: trials that ran to their end, and trials that stayed at the rung."""
    study = store.create(db, past)
    Worker(study).work()
    assert Ledger(db.engine, study.id).is_over()
    return study


def fork(source, spec):
    return store.create(source.storage, spec, evidence=evidence(source, spec))


def named(spec, name, **changes):
    return spec.replace(name=name, **changes)


def trials_of(study):
    return records.trials(study.storage.engine, study.id)


def carried(study):
    return [trial for trial in study.optuna.get_trials() if store.SOURCE in trial.user_attrs]


def waiting(study):
    return study.optuna.get_trials(states=(TrialState.WAITING,))


def asked_after(study, n):
    """Return the dials of the next trial, after the n that wait."""
    worker = Worker(study)
    for _ in range(n):
        worker.train(worker.take(), 50.0)
    return worker.take().recipe.dials


def with_rows(spec, **rows):
    return spec.search.replace(rows=rows)


def test_every_ended_trial_is_an_ended_trial_of_the_forks_sampler(source, past):
    new = fork(source, named(past, "more"))
    of_source = trials_of(source)
    assert {trial.state for trial in of_source} == {"complete", "pruned"}
    assert store.fork_of(new).n_carried == len(of_source) == 10
    assert store.fork_of(new).left_out == {}
    built = space.build_for(past.search, past.facts)
    for theirs, ours in zip(of_source, carried(new), strict=True):
        assert ours.user_attrs[store.SOURCE] == f"cats trial {theirs.number}"
        assert ours.params == space.params_of(built, theirs.dials)
        assert space.dials_of(built, ours.params) == theirs.dials or theirs.name
        assert ours.state.name.lower() == theirs.state
        assert set(ours.intermediate_values) == set(
            range(1, (WHOLE if theirs.state == "complete" else RUNG) + 1)
        )
    told = {trial.number: trial.value for trial in carried(new)}
    assert told == {trial.number: trial.value for trial in of_source}


def test_distributions_are_those_that_the_fork_asks_with(source, past):
    new = fork(source, named(past, "wider", search=with_rows(past, lr_high=Row(high=0.5))))
    lows = {trial.distributions["lr_high"].high for trial in carried(new)}
    assert lows == {0.5}
    asked_after(new, len(waiting(new)))  # Optuna refuses other distributions of a name


def test_they_cost_nothing_and_are_no_results(source, past):
    new = fork(source, named(past, "more", budget=Budget(n_trials=3, epochs=3 * WHOLE)))
    report = status_of(new, trials_of(new))
    assert (report.complete, report.pruned, report.running, report.n_trials) == (0, 0, 0, 3)
    assert (report.epochs_spent, report.best) == (0, None)
    assert (report.default["trial"], report.default["value"]) == (None, None)
    worker = Worker(new)
    worker.work()
    ours = trials_of(new)
    assert [trial.number for trial in ours] == [10, 11, 12], "consecutive, after what was carried"
    assert records.default_of(ours).number == 10
    assert worker.ledger.is_over()
    assert records.ranked(ours)[0].value < max(trial.value for trial in carried(new))
    assert trials_of(source) == [t for t in trials_of(source) if t.state in {"complete", "pruned"}]


def test_the_sampler_starts_from_them(db, source, past):
    new = fork(source, named(past, "more"))
    plain = store.create(db, named(past, "plain"))
    (default,) = waiting(new)
    assert default.user_attrs[store.NAME] == "default", "what was tried is not tried again"
    assert len(waiting(plain)) == 2 + N_DESIGN
    # The same slot, and so the same seed: what differs is what the sampler knows.
    same = store.create(db, named(past, "same"))
    proposals = []
    for study in (new, plain, same):
        for trial in waiting(study):
            db.optuna.set_trial_state_values(trial._trial_id, TrialState.RUNNING)
            db.optuna.set_trial_state_values(trial._trial_id, TrialState.FAIL)
        proposals.append(sampling.ask(study, slot=7).recipe.dials)
    assert proposals[0] != proposals[1] == proposals[2]


def test_start_up_points_make_up_for_evidence_that_is_wanting(db, past):
    source = store.create(db, past)
    worker = Worker(source)
    for _ in range(3):  # the default, the other known recipe, one start-up point
        worker.train(worker.take(), 50.0)
    new = fork(source, named(past, "more"))
    assert store.fork_of(new).n_carried == 3
    default, design = waiting(new)
    assert default.user_attrs[store.NAME] == "default"
    built = space.build_for(past.search, past.facts)
    points = space.design(built, n=N_DESIGN, seed=past.search.seed)
    assert trials_of(source)[2].dials == space.dials_of(built, points[0])
    assert design.system_attrs["fixed_params"] == points[1], "the first was tried"


def test_what_is_paused_is_evidence_and_what_runs_is_not(db, past):
    source = store.create(db, past)
    worker = Worker(source)
    for top1 in (50.0, 60.0):
        worker.train(worker.take(), top1)
    worker.take()
    assert [trial.state for trial in trials_of(source)] == ["complete", "paused", "running"]
    new = fork(source, named(past, "more"))
    assert store.fork_of(new).left_out == {"not ended": 1}
    complete, paused = carried(new)
    assert (complete.state, paused.state) == (TrialState.COMPLETE, TrialState.PRUNED)
    assert paused.value == paused.intermediate_values[RUNG] == 60.0 + RUNG / 10
    assert [trial.state for trial in trials_of(source)] == ["complete", "paused", "running"]


def test_what_could_not_be_trained_stays_infeasible(db, past):
    source = store.create(db, past)
    worker = Worker(source)
    worker.train(worker.take(), 50.0)
    worker.leases.finish(worker.take(), TrialOutcome(state="pruned", cause="diverged"))
    worker.leases.finish(worker.take(), TrialOutcome(state="failed", cause="user_error"))
    new = fork(source, named(past, "more"))
    assert store.fork_of(new).left_out == {"failed": 1}
    diverged = carried(new)[1]
    assert (diverged.state, diverged.value) == (TrialState.PRUNED, None)
    assert diverged.constraints == {"trainable": 1.0}
    assert diverged.user_attrs["nbtl:cause"] == "diverged"


def test_what_lies_outside_the_new_space_is_left_out_by_dial(source, past):
    rates = sorted(trial.dials.lr_high for trial in trials_of(source))
    low = max(rates) * 0.5
    n_below = sum(rate < low for rate in rates)
    assert 0 < n_below < 10
    spec = named(past, "narrow", search=with_rows(past, lr_high=Row(low=low)))
    new = fork(source, spec)
    assert store.fork_of(new).n_carried == 10 - n_below
    assert store.fork_of(new).left_out == {"outside the new space: lr_high": n_below}
    assert sorted(trial.params["lr_high"] for trial in carried(new)) == rates[n_below:]


def test_a_row_that_is_gone_must_have_been_off(source, past):
    spec = named(past, "fixed", search=with_rows(past, reinit_layers=Row(fixed=1)))
    new = fork(source, spec)
    is_one = [trial.dials.reinit_layers == 1 for trial in trials_of(source)]
    assert 0 < sum(is_one) < 10
    assert store.fork_of(new).n_carried == sum(is_one)
    assert store.fork_of(new).left_out == {"outside the new space: reinit_layers": 10 - sum(is_one)}
    assert all("reinit_layers" not in trial.params for trial in carried(new))


def test_a_longer_schedule_takes_over_recipes_and_no_accuracies(source, past):
    spec = named(past, "long", train=past.train.replace(epochs=16))
    new = fork(source, spec)
    taken = store.fork_of(new)
    assert (taken.n_carried, carried(new)) == (0, [])
    assert taken.left_out == {"train.epochs: 8 != 16": 10}
    best = [trial for trial in records.ranked(trials_of(source)) if trial.name != "default"]
    expected = [trial for trial in best if trial.name != "paper"][:3]
    assert [recipe.name for recipe in taken.recipes] == [
        f"cats trial {trial.number}" for trial in expected
    ]
    assert taken.recipes
    default, paper, *first = waiting(new)
    assert (default.user_attrs[store.NAME], paper.user_attrs[store.NAME]) == ("default", "paper")
    for trial, theirs in zip(first, expected, strict=False):
        assert json.loads(trial.user_attrs[store.DIALS]) == theirs.dials.model_dump(mode="json")
        worth = recommend(trials_of(source), n_images=400).value_of(theirs)
        assert f"{worth.mean:.2f}" in trial.user_attrs[store.REASON]
    assert len(first) == N_DESIGN, "the source's recipes count among the start-up points"
    assert store.SOURCE not in first[0].user_attrs


def test_only_recipes_inside_the_new_space_are_tried(source, past):
    best = records.ranked(trials_of(source))[1].dials.lr_high
    search = with_rows(past, lr_high=Row(low=best * 1.001))
    taken = store.fork_of(
        fork(source, named(past, "long", train=past.train.replace(epochs=16), search=search))
    )
    assert all(recipe.dials["lr_high"] > best for recipe in taken.recipes)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"train": {"seed": 5, "n_loaders": 0, "device": "cpu", "n_threads": 2}}, []),
        ({"search": {"seed": 3, "n_startup": 9}, "budget": {"n_trials": 99}}, []),
        ({"data": {"root": "/elsewhere", "split_seed": 4}, "description": "other"}, []),
        ({"train": {"batch_size": 4}}, ["train.batch_size: 2 != 4"]),
        ({"train": {"optimiser": "adamw"}}, ["train.optimiser: None != 'adamw'"]),
        ({"augment": {"mixup": 0.0}}, ["augment.mixup: 0.2 != 0.0"]),
        ({"data": {"image_px": 64}}, ["data.image_px: 299 != 64"]),
        ({"compat": "authors"}, ["compat: 'paper' != 'authors'"]),
        ({"facts": {"data_digest": "e" * 16, "n_train": 31}}, ["other images, or another split"]),
        ({"facts": {"weights_digest": "e" * 16}}, ["other weights"]),
    ],
)
def test_what_decides_an_accuracy_must_be_equal(past, changes, says):
    values = {
        name: getattr(past, name).replace(**change) if isinstance(change, dict) else change
        for name, change in changes.items()
    }
    assert incomparable(past, past.replace(name="other", **values)) == says


def test_the_same_fork_again_changes_nothing_also_when_the_source_has_gone_on(db, past):
    source = store.create(db, past)
    worker = Worker(source)
    worker.train(worker.take(), 50.0)
    first = fork(source, named(past, "more"))
    worker.train(worker.take(), 60.0)
    again = fork(source, named(past, "more", budget=Budget(n_trials=99)))
    assert (again.id, again.spec) == (first.id, first.spec)
    assert store.fork_of(again).n_carried == len(carried(again)) == 1


def test_a_taken_name_is_refused(db, source, past):
    fork(source, named(past, "more"))
    with pytest.raises(StudyExistsError, match=r"search.seed: 0 != 7"):
        fork(source, named(past, "more", search=past.search.replace(seed=7)))
    store.create(db, named(past, "plain"))
    with pytest.raises(StudyExistsError, match="'plain' exists and is no fork of 'cats'"):
        fork(source, named(past, "plain"))
    other = store.create(db, named(past, "dogs"))
    with pytest.raises(StudyExistsError, match="is no fork of 'dogs'"):
        fork(other, named(past, "more"))
    assert store.fork_of(other) is None
    assert store.create(db, named(past, "more")).id == store.open_study(db, "more").id


@pytest.mark.parametrize("step", ["set_study_user_attr", "create_new_trial"])
def test_a_fork_that_was_killed_is_not_there_and_is_made_anew(db, source, past, monkeypatch, step):
    with monkeypatch.context() as patch:
        done = getattr(db.optuna, step)

        def dies_after(*arguments):
            done(*arguments)
            raise KeyboardInterrupt

        patch.setattr(db.optuna, step, dies_after)
        with pytest.raises(KeyboardInterrupt):
            fork(source, named(past, "more"))
    assert [summary.name for summary in store.names(db)] == ["cats"]
    assert len(carried(fork(source, named(past, "more")))) == 10


def test_a_fork_of_a_fork_has_what_its_source_had_and_found(db, source, past):
    middle = fork(source, named(past, "middle", budget=Budget(n_trials=2)))
    Worker(middle).work()
    store.delete(db, "cats")
    last = fork(middle, named(past, "last"))
    marks = [trial.user_attrs[store.SOURCE] for trial in carried(last)]
    assert marks == [
        *(f"cats trial {number}" for number in range(10)), "middle trial 10", "middle trial 11",
    ]  # fmt: skip
    values = [trial.value for trial in carried(last)]
    assert values[:10] == [trial.value for trial in carried(middle)]
    assert values[10:] == [trial.value for trial in trials_of(middle)]


def test_the_note_says_what_was_taken_over(source, past):
    more = get_note(fork(source, named(past, "more")).optuna)
    assert "**Fork** of the study cats: 10 of its trials were taken over." in more
    assert "nbtl:source" in more
    long = get_note(fork(source, named(past, "long", compat="authors")).optuna)
    assert "0 of its trials were taken over" in long
    assert "compat: 'paper'" in long
    assert "cats trial" in long


def test_the_dashboard_shows_where_trials_come_from(db, source, past):
    new = fork(source, named(past, "more"))
    shown = AnnotatedStorage(db, Pages(db))
    (ours,) = [study for study in shown.get_all_studies() if study.study_name == "more"]
    assert ours.user_attrs.keys().isdisjoint({store.SPEC, store.FORK})
    first = shown.get_all_trials(new.id)[0]
    assert first.user_attrs == {store.SOURCE: "cats trial 0"}


@pytest.mark.usefixtures("source")
def test_the_source_is_no_warm_start_too(db, past):
    more = named(past, "more")
    assert [one.study for one in warm_start.earlier_studies(db, more)] == ["cats"]
    assert warm_start.earlier_studies(db, more, source="cats") == []


@pytest.mark.usefixtures("source")
class TestDrafts:
    @pytest.fixture
    def studies(self, database_url, tmp_path):
        return Workspace(tmp_path, database_url).studies

    def test_a_draft_is_the_source_with_other_settings_and_nothing_measured(self, studies, past):
        asked = studies.draft_fork("cats", "long", settings=["train.epochs=16"])
        assert asked == past.replace(name="long", facts=None, train=past.train.replace(epochs=16))
        assert studies.draft_fork("cats", "more").with_facts(past.facts) == named(past, "more")

    @pytest.mark.parametrize(
        ("arguments", "settings", "says"),
        [
            (("cats", "more"), ["train.epoch=3"], "did you mean 'epochs'"),
            (("cats", "more"), ["train.epochs=0"], "train.epochs"),
            (("cats", "more"), ["train.epochs"], "--set takes KEY=VALUE"),
            (("cats", "a/b"), [], "name: "),
            (("cats", "cats"), [], "a name of its own, got that of its source, 'cats'"),
        ],
    )
    def test_what_cannot_be_is_refused(self, db, studies, arguments, settings, says):
        with pytest.raises(SpecError, match=says):
            studies.draft_fork(*arguments, settings=settings)
        assert [summary.name for summary in store.names(db)] == ["cats"]

    def test_an_unknown_source_gets_the_list(self, studies):
        with pytest.raises(StudyNotFoundError, match="it has: cats"):
            studies.draft_fork("cat", "more")

    def test_final_runs_are_not_forked(self, source, studies):
        finals.begin(source, PLAN)
        stage = finals.next_stage(source)
        with pytest.raises(SpecError, match=f"got the final runs '{stage.name}'; name their study"):
            studies.draft_fork(stage.name, "more")
        assert studies.draft_fork("cats", "more").name == "more", "the search itself is"
