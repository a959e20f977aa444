"""The paper's tables, from a study in a real database to the command line."""

import csv
import io
import json

import pytest
from click.testing import CliRunner

from nbtl_search import api
from nbtl_search.cli.results import reproduce_command
from nbtl_search.errors import SpecError, StudyExistsError
from nbtl_search.ledger import database
from nbtl_search.spec import Facts
from nbtl_search.study import store
from nbtl_search.workspace.results import draft_reproduction
from tests import plausible_study

pytestmark = [pytest.mark.postgres, pytest.mark.slow]

# As if measured: 5,640 photographs are more than a test should decode.
FACTS = Facts(
    n_blocks=22,
    n_classes=47,
    n_train=1880,
    n_val=1880,
    n_test=1880,
    data_digest="d" * 16,
    weights_digest="w" * 16,
)


@pytest.fixture(scope="module")
def home(shared_program):
    """A home with a study of DTD's tables of which six recipes ended and one runs."""
    opened = shared_program.open()
    database.create_or_upgrade(opened)
    spec = draft_reproduction("dtd", changes={("train", "epochs"): 6}).replace(facts=FACTS)
    study = store.create(opened, spec)
    plausible_study.fill(study, n_trials=7, running=1)
    opened.close()
    return shared_program.home


def printed(home, *arguments):
    done = CliRunner().invoke(reproduce_command, [*arguments, "--home", str(home)])
    assert done.exit_code == 0, done.output
    return done.stdout


def test_the_tables_fill_from_the_database(home):
    found = api.reproduce("dtd", home=home)
    assert (found.study, found.n_recipes, found.n_ended) == ("paper-dtd", 9, 6)
    states = {row.recipe: row.state for row in found.rows if row.recipe is not None}
    assert sorted(states.values()) == ["complete"] * 6 + ["running"] + ["waiting"] * 2
    trials = {trial.name: trial for trial in api.status("paper-dtd", home=home)[1]}
    for row in found.rows:
        if row.state == "complete":
            assert row.recipe is not None
            assert row.paper_top1 is not None
            trial = trials[row.recipe]
            assert (row.trial, row.val_top1) == (trial.number, trial.value)
            assert trial.value is not None
            assert row.difference == pytest.approx(trial.value - row.paper_top1, abs=1e-6)
            assert trial.n_epochs == 6, "no recipe of the paper is ever pruned"


def test_the_command_prints_them_in_every_format(home):
    text = printed(home, "dtd")
    assert "6 of 9 recipes trained" in text
    assert "running 2/6" in text
    assert "next: nbtl-search launch paper-dtd" in text
    assert "## Table 6" in printed(home, "dtd", "--format", "md")
    lines = list(csv.DictReader(io.StringIO(printed(home, "dtd", "--format", "csv"))))
    plain = json.loads(printed(home, "dtd", "--json"))
    assert [line["label"] for line in lines] == [row["label"] for row in plain["rows"]]
    assert plain["finalisation"] is None


def test_a_look_makes_nothing_and_an_unknown_dataset_is_one_line(home):
    before = [(one.name, one.created_at) for one in api.studies(home=home)]
    api.reproduce("dtd", home=home)
    with pytest.raises(SpecError, match=r"aircraft, caltech256, cars, dtd; got 'dtdd'"):
        api.reproduce("dtdd", home=home)
    assert [(one.name, one.created_at) for one in api.studies(home=home)] == before


@pytest.mark.usefixtures("home")
def test_the_recipes_are_asked_for_in_the_order_of_the_tables(shared_program):
    opened = shared_program.open()
    trials = store.open_study(opened, "paper-dtd").optuna.get_trials(deepcopy=False)
    spec = store.open_study(opened, "paper-dtd").spec
    opened.close()
    assert [t.user_attrs["nbtl:name"] for t in trials] == [k.name for k in spec.search.known]
    assert [t.user_attrs["nbtl:reason"] for t in trials] == [k.reason for k in spec.search.known]
    assert spec.search.pruning.rungs == (), "no recipe of the paper ever pauses"


def test_the_same_again_is_one_study_and_another_is_refused(home, shared_program):
    opened = shared_program.open()
    spec = draft_reproduction("dtd", changes={("train", "epochs"): 6}).replace(facts=FACTS)
    assert store.create(opened, spec).spec == spec
    longer = draft_reproduction("dtd", changes={("train", "epochs"): 7}).replace(facts=FACTS)
    with pytest.raises(StudyExistsError, match=r"train.epochs: 6 != 7"):
        store.create(opened, longer)
    opened.close()
    assert len(api.studies(home=home)) == 1
