"""A verdict as `finalize` leaves it, made up from the trials of a study."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Literal

from nbtl_search.evidence import noise
from nbtl_search.evidence.values import values_of
from nbtl_search.ledger.records import TrialRecord, default_of
from nbtl_search.spec.verdict import (
    Contender,
    Entry,
    FinalRun,
    FinalWeights,
    Interval,
    TestScore,
    TestSetReading,
    Verdict,
)

N_TEST = 400


def make_verdict(
    trials: Sequence[TrialRecord],
    *,
    winner: int,
    tests: Sequence[Sequence[float]],
    stage: Literal["confirm", "test", "done"] = "done",
    reasons: Sequence[str] = ("",),
) -> Verdict:
    """Return the verdict where these trials' single-crop accuracies on test came out.

    Args:
        trials: candidates of the first stage, the default among them.
        winner: the number of the trial that won it.
        tests: accuracies of the default over the seeds, then of the winner if it is another.
        stage: how far the finalisation is.
        reasons: for each reading of the test images.
    """
    default = default_of(trials)
    assert default is not None
    chosen = [default, *(trial for trial in trials if trial.number == winner and trial != default)]
    others = [default, *(trial for trial in trials if trial != default)]
    values = [dict(enumerate(tops, start=5)) for tops in tests]
    entries = tuple(
        Entry(
            trial=trial.number,
            name=trial.name or f"trial {trial.number}",
            dials=trial.dials,
            single=noise.summary(tops.values()),
            ten_crop=noise.summary([top + 0.5 for top in tops.values()]),
            ensemble_top1=max(tops.values()) + 1.25,
        )
        for trial, tops in zip(chosen, values, strict=True)
    )
    two = len(values) == 2
    tops = [entry.ensemble_top1 or 0.0 for entry in entries]
    return Verdict(
        round=len(reasons),
        stage=stage,
        study=f"dtd10@test-{len(reasons)}",
        n_confirm_seeds=4,
        n_test_seeds=len(tests[0]),
        contenders=tuple(_contender(trial, default, winner) for trial in others),
        winner=None if stage == "confirm" else winner,
        entries=() if stage == "confirm" else entries,
        gain=_gain(values[1], values[0]) if two else None,
        ten_crop_gain=_gain(values[1], values[0]) if two else None,
        ensemble_gain=tops[1] - tops[0] if two else None,
        runs=(*_confirm_runs(others), *_test_runs(entries, values)),
        readings=tuple(
            TestSetReading(
                round=index, opened_at=datetime(2026, 3, index, 12, tzinfo=UTC), reason=reason
            )
            for index, reason in enumerate(reasons, start=1)
        ),
    )


def _gain(ours: dict[int, float], theirs: dict[int, float]) -> Interval | None:
    of_seeds = noise.seed_noise([list(ours.values()), list(theirs.values())], n_images=400)
    return noise.gain(ours, theirs, noise=of_seeds)


def _confirmed(trial: TrialRecord) -> dict[int, float]:
    return {
        seed: (trial.value or 50.0) - 1.0 + 0.25 * ((7 * seed + 3 * trial.number) % 5)
        for seed in range(1, 5)
    }


def _contender(trial: TrialRecord, default: TrialRecord, winner: int) -> Contender:
    ours = _confirmed(trial)
    return Contender(
        trial=trial.number,
        name=trial.name or f"trial {trial.number}",
        dials=trial.dials,
        search_top1=trial.value or 50.0,
        confirmed=noise.summary(ours.values()),
        value=values_of({0: list(ours.values())}, n_images=400).estimate(0),
        gain=None if trial == default else _gain(ours, _confirmed(default)),
        is_tied_with_winner=trial.number != winner and trial != default,
        is_winner=trial.number == winner,
    )


def _confirm_runs(trials: Sequence[TrialRecord]) -> list[FinalRun]:
    return [
        FinalRun(
            number=number,
            stage="confirm",
            candidate=trial.number,
            seed=seed,
            state="complete",
            n_epochs=30,
            seconds=285.0,
            n_attempts=2 if number == 1 else 1,
            val_top1=_confirmed(trial)[seed],
            test=None,
            weights=None,
        )
        for number, (seed, trial) in enumerate((s, t) for s in range(1, 5) for t in trials)
    ]


def _test_runs(entries: Sequence[Entry], values: Sequence[dict[int, float]]) -> list[FinalRun]:
    return [
        FinalRun(
            number=number,
            stage="test",
            candidate=entry.trial,
            seed=seed,
            state="complete",
            n_epochs=30,
            seconds=310.0,
            n_attempts=1,
            val_top1=None,
            test=TestScore(
                n_images=N_TEST,
                top1=top1,
                top5=min(100.0, top1 + 12),
                ten_crop_top1=top1 + 0.5,
                ten_crop_top5=min(100.0, top1 + 12.5),
            ),
            weights=FinalWeights(host="node1", folder=f"finals/{number}", digest="e" * 64),
        )
        for number, (entry, seed, top1) in enumerate(
            (entry, seed, top1)
            for entry, tops in zip(entries, values, strict=True)
            for seed, top1 in tops.items()
        )
    ]
