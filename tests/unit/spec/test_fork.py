"""What a fork says of the trials that it did not take over."""

from nbtl_search.spec import Fork


def test_reasons_have_their_counts():
    fork = Fork(source="cats", n_carried=3, left_out={"outside: lr_high": 2, "not ended": 1})
    assert fork.n_trials == 6
    assert fork.why_left_out() == ["outside: lr_high (2)", "not ended (1)"]


def test_one_reason_for_all_says_so():
    assert Fork(source="cats", left_out={"other weights": 4}).why_left_out() == [
        "other weights (all 4)"
    ]
    assert Fork(source="cats").why_left_out() == []


def test_rare_reasons_are_counted_together():
    left_out = {f"outside: {name}": 1 for name in "abcdefgh"}
    assert Fork(source="cats", left_out=left_out).why_left_out()[5:] == [
        "outside: f (1)", "other reasons (2)",
    ]  # fmt: skip
