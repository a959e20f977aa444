"""Verdicts from the ledger's rows: means, spreads, winner, ties, ensembles."""

import io
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import select

from nbtl_search.errors import StudyNotFoundError
from nbtl_search.evidence import noise
from nbtl_search.ledger import records, schema
from nbtl_search.ledger.ledger import TERMINAL
from nbtl_search.ledger.records import TrialRecord
from nbtl_search.postgres.connection import storage_errors
from nbtl_search.spec.verdict import (
    Candidate,
    Contender,
    Entry,
    FinalRun,
    FinalStage,
    FinalWeights,
    Interval,
    TestScore,
    TestSetReading,
    Verdict,
)
from nbtl_search.study import finals, judgement, stages
from nbtl_search.study.finals import Plan
from nbtl_search.study.store import Study


def verdict_of(study: Study) -> Verdict | None:
    """Return where the latest finalisation of a study stands; None if there is none.

    Raises:
        StorageError: the database refuses or does not answer.
    """
    every = stages.every_round(study)
    if not every:
        return None
    row, plan = every[-1], Plan.parse(every[-1].plan)
    trials = {trial.number: trial for trial in records.trials(study.storage.engine, study.id)}
    is_done = finals.is_done(study, row)  # first: what has ended by then is in the rows below
    confirm = _runs(study, row.confirm_id, "confirm")
    test = [] if row.test_id is None else _runs(study, row.test_id, "test")
    winner = None if row.winner is None else tuple(row.averaged or (row.winner,))
    is_made = any(run.averaged and run.state == "complete" for run in test)
    unmade: Candidate = ()
    if winner is not None and len(winner) > 1 and is_done and not is_made:
        unmade, winner = winner, winner[:1]
    # By what was known when the winner was chosen: the search may have gone on since.
    known = [
        trial
        for trial in trials.values()
        if row.test_opened_at is None
        or (trial.finished_at is not None and trial.finished_at <= row.test_opened_at)
    ]
    contenders = _contenders(study, confirm, trials, known, winner=winner)
    entries = _entries(study, row.test_id, test, trials, winner=winner)
    stage: Literal["confirm", "test", "done"] = "confirm" if row.test_id is None else "test"
    return Verdict(
        round=row.round,
        stage="done" if is_done else stage,
        study=stages.stage_name(study, stage, row.round),
        n_confirm_seeds=plan.n_confirm_seeds,
        n_test_seeds=plan.n_test_seeds,
        contenders=contenders,
        winner=row.winner,
        unmade=unmade,
        entries=entries,
        gain=_gain(study, test, entries, "top1"),
        ten_crop_gain=_gain(study, test, entries, "ten_crop_top1"),
        ensemble_gain=_ensemble_gain(entries),
        runs=(*confirm, *test),
        readings=tuple(
            TestSetReading(round=each.round, opened_at=each.test_opened_at, reason=each.reason)
            for each in every
            if each.test_opened_at is not None
        ),
    )


def _runs(study: Study, stage_id: int, stage: FinalStage) -> list[FinalRun]:
    return [_run(row, stage) for row in stages.runs_of(study, stage_id)]


def _run(row: Any, stage: FinalStage) -> FinalRun:
    is_scored = row.digest is not None
    return FinalRun(
        **stages.progress_of(row),
        stage=stage,
        candidate=row.candidate,
        averaged=tuple(row.averaged or ()),
        val_top1=row.value if stage == "confirm" else None,
        test=TestScore.from_row(row) if is_scored else None,
        weights=FinalWeights.from_row(row) if is_scored else None,
    )


def _contenders(
    study: Study,
    runs: Sequence[FinalRun],
    trials: dict[int, TrialRecord],
    known: Sequence[TrialRecord],
    *,
    winner: Candidate | None,
) -> tuple[Contender, ...]:
    order = list(dict.fromkeys(run.trials for run in runs))
    values = {candidate: _validated(runs, candidate) for candidate in order}
    default = order[0]
    planned = [
        judgement.Run(candidate=run.trials, state=run.state, value=run.val_top1) for run in runs
    ]
    judged = judgement.judge(planned, known, default=default[0], n_images=study.facts.n_val)
    return tuple(
        Contender(
            **_named(candidate, trials),
            search_top1=None if len(candidate) > 1 else trials[candidate[0]].value or 0.0,
            confirmed=noise.summary(values[candidate].values()),
            value=judged.values.estimate(candidate) if candidate in judged.eligible else None,
            gain=None
            if candidate == default
            else noise.gain(values[candidate], values[default], noise=judged.values.noise),
            is_tied_with_winner=winner is not None
            and candidate != winner
            and judged.is_tie(candidate, winner),
            is_winner=candidate == winner,
        )
        for candidate in order
    )


