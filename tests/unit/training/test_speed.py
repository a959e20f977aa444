"""A speed is measured on real batches, and costs what a run costs."""

import pytest

from nbtl_search.training import checkpoint
from nbtl_search.training.run import Run, train
from nbtl_search.training.speed import measure, throughput


@pytest.fixture
def make_run(tiny_recipe, tiny_prepared, tiny_home):
    return lambda: Run(tiny_recipe(), prepared=tiny_prepared, home=tiny_home)


def test_it_measures_updates_validation_and_the_checkpoint(make_run, tmp_path):
    run = make_run()
    speed = measure(run)
    assert speed.n_measured == 8
    assert 0 < speed.update_low_s <= speed.update_s <= speed.update_high_s
    assert speed.validation_s > 0
    assert speed.images_per_s == pytest.approx(speed.batch_size / speed.update_s)
    assert speed.epoch_s >= speed.n_updates * speed.update_s
    trained = make_run()
    next(iter(train(trained)))  # momentum makes half of it
    saved = checkpoint.save(tmp_path, trained).stat().st_size / 2**20
    assert speed.checkpoint_mb == pytest.approx(saved, rel=0.05)


def test_a_slow_one_is_cut_off_with_one_update(make_run):
    assert measure(make_run(), longest_s=0.0).n_measured == 1


def test_throughput_counts_images(make_run):
    assert throughput(make_run(), seconds=0.2) > 0
