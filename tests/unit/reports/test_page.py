"""The page, the wording of its verdict, and its tables in every format, without a database."""

import csv
import dataclasses
import html
import io
import json
import re
from datetime import UTC, datetime
from html.parser import HTMLParser

import pytest

from nbtl_search import space
from nbtl_search.ledger.recommendation import recommend
from nbtl_search.ledger.records import Totals
from nbtl_search.paper.tables import paper_rows
from nbtl_search.reports import formats, paper_figures, static_figures
from nbtl_search.reports.content import Content, Device, Provenance, commit
from nbtl_search.reports.cost import spending
from nbtl_search.reports.figures import figures_of
from nbtl_search.reports.importance import FEW_TRIALS, MIN_TRIALS, importances
from nbtl_search.reports.page import page
from nbtl_search.reports.prose import verdict_sentences
from nbtl_search.reports.tables import all_tables
from nbtl_search.spec import DataSettings
from nbtl_search.study.audit import Audit
from tests.plausible_ablation import make_ablation
from tests.plausible_study import make_spec
from tests.plausible_verdict import make_verdict

NASTY = "</script><script>document.title='taken'</script><img src=x onerror=alert(1)>"
NAMES = (NASTY, "\"'`&amp;", "🐟🎣", "מגן עולם", "=1+1|a*b_c", "line\nbreak\x1b[31m", "$x_{$")


def totals(trials):
    return Totals(
        state="finished",
        n_trials=len(trials),
        complete=sum(trial.state == "complete" for trial in trials),
        pruned=sum(trial.state == "pruned" for trial in trials),
        running=0,
        paused=0,
        waiting=0,
        failed=0,
        epochs_spent=sum(trial.n_epochs for trial in trials),
        seconds_spent=sum(trial.seconds for trial in trials),
    )


NOTHING = Audit(n_stopped=0, n_best=0, epochs_trained=0, epochs_saved=0)


@pytest.fixture
def make_content(make_curve):
    def make(
        trials,
        *,
        verdict=None,
        spec=None,
        paper=(),
        devices=(),
        diagnosis=None,
        audits=(NOTHING, NOTHING),
    ):
        spec = spec or make_spec()
        searched = space.build(spec.search, n_blocks=22)
        return Content(
            name=spec.name,
            spec=spec,
            facts=spec.facts,
            searched=searched,
            totals=totals(trials),
            trials=tuple(trials),
            recommendation=recommend(trials, n_images=400),
            curves={t.number: make_curve(20.0, t.value or 30.0) for t in trials},
            verdict=verdict,
            audits=audits,
            diagnosis=diagnosis,
            importances=importances(trials, searched),
            provenance=Provenance(
                versions={"optuna": "5.0.0"},
                commit="c" * 40,
                host="Linux",
                cpu="a processor",
                n_cores=2,
                memory_gb=8.0,
                devices=tuple(devices),
            ),
            paper=paper,
            made_at=datetime(2026, 3, 1, tzinfo=UTC),
        )

    return make


@pytest.fixture
def four_trials(make_trial):
    return [
        make_trial(0, value=75.0, name="default"),
        make_trial(1, value=82.5, name="paper-best", reinit_layers=2, n_l2sp=14, alpha=1e-3),
        make_trial(2, value=80.0, n_low=5, lr_low_ratio=0.2, lr_high=0.01),
        make_trial(3, state="pruned", value=40.0, n_epochs=2, cause="pruned"),
    ]


def test_why_trials_ended_is_told_also_where_none_is_complete(make_content, make_trial):
    trials = [
        make_trial(0, name="default", state="pruned", cause="infeasible", message="k <= 8"),
        make_trial(1, state="pruned", value=40.0, cause="cancelled"),
    ]
    text = " ".join("".join(read(page(make_content(trials))).texts).split())
    assert "trials that said why they ended (2)" in text
    assert "trial 0: infeasible: k <= 8" in text
    assert "trial 1: cancelled" in text


@pytest.fixture
def finalised(make_content, four_trials):
    tests = [[77.0, 78.0, 76.5, 77.5], [80.5, 81.5, 80.0, 82.0]]
    verdict = make_verdict(four_trials[:3], winner=1, tests=tests)
    return make_content(four_trials, verdict=verdict)


