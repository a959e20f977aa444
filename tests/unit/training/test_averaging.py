"""Averages of weights: the mean against float64, batch norm measured anew, and what is refused."""

import json
import shutil

import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from nbtl_search.errors import DataError, WeightsError
from nbtl_search.spec import Dials, Recipe
from nbtl_search.training.averaging import average_of, averaged, measure_batch_norm
from nbtl_search.training.final_run import keep, read_kept
from nbtl_search.training.run import Run, train

RATES = (0.01, 0.03, 0.1)


@pytest.fixture
def make_run(tiny_prepared, tiny_home, tiny_recipe):
    def make(**sections):
        train_on = {"train": {"epochs": 1, "batch_size": 7}} | sections
        return Run(tiny_recipe(**train_on), prepared=tiny_prepared, home=tiny_home)

    return make


@pytest.fixture
def folders(make_run, tmp_path):
    """The folders of three runs of one seed at different rates."""
    for rate in RATES:
        run = make_run(dials={"lr_high": rate})
        list(train(run))
        keep(run, tmp_path / f"{rate}", None)
    return [tmp_path / f"{rate}" for rate in RATES]


@pytest.fixture
def average(tiny_prepared, tiny_home):
    def make(folders, recipe=None):
        members = [read_kept(folder) for folder in folders]
        return average_of(
            members, recipe or members[0].recipe, prepared=tiny_prepared, home=tiny_home
        )

    return make


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), n=st.integers(1, 6), large=st.booleans())
def test_the_mean_is_that_of_float64_in_any_order(seed, n, large):
    generator = torch.Generator().manual_seed(seed)
    scale = 1e20 if large else 1.0
    values = [scale * torch.randn(5, 3, generator=generator) for _ in range(n)]
    states = [{"w": value, "n": torch.tensor(i)} for i, value in enumerate(values)]
    found = averaged(states)
    want = np.mean([value.double().numpy() for value in values], axis=0).astype(np.float32)
    assert found["w"].dtype == torch.float32
    np.testing.assert_allclose(found["w"].numpy(), want, rtol=2e-7)
    assert int(found["n"]) == 0, "what is no float cannot be averaged: the first's"
    torch.testing.assert_close(averaged(states[::-1])["w"], found["w"], rtol=1e-7, atol=0)


def test_the_members_stay_as_they_are():
    first, second = {"w": torch.ones(2)}, {"w": torch.zeros(2)}
    found = averaged([first, second])
    found["w"].fill_(9.0)
    assert first["w"].tolist() == [1.0, 1.0]
    assert second["w"].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("other", [{"v": torch.ones(2)}, {"w": torch.ones(3)}])
def test_weights_of_another_network_are_refused(other):
    with pytest.raises(WeightsError, match=r"same keys and shapes, got others for '[vw]'"):
        averaged([{"w": torch.ones(2)}, other])


def test_a_network_averaged_with_itself_is_itself(folders, average):
    run, kept = average([folders[0]] * 3), read_kept(folders[0])
    for name, value in run.network.model.state_dict().items():
        torch.testing.assert_close(value, kept.state[name], rtol=0, atol=0, msg=name)


def test_batch_norm_has_the_mean_of_the_batches_statistics(folders, average):
    """Against a transcription that normalises each batch by its own float64 statistics."""
    run = average(folders)
    model = run.network.model
    before = {name: value.clone() for name, value in model.named_parameters()}
    first: nn.Module = model.bn1
    seen = []
    hook = model.conv1.register_forward_hook(
        lambda _module, _inputs, output: seen.append(output.double())
    )
    n_done = list(measure_batch_norm(run))
    hook.remove()
    assert n_done == list(range(1, run.n_updates + 1))
    means = [batch.mean(dim=(0, 2, 3)) for batch in seen]
    variances = [batch.var(dim=(0, 2, 3), unbiased=True) for batch in seen]
    torch.testing.assert_close(
        first.running_mean.double(), torch.stack(means).mean(dim=0), rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(
        first.running_var.double(), torch.stack(variances).mean(dim=0), rtol=1e-4, atol=1e-5
    )
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) > 3
    assert all(norm.momentum is not None and not norm.training for norm in norms)
    for name, value in model.named_parameters():
        assert torch.equal(value, before[name]), name
        assert value.grad is None