def _named(candidate: Candidate, trials: dict[int, TrialRecord]) -> dict[str, Any]:
    """Return what a contender and an entry have in common."""
    first = trials[candidate[0]]
    return {
        "trial": first.number,
        "averaged": candidate if len(candidate) > 1 else (),
        "name": stages.name_of_candidate([trials[number] for number in candidate]),
        "dials": first.dials,
    }


def _validated(runs: Sequence[FinalRun], candidate: Candidate) -> dict[int, float]:
    """Return validation top-1 by seed of the runs that ended."""
    return {
        run.seed: run.val_top1
        for run in runs
        if run.trials == candidate and run.state == "complete" and run.val_top1 is not None
    }


def _entries(
    study: Study,
    stage_id: int | None,
    runs: Sequence[FinalRun],
    trials: dict[int, TrialRecord],
    *,
    winner: Candidate | None,
) -> tuple[Entry, ...]:
    if stage_id is None or winner is None:
        return ()
    # The winner last, also where its averages are still to be made.
    order = dict.fromkeys(run.trials for run in runs if run.trials != winner and not run.averaged)
    first = runs[0].trials
    chosen = [first] if winner == first else [*order, winner]
    return tuple(
        Entry(
            **_named(candidate, trials),
            single=noise.summary(_tested(runs, candidate, "top1").values()),
            ten_crop=noise.summary(_tested(runs, candidate, "ten_crop_top1").values()),
            ensemble_top1=_ensemble(study, stage_id, runs, candidate),
        )
        for candidate in chosen
    )


def _tested(runs: Sequence[FinalRun], candidate: Candidate, score: str) -> dict[int, float]:
    """Return a score on the test images by seed."""
    return {
        run.seed: getattr(run.test, score)
        for run in runs
        if run.trials == candidate and run.test is not None
    }


def _gain(
    study: Study, runs: Sequence[FinalRun], entries: Sequence[Entry], score: str
) -> Interval | None:
    if len(entries) < 2:
        return None
    # An average is made of its recipes' runs, and tells nothing more of how far runs lie apart.
    alone = [entry.trials for entry in entries if len(entry.trials) == 1]
    of_seeds = noise.seed_noise(
        [list(_tested(runs, trials, score).values()) for trials in alone],
        n_images=study.facts.n_test,
    )
    default, winner = (_tested(runs, entry.trials, score) for entry in (entries[0], entries[-1]))
    return noise.gain(winner, default, noise=of_seeds)


def _ensemble_gain(entries: Sequence[Entry]) -> float | None:
    tops = [entry.ensemble_top1 for entry in entries]
    if len(tops) < 2 or tops[0] is None or tops[-1] is None:
        return None
    return tops[-1] - tops[0]


def _ensemble(
    study: Study, stage_id: int, runs: Sequence[FinalRun], candidate: Candidate
) -> float | None:
    mine = [run for run in runs if run.trials == candidate]
    if any(run.state not in TERMINAL for run in mine):
        return None
    found = [predictions(study, stage_id, run.number) for run in mine if run.test is not None]
    if not found:
        return None
    return ensemble_top1([each["probabilities"] for each in found], found[0]["labels"])


def ensemble_top1(probabilities: Sequence[NDArray[np.float32]], labels: NDArray[np.int64]) -> float:
    """Return the percentage of images whose class has the highest mean probability.

    The mean is taken in float64; of classes that share the highest, the lowest number counts.

    Args:
        probabilities: of shape (n, n_classes), one array per seed.
        labels: the classes, of shape (n,).

    Raises:
        ValueError: there is no array or no image, or the shapes differ.
    """
    shapes = [array.shape for array in probabilities]
    if not shapes or len(labels) == 0 or set(shapes) != {(len(labels), shapes[0][-1])}:
        message = (
            f"an ensemble must have arrays of one shape (n, classes) and n > 0 labels, got "
            f"{shapes} and {labels.shape}; read the predictions of the same test images"
        )
        raise ValueError(message)
    total = np.zeros(shapes[0], dtype=np.float64)  # its order is the mean's, without its rounding
    for array in probabilities:
        total += array
    return 100.0 * float(np.mean(total.argmax(axis=1) == labels))


def predictions(study: Study, stage_id: int, number: int) -> dict[str, NDArray[Any]]:
    """Return what a final run predicted for each test image.

    Returns:
        labels (n,), single (n,): the class under the single crop, and probabilities (n, classes):
        the mean softmax over ten crops.

    Raises:
        StudyNotFoundError: the run has no predictions.
    """
    trial, result = schema.trial, schema.final_result
    query = (
        select(result.c.predictions)
        .join(trial, trial.c.trial_id == result.c.trial_id)
        .where(trial.c.study_id == stage_id, trial.c.number == number)
    )
    with storage_errors(), study.storage.engine.connect() as connection:
        content = connection.execute(query).scalar()
    if content is None:
        message = f"final run {number} of study {study.name!r} has not predicted anything yet"
        raise StudyNotFoundError(message)
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        return {name: arrays[name] for name in ("labels", "single", "probabilities")}