class Reader(HTMLParser):
    """The elements of a page, their attributes, and the text outside scripts and styles."""

    def __init__(self):
        super().__init__()
        self.tags, self.attributes, self.texts, self.json = [], [], [], []
        self._inside: tuple[str, dict[str, str | None]] = ("", {})

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        self._inside = (tag, dict(attrs))

    def handle_endtag(self, tag):
        if tag == self._inside[0]:
            self._inside = ("", {})

    def handle_data(self, data):
        tag, attributes = self._inside
        if tag == "script" and attributes.get("type") == "application/json":
            self.json.append(json.loads(data))
        elif tag not in {"script", "style"}:
            self.texts.append(data)


def read(text):
    reader = Reader()
    reader.feed(text)
    return reader


class TestVerdict:
    def test_before_any_trial_has_ended(self, make_content, make_trial):
        begun = [make_trial(0, state="running", name="default")]
        found, sure = verdict_sentences(make_content(begun))
        assert found == "No trial has run to its end yet."
        assert "1 of 1 trials" in sure

    def test_of_the_search_alone_says_what_recipes_are_worth(self, make_content, four_trials):
        content = make_content(four_trials)
        found, sure = verdict_sentences(content)
        told = content.recommendation
        best, default = told.value_of(told.best), told.value_of(told.default)
        assert default.mean < best.mean < 82.5
        assert "paper-best (trial 1: 2 new layers" in found
        assert f"{best.mean:.2f} % [{best.low:.2f}, {best.high:.2f}], 1 run" in found
        assert f"against the default recipe's {default.mean:.2f} %" in found
        assert found.endswith("and so a tie."), "one run of each, and four degrees of freedom"
        assert "drawn towards that of all recipes" in sure
        assert "test images were not read" in sure

    def test_of_the_search_alone_a_large_gain_is_none_of_luck(self, make_content, make_trial):
        trials = [make_trial(0, value=60.0, name="default"), make_trial(1, value=80.0)]
        found, _ = verdict_sentences(make_content(trials))
        assert "above the default recipe's" in found
        assert "a tie" not in found

    def test_less_than_an_image_is_no_gain(self, make_content, make_trial):
        trials = [make_trial(0, value=75.0, name="default"), make_trial(1, value=75.25)]
        found, _ = verdict_sentences(make_content(trials))
        assert found.startswith("No recipe was better than the default")

    def test_of_the_search_alone_where_the_default_is_best(self, make_content, make_trial):
        trials = [make_trial(0, value=75.0, name="default"), make_trial(1, value=70.0)]
        found, _ = verdict_sentences(make_content(trials))
        assert found.startswith("No recipe was better than the default")

    def test_without_a_default_there_is_no_comparison(self, make_content, make_trial):
        found, _ = verdict_sentences(make_content([make_trial(1, value=70.0)]))
        assert "no comparison yet" in found

    def test_of_a_real_gain_names_its_interval(self, finalised):
        found, sure = verdict_sentences(finalised)
        assert "81.00 ± 0.91 % against 77.25 ± 0.65 %" in found
        assert found.endswith("+3.75 points.")
        gain = finalised.verdict.gain
        assert f"is {gain.low:+.2f} to {gain.high:+.2f}" in sure
        assert "larger than the luck" in sure

    def test_of_a_tie_says_so(self, make_content, four_trials):
        tests = [[77.0, 78.0, 76.5, 77.5], [78.5, 77.0, 78.0, 76.5]]
        verdict = make_verdict(four_trials[:3], winner=1, tests=tests)
        found, sure = verdict_sentences(make_content(four_trials, verdict=verdict))
        assert found.endswith(": a tie.")
        assert "cannot tell the two apart" in sure

    def test_of_a_winner_that_lost_on_test(self, make_content, four_trials):
        tests = [[80.5, 81.5, 80.0, 82.0], [77.0, 78.0, 76.5, 77.5]]
        verdict = make_verdict(four_trials[:3], winner=1, tests=tests)
        found, sure = verdict_sentences(make_content(four_trials, verdict=verdict))
        assert "the default recipe is better" in found
        assert "did not hold" in sure

    def test_where_the_default_won(self, make_content, four_trials):
        verdict = make_verdict(four_trials[:3], winner=0, tests=[[77.0, 78.0, 76.5, 77.5]])
        found, sure = verdict_sentences(make_content(four_trials, verdict=verdict))
        assert found.startswith("The default recipe is the best found: 77.25 ± 0.65 %")
        assert "None of the 2 candidates" in sure

    def test_one_pair_has_the_interval_of_recorded_seeds(self, make_content, four_trials):
        verdict = make_verdict(four_trials[:3], winner=1, tests=[[77.0], [80.0]])
        assert verdict.gain is not None
        assert verdict.gain.low < 0 < verdict.gain.mean == 3.0
        found, sure = verdict_sentences(make_content(four_trials, verdict=verdict))
        assert found.endswith("a tie.")
        assert "its 95% interval over 1 seed is -" in sure

    def test_of_final_runs_under_way(self, make_content, four_trials):
        verdict = make_verdict(four_trials[:3], winner=1, tests=[[1.0], [1.0]], stage="confirm")
        found, sure = verdict_sentences(make_content(four_trials, verdict=verdict))
        assert "paper-best" in found
        assert "under way" in sure


