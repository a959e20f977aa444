"""Learning rates against timm's own schedulers, and the optimiser they are set on."""

import pytest
import timm
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from timm.optim import param_groups_layer_decay
from timm.scheduler import CosineLRScheduler, StepLRScheduler

from nbtl_search.errors import SpecError
from nbtl_search.spec import DataSettings, Dials, Recipe, TrainSettings
from nbtl_search.training.optimiser import (
    learning_rate,
    one_cycle,
    optimiser_of,
    rate_at,
    set_rates,
    warmup_length,
    weight_decay,
)
from nbtl_search.transfer.layers import layers_of
from nbtl_search.transfer.learning_rates import learning_rate_groups
from nbtl_search.transfer.penalties import l2sp

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
    optimiser = optimiser_of(recipe, layers_of(model))
    assert {group["weight_decay"] for group in optimiser.param_groups} == {expected}
    held = [p for group in optimiser.param_groups for p in group["params"]]
    assert {id(p) for p in held} == {id(p) for p in model.parameters()}
    assert len(held) == len(list(model.parameters()))
    set_rates(optimiser, recipe, epoch=1, update=0, n_updates=4)
    rates = {group["name"]: group["lr"] for group in optimiser.param_groups}
    assert rates == pytest.approx({"head": 0.05, "high": 0.05, "low": 0.015})


def test_layer_decay_is_that_of_timm(network):
    model, layers = network("vit_tiny_patch16_224")
    dials = Dials(lr_high=0.1, layer_decay=0.75)
    ours = {
        name: group.lr / 0.1
        for group in learning_rate_groups(layers, dials)
        for name, _ in group.parameters
    }
    of_timm = param_groups_layer_decay(model, weight_decay=0.0, layer_decay=0.75)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    theirs = {names[id(p)]: g["lr_scale"] for g in of_timm for p in g["params"]}
    assert ours == pytest.approx(theirs)
    assert ours["head.weight"] == 1
    assert ours["blocks.11.mlp.fc2.weight"] == pytest.approx(0.75)
    low = learning_rate_groups(layers, dials.replace(n_low=2, lr_low_ratio=0.5))
    rates = {name: group.lr for group in low for name, _ in group.parameters}
    assert rates["blocks.0.norm1.weight"] == pytest.approx(0.1 * 0.5 * 0.75**12)
    assert rates["blocks.1.norm1.weight"] == pytest.approx(0.1 * 0.75**11)


def test_adamw_with_beta_is_torchs_own_weight_decay(network):
    model, layers = network("test_resnet")
    copy_, layers_of_copy = network("test_resnet")
    copy_.load_state_dict(model.state_dict())
    recipe = Recipe(
        data=DataSettings(dataset="x"),
        train=TrainSettings(optimiser="adamw"),
        dials=Dials(lr_high=0.01, lr_head_ratio=3.0, beta=0.05, momentum=0.8),
    )
    ours = optimiser_of(recipe, layers)
    penalty = l2sp(layers, recipe.dials, anchors={}, scope="all")
    theirs = torch.optim.AdamW(
        [
            {"params": [p for _, p in block.parameters], "lr": lr}
            for block, lr in (
                *((block, 0.01) for block in layers_of_copy.blocks),
                (layers_of_copy.head, 0.03),
            )
        ],
        betas=(0.8, 0.99),
        weight_decay=0.05,
    )
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        for a, b in zip(model.parameters(), copy_.parameters(), strict=True):
            a.grad = torch.randn(a.shape, generator=generator)
            b.grad = a.grad.clone()
        penalty.step_({p: group["lr"] for group in ours.param_groups for p in group["params"]})
        ours.step()
        theirs.step()
    for (name, a), b in zip(model.named_parameters(), copy_.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6, msg=name)


def test_the_decoupled_pull_goes_to_the_anchor_at_the_rate():
    model = timm.create_model("test_resnet", num_classes=3)
    layers = layers_of(model)
    anchors = {name: torch.full_like(p, 2.0) for name, p in model.named_parameters()}
    dials = Dials(n_l2sp=2, alpha=0.5, beta=0.25)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    penalty = l2sp(layers, dials, anchors=anchors)
    penalty.step_(dict.fromkeys(model.parameters(), 0.1))
    pulled = {pull.name for pull in penalty.sp}
    decayed = {pull.name for pull in penalty.l2}
    assert pulled
    assert decayed
    for name, parameter in model.named_parameters():
        expected = before[name]
        if name in pulled:
            expected = expected - 0.1 * 0.5 * (expected - 2.0)
        if name in decayed:
            expected = expected * (1 - 0.1 * 0.25)
        torch.testing.assert_close(parameter.detach(), expected, msg=name)


@pytest.mark.parametrize("decay_updates", [0, 40])
@pytest.mark.parametrize(
    ("dials", "train", "first"),
    [
        ({}, {}, 1e-4),  # as in the released code, whatever the group
        ({"layer_decay": 0.75}, {}, 5e-6),
        ({}, {"optimiser": "adamw"}, 5e-6),
    ],
)
def test_a_warm_up_of_decayed_rates_begins_at_most_at_a_groups_own(
    dials, train, first, decay_updates
):
    recipe = Recipe(
        data=DataSettings(dataset="x"),
        train=TrainSettings.parse(train),
        dials=Dials.parse(dials | {"decay_updates": decay_updates}),
    )
    assert rate_at(5e-6, recipe, epoch=0, update=0, n_updates=10) == pytest.approx(first)
    assert rate_at(1e-2, recipe, epoch=0, update=0, n_updates=10) == pytest.approx(1e-4)


def test_nesterovs_form_is_not_ignored_in_silence():
    with pytest.raises(SpecError, match="adamw"):
        TrainSettings.parse({"optimiser": "adamw", "nesterov": False})


@pytest.fixture
def network():
    def make(name):
        model = timm.create_model(name, num_classes=3)
        return model, layers_of(model)

    return make
