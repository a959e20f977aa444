"""Random numbers as a pure function of where they are used, also for code with global state."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

# What a stream of random numbers is for: the same (seed, epoch, index) must not give two uses
# the same numbers.
ORDER, IMAGE, BATCH = 0, 1, 2


def generator(seed: int, purpose: int, *place: int) -> np.random.Generator:
    """Return numpy's generator for one purpose and place."""
    return np.random.default_rng((seed, purpose, *place))


def reseed_global(seed: int, purpose: int, *place: int) -> None:
    """Seed Python's, numpy's and torch's CPU generator; call it inside `global_state_kept`."""
    words = np.random.SeedSequence((seed, purpose, *place)).generate_state(3)
    random.seed(int(words[0]))
    np.random.seed(words[1])  # noqa: NPY002  (timm draws from this one)
    # Not torch.manual_seed, which would also seed every accelerator.
    torch.default_generator.manual_seed(int(words[2]))


@contextmanager
def global_state_kept() -> Iterator[None]:
    """Restore the global generators of Python, numpy and torch's CPU afterwards."""
    kept = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(kept[0])
        np.random.set_state(kept[1])  # noqa: NPY002
        torch.set_rng_state(kept[2])