class TestAudit:
    def test_what_early_stopping_threw_away_is_told(self, make_content, four_trials):
        ours = Audit(n_stopped=4, n_best=1, epochs_trained=60, epochs_saved=40)
        content = make_content(four_trials, audits=(ours, dataclasses.replace(ours, n_stopped=20)))
        text = page(content)
        assert "drawn by lot" in text
        assert "25.00 (0.63 to 80.59)" in text, "Clopper and Pearson, from printed tables"
        assert "5.00 (0.13 to 24.87)" in text
        (row, _) = next(one for one in all_tables(content) if one.name == "audit").rows
        assert (row["epochs_saved"], row["share_saved"]) == (40, 40.0)

    def test_without_any_there_is_no_table(self, make_content, four_trials):
        assert "drawn by lot" not in page(make_content(four_trials))


class TestPage:
    def test_it_names_no_address_and_runs_only_the_scripts_of_its_policy(self, finalised):
        text = page(finalised)
        reader = read(text)
        policy = dict(reader.attributes)["content"]
        assert "default-src 'none'" in text
        assert len(re.findall(r"'sha256-[^']+'", text.partition("</head>")[0])) == 2
        assert policy
        given = {key for key, _ in reader.attributes}
        assert not given & {"src", "srcset", "action", "onclick", "onload"}
        links = {value for key, value in reader.attributes if key == "href"}
        assert all(link.startswith("#") or link == "data:," for link in links)

    def test_every_link_leads_to_a_section(self, finalised):
        attributes = read(page(finalised)).attributes
        ids = {value for key, value in attributes if key == "id"}
        targets = {value[1:] for key, value in attributes if key == "href" and value[0] == "#"}
        assert targets
        assert targets <= ids

    def test_every_figure_has_its_data(self, finalised):
        figures = read(page(finalised)).json
        assert len(figures) == len(figures_of(finalised)) >= 6
        assert all(figure["data"] for figure in figures)

    @pytest.mark.parametrize("name", NAMES)
    def test_text_of_users_is_shown_as_text(self, make_content, make_trial, name):
        trials = [
            make_trial(0, value=75.0, name="default"),
            make_trial(1, value=82.5, name=name, n_l2sp=3, alpha=0.1),
            dataclasses.replace(make_trial(2, state="failed", cause=name), message=name),
        ]
        spec = make_spec().replace(description=name, data=DataSettings(dataset=name))
        verdict = make_verdict(
            trials[:2], winner=1, tests=[[70.0, 71.0], [75.0, 76.0]], reasons=("", name)
        )
        devices = [Device(host=name, device=name, n_workers=1)]
        content = make_content(trials, spec=spec, verdict=verdict, devices=devices)
        reader, plain = read(page(content)), read(page(make_content(trials[:1])))
        assert set(reader.tags) <= {*plain.tags, "details", "summary", "ul", "li", "figure"}
        assert reader.tags.count("script") == 2 + len(reader.json)
        shown = "".join(c if c.isprintable() else "\ufffd" for c in " ".join(name.split()))
        assert reader.texts.count(shown) >= 5
        figures = json.dumps(reader.json)
        assert "<script" not in figures
        assert "<img" not in figures

    def test_an_empty_study_has_a_page(self, make_content):
        reader = read(page(make_content([])))
        assert "No trial has run to its end yet." in reader.texts

    def test_a_study_that_is_not_finalised_says_how(self, make_content, four_trials):
        assert "nbtl-search finalize dtd10" in read(page(make_content(four_trials))).texts

    def test_the_papers_numbers_stand_beside_ours(self, make_content, four_trials):
        tests = [[77.0, 78.0, 76.5, 77.5], [80.5, 81.5, 80.0, 82.0]]
        verdict = make_verdict(four_trials[:3], winner=1, tests=tests)
        content = make_content(four_trials, verdict=verdict, paper=paper_rows("dtd"))
        sheet = next(sheet for sheet in all_tables(content) if sheet.name == "paper")
        rows = {(row["table"], row["row"]): row for row in sheet.rows}
        assert rows[2, "default"]["paper_mean"] == 77.3
        assert rows[2, "default"]["ours_mean"] == 77.25
        assert rows[6, "optimal"]["ours_mean"] == 81.0
        assert rows[6, "ensemble"]["ours_mean"] == verdict.entries[1].ensemble_top1
        assert 'id="table-paper"' in page(content)
        assert 'id="table-paper"' not in page(make_content(four_trials))

    def test_an_ablation_has_a_section(self, make_content, four_trials):
        without = make_content(four_trials)
        content = dataclasses.replace(without, ablation=make_ablation(name=NASTY))
        reader = read(page(content))
        assert "Needed: new layers." in reader.texts
        assert "+20.00 (+17.00 to +23.00)" in reader.texts
        assert any(NASTY in text for text in reader.texts)
        assert ("id", "ablation") in reader.attributes
        assert ("id", "ablation") not in read(page(without)).attributes
        assert len(reader.json) == len(read(page(without)).json) + 1
        assert "; ablation: 2000000" in page(content)


