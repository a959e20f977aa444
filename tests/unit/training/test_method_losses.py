"""What methods add to a batch's loss: against each formula written out once more, in float64."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from nbtl_search.errors import OutOfMemoryError, SpecError
from nbtl_search.source.teacher import compared_hooks
from nbtl_search.training.run import Run, train
from nbtl_search.transfer.feature_hooks import hooks_of
from nbtl_search.transfer.layers import layers_of

PLAIN = {"randaugment": "", "mixup": 0.0, "erasing": 0.0, "crop_scale": (1.0, 1.0)}
USUAL = {"reinit_layers": 1, "n_low": 0, "n_l2sp": 0, "alpha": 0.0, "beta": 0.0}


@pytest.fixture
def make_run(tiny_prepared, home, tiny_recipe):
    def make(dials, **sections):
        recipe = tiny_recipe(dials={**USUAL, **dials}, **sections)
        return Run(recipe, prepared=tiny_prepared, home=home)

    return make


def evaluating(run):
    """Take batch norm and its micro-batches out of what is compared."""
    run.begin_epoch()
    run.network.model.eval()
    return next(run.batches())


def gradients(run, batch):
    run.gradient.compute(batch, seed=0)
    return {n: p.grad.clone() for n, p in run.network.model.named_parameters()}


def wide(run):
    """Return the network that learns, and its source, in float64."""
    return copy.deepcopy(run.network.model).double(), copy.deepcopy(
        run.network.source.model
    ).double()


def maps_of(model, images, hooks):
    found: dict[str, torch.Tensor] = {}
    handles = [
        model.get_submodule(hook.module).register_forward_hook(
            lambda _m, _i, output, name=hook.module: found.__setitem__(name, output)
        )
        for hook in hooks
    ]
    logits = model(images)
    for handle in handles:
        handle.remove()
    return logits, found


def pooled(model, images):
    return model.forward_head(model.forward_features(images), pre_logits=True)


def cross_entropy(logits, targets):
    return -(targets.double() * torch.log_softmax(logits, dim=1)).sum(dim=1).mean()


def close(run, batch, loss, model):
    loss.backward()
    for name, gradient in gradients(run, batch).items():
        expected = model.get_parameter(name).grad
        torch.testing.assert_close(gradient.double(), expected, rtol=2e-3, atol=2e-6)


def test_distillation_is_added_with_its_weight(make_run):
    run = make_run({"distill": 2.5, "distill_temperature": 2.0})
    batch = evaluating(run)
    model, source = wide(run)
    head = run.network.source.head
    images = batch.images.double()
    features, of_source = pooled(model, images), pooled(source, images).detach()
    student = functional.linear(features, head.weight.double(), head.bias.double())
    teacher = functional.linear(of_source, head.weight.double(), head.bias.double())
    p, q = torch.softmax(teacher / 2, 1), torch.softmax(student / 2, 1)
    pull = (p * (p.log() - q.log())).sum(1).mean()
    close(run, batch, cross_entropy(model(images), batch.targets) + 2.5 * pull, model)


@pytest.mark.parametrize(("reduction", "n"), [("sum", 1), ("mean", 8)])
def test_plain_delta_is_added_with_its_weight(make_run, reduction, n):
    run = make_run({"delta": "plain", "delta_alpha": 0.001}, methods={"delta_reduction": reduction})
    with torch.no_grad():  # at the start all that is pulled is where it is pulled to
        for parameter in run.network.model.parameters():
            parameter.mul_(1.1)
    batch = evaluating(run)
    model, source = wide(run)
    hooks = hooks_of(source, n=4)
    logits, maps = maps_of(model, batch.images.double(), hooks)
    _, of_source = maps_of(source, batch.images.double(), hooks)
    pull = sum(((maps[t.module] - of_source[t.module].detach()) ** 2).sum() / 2 for t in hooks)
    assert pull > 0
    close(run, batch, cross_entropy(logits, batch.targets) + 0.001 * pull / n, model)


def test_attention_weighs_the_channels(make_run):
    run = make_run(
        {"delta": "attention", "delta_alpha": 0.05}, methods={"delta_taps": 2, "delta_batches": 1}
    )
    with torch.no_grad():
        for parameter in run.network.model.parameters():
            parameter.mul_(1.1)
    batch = evaluating(run)
    model, source = wide(run)
    hooks = hooks_of(source, n=2)
    attention = run.gradient.terms.source.attention
    assert set(attention) == {hook.module for hook in hooks}
    logits, maps = maps_of(model, batch.images.double(), hooks)
    _, of_source = maps_of(source, batch.images.double(), hooks)
    pull = 0
    for hook in hooks:
        offset = (maps[hook.module] - of_source[hook.module].detach()) ** 2
        _, c, h, w = offset.shape
        weights = attention[hook.module].double()
        assert float(weights.sum()) == pytest.approx(1)
        pull = pull + c / (h * w) / 2 * (offset.sum((0, 2, 3)) * weights).sum()
    close(run, batch, cross_entropy(logits, batch.targets) + 0.05 * pull, model)


def test_spectral_shrinkage_is_added_with_its_strength(make_run):
    run = make_run({"bss": 0.3}, methods={"bss_k": 2})
    batch = evaluating(run)
    model = copy.deepcopy(run.network.model).double()
    features = pooled(model, batch.images.double())
    smallest = torch.linalg.svdvals(features)[-2:].square().sum()
    loss = cross_entropy(model(batch.images.double()), batch.targets) + 0.3 * smallest
    close(run, batch, loss, model)


def test_the_source_sees_the_mixed_and_augmented_images(make_run):
    run = make_run({"distill": 1.0}, augment={"mixup": 1.0})
    seen = []
    for model in (run.network.model, run.network.source.model):
        model.register_forward_pre_hook(lambda _m, inputs: seen.append(inputs[0]))
    run.begin_epoch()
    run.update(next(run.batches()))
    learning, source = seen
    assert torch.equal(learning, source)


def test_precomputed_logits_are_those_of_the_batch_s_images(make_run):
    run = make_run({"distill": 1.0}, augment=PLAIN, methods={"distill_teacher": "precomputed"})
    batch = evaluating(run)
    online = make_run({"distill": 1.0}, augment=PLAIN)
    expected = gradients(online, evaluating(online))
    for name, gradient in gradients(run, batch).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("dials", "methods"),
    [
        ({"delta": "plain", "delta_alpha": 1e-3}, {}),
        ({"delta": "plain", "delta_alpha": 1e-2}, {"delta_reduction": "mean"}),
        ({"distill": 2.0}, {}),
        ({"distill": 2.0, "dtnh": "always"}, {}),
    ],
)
def test_accumulation_has_the_gradient_of_the_whole_batch(make_run, dials, methods):
    found = []
    for size in (8, 3):
        run = make_run(dials, methods=methods, train={"micro_batch": size})
        with torch.no_grad():
            for parameter in run.network.model.parameters():
                parameter.mul_(1.05)
        batch = evaluating(run)
        run.gradient.compute(batch, seed=0)
        run.regularise()
        found.append([p.grad.clone() for p in run.network.model.parameters()])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("mode", ["conflict", "always"])
def test_dtnh_projects_what_pulls_to_the_source_and_nothing_else(make_run, mode):
    pulls = {"n_l2sp": 3, "alpha": 0.5, "distill": 3.0}
    run = make_run({**pulls, "beta": 0.1, "bss": 0.01, "dtnh": mode})
    with torch.no_grad():
        for parameter in run.network.model.parameters():
            parameter.mul_(1.1)
    batch = evaluating(run)
    run.gradient.compute(batch, seed=0)
    run.regularise()
    found = {n: p.grad.clone() for n, p in run.network.model.named_parameters()}

    task, both = make_run({"bss": 0.01}), make_run({"bss": 0.01, "distill": 3.0})
    for other in (task, both):
        other.network.model.load_state_dict(run.network.model.state_dict())
        other.network.model.eval()
    g = gradients(task, batch)
    distilled = {n: value - g[n] for n, value in gradients(both, batch).items()}
    anchors = {pull.name: pull.anchor for pull in run.penalty.penalty.sp}
    to_zero = {pull.name for pull in run.penalty.penalty.l2}
    head = {name for name, _ in run.network.layers.head.parameters}
    assert anchors
    for name, parameter in run.network.model.named_parameters():
        r = distilled[name] + (0.5 * (parameter - anchors[name]) if name in anchors else 0)
        product = (g[name] * r).sum()
        if mode == "always" or product < 0:
            r = r - product / (g[name] ** 2).sum().clamp(min=1e-30) * g[name]
        expected = (
            g[name] + (0 if name in head else r) + (0.1 * parameter if name in to_zero else 0)
        )
        torch.testing.assert_close(found[name], expected.detach(), rtol=5e-3, atol=1e-5)


def test_the_loss_of_an_epoch_is_the_cross_entropy_alone(make_run):
    plain, heavy = make_run({}), make_run({"distill": 50.0, "bss": 1.0})
    batches = [evaluating(run) for run in (plain, heavy)]
    values = [
        run.gradient.compute(batch, seed=0)
        for run, batch in zip((plain, heavy), batches, strict=True)
    ]
    assert values[0] == values[1]


def test_frozen_blocks_do_not_change_and_cost_no_momentum(make_run):
    run = make_run({"frozen_layers": 3, "n_l2sp": 4, "alpha": 0.1, "beta": 0.1})
    names = {name for block in run.network.frozen.blocks for name, _ in block.parameters}
    modules = {name for block in run.network.frozen.blocks for name, _ in block.modules}
    before = copy.deepcopy(run.network.model.state_dict())
    list(train(run))
    assert names
    for name, value in run.network.model.state_dict().items():
        if name.rpartition(".")[0] in modules:
            assert torch.equal(value, before[name]), name
    held = {id(p) for group in run.optimiser.param_groups for p in group["params"]}
    pulled = {pull.name for pull in (*run.penalty.sp, *run.penalty.l2)}
    for name, parameter in run.network.model.named_parameters():
        assert (id(parameter) in held) == (name not in names)
    assert pulled
    assert not pulled & names


def test_decay_counted_in_updates_takes_no_notice_of_epochs(make_run):
    dials = {"lr_high": 0.08, "decay_updates": 2, "decay_factor": 0.5}
    run = make_run(dials, train={"warmup_epochs": 0, "epochs": 2})
    rates = []
    while not run.finished:
        run.begin_epoch()
        for batch in run.batches():
            run.update(batch)
            rates.append(run.optimiser.param_groups[-1]["lr"])
        run.end_epoch(None)
    assert rates == pytest.approx([0.08 * 0.5 ** (u // 2) for u in range(len(rates))])
    assert len(rates) == 2 * run.n_updates
    assert run.history[1].lr == pytest.approx(0.08 * 0.5 ** (run.n_updates // 2))


def test_new_layers_on_a_kept_classifier_have_the_rate_of_the_head(make_run, tiny_weights):
    import safetensors.torch

    run = make_run({"source_head": "keep", "lr_head_ratio": 3.0}, methods={"source_hidden": (5,)})
    file = safetensors.torch.load_file(tiny_weights)
    source, head = run.network.layers.blocks[-1], run.network.layers.head
    assert {name.split(".")[-2] for name, _ in source.parameters} == {"source"}
    for name, parameter in source.parameters:
        assert torch.equal(parameter, file[name.replace(".source.", ".")])
    groups = {group["name"]: group["params"] for group in run.optimiser.param_groups}
    assert {id(p) for p in groups["head"]} == {id(p) for _, p in head.parameters}
    list(train(run))
    assert len(run.history) == 2


def test_nothing_listens_where_no_method_is_on(make_run):
    run = make_run({})
    with run.gradient.terms.recording():
        assert not any(
            m._forward_hooks or m._forward_pre_hooks for m in run.network.model.modules()
        )


class Chain(nn.Module):
    """Feature maps behind activations, which have no weights of their own."""

    feature_info = ({"module": "first", "num_chs": 3}, {"module": "second", "num_chs": 3})

    def __init__(self) -> None:
        super().__init__()
        self.low, self.first = nn.Conv2d(3, 3, 1), nn.ReLU()
        self.high, self.second = nn.Conv2d(3, 3, 1), nn.ReLU()
        self.fc = nn.Linear(3, 2)

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:  # noqa: FBT001, FBT002, ARG002
        return {"stem": r"^low", "blocks": r"^high"}

    def get_classifier(self) -> nn.Module:
        return self.fc


@pytest.mark.parametrize(("n_new", "expected"), [(1, ["first", "second"]), (2, ["first"])])
def test_a_map_behind_a_new_layer_is_not_pulled(tiny_recipe, n_new, expected):
    model = Chain()
    recipe = tiny_recipe(dials={"delta": "plain", "reinit_layers": n_new})
    assert [hook.module for hook in compared_hooks(recipe, layers_of(model), model)] == expected


def test_maps_of_new_layers_are_not_pulled(make_run):
    all_maps = make_run({"delta": "plain"}).gradient.terms.source.hooks
    new = make_run({"delta": "plain", "reinit_layers": 2}).gradient.terms.source.hooks
    assert new == all_maps[: len(new)]
    assert len(new) < len(all_maps)
    with pytest.raises(SpecError, match="layers that keep their weights, got none"):
        make_run({"delta": "plain", "reinit_layers": 2}, methods={"delta_taps": 1})


@pytest.mark.parametrize(("micro_batch", "k", "got"), [(1, 1, 1), (2, 3, 2), (7, 5, 4)])
def test_spectral_shrinkage_of_too_few_images_is_refused(make_run, micro_batch, k, got):
    with pytest.raises(
        SpecError, match=rf"micro-batches of {max(2, k)} images or more .* got {got} with"
    ):
        make_run({"bss": 0.1}, train={"micro_batch": micro_batch}, methods={"bss_k": k})


def test_spectral_shrinkage_where_only_too_few_images_fit_is_out_of_memory(make_run):
    run = make_run({"bss": 0.1}, methods={"bss_k": 3})

    def full(module, _, output):
        if module.training and len(output) > 2:
            message = "can't allocate memory"
            raise RuntimeError(message)

    run.network.model.get_submodule("global_pool").register_forward_hook(full)
    run.begin_epoch()
    with pytest.raises(OutOfMemoryError, match=r"1 <= k <= 2 singular values .* got 3"):
        run.update(next(run.batches()))
    assert run.gradient.micro_batch == 2


@pytest.mark.parametrize(
    "dials", [{"delta": "plain"}, {"distill": 1.0}, {"source_head": "keep"}, {"frozen_layers": 1}]
)
def test_what_needs_pretrained_weights_is_refused_without_them(make_run, dials):
    with pytest.raises(SpecError, match=r"(?i)pre-trained|weights"):
        make_run(dials, model={"weights": "random"})


@pytest.mark.parametrize(
    ("dials", "named"),
    [
        ({"frozen_layers": 99}, "frozen_layers"),
        ({"source_head": "keep", "reinit_layers": 2}, "reinit_layers"),
        ({"dtnh": "always"}, "dtnh"),
    ],
)
def test_an_impossible_combination_is_refused_with_the_reason(make_run, dials, named):
    with pytest.raises(SpecError, match=named):
        make_run(dials)
