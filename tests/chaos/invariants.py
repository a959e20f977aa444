"""What must hold of a study that ended, whatever was done to it. Each returns what is wrong."""

from dataclasses import replace
from itertools import pairwise
from typing import Any

import psutil
from sqlalchemy import text

from nbtl_search.ledger import grants as ledger_grants
from nbtl_search.ledger.leases import MAX_FAILURES, MAX_LOST
from nbtl_search.ledger.promotion import Room, choose
from nbtl_search.worker.retention import checkpoints_of
from tests.chaos import stub_trainer

CAUSES = {"complete", "pruned", "paused", "preempted", "cancelled", "infra", "disk"}
CANCELLED = "cancelled"


def rows(study, query):
    with study.storage.engine.connect() as connection:
        return connection.execute(text(query), {"study": study.id}).mappings().all()


def trials_of(study):
    return rows(study, "SELECT * FROM nbtl_trial WHERE study_id = :study ORDER BY number")


def attempts_of(study):
    return rows(
        study,
        "SELECT a.*, t.number FROM nbtl_attempt a JOIN nbtl_trial t USING (trial_id)"
        " WHERE t.study_id = :study ORDER BY t.number, a.attempt",
    )


def curves_of(study):
    found: dict[int, list[Any]] = {trial["number"]: [] for trial in trials_of(study)}
    for row in rows(
        study,
        "SELECT e.*, t.number FROM nbtl_epoch e JOIN nbtl_trial t USING (trial_id)"
        " WHERE t.study_id = :study ORDER BY t.number, e.epoch",
    ):
        found[row["number"]].append(row)
    return found


def budget(study):
    """As many trials as were asked for, or all of the epochs; each trial in one terminal state."""
    limits = study.spec.budget
    trials = trials_of(study)
    wanted = limits.n_trials if limits.epochs is None else len(trials)
    (row,) = rows(study, "SELECT started FROM nbtl_study WHERE study_id = :study")
    if (len(trials), row["started"]) != (wanted, wanted) or wanted > limits.n_trials:
        yield f"{len(trials)} trials and {row['started']} slots of {wanted}"
    n_granted = sum(trial["granted"] for trial in trials)
    if limits.epochs is not None and n_granted > limits.epochs:
        yield f"{n_granted} epochs were granted of {limits.epochs}"
    for trial in trials:
        if trial["state"] not in {"complete", "pruned", "failed"}:
            yield f"trial {trial['number']} is {trial['state']}"
    if sorted(trial["slot"] for trial in trials) != list(range(1, wanted + 1)):
        yield "a slot was used twice"


def leases(study):
    """Nothing is held, open or not notified."""
    for trial in trials_of(study):
        if trial["lease_expires"] is not None:
            yield f"trial {trial['number']} has a lease"
        if not trial["notified"]:
            yield f"trial {trial['number']} was not notified"
    for attempt in attempts_of(study):
        if attempt["ended_at"] is None:
            yield f"attempt {attempt['attempt']} at trial {attempt['number']} is open"


def attempts(study):
    """They are numbered without a gap, tokens grow, causes are known."""
    by_trial: dict[int, list[Any]] = {}
    for attempt in attempts_of(study):
        by_trial.setdefault(attempt["number"], []).append(attempt)
    for trial in trials_of(study):
        made = by_trial.get(trial["number"], [])
        if [one["attempt"] for one in made] != list(range(1, trial["attempt"] + 1)):
            yield f"attempts at trial {trial['number']} have gaps"
        if any(a["token"] >= b["token"] for a, b in pairwise(made)):
            yield f"tokens of trial {trial['number']} do not grow"
        unknown = {one["cause"] for one in made} - CAUSES
        if unknown:
            yield f"trial {trial['number']} has attempts that ended by {unknown}"


def failures(study):
    """A trial fails only by more failures or losses in a row than are forgiven."""
    for trial in trials_of(study):
        if trial["state"] != "failed":
            continue
        if trial["n_failures"] <= MAX_FAILURES and trial["n_lost"] <= MAX_LOST:
            yield f"trial {trial['number']} failed after {trial['n_failures']} failures"


def curves(study):
    """Each curve is that of an undisturbed run, from its first epoch, none twice or missing."""
    found = curves_of(study)
    for trial in trials_of(study):
        number, rungs = trial["number"], found[trial["number"]]
        ours = [row["epoch"] for row in rungs]
        if ours != list(range(1, len(ours) + 1)):
            yield f"trial {number} has the epochs {ours}"
        undisturbed = stub_trainer.curve(trial["recipe"])
        for row, wanted in zip(rungs, undisturbed, strict=False):
            if any(row[key] != wanted[key] for key in ("train_loss", "val_top1", "lr")):
                yield f"epoch {row['epoch']} of trial {number} differs from an undisturbed run"
        if trial["state"] == "complete" and len(ours) != len(undisturbed):
            yield f"trial {number} is complete after {len(ours)} epochs"
        best = max((row["val_top1"] for row in rungs), default=None)
        if trial["state"] != "failed" and trial["value"] != best:
            yield f"trial {number} has the value {trial['value']}, its best epoch {best}"