class TestFormats:
    def test_an_ablation_is_a_table_of_every_format(self, make_content, four_trials):
        content = dataclasses.replace(make_content(four_trials), ablation=make_ablation())
        assert "| new layers | 2 | 61.00" in formats.markdown(content)
        assert "ablation,1,gain,20.0" in formats.comma_separated(content)
        assert json.loads(formats.as_json(content))["tables"]["ablation"][2]["need"] == "harmful"

    def test_csv_and_json_hold_the_same_cells(self, finalised):
        plain = json.loads(formats.as_json(finalised))["tables"]
        rows = list(csv.DictReader(io.StringIO(formats.comma_separated(finalised))))
        assert {row["table"] for row in rows} == set(plain)
        for row in rows:
            value = plain[row["table"]][int(row["row"]) - 1][row["column"]]
            assert row["value"] == ("" if value is None else str(value))
        assert len(rows) == sum(len(each) for sheet in plain.values() for each in sheet)

    def test_markdown_and_page_show_the_same_cells(self, finalised):
        markdown, texts = formats.markdown(finalised), read(page(finalised)).texts
        for sheet in all_tables(finalised)[:2]:
            for row in sheet.rows:
                for column in sheet.columns:
                    shown = column.show(row)
                    assert f" {shown} |" in markdown
                    assert not shown or shown in texts

    def test_numbers_are_those_of_the_verdict(self, finalised):
        final = json.loads(formats.as_json(finalised))["tables"]["final"]
        verdict = finalised.verdict
        assert [row["single_mean"] for row in final] == [e.single.mean for e in verdict.entries]
        assert final[1]["gain_low"] == verdict.gain.low
        assert f"{verdict.gain.mean:+.2f} ({verdict.gain.low:+.2f} to" in formats.markdown(
            finalised
        )

    def test_a_formula_is_text_in_csv_and_markup_is_text_in_markdown(
        self, make_content, make_trial
    ):
        trials = [make_trial(0, value=75.0, name="default"), make_trial(1, value=70, name=NAMES[4])]
        content = make_content([*trials, make_trial(2, value=60.0, name=NASTY)])
        assert f"'{NAMES[4]}" in formats.comma_separated(content)
        markdown = formats.markdown(content)
        assert r"=1+1\|a\*b\_c" in markdown
        assert "<script" not in markdown


