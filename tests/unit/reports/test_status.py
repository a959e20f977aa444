import json
from datetime import timedelta
from io import StringIO
from typing import Any

import pytest
from rich.console import Console

from nbtl_search.ledger.recommendation import recommend
from nbtl_search.ledger.records import WorkerRecord
from nbtl_search.reports.table import duration
from nbtl_search.reports.terminal.status import (
    MAX_TRIALS,
    StatusReport,
    render,
    render_list,
    worth_a_look,
)
from nbtl_search.study.store import StudySummary


@pytest.fixture
def make_report():
    def make(trials, **changes):
        found = recommend(trials, n_images=400)
        known: dict[str, Any] = {
            "study": "cats",
            "state": "running",
            "measure": "validation top-1",
            "n_trials": 40,
            "complete": 2,
            "pruned": 1,
            "running": 2,
            "paused": 0,
            "waiting": 35,
            "failed": 0,
            "best": None
            if found.best is None
            else {
                "trial": found.best.number,
                "name": found.best.name,
                "params": {},
                **worth(found.value_of(found.best)),
            },
            "default": {
                "trial": None if found.default is None else found.default.number,
                **worth(found.value_of(found.default)),
            },
            "gain": None if found.gain is None else found.gain.plain(),
            "image_points": 0.25,
            "n_val": 400,
            "n_epochs": 8,
            "epochs_spent": 21,
            "seconds_spent": 4000.0,
            "eta_s": 7300.0,
            "workers": (worker("node1-1234-0"),),
            "final": None,
        }
        return StatusReport(**known | changes)

    return make


def worth(value):
    if value is None:
        return {"value": None, "low": None, "high": None, "n_runs": 0}
    return {"value": value.mean, "low": value.low, "high": value.high, "n_runs": value.n}


def worker(name):
    return WorkerRecord(
        worker=name,
        host="node1",
        pid=1234,
        device="cuda:0",
        state="training",
        trial_number=3,
        seen_s=1.2,
    )


def drawn(renderable, *, width=80, terminal=False):
    file = StringIO()
    console = Console(file=file, width=width, force_terminal=terminal)
    console.print(renderable)
    text = file.getvalue()
    assert all(len(line) <= width for line in text.splitlines()) or terminal
    return text


def test_status_says_what_a_person_needs(make_report, some_trials):
    report = make_report(some_trials)
    text = drawn(render(report, some_trials))
    assert "study cats: running, 3 of 40 trials ended" in text
    assert "2 complete, 1 pruned, 2 running, 35 waiting" in text
    assert "1 h 07 min of training, about 2 h 02 min to go" in text
    best, default = report.best, report.default
    assert f"best     {best['value']:.2f} % [" in text
    assert "1 run  trial 1 (paper-best)" in text
    assert f"default  {default['value']:.2f} % [" in text
    assert f"gain     {report.gain['mean']:+.2f} points [" in text
    assert "mean over seeds, 95 % interval; one of 400 images" in text
    assert "14@1e-3" in text
    assert "5x0.2" in text
    assert "node1-1234-0 cuda:0 training" in text


def test_status_says_what_the_queue_says(make_report, some_trials):
    def shown(tasks):
        return drawn(render(make_report(some_trials, queue={"tasks": tasks}), some_trials))

    def task(state, *, node="", reason="None"):
        return {"id": "7_0", "state": state, "node": node, "reason": reason}

    text = shown(
        [task("RUNNING", node="n2"), task("RUNNING", node="n1"), task("PENDING", reason="Priority")]
    )
    assert "queue    1 pending: Priority" in text
    assert "queue    2 running: n1, n2" in text
    assert "queue    no tasks; nbtl-search launch STUDY --slurm" in shown([])
    assert "queue    unknown: squeue does not answer" in shown(None)
    assert "queue" not in drawn(render(make_report(some_trials), some_trials))


def test_status_has_colour_in_a_terminal_only(make_report, some_trials):
    renderable = render(make_report(some_trials), some_trials)
    assert "\x1b" not in drawn(renderable)
    assert "\x1b[" in drawn(renderable, terminal=True)


def test_every_line_fits_however_long_the_names(make_report, make_trial):
    trials = [make_trial(n, value=99.99, name="n" * 60, n_l2sp=22, alpha=1e-5) for n in (0, 998)]
    text = drawn(render(make_report(trials, workers=(worker("w" * 120),)), trials))
    assert text.count("n") > 120


def test_a_tie_is_called_a_tie(make_report, make_trial):
    trials = [make_trial(0, value=75.0, name="default"), make_trial(1, value=79.0)]
    assert "]: a tie" in drawn(render(make_report(trials), trials))
    trials = [make_trial(0, value=60.0, name="default"), make_trial(1, value=80.0)]
    assert "]: better" in drawn(render(make_report(trials), trials))


