"""What `create` says of the training, in one line."""

import pytest

from nbtl_search.cli.search import _training
from nbtl_search.spec import StudySpec


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (
            {"augment": {"strength": 0.25}, "train": {"schedule": "one_cycle"}},
            "96 updates a trial, schedule one cycle, augmentation at strength 0.25 of 1",
        ),
        ({}, "96 updates a trial, schedule step, augmentation as the study says"),
    ],
)
def test_the_schedule_its_updates_and_the_augmentation_are_named(settings, expected):
    spec = StudySpec.parse({"name": "x", "data": {"dataset": "x"}} | settings)
    assert _training(spec, 96) == expected
