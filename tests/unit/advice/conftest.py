"""Diagnoses with the measures a test names."""

import pytest

from nbtl_search.spec import Diagnosis, Measured


@pytest.fixture
def diagnosed():
    """Return a function that makes a diagnosis of these measures: numbers, or `Measured`."""

    def make(measures=None, **fields):
        given = {name: value for name, value in (measures or {}).items() if value is not None}
        return Diagnosis.parse(
            {
                "dataset": "flowers",
                "model": "inception_v4",
                "image_px": 299,
                "n_images": 1880,
                "n_val": 1880,
                "n_features": 1536,
                "n_classes": 47,
                "data_digest": "d",
                "weights_digest": "w",
                "measures": tuple(
                    value if isinstance(value, Measured) else Measured(name=name, value=value)
                    for name, value in given.items()
                ),
                **fields,
            }
        )

    return make