class TestCost:
    def test_parts_sum_up_and_retries_are_counted(self, finalised):
        *parts, total = spending(finalised.trials, finalised.verdict)
        assert total.epochs == sum(part.epochs for part in parts)
        assert total.n_runs == 4 + 12 + 8
        assert [part.n_retried for part in parts if "confirm" in part.name] == [1]
        assert total.seconds == pytest.approx(
            sum(t.seconds for t in finalised.trials) + 12 * 285.0 + 8 * 310.0
        )


class TestImportances:
    @staticmethod
    def trials(make_trial, n):
        for number in range(n):
            rate = 5e-4 * 100 ** (number * 0.618 % 1)
            value = 80 - 30 * abs(rate - 5e-3) / 5e-2
            yield make_trial(number, value=value, lr_high=rate, beta=1e-4, n_low=number % 7)

    def test_the_dial_that_decides_comes_first(self, make_trial):
        searched = space.build(make_spec().search, n_blocks=22)
        found = importances(list(self.trials(make_trial, 60)), searched)
        assert next(iter(found.shares)) == "lr_high"
        assert sum(found.shares.values()) == pytest.approx(1)
        assert found.reading.startswith("Learning rate mattered most")
        assert "hint" not in found.reading

    def test_few_trials_are_a_hint_and_fewer_nothing(self, make_trial):
        searched = space.build(make_spec().search, n_blocks=22)
        some = importances(list(self.trials(make_trial, FEW_TRIALS - 1)), searched)
        assert "hint" in some.reading
        none = importances(list(self.trials(make_trial, MIN_TRIALS - 1)), searched)
        assert none.shares == {}
        assert f"below {MIN_TRIALS}" in none.reading

    def test_equal_values_tell_nothing(self, make_trial):
        searched = space.build(make_spec().search, n_blocks=22)
        found = importances([make_trial(n, value=50.0) for n in range(20)], searched)
        assert found.shares == {}
        assert "the same accuracy" in found.reading


class TestFigures:
    def test_optimal_against_default_has_whiskers_once_there_are_seeds(self, finalised):
        bars = paper_figures.optimal_against_default(finalised.recommendation, finalised.verdict)
        assert [round(std, 3) for std in bars.data[0].error_y.array] == [0.645, 0.913]
        assert list(bars.data[2].y) == [79.25, 83.25]
        dots = paper_figures.optimal_against_default(finalised.recommendation, None)
        told = finalised.recommendation
        values = [told.value_of(told.default), told.value_of(told.best)]
        assert [trace.y[0] for trace in dots.data] == [value.mean for value in values]
        assert [trace.error_y.array[0] for trace in dots.data] == [
            value.high - value.mean for value in values
        ]

    def test_files_are_drawn_whatever_the_names_are(self, make_content, make_trial):
        trials = [make_trial(n + 1, value=70.0 + n, name=name) for n, name in enumerate(NAMES)]
        content = make_content([make_trial(0, value=60.0, name="default"), *trials])
        made = dict(static_figures.files_of(figures_of(content)[:3]))
        assert {name.rpartition(".")[2] for name in made} == {"svg", "png", "csv"}
        assert made["history.png"].startswith(b"\x89PNG")
        assert b"<svg" in made["history.svg"]
        assert b"<script" not in b"".join(made[key] for key in made if key.endswith(".svg"))
        rows = list(csv.DictReader(io.StringIO(made["history.csv"].decode())))
        shown = {float(row["y"]) for row in rows if row["trace"] == "complete"}
        assert shown == {60.0, *(70.0 + n for n in range(len(NAMES)))}
        assert any(html.unescape(NASTY) in row["text"] for row in rows)


def test_a_package_outside_git_has_no_commit(tmp_path):
    (tmp_path / "__init__.py").touch()
    assert commit(tmp_path) is None