def grants(study):
    """Every epoch that was granted is trained, and nothing is left that could be granted."""
    found = curves_of(study)
    cancelled = {t["trial_id"] for t in trials_of(study) if t["cause"] == CANCELLED}
    for trial in trials_of(study):
        n_epochs = len(found[trial["number"]])
        if n_epochs != trial["granted"]:
            yield f"trial {trial['number']} has {n_epochs} of {trial['granted']} granted epochs"
    with study.storage.engine.connect() as connection:
        standings = [
            replace(one, state="paused")
            if one.state == "pruned" and one.trial_id not in cancelled
            else one
            for one in ledger_grants.standings(connection, study.id, study.ladder.rungs)
        ]
        room = ledger_grants.room(connection, study.id)
    limits = study.spec.budget
    if room is None:  # closed, or spent: what was left when it ended
        spent = sum(t["granted"] for t in trials_of(study)) + sum(
            attempt["n_repeated"] for attempt in attempts_of(study)
        )
        left = None if limits.epochs is None else max(0, limits.epochs - spent)
        room = Room(has_slot=len(standings) < limits.n_trials, epochs=left)
    chosen = choose(standings, room, study.ladder)
    if chosen is not None:
        yield f"{chosen} could have been granted epochs ({room})"


def notified(study):
    """Optuna has each trial once, ended as in the ledger, with the same value."""
    states = {"complete": "COMPLETE", "pruned": "PRUNED", "failed": "FAIL"}
    optunas = {trial.number: trial for trial in study.optuna.get_trials(deepcopy=False)}
    ended = {number for number, trial in optunas.items() if trial.state.is_finished()}
    ours = trials_of(study)
    if ended != {trial["number"] for trial in ours}:
        yield f"Optuna has {sorted(ended)} as ended"
    if any(trial.state.name == "RUNNING" for trial in optunas.values()):
        yield "Optuna has a trial that runs"
    for trial in ours:
        theirs = optunas.get(trial["number"])
        if theirs is None or theirs.state.name != states.get(trial["state"]):
            yield f"trial {trial['number']} is {trial['state']}, Optuna has {theirs}"
        elif trial["state"] == "complete" and theirs.value != trial["value"]:
            yield f"trial {trial['number']} has another value in Optuna"


def wishes(study):
    """What was to be cancelled was, unless it ended before that was heard; nothing else was."""
    for trial in trials_of(study):
        is_cancelled = trial["cause"] == CANCELLED
        if is_cancelled and (trial["desired"], trial["state"]) != ("cancel", "pruned"):
            yield f"trial {trial['number']} was cancelled, and is wanted or {trial['state']}"
        if trial["desired"] == "cancel" and not is_cancelled and trial["state"] == "pruned":
            yield f"trial {trial['number']} was to be cancelled, and paused"


def repeats(study):
    """A repeat has the recipe of a trial that ran to its end, and a seed that no other run has."""
    first = {trial["number"]: trial for trial in trials_of(study)}
    seen = set()
    for trial in first.values():
        number, recipe = trial["number"], trial["recipe"]
        origin = first.get(trial["repeat_of"], trial)
        if trial["repeat_of"] is not None and origin["state"] != "complete":
            yield f"trial {number} repeats trial {origin['number']}, which is {origin['state']}"
        if recipe["dials"] != origin["recipe"]["dials"]:
            yield f"trial {number} repeats trial {origin['number']} with other dials"
        run = (origin["number"], recipe["train"]["seed"])
        if run in seen:
            yield f"trial {number} has the seed {run[1]} of another run of its recipe"
        seen.add(run)


CHECKS = (budget, leases, attempts, failures, curves, grants, notified, wishes, repeats)


def violations(study):
    """Return all that is wrong in the database."""
    return [f"{check.__name__}: {line}" for check in CHECKS for line in check(study)]


def leftovers(study, home):
    """Return what should be gone: trainers, and checkpoints of trials that ended."""
    found = [f"trainer {process.pid}" for process in trainers(home)]
    folder = checkpoints_of(study, home)
    return found + [f"checkpoint {path.name}" for path in folder.glob("*/*.ckpt")]


def trainers(home):
    """Return the trainers of this home that live."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        line = process.info["cmdline"] or []
        ours = str(home) in line and any(word.endswith("stub_trainer.py") for word in line)
        if ours and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(process)
    return found