def test_final_runs_are_shown_with_how_far_they_are(make_report, some_trials):
    assert "final" not in drawn(render(make_report(some_trials), some_trials))
    final = {"stage": "confirm", "n_done": 3, "n_runs": 16}
    text = drawn(render(make_report(some_trials, final=final), some_trials))
    assert "stage 'confirm': 3 of 16 runs ended; nbtl-search finalize cats" in text


def test_a_study_without_any_result(make_report):
    empty = make_report([], gain=None, workers=(), eta_s=None, seconds_spent=0.0)
    text = drawn(render(empty, []))
    assert "best" not in text
    assert "to go" not in text


def test_names_are_shown_and_not_obeyed(make_report, make_trial):
    trials = [make_trial(0, value=75.0, name="[red]\x1b[2J")]
    text = drawn(render(make_report(trials), trials))
    assert "\x1b" not in text
    assert r"[red]\x1b[2J" in text.replace("\n", "").replace(" ", "")


def test_many_trials_are_cut_to_those_worth_a_look(make_report, make_trial):
    trials = [make_trial(0, value=10.0, name="default")]
    trials += [make_trial(n, value=50.0 - n / 10) for n in range(1, 100)]
    trials += [make_trial(100, state="running")]
    kept = [trial.number for trial in worth_a_look(trials, default=0)]
    assert len(kept) == MAX_TRIALS
    assert kept == sorted(kept)
    assert {0, 1, 2, 99, 100} <= set(kept)
    assert 50 not in kept
    assert "71 more trials: --all" in drawn(render(make_report(trials), trials))
    text = drawn(render(make_report(trials), trials, show_all=True))
    assert "more trials" not in text
    assert "\n 50 " in text


def test_a_reason_is_told_once_with_the_trials_that_gave_it(make_report, make_trial):
    def infeasible(number, message):
        return make_trial(number, state="pruned", cause="infeasible", message=message)

    trials = [
        make_trial(0, value=75.0, name="default"),
        make_trial(1, state="pruned", value=40.0, cause="cancelled"),
        make_trial(2, state="failed", cause="infra", message="it [bold]died[/]\x1b[2J"),
        *(infeasible(n, "k <= 8 images, got 9; use a larger batch") for n in range(3, 11)),
    ]
    text = " ".join(drawn(render(make_report(trials), trials)).split())
    assert text.count("k <= 8 images, got 9; use a larger batch") == 1
    said = "infeasible, trials 3, 4, 5, 6, 7, 8 and 2 more: k <= 8 images, got 9; use a"
    assert said in text
    assert "infra, trial 2: it [bold]died[/]" in text
    assert "\x1b" not in text
    assert "cancelled," not in text, "a wish needs no message"
    assert text.count("cancelled") == 1
    many = [infeasible(n, f"reason {n % 9}") for n in range(12)]
    text = drawn(render(make_report(many), many))
    assert text.count("infeasible, trial") == 4
    assert "infeasible, trials 2, 11: reason 2" in text, "the frequent ones"
    assert "5 more reasons: --all" in text
    text = drawn(render(make_report(many), many, show_all=True))
    assert text.count("infeasible, trial") == 9


def test_many_workers_are_cut_too(make_report):
    crowd = tuple(worker(f"w{n}") for n in range(20))
    report = make_report([], workers=crowd)
    assert "12 more workers: --all" in drawn(render(report, []))
    assert "more workers" not in drawn(render(report, [], show_all=True))


def test_plain_is_json_with_what_scripts_were_promised(make_report, some_trials):
    plain = json.loads(json.dumps(make_report(some_trials).plain()))
    assert plain.keys() >= {
        *("study", "state", "n_trials", "complete", "pruned", "running", "waiting", "failed"),
        *("best", "default", "workers", "epochs_spent", "seconds_spent", "eta_s"),
    }
    assert plain["best"].keys() >= {"trial", "value", "params"}
    assert plain["default"].keys() == {"trial", "value", "low", "high", "n_runs"}
    assert plain["gain"].keys() >= {"n", "mean", "low", "high"}
    assert plain["workers"][0]["worker"] == "node1-1234-0"


def test_list_of_studies(some_trials):
    summary = StudySummary(
        name="cats",
        desired="pause",
        n_trials=40,
        n_finished=3,
        created_at=some_trials[0].started_at + timedelta(hours=1),
    )
    text = drawn(render_list([summary]))
    assert "cats" in text
    assert "paused" in text
    assert "3/40" in text
    assert "2026-03-01 13:00" in text
    assert "nbtl-search create" in drawn(render_list([]))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (59, "59 s"),
        (60, "1 min"),
        (3599, "1 h 00 min"),
        (3725, "1 h 02 min"),
        (200_000, "2 d 7 h"),
    ],
)
def test_duration(seconds, text):
    assert duration(seconds) == text
