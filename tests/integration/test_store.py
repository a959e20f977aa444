import concurrent.futures
import json
import threading

import optuna
import pytest
from optuna.trial import TrialState
from optuna_dashboard import get_note
from sqlalchemy import text

from nbtl_search import space
from nbtl_search.errors import (
    SchemaError,
    SpecError,
    StorageError,
    StudyExistsError,
    StudyNotFoundError,
)
from nbtl_search.ledger import database, ledger
from nbtl_search.spec import Budget, Row, SearchSettings
from nbtl_search.study import store


def optuna_names(db):
    return optuna.get_all_study_names(db.optuna)


def test_a_study_comes_back_as_it_was_made(db, spec):
    made = store.create(db, spec)
    opened = store.open_study(db, "cats")
    assert opened.spec == made.spec == spec
    assert (opened.id, opened.uid) == (made.id, made.uid)
    assert len(opened.uid) > 30
    assert opened.facts == spec.facts
    assert opened.optuna.direction == optuna.study.StudyDirection.MAXIMIZE
    assert isinstance(opened.optuna.pruner, optuna.pruners.NopPruner)


def test_a_long_spec_comes_back_whole(db, spec):
    long = spec.replace(description="ä|<b>" * 20_000)
    store.create(db, long)
    assert store.open_study(db, "cats").spec == long


def test_known_recipes_wait_first_then_an_even_design(db, spec):
    trials = store.create(db, spec).optuna.get_trials()
    built = space.build(spec.search, n_blocks=22)
    assert [trial.state for trial in trials] == [TrialState.WAITING] * 6
    default, paper, *design = trials
    assert default.user_attrs["nbtl:name"] == "default"
    assert paper.user_attrs["nbtl:reason"] == "table 6"
    assert default.user_attrs["nbtl:protected"] is True
    assert paper.user_attrs["nbtl:protected"] is False  # it pauses at a rung like any other
    assert json.loads(paper.user_attrs["nbtl:dials"])["n_l2sp"] == 14
    assert paper.system_attrs["fixed_params"] == space.params_of(
        built, space.known_dials(spec.search.known[1], space=built)
    )
    assert [trial.user_attrs for trial in design] == [{}] * 4
    assert [trial.system_attrs["fixed_params"] for trial in design] == space.design(
        built, n=4, seed=spec.search.seed
    )


def test_waiting_trials_are_asked_in_their_order_with_their_values(db, spec):
    study = store.create(db, spec)
    trials = [study.optuna.ask() for _ in range(7)]
    assert [trial.number for trial in trials] == list(range(7))
    wanted = study.optuna.get_trials()[2].system_attrs["fixed_params"]
    assert trials[2].suggest_float("lr_high", 5e-4, 5e-2, log=True) == wanted["lr_high"]


def test_creating_twice_is_creating_once(db, spec):
    first = store.create(db, spec)
    again = store.create(db, spec.replace(description="other words", budget=Budget(n_trials=99)))
    assert (again.id, again.uid) == (first.id, first.uid)
    assert again.spec.budget.n_trials == 8
    assert len(again.optuna.get_trials()) == 6


def test_the_same_name_for_another_specification_is_refused(db, spec):
    store.create(db, spec)
    other = spec.replace(search=spec.search.replace(seed=7), budget=Budget(n_trials=99))
    with pytest.raises(StudyExistsError, match=r"search.seed: 0 != 7") as caught:
        store.create(db, other)
    assert "budget" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_study_that_is_not_there_names_those_that_are_nearest_first(db, spec):
    with pytest.raises(StudyNotFoundError, match="nbtl-search create"):
        store.open_study(db, "cats")
    for name in ("birds", "dogs", "cats"):
        store.create(db, spec.replace(name=name))
    with pytest.raises(StudyNotFoundError, match="it has: cats, "):
        store.open_study(db, "cat")
    with pytest.raises(StudyNotFoundError, match="it has: dogs, "):
        store.delete(db, "dog")


def test_the_list_has_the_newest_first(db, spec):
    assert store.names(db) == []
    for name in ("old", "new"):
        store.create(db, spec.replace(name=name))
    with db.engine.begin() as connection:
        connection.execute(
            text("UPDATE nbtl_study SET created_at = now() - interval '1 h' WHERE name = 'old'")
        )
    listed = store.names(db)
    assert [summary.name for summary in listed] == ["new", "old"]
    assert (listed[0].desired, listed[0].n_trials, listed[0].n_finished) == ("run", 8, 0)


def test_a_spec_that_cannot_be_searched_leaves_nothing(db, spec):
    bad_row = spec.replace(search=SearchSettings(rows={"lr_high": Row(low=1.0, high=0.1)}))
    for bad in (spec.replace(facts=None), bad_row):
        with pytest.raises(SpecError):
            store.create(db, bad)
    assert optuna_names(db) == []


