"""The reproduced tables: what stands where, in every state of a study."""

import csv
import io
import json

import pytest
from rich.console import Console

from nbtl_search.paper.tables import KEYS, paper_rows, paper_study
from nbtl_search.reports import reproduction as reproduction_text
from nbtl_search.reports.reproduction import reproduction_of
from nbtl_search.spec import Dials, Facts, StudySpec
from nbtl_search.spec.verdict import Entry, Summary, Verdict


def make_spec(dataset="dtd", **changes):
    facts = Facts(
        n_blocks=22,
        n_classes=47,
        n_train=1880,
        n_val=1880,
        n_test=1880,
        data_digest="d",
        weights_digest="w",
    )
    return StudySpec.parse(paper_study(dataset)).replace(facts=facts, **changes)


def entry(trial, name, mean, *, ensemble):
    return Entry(
        trial=trial,
        name=name,
        dials=Dials(),
        single=Summary(n=4, mean=mean, std=0.31),
        ten_crop=Summary(n=4, mean=mean + 1, std=0.3),
        ensemble_top1=ensemble,
    )


def verdict(*entries, winner, stage="done"):
    return Verdict(
        round=1,
        stage=stage,
        study="paper-dtd@test-1",
        n_confirm_seeds=4,
        n_test_seeds=4,
        contenders=(),
        winner=winner,
        entries=entries,
        gain=None,
        ten_crop_gain=None,
        ensemble_gain=None,
        runs=(),
        readings=(),
    )


def rows_of(reproduction, **wanted):
    return [
        row
        for row in reproduction.rows
        if all(getattr(row, name) == value for name, value in wanted.items())
    ]


def drawn(reproduction, *, width=80):
    text = io.StringIO()
    Console(width=width, file=text).print(reproduction_text.render(reproduction))
    return text.getvalue()


def joined(text):
    return " ".join(text.split())


@pytest.fixture
def trials(make_trial):
    """A complete default, one that runs, one that failed; the others wait."""
    return [
        make_trial(0, name="default", value=75.5, n_epochs=40),
        make_trial(1, name="table3-2-layers", state="running", value=60.0, n_epochs=12),
        make_trial(2, name="table3-3-layers", state="failed", cause="oom", n_epochs=3),
    ]


def test_before_anything_runs_every_recipe_waits():
    found = reproduction_of(make_spec(), [], None, dataset="dtd")
    assert [row.paper_top1 for row in found.rows] == [row.top1 for row in paper_rows("dtd")]
    assert {row.state for row in found.rows if row.recipe} == {"waiting"}
    assert {row.difference for row in found.rows} == {None}
    assert (found.n_ended, found.n_recipes) == (0, 9)
    assert [step for step, _ in found.next_steps] == [
        "nbtl-search launch paper-dtd",
        "nbtl-search finalize paper-dtd",
    ]


def test_one_trial_stands_in_every_table_that_has_its_recipe(trials):
    found = reproduction_of(make_spec(), trials, None, dataset="dtd")
    shared = rows_of(found, recipe="default")
    assert [row.table for row in shared] == [2, 3, 4, 5, 6]
    assert {(row.trial, row.val_top1, row.best_epoch, row.difference) for row in shared} == {
        (0, 75.5, 40, -1.8)
    }
    (running,) = rows_of(found, recipe="table3-2-layers")
    assert (running.state, running.val_top1, running.n_epochs) == ("running", None, 12)
    assert found.n_ended == 2


def test_the_terminal_shows_states_figures_and_what_they_are(trials):
    text = drawn(reproduction_of(make_spec(), trials, None, dataset="dtd"))
    for line in text.splitlines():
        assert len(line.rstrip()) <= 80
    for words in (
        "2 of 9 recipes trained",
        "paper: test top-1 in %, mean ± deviation of 4 runs, Inception-v4 at 299 px",
        "ours: validation top-1 in %, best epoch (in brackets) of one run",
        "1,880 images to train, 1,880 to validate",
        "2 layers lr 0.001 78.92 ± 0.191 running 12/40",
        "3 layers lr 0.0015 78.90 ± 0.243 failed: oom",
        "default lr 0.002 77.30 ± 0.726 75.50 (40) -1.80",
        "the 1.0 is explained nowhere",
        "next: nbtl-search launch paper-dtd",
    ):
        assert words in joined(text)
    assert "scaled" not in text


def test_suspect_rows_have_a_question_mark_and_a_note():
    found = reproduction_of(make_spec("caltech256"), [], None, dataset="caltech256")
    text = drawn(found, width=200)
    notes = [line for line in text.splitlines() if "probably 0.0015" in line]
    (mark,) = {line.partition("]")[0].removeprefix("[") for line in notes}
    assert mark.startswith("?")
    marked = [line for line in text.splitlines() if "lr 0.015" in line]
    assert len(marked) == 2
    assert all(mark in line.split() for line in marked)


