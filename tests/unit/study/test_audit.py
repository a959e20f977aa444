"""What early stopping did, from where the trials of a search stand."""

from dataclasses import replace

import hypothesis.strategies as st
import pytest
from hypothesis import given
from scipy.stats import binomtest

from nbtl_search.ledger.promotion import Ladder, Standing
from nbtl_search.spec.study import Pruning
from nbtl_search.study.audit import Audit, audit_of

LADDER = Ladder(rungs=(3,), n_epochs=8, pruning=Pruning(reduction=3, min_peers=3))


def trial(number, at_rung, value=None, *, audited=False, protected=False):
    is_whole = value is not None
    return Standing(
        trial_id=number, number=number, state="complete" if is_whole else "pruned",
        protected=protected, audited=audited, granted=8 if is_whole else 3,
        best_at=(at_rung,), value=value if is_whole else at_rung,
    )  # fmt: skip


SEARCH = [
    trial(0, 60.0, 75.0, protected=True),
    trial(1, 70.0, 80.0),
    trial(2, 50.0),
    trial(3, 40.0),
    trial(4, 30.0, 70.0, audited=True),
    trial(5, 65.0, 78.0),
    trial(6, 20.0),
]


def test_the_audited_that_a_rung_would_have_stopped_are_counted():
    found = audit_of(SEARCH, LADDER)
    assert found == Audit(n_stopped=1, n_best=0, epochs_trained=4 * 8 + 3 * 3, epochs_saved=15)
    assert found.saved == 15 / 56


def test_one_that_would_have_been_the_best_is_seen():
    late = [*SEARCH[:4], trial(4, 30.0, 81.0, audited=True), *SEARCH[5:]]
    assert audit_of(late, LADDER).n_best == 1


def test_its_own_luckier_repeat_does_not_take_its_place():
    late = [*SEARCH[:4], trial(4, 30.0, 81.0, audited=True), *SEARCH[5:]]
    repeat = replace(trial(7, 30.0, 85.0, protected=True), repeat_of=4)
    assert audit_of([*late, repeat], LADDER).n_best == 1


def test_what_was_cancelled_or_diverged_was_not_saved_by_a_rung():
    wanted_no_more = [*SEARCH[:6], replace(SEARCH[6], cause="cancelled")]
    assert audit_of(wanted_no_more, LADDER).epochs_saved == 10


def test_one_that_the_rung_would_have_promoted_tells_nothing():
    good = [*SEARCH[:4], trial(4, 90.0, 95.0, audited=True), *SEARCH[5:]]
    assert audit_of(good, LADDER).n_stopped == 0


def test_others_are_no_audit():
    assert audit_of([one for one in SEARCH if not one.audited], LADDER).n_stopped == 0
    few = [SEARCH[1], SEARCH[4]]
    assert audit_of(few, LADDER).n_stopped == 0, "fewer than the rung compares"


@given(n=st.integers(1, 60), data=st.data(), confidence=st.sampled_from([0.8, 0.95, 0.99]))
def test_the_interval_is_scipys(n, data, confidence):
    k = data.draw(st.integers(0, n))
    found = Audit(n_stopped=n, n_best=k, epochs_trained=1, epochs_saved=1)
    expected = binomtest(k, n).proportion_ci(confidence, method="exact")
    assert found.probability(confidence=confidence) == pytest.approx(
        (k / n, expected.low, expected.high), abs=1e-9
    )


def test_nothing_audited_nothing_told():
    assert Audit(n_stopped=0, n_best=0, epochs_trained=9, epochs_saved=3).probability() is None