@pytest.mark.parametrize("step", ["create_new_study", "set_study_user_attr", "create_new_trial"])
def test_a_half_made_study_is_not_there_and_is_made_anew(db, spec, monkeypatch, step):
    with monkeypatch.context() as patch:
        done = getattr(db.optuna, step)

        def dies_after(*args):
            done(*args)
            raise KeyboardInterrupt

        patch.setattr(db.optuna, step, dies_after)
        with pytest.raises(KeyboardInterrupt):
            store.create(db, spec)
    assert optuna_names(db) == ["cats"]
    assert store.names(db) == []
    with pytest.raises(StudyNotFoundError):
        store.open_study(db, "cats")
    assert len(store.create(db, spec).optuna.get_trials()) == 6
    assert optuna_names(db) == ["cats"]


def test_a_study_without_its_last_step_is_made_anew(db, spec, monkeypatch):
    def dies(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ledger, "register", dies)
        with pytest.raises(KeyboardInterrupt):
            store.create(db, spec)
    assert len(store.create(db, spec).optuna.get_trials()) == 6


def test_an_optuna_study_of_someone_else_is_left_alone(db, spec):
    theirs = optuna.create_study(storage=db.optuna, study_name="cats")
    theirs.enqueue_trial({"x": 1})
    with pytest.raises(StudyExistsError, match="did not make"):
        store.create(db, spec)
    with pytest.raises(StudyExistsError, match="did not make"):
        store.delete(db, "cats")
    assert len(theirs.get_trials()) == 1


def _race(database_url, specs):
    """Create all of these at once, each from connections of its own."""
    gate = threading.Barrier(len(specs))

    def one(spec):
        opened = database.connect(database_url, home=None)
        try:
            database.check(opened)
            gate.wait()
            return store.create(opened, spec).uid
        except StudyExistsError as error:
            return error
        finally:
            opened.close()

    with concurrent.futures.ThreadPoolExecutor(len(specs)) as pool:
        return list(pool.map(one, specs))


def test_of_many_that_create_the_same_one_makes_it_and_all_get_it(db, database_url, spec):
    uids = _race(database_url, [spec] * 4)
    assert uids == [store.open_study(db, "cats").uid] * 4
    assert optuna_names(db) == ["cats"]
    assert len(store.open_study(db, "cats").optuna.get_trials()) == 6


def test_of_two_that_create_different_ones_of_a_name_one_wins(db, database_url, spec):
    other = spec.replace(search=spec.search.replace(seed=1))
    outcomes = _race(database_url, [spec, other])
    assert sorted(type(outcome).__name__ for outcome in outcomes) == ["StudyExistsError", "str"]
    assert store.open_study(db, "cats").spec in (spec, other)


def test_deleting_removes_every_trace(db, spec):
    kept = store.create(db, spec.replace(name="kept"))
    study = store.create(db, spec)
    study.optuna.ask().suggest_float("lr_high", 5e-4, 5e-2, log=True)
    store.delete(db, "cats")
    assert optuna_names(db) == ["kept"]
    assert [summary.name for summary in store.names(db)] == ["kept"]
    assert len(store.open_study(db, "kept").optuna.get_trials()) == len(kept.optuna.get_trials())
    assert store.create(db, spec).uid != study.uid


def test_a_half_deleted_study_can_be_deleted_again(db, spec, monkeypatch):
    store.create(db, spec)
    with monkeypatch.context() as patch:

        def dies(_):
            raise KeyboardInterrupt

        patch.setattr(db.optuna, "delete_study", dies)
        with pytest.raises(KeyboardInterrupt):
            store.delete(db, "cats")
    with pytest.raises(StudyNotFoundError):
        store.open_study(db, "cats")
    store.delete(db, "cats")
    assert optuna_names(db) == []
    with pytest.raises(StudyNotFoundError):
        store.delete(db, "cats")


def test_a_study_whose_optuna_part_is_gone_can_be_deleted(db, spec):
    study = store.create(db, spec)
    optuna.delete_study(study_name="cats", storage=db.url.render_as_string(hide_password=False))
    fresh = database.connect(db.url.render_as_string(hide_password=False), home=None)
    with pytest.raises(StorageError, match="run: nbtl-search delete cats"):
        store.open_study(fresh, "cats")
    store.delete(fresh, "cats")
    assert store.create(fresh, spec).uid != study.uid
    fresh.close()


def test_without_tables_nothing_is_made(empty_database_url, spec):
    opened = database.connect(empty_database_url, home=None)
    with pytest.raises(SchemaError, match="db upgrade"):
        store.create(opened, spec)
    with pytest.raises(SchemaError, match="db upgrade"):
        store.names(opened)
    opened.close()


def test_the_note_describes_the_study_and_escapes_what_users_wrote(db, spec):
    study = store.create(db, spec.replace(description="<script>alert(1)</script> a|b\n# c"))
    note = get_note(study.optuna)
    assert "<script>" not in note
    assert "&lt;script&gt;" in note
    assert "8 trials" in note
    assert "30 training, 400 validation and 12 test images" in note
    for row in space.build(spec.search, n_blocks=22).rows:
        assert f"| `{row.name}` |" in note


def test_a_study_that_was_made_again_is_not_taken_for_the_old_one(db, spec):
    old = store.create(db, spec)
    store.delete(db, "cats")
    with pytest.raises(StorageError, match="deleted from outside"):
        old.optuna.get_trials()
    new = store.create(db, spec)
    assert new.id != old.id
    with pytest.raises(StorageError, match="deleted from outside"):
        old.optuna.get_trials()
    assert new.optuna._study_id == new.id
