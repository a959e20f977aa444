"""One test score on its way: through the pipe, a row of the database, and JSON for scripts."""

import json
from types import SimpleNamespace

import pytest

from nbtl_search.errors import SpecError
from nbtl_search.spec import Dials
from nbtl_search.spec.verdict import Entry, FinalResult, FinalWeights, Interval, Summary, TestScore

SCORE = TestScore(n_images=7, top1=100 / 7, top5=100.0, ten_crop_top1=200 / 7, ten_crop_top5=100.0)
RESULT = FinalResult(
    score=SCORE, weights=FinalWeights(host="node-7", folder="/finals/3", digest="ab" * 32)
)


def test_a_result_reads_back_equal_from_json():
    assert FinalResult.parse_json(RESULT.model_dump_json()) == RESULT


def test_a_row_holds_it_among_other_columns():
    columns = SCORE.model_dump() | RESULT.weights.model_dump() | {"predictions": b"", "trial_id": 1}
    row = SimpleNamespace(**columns)
    assert TestScore.from_row(row) == SCORE
    assert FinalWeights.from_row(row) == RESULT.weights


@pytest.mark.parametrize("change", [{"top1": float("nan")}, {"top5": 100.1}, {"n_images": 0}])
def test_what_no_score_can_be_is_refused(change):
    with pytest.raises(SpecError, match=next(iter(change))):
        SCORE.replace(**change)
    with pytest.raises(SpecError, match=next(iter(change))):
        TestScore.from_row(SimpleNamespace(**(SCORE.model_dump() | change)))


def test_scripts_find_the_keys_that_they_know():
    entry = Entry(
        trial=3, name="trial 3", dials=Dials(), single=Summary(n=1, mean=71.5, std=None),
        ten_crop=Summary(n=0, mean=None, std=None), ensemble_top1=None,
    )  # fmt: skip
    plain = json.loads(json.dumps(entry.model_dump()))
    assert plain["single"] == {"n": 1, "mean": 71.5, "std": None}
    assert plain["dials"].startswith("reinit_layers=1 lr_high=0.0025 ")


@pytest.mark.parametrize(
    ("low", "high", "is_tie"), [(-1.0, 1.0, True), (0.0, 2.0, True), (0.1, 2.0, False)]
)
def test_an_interval_that_holds_zero_is_a_tie(low, high, is_tie):
    assert Interval(n=4, mean=1.0, low=low, high=high).is_tie == is_tie