def test_the_statistics_do_not_depend_on_those_before(folders, average):
    first, second = average(folders), average(folders)
    for name, value in second.network.model.named_buffers():
        if value.is_floating_point():
            value.fill_(7.0 if "mean" in name else 3.0)
    for run in (first, second):
        list(measure_batch_norm(run))
    theirs = second.network.model.state_dict()
    for name, value in first.network.model.state_dict().items():
        assert torch.equal(value, theirs[name]), name


def test_dropout_is_off_while_they_are_measured(folders, average):
    run = average(folders)
    drop = nn.Dropout(0.9)
    run.network.model.add_module("drop", drop)
    for _ in measure_batch_norm(run):
        assert not drop.training


def test_an_average_is_the_same_bytes_however_often_it_is_made(folders, average, tmp_path):
    digests = set()
    for i in range(2):
        run = average(folders)
        list(measure_batch_norm(run))
        digests.add(keep(run, tmp_path / f"average-{i}", None))
    assert len(digests) == 1


def test_what_is_kept_says_what_was_averaged_and_loads_in_timm(folders, average, tmp_path):
    run = average(folders)
    list(measure_batch_norm(run))
    recipes = [read_kept(folder).recipe for folder in folders]
    keep(run, tmp_path / "average", None, averaged=recipes)
    about = json.loads((tmp_path / "average" / "about.json").read_text("utf-8"))
    assert Recipe.parse(about["recipe"]) == recipes[0]
    rates = [Recipe.parse(each).dials.lr_high for each in about["averaged"]]
    assert tuple(rates) == RATES
    model = timm.create_model("test_resnet", num_classes=3).eval()
    model.load_state_dict(read_kept(tmp_path / "average").state, strict=True)
    images = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        ours = run.network.model.eval()(images)
        torch.testing.assert_close(model(images), ours, rtol=1e-5, atol=1e-6)


def test_a_kept_source_classifier_is_averaged_with_its_new_layers(make_run, average, tmp_path):
    for rate in RATES[:2]:
        run = make_run(dials={"lr_high": rate, "reinit_layers": 1, "source_head": "keep"})
        list(train(run))
        keep(run, tmp_path / f"{rate}", None)
    run = average([tmp_path / f"{rate}" for rate in RATES[:2]])
    first, second = (read_kept(tmp_path / f"{rate}").state for rate in RATES[:2])
    found = run.network.model.state_dict()
    name = next(name for name in found if "appended" in name and name.endswith("weight"))
    torch.testing.assert_close(found[name], (first[name] + second[name]) / 2)


def test_methods_that_only_training_needs_are_not_built(folders, average):
    recipe = read_kept(folders[0]).recipe
    dials = Dials(delta="attention", distill=0.5, head_start="logistic", stochnorm_p=0.5)
    run = average(folders, recipe.replace(dials=dials))
    assert run.network.source is None
    assert run.recipe.dials == Dials()


def test_the_smallest_part_that_fitted_the_memory_counts(folders, average):
    about = json.loads((folders[1] / "about.json").read_text("utf-8"))
    (folders[1] / "about.json").write_text(json.dumps(about | {"micro_batch": 4}), "utf-8")
    run = average(folders)
    assert run.gradient.micro_batch == 4
    list(measure_batch_norm(run))
    # Seven images in parts of four and three.
    assert int(run.network.model.bn1.num_batches_tracked) == 2 * run.n_updates


def test_runs_on_other_images_are_refused(folders, average):
    about = json.loads((folders[1] / "about.json").read_text("utf-8"))
    (folders[1] / "about.json").write_text(json.dumps(about | {"data_digest": "0" * 64}), "utf-8")
    with pytest.raises(DataError, match="got 000000000000; start the runs again"):
        average(folders)


def test_weights_that_are_elsewhere_or_damaged_are_refused(folders, average):
    content = (folders[2] / "model.safetensors").read_bytes()
    (folders[2] / "model.safetensors").write_bytes(content[:-1] + b"\x7f")
    with pytest.raises(WeightsError, match="the file is damaged"):
        average(folders)
    shutil.rmtree(folders[2])
    with pytest.raises(WeightsError, match="give all workers one home folder") as refused:
        average(folders)
    assert len(str(refused.value).splitlines()) == 1
