"""What a study costs, by arithmetic on a measured speed."""

import pytest

from nbtl_search.errors import SpecError
from nbtl_search.spec import Budget, DataSettings, StudySpec, TrainSettings
from nbtl_search.spec.machine import Speed
from nbtl_search.study.cost_estimate import estimate_cost, slots_by_memory

SPEED = Speed(
    device="NVIDIA Something", precision="bf16", update_s=0.1, update_low_s=0.09,
    update_high_s=0.2, n_measured=8, validation_s=2.0, n_updates=100, batch_size=32,
    micro_batch=32, peak_mb=4000, device_mb=80_000, checkpoint_mb=512,
)  # fmt: skip


def spec(**budget):
    return StudySpec(
        name="x", data=DataSettings(dataset="dtd"), train=TrainSettings(epochs=30),
        budget=Budget(**{"n_trials": 10} | budget),
    )  # fmt: skip


def test_the_range_is_from_what_rungs_promote_to_all():
    found = estimate_cost(spec(), SPEED, n_workers=2)
    assert SPEED.epoch_s == 12.0
    assert found.first_rung == 8
    assert found.epochs == (30 + 9 * 8 + 3 * 22, 300)
    assert found.slot_h[1] == pytest.approx(300 * 12 / 3600)
    assert found.hours[1] == pytest.approx(found.slot_h[1] / 2)
    assert found.checkpoints_gb == pytest.approx((2 * 2 + 10) / 2)  # of workers, and paused


def test_a_budget_of_epochs_bounds_it():
    assert estimate_cost(spec(epochs=100), SPEED, n_workers=1).epochs[1] == 100


@pytest.mark.parametrize(
    "budget", [{"gpu_h": 0.001}, {"wall_clock_h": 0.001}, {"epochs": 1}], ids=str
)
def test_a_budget_that_ends_before_the_first_comparison_is_refused(budget):
    with pytest.raises(SpecError, match=f"budget.{next(iter(budget))}.*first comparison"):
        estimate_cost(spec(**budget), SPEED, n_workers=1)


def test_a_budget_that_ends_before_a_whole_trial_is_a_warning():
    found = estimate_cost(spec(wall_clock_h=0.05), SPEED, n_workers=1)
    assert any("wall_clock_h" in warning for warning in found.warnings)


def test_batches_in_pieces_are_a_warning():
    assert estimate_cost(spec(), SPEED.replace(micro_batch=8), n_workers=1).warnings
    assert estimate_cost(spec(), SPEED, n_workers=1).warnings == ()


@pytest.mark.parametrize(("peak", "slots"), [(4000, 15), (79_000, 1), (35_000, 2)])
def test_slots_by_memory(peak, slots):
    assert slots_by_memory(SPEED.replace(peak_mb=peak)) == slots
