"""Tables of older programs become this program's, with all that they hold."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import inspect, literal, select, text

from nbtl_search.errors import SchemaError
from nbtl_search.ledger import ledger, records, schema
from nbtl_search.ledger.leases import Leases, TrialOutcome
from nbtl_search.space import build_for, known_dials
from nbtl_search.spec import Budget, Dials, StudySpec
from nbtl_search.spec.study import shipped_studies, shipped_study
from nbtl_search.study import finals, notifications, sampling, stages, store
from tests.integration.older_tables import as_version

pytestmark = [pytest.mark.postgres]

numbers = st.floats(0, allow_infinity=False)
dials = st.builds(
    Dials,
    reinit_layers=st.integers(1, 23),
    lr_high=st.floats(0, allow_infinity=False, exclude_min=True),
    lr_low_ratio=st.sampled_from([1e-05, 1e-300, 1e16, 1e22, 0.1 + 0.2, 1.0]),
    alpha=numbers,
    beta=numbers,
    bss=numbers,
)


def back_and_forth(connection, recipe):
    """Return the recipe as a column of recipes gives it back."""
    stored = literal(recipe, schema.StoredRecipe()).cast(schema.StoredRecipe)
    return connection.execute(select(stored)).scalar_one()


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(dials=dials)
def test_a_recipe_comes_back_equal_from_its_column(db, spec, dials):
    recipe = spec.recipe(dials)
    with db.engine.connect() as connection:
        kept = back_and_forth(connection, recipe)
    assert kept == recipe
    assert kept.model_dump_json() == recipe.model_dump_json()


def test_every_shipped_recipe_comes_back_equal_from_its_column(db, spec):
    with db.engine.connect() as connection:
        for name in shipped_studies():
            study = StudySpec.parse(shipped_study(name))
            searched = build_for(study.search, spec.facts.replace(weights_digest="of a file"))
            for known in study.search.known:
                recipe = study.recipe(known_dials(known, space=searched))
                assert back_and_forth(connection, recipe) == recipe


def finish(study, value):
    leases = Leases(study.storage.engine, study.id, ladder=study.ladder)
    lease = leases.grant("w", sampling.asking(study))
    assert lease is not None
    leases.finish(lease, TrialOutcome(state="complete", value=value, best_epoch=1))
    return lease


@pytest.fixture
def finalised(db, spec):
    """A study with four trials, of which Optuna knows one, and a finalisation that has begun."""
    study = store.create(db, spec.replace(budget=Budget(n_trials=4)))
    for number in range(4):
        finish(study, 50.0 + number)
    known = ledger.Ledger(db.engine, study.id)
    first = known.unnotified()[0]
    sampling.tell(study, first)
    known.mark_notified(first.trial_id)
    finals.begin(study, {"n_confirm_seeds": 2, "averages": False})
    (finished,) = notifications.due(study)
    assert notifications.claim(study, finished)
    return study


def content(study):
    """Everything of which a version has changed the form."""
    (row,) = stages.every_round(study)
    return {
        "trials": records.trials(study.storage.engine, study.id),
        "recipes": [
            records.recipe(study.storage.engine, study.id, number).model_dump_json()
            for number in range(4)
        ],
        "runs": [run.recipe.model_dump_json() for run in stages.runs_of(study, row.confirm_id)],
        "plan": finals.Plan.parse(row.plan),
        "unnotified": ledger.Ledger(study.storage.engine, study.id).unnotified(),
    }


def shape(engine):
    """The columns of all of our tables, with their types, and the names of their constraints."""
    found = inspect(engine)
    return {
        name: {each["name"]: str(each["type"]) for each in found.get_columns(name)}
        | {each["name"]: "refers" for each in found.get_foreign_keys(name)}
        | {found.get_pk_constraint(name)["name"]: "primary key"}
        for name in found.get_table_names()
        if name.startswith("nbtl_")
    }


@pytest.mark.parametrize("version", [1, 2, 3, 4, 5, 6, 7])
def test_older_tables_are_upgraded_with_all_that_they_hold(db, finalised, version):
    before, made = content(finalised), shape(db.engine)
    as_version(db.engine, version)
    assert shape(db.engine) != made
    with pytest.raises(SchemaError, match=rf"version {version}.*db upgrade"):
        schema.check(db.engine)
    assert schema.create_or_upgrade(db.engine) == version
    assert shape(db.engine) == made
    assert content(finalised) == before
    assert schema.create_or_upgrade(db.engine) == schema.VERSION
    (finished,) = notifications.due(finalised)
    assert notifications.claim(finalised, finished) == (version < 3), "nothing is sent twice"


def test_an_upgrade_that_fails_changes_nothing(db, finalised):
    as_version(db.engine, 3)
    before = shape(db.engine)
    with db.engine.begin() as connection:
        connection.execute(text("UPDATE nbtl_final SET plan = 'no JSON'"))
    with pytest.raises(Exception, match="invalid input syntax"):
        schema.create_or_upgrade(db.engine)
    assert shape(db.engine) == before
    assert finalised.name == "cats"
