"""Learning rates against timm's own schedulers, and the optimiser they are set on."""

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from timm.scheduler import CosineLRScheduler, StepLRScheduler

from nbtl_search.spec import DataSettings, Recipe, TrainSettings
from nbtl_search.training.optimiser import (
    learning_rate,
    one_cycle,
    rate_at,
    set_rates,
    sgd,
    warmup_length,
    weight_decay,
)
from nbtl_search.transfer.layers import layers_of

BASES = (0.025, 0.0025, 1e-5)


def optimiser() -> torch.optim.SGD:
    return torch.optim.SGD([{"params": [torch.zeros(1)], "lr": lr} for lr in BASES], lr=0.1)


@settings(max_examples=60, deadline=None)
@given(
    epochs=st.integers(6, 60),
    decay_epochs=st.one_of(st.integers(1, 30), st.floats(0.5, 30)),
    decay_rate=st.floats(0.01, 1),
    warmup_epochs=st.integers(0, 3),
)
def test_steps_are_those_of_timm_without_prefix(epochs, decay_epochs, decay_rate, warmup_epochs):
    train = TrainSettings(
        epochs=epochs, decay_epochs=decay_epochs, decay_rate=decay_rate, warmup_epochs=warmup_epochs
    )
    theirs = StepLRScheduler(
        (sgd_ := optimiser()),
        decay_t=train.decay_epochs,
        decay_rate=decay_rate,
        warmup_t=warmup_epochs,
        warmup_lr_init=train.warmup_lr,
        warmup_prefix=False,
    )
    for epoch in range(epochs):
        theirs.step(epoch)
        ours = [learning_rate(base, epoch=epoch, train=train) for base in BASES]
        assert ours == [group["lr"] for group in sgd_.param_groups]


@settings(max_examples=30, deadline=None)
@given(epochs=st.integers(6, 60), warmup_epochs=st.integers(0, 3))
def test_cosine_is_that_of_timm(epochs, warmup_epochs):
    train = TrainSettings(epochs=epochs, schedule="cosine", warmup_epochs=warmup_epochs)
    theirs = CosineLRScheduler(
        (sgd_ := optimiser()),
        t_initial=epochs,
        warmup_t=warmup_epochs,
        warmup_lr_init=train.warmup_lr,
        warmup_prefix=False,
    )
    for epoch in range(epochs):
        theirs.step(epoch)
        ours = [learning_rate(base, epoch=epoch, train=train) for base in BASES]
        assert ours == pytest.approx([group["lr"] for group in sgd_.param_groups], rel=1e-14)


@settings(max_examples=40, deadline=None)
@given(
    epochs=st.integers(1, 12),
    n_updates=st.integers(1, 9),
    rise=st.sampled_from([0.0, 0.1, 0.25, 0.5, 1.0]),
)
def test_one_cycle_is_that_of_torch(epochs, n_updates, rise):
    recipe = Recipe(
        data=DataSettings(dataset="x"),
        train=TrainSettings(epochs=epochs, schedule="one_cycle", rise=rise),
    )
    n_all = epochs * n_updates
    # torch's divides by zero where nothing falls or nothing rises.
    assume(0 < rise * n_all - 1 < n_all - 1)
    theirs = torch.optim.lr_scheduler.OneCycleLR(
        (sgd_ := optimiser()),
        max_lr=list(BASES),
        total_steps=n_all,
        pct_start=rise,
        cycle_momentum=False,
    )
    for done in range(n_all):
        epoch, update = divmod(done, n_updates)
        ours = [
            rate_at(base, recipe, epoch=epoch, update=update, n_updates=n_updates) for base in BASES
        ]
        assert ours == pytest.approx([group["lr"] for group in sgd_.param_groups], rel=1e-9)
        if done + 1 < n_all:
            sgd_.step()
            theirs.step()


@pytest.mark.parametrize("n_updates", [1, 2, 3, 7])
@pytest.mark.parametrize("rise", [0.0, 0.25, 1.0])
def test_the_shortest_cycles_stay_between_their_ends(n_updates, rise):
    rates = [one_cycle(0.5, update=u, n_updates=n_updates, rise=rise) for u in range(n_updates)]
    assert all(0 < rate <= 0.5 for rate in rates)
    assert max(rates) > 0.4


def test_the_authors_readme_command():
    """METHODS: 0.9 every 10 epochs over 800; the last factor is 0.9^79 = 2.4e-4."""
    train = TrainSettings(epochs=800, decay_epochs=10, decay_rate=0.9)
    assert [learning_rate(0.01, epoch=e, train=train) for e in range(4)] == pytest.approx(
        [1e-4, 1e-4 + 0.0099 / 3, 1e-4 + 2 * 0.0099 / 3, 0.01]
    )
    assert learning_rate(1.0, epoch=799, train=train) == pytest.approx(0.9**79)


@pytest.mark.parametrize(
    ("epochs", "expected"), [(1, 0), (2, 1), (3, 1), (4, 2), (5, 2), (6, 3), (8, 3), (800, 3)]
)
def test_a_short_schedule_has_a_short_warmup(epochs, expected):
    train = TrainSettings(epochs=epochs, decay_rate=1.0)
    assert warmup_length(train) == expected
    rates = [learning_rate(0.02, epoch=epoch, train=train) for epoch in range(epochs)]
    assert rates.count(0.02) >= epochs / 2


@pytest.mark.parametrize(
    ("compat", "setting", "expected"),
    [
        ("paper", None, 0.0),
        ("paper", 0.01, 0.01),
        ("authors", None, 5e-4),
        ("authors", 0.0, 0.0),
    ],
)
def test_weight_decay_covers_every_parameter(tiny_recipe, compat, setting, expected):
    import timm

    train = {} if setting is None else {"weight_decay": setting}
    recipe = tiny_recipe(compat=compat, train=train)
    assert weight_decay(recipe) == expected
    model = timm.create_model(recipe.model.name, num_classes=3)
    optimiser = sgd(recipe, layers_of(model))
    assert {group["weight_decay"] for group in optimiser.param_groups} == {expected}
    held = [p for group in optimiser.param_groups for p in group["params"]]
    assert {id(p) for p in held} == {id(p) for p in model.parameters()}
    assert len(held) == len(list(model.parameters()))
    set_rates(optimiser, recipe, epoch=1, update=0, n_updates=4)
    rates = {group["name"]: group["lr"] for group in optimiser.param_groups}
    assert rates == pytest.approx({"head": 0.05, "high": 0.05, "low": 0.015})
