"""Rows as the ledger gives them."""

from datetime import UTC, datetime

import pytest

from nbtl_search.ledger.records import TrialRecord
from nbtl_search.spec import Dials, Epoch

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


def _trial(
    number, *, state="complete", value=None, name="", n_epochs=8, cause=None, message=None, **dials
):
    ended = state in {"complete", "pruned", "failed"}
    return TrialRecord(
        trial_id=number + 100,
        number=number,
        name=name,
        state=state,
        value=value,
        best_epoch=None if value is None else n_epochs,
        n_epochs=n_epochs,
        last_top1=value,
        seconds=10.0 * n_epochs,
        n_attempts=1,
        cause=cause,
        message=message,
        worker=None,
        started_at=NOW,
        finished_at=NOW if ended else None,
        dials=Dials(**dials),
    )


def _curve(*values):
    return [
        Epoch(
            epoch=index,
            train_loss=1.0,
            val_loss=1.0,
            val_top1=value,
            val_top5=100.0,
            lr=0.01,
            n_images=100,
            seconds=10.0,
            micro_batch=32,
        )
        for index, value in enumerate(values, start=1)
    ]


@pytest.fixture(scope="session")
def make_trial():
    return _trial


@pytest.fixture(scope="session")
def make_curve():
    return _curve


@pytest.fixture
def some_trials(make_trial):
    """The default, a better one, a pruned one, one that is running, one that has just begun."""
    return [
        make_trial(0, value=75.0, name="default"),
        make_trial(1, value=82.5, name="paper-best", reinit_layers=2, n_l2sp=14, alpha=1e-3),
        make_trial(2, state="pruned", value=40.0, n_epochs=2, n_low=5, lr_low_ratio=0.2),
        make_trial(3, state="running", value=60.0, n_epochs=3, lr_high=0.03, n_l2sp=22, alpha=0.1),
        make_trial(4, state="running", n_epochs=0, reinit_layers=3),
    ]