def test_another_network_is_said_to_be_one():
    spec = make_spec()
    assert spec.facts is not None
    model = spec.model.replace(name="mobilenetv2_100")
    other = spec.replace(model=model, facts=spec.facts.replace(n_blocks=19))
    text = joined(drawn(reproduction_of(other, [], None, dataset="dtd")))
    assert "scaled to the 19 blocks of mobilenetv2_100" in text


def test_a_finalisation_stands_beside_table_6(make_trial):
    names = [known.name for known in make_spec().search.known]
    trials = [make_trial(i, name=name, value=75.0 + i) for i, name in enumerate(names)]
    best = names.index("table5-optimal-l2sp-overall")
    entries = (
        entry(0, "default", 76.5, ensemble=78.0),
        entry(best, names[best], 77.9, ensemble=79.0),
    )
    found = reproduction_of(make_spec(), trials, verdict(*entries, winner=best), dataset="dtd")
    assert len(found.rows) == len(paper_rows("dtd"))
    assert {row.table for row in found.rows if row.test is not None} == {6}
    default, _, optimal, ensemble, others = rows_of(found, table=6)
    assert (default.test, default.difference) == (entries[0].single, -0.8)
    assert (optimal.test, optimal.difference) == (entries[1].single, -1.0)
    assert (ensemble.test, ensemble.difference) == (Summary(n=1, mean=79.0, std=None), -0.79)
    assert (others.test, others.difference) == (None, None)
    assert rows_of(found, table=2)[0].difference == -2.3, "validation, as in the table's heading"
    assert found.next_steps == ()
    assert "76.50 ± 0.31 -0.80" in joined(drawn(found))
    in_json = [row["test"] for row in json.loads(json.dumps(found.plain()))["rows"] if row["test"]]
    assert in_json[0] == {"n": 4, "mean": 76.5, "std": 0.31}
    assert in_json[-1] == {"n": 1, "mean": 79.0, "std": None}


def test_a_winner_that_table_6_lacks_gets_a_row(make_trial):
    names = [known.name for known in make_spec().search.known]
    trials = [make_trial(i, name=name, value=75.0) for i, name in enumerate(names)]
    entries = (
        entry(0, "default", 76.5, ensemble=78.0),
        entry(1, "table3-2-layers", 79.0, ensemble=None),
    )
    stage = verdict(*entries, winner=1, stage="test")
    found = reproduction_of(make_spec(), trials, stage, dataset="dtd")
    ours = found.rows[-1]
    assert (ours.table, ours.label) == (6, "our winner: table3-2-layers")
    assert (ours.paper_top1, ours.difference, ours.setting) == (None, None, "lr 0.001")
    assert ours.test == entries[1].single
    assert rows_of(found, label="ensemble")[0].test is None
    ((step, purpose),) = found.next_steps
    assert (step, purpose) == ("nbtl-search finalize paper-dtd", "go on with the final runs")
    assert "our winner: table3-2-layers" in joined(drawn(found, width=120))


def test_what_the_study_lacks_or_has_otherwise_is_absent(trials):
    spec = make_spec()
    default, second, *_ = spec.search.known
    other = second.replace(dials={**second.dials, "lr_high": 0.01})
    alone = spec.replace(search=spec.search.replace(known=(default, other)))
    found = reproduction_of(alone, trials, None, dataset="dtd")
    assert {row.state for row in rows_of(found, recipe="default")} == {"complete"}
    assert {row.state for row in found.rows if row.recipe not in {None, "default"}} == {"absent"}
    assert (found.n_ended, found.n_recipes) == (1, 1)


@pytest.mark.parametrize("dataset", sorted(KEYS))
def test_csv_and_json_have_every_row_with_all_digits(dataset, trials):
    found = reproduction_of(make_spec(dataset), trials, None, dataset=dataset)
    lines = list(csv.DictReader(io.StringIO(reproduction_text.comma_separated(found))))
    assert [float(line["paper_top1"]) for line in lines] == [r.top1 for r in paper_rows(dataset)]
    assert {line["val_top1"] for line in lines if line["recipe"] == "default"} == {"75.5"}
    plain = json.loads(json.dumps(found.plain()))
    assert [row["paper_std"] for row in plain["rows"]] == [r.std for r in paper_rows(dataset)]
    assert plain["rows"][0]["difference"] == found.rows[0].difference
    assert plain["next_steps"] == [step for step, _ in found.next_steps]


@pytest.mark.parametrize("dataset", sorted(KEYS))
def test_markdown_tables_are_rectangular_and_escaped(dataset, trials):
    spec = make_spec(dataset, name="a_b")
    found = reproduction_of(spec, trials, None, dataset=dataset)
    text = reproduction_text.markdown(found)
    blocks = [part.splitlines() for part in text.split("\n\n") if part.startswith("|")]
    assert len(blocks) == 5
    for block in blocks:
        assert len({line.count("|") for line in block}) == 1
    assert sum(map(len, blocks)) == len(found.rows) + 2 * len(blocks)
    assert r"a\_b: tables 2-6" in text
