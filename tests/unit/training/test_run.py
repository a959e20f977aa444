"""The training loop: what it yields, that it learns, and that resuming changes nothing."""

import copy
import math

import pytest
import torch
from torch.nn import functional

from nbtl_search.errors import DataError, DivergedError, OutOfMemoryError, SpecError, WeightsError
from nbtl_search.spec import Epoch
from nbtl_search.training.gradients import soft_cross_entropy
from nbtl_search.training.run import Run, Step, train


@pytest.fixture
def make_run(tiny_prepared, tiny_home, tiny_recipe):
    def make(**sections):
        return Run(tiny_recipe(**sections), prepared=tiny_prepared, home=tiny_home)

    return make


def tensors(run: Run) -> dict[str, torch.Tensor]:
    """Return every tensor that the run's future depends on."""
    found = {f"model.{n}": v.clone() for n, v in run.network.model.state_dict().items()}
    for index, values in run.optimiser.state_dict()["state"].items():
        found[f"momentum.{index}"] = values["momentum_buffer"].clone()
    return found


def same(a: Run, b: Run) -> None:
    assert len(a.history) == len(b.history)
    for mine, other in zip(a.history, b.history, strict=True):
        assert mine.same_result(other), (mine, other)
    left, right = tensors(a), tensors(b)
    assert left.keys() == right.keys()
    for name, value in left.items():
        assert torch.equal(value, right[name]), name


def dropping(run: Run) -> Run:
    """Give the network dropout, which draws from torch's global generator."""
    vars(run.network.model)["drop_rate"] = 0.5
    return run


def test_the_loop_yields_every_update_every_validation_batch_and_every_epoch(make_run):
    run = make_run(train={"batch_size": 6})
    events = list(train(run))
    n_updates, n_val = run.n_updates, 9
    assert n_updates == 4
    expected: list[Step | int] = []
    for epoch in (1, 2):
        places = [(update, 0) for update in range(1, n_updates + 1)]
        places += [(n_updates, n_validated) for n_validated in (6, 9)]
        expected += [
            Step(epoch=epoch, update=update, n_updates=n_updates, n_validated=n_validated)
            for update, n_validated in places
        ]
        expected.append(epoch)
    assert [e.epoch if isinstance(e, Epoch) else e for e in events] == expected
    epochs = [event for event in events if isinstance(event, Epoch)]
    assert run.history == tuple(epochs)
    assert run.finished
    assert run.position == (2, 0)
    assert {epoch.n_images for epoch in epochs} == {24}
    n_right = [n_val * epoch.val_top1 / 100 for epoch in epochs if epoch.val_top1 is not None]
    assert n_right == pytest.approx([round(n) for n in n_right])
    assert len(n_right) == 2
    assert list(train(run)) == []


def test_it_learns_what_can_be_learnt(make_run):
    augment = {"randaugment": "", "mixup": 0.0, "erasing": 0.0, "crop_scale": (1.0, 1.0)}
    run = make_run(train={"epochs": 12, "warmup_epochs": 0}, augment=augment,
                   dials={"lr_high": 0.01})  # fmt: skip
    list(train(run))
    assert run.best is not None
    assert run.best.val_top1 >= 80, [epoch.val_top1 for epoch in run.history]
    assert run.history[-1].train_loss < run.history[0].train_loss
    assert run.best == next(e for e in run.history if e.val_top1 == run.best.val_top1)


def test_resuming_at_any_step_is_bit_identical(make_run):
    whole = dropping(make_run())
    states = [
        (event, copy.deepcopy(whole.state_dict()))
        for event in train(whole)
        if isinstance(event, Step)
    ]
    assert len(states) == 2 * (whole.n_updates + 2)
    for event, saved in states:
        torch.manual_seed(len(states))  # whatever state the new process is in
        torch.rand(17)
        resumed = dropping(make_run())
        resumed.load_state_dict(saved)
        assert resumed.position == (event.epoch - 1, event.update)
        list(train(resumed))
        same(whole, resumed)


def test_the_result_does_not_depend_on_the_caller(make_run):
    """A caller that draws numbers and changes threads between two steps changes nothing."""
    quiet, disturbed = dropping(make_run()), dropping(make_run())
    list(train(quiet))
    for i, _ in enumerate(train(disturbed)):
        torch.manual_seed(i)
        torch.rand(3)
    same(quiet, disturbed)


def test_the_caller_keeps_its_switches_and_random_state(make_run):
    run = make_run()
    torch.manual_seed(9)
    before = torch.get_rng_state()
    for _ in train(run):
        assert not torch.are_deterministic_algorithms_enabled()
        assert torch.get_num_threads() == 1
        assert torch.equal(torch.get_rng_state(), before)


def test_the_anchors_are_the_weights_file_and_never_the_checkpoint(make_run, tiny_weights):
    import safetensors.torch

    run = make_run(dials={"lr_high": 0.5})
    for _ in train(run):
        pass
    resumed = make_run(dials={"lr_high": 0.5})
    resumed.load_state_dict(run.state_dict())
    file = safetensors.torch.load_file(tiny_weights)
    assert resumed.penalty.sp
    for pull in resumed.penalty.sp:
        assert torch.equal(pull.anchor, file[pull.name])
        assert not torch.equal(pull.parameter, pull.anchor)
    assert not any(name.startswith("anchor") for name in run.state_dict())


@pytest.mark.parametrize("micro_batch", [1, 3, 4])
def test_accumulation_has_the_gradient_of_the_whole_batch(make_run, micro_batch):
    """In evaluation mode, where batch norm does not see the micro-batches."""
    gradients = []
    for size in (8, micro_batch):
        run = make_run(train={"micro_batch": size})
        run.begin_epoch()
        run.network.model.eval()
        loss = run.gradient.compute(next(run.batches()), seed=0)
        gradients.append([p.grad.clone() for p in run.network.model.parameters()] + [loss])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


class Forgetful:
    """Makes the network run out of memory while a batch is larger than it can hold."""

    def __init__(self, run: Run, *, n_images: int, error: type[Exception]) -> None:
        self.n_images, self.error, self.n_failed = n_images, error, 0
        run.network.model.get_submodule("global_pool").register_forward_hook(self)

    def __call__(self, module, _, output):
        if module.training and len(output) > self.n_images:
            self.n_failed += 1
            message = "DefaultCPUAllocator: can't allocate memory: you tried 8 bytes"
            raise self.error(message)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, RuntimeError, MemoryError])
def test_out_of_memory_halves_the_micro_batch_and_repeats_the_update_exactly(
    make_run, caplog, error
):
    short, known = dropping(make_run()), dropping(make_run(train={"micro_batch": 2}))
    forgetful = Forgetful(short, n_images=3, error=error)
    list(train(short))
    list(train(known))
    assert forgetful.n_failed == 2  # 8, then 4: the retries found room for good
    assert [epoch.micro_batch for epoch in short.history] == [2, 2]
    assert "now 2, the batch stays 8" in caplog.text
    same(short, known)


def test_the_micro_batch_that_fits_survives_a_resume(make_run):
    run = make_run()
    Forgetful(run, n_images=4, error=torch.OutOfMemoryError)
    next(train(run))
    resumed = make_run()
    resumed.load_state_dict(copy.deepcopy(run.state_dict()))
    assert resumed.gradient.micro_batch == 4


def test_below_one_image_there_is_nothing_left_to_halve(make_run):
    run = make_run(data={"image_px": 64})
    Forgetful(run, n_images=0, error=torch.OutOfMemoryError)
    with pytest.raises(OutOfMemoryError, match="with 1; use smaller images") as caught:
        next(train(run))
    assert caught.value.cause == "oom"


def test_single_images_of_single_pixels_are_refused_by_name(make_run):
    with pytest.raises(SpecError, match=r"use a larger train\.micro_batch"):
        next(train(make_run(train={"micro_batch": 1})))
    run = make_run()
    Forgetful(run, n_images=1, error=torch.OutOfMemoryError)
    with pytest.raises(OutOfMemoryError, match="use a device with more memory"):
        next(train(run))


def test_another_runtime_error_is_not_mistaken_for_memory(make_run):
    run = make_run()
    run.network.model.global_pool.register_forward_hook(raise_shape_error)
    with pytest.raises(RuntimeError, match="shape"):
        next(train(run))


def raise_shape_error(*_):
    message = "shape mismatch"
    raise RuntimeError(message)


def test_a_loss_that_is_not_finite_ends_the_run_before_the_weights_change(make_run):
    run = make_run()
    steps = train(run)
    next(steps)
    with torch.no_grad():
        run.network.model.fc.bias[0] = math.nan
    before = {n: p.clone() for n, p in run.network.model.named_parameters()}
    with pytest.raises(DivergedError, match="training loss must be finite, got nan") as caught:
        next(steps)
    assert caught.value.cause == "diverged"
    assert run.position == (0, 1)
    for name, p in run.network.model.named_parameters():
        assert torch.equal(p.nan_to_num(), before[name].nan_to_num())


def test_an_absurd_rate_diverges(make_run):
    run = make_run(dials={"lr_high": 1e30}, train={"warmup_epochs": 0})
    with pytest.raises(DivergedError):
        list(train(run))


def test_a_validation_loss_that_is_not_finite_ends_the_run(make_run):
    run = make_run()
    for event in train_to_validation(run):
        assert event
    with torch.no_grad():
        run.network.model.bn1.running_var.fill_(math.nan)
    with pytest.raises(DivergedError, match="validation loss"):
        list(train(run))


def train_to_validation(run):
    for event in train(run):
        yield event
        if isinstance(event, Step) and event.update == run.n_updates:
            return


@pytest.mark.parametrize(
    ("sections", "named"),
    [
        ({"dials": {"alpha": 0.02}}, "dials.alpha"),
        ({"train": {"seed": 4}}, "train.seed"),
        ({"compat": "authors"}, "compat"),
    ],
)
def test_a_state_of_another_recipe_is_refused_and_nothing_changes(make_run, sections, named):
    run, other = make_run(), make_run(**sections)
    next(train(other))
    before = tensors(run)
    with pytest.raises(SpecError, match=f"differs in {named};"):
        run.load_state_dict(other.state_dict())
    assert run.position == (0, 0)
    assert all(torch.equal(value, tensors(run)[name]) for name, value in before.items())


def test_a_state_of_other_weights_or_data_or_version_is_refused(make_run):
    run = make_run()
    saved = run.state_dict()
    with pytest.raises(WeightsError, match="digest"):
        run.load_state_dict({**saved, "weights_digest": "0" * 64})
    with pytest.raises(DataError, match="digest"):
        run.load_state_dict({**saved, "data_digest": "0" * 64})
    with pytest.raises(SpecError, match="version"):
        run.load_state_dict({**saved, "version": 0})


def test_where_the_weights_lie_makes_no_other_recipe(make_run, tiny_weights, tmp_path):
    moved = tmp_path / "elsewhere.safetensors"
    moved.write_bytes(tiny_weights.read_bytes())
    run = make_run(model={"weights": str(moved)})
    run.load_state_dict(make_run().state_dict())


def test_bf16_with_channels_last_trains_and_resumes_alike(make_run):
    whole = make_run(train={"precision": "bf16", "epochs": 1})
    states = [copy.deepcopy(whole.state_dict()) for _ in train(whole)]
    assert whole.network.model.layer1[0].conv1.weight.is_contiguous(
        memory_format=torch.channels_last
    )
    resumed = make_run(train={"precision": "bf16", "epochs": 1})
    resumed.load_state_dict(states[1])
    list(train(resumed))
    same(whole, resumed)


def test_momentum_zero_trains_without_nesterov(make_run):
    run = make_run(dials={"momentum": 0.0}, train={"epochs": 1})
    list(train(run))
    assert run.finished


def test_soft_cross_entropy_is_the_usual_one_for_hard_and_smoothed_targets():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 5, generator=generator)
    labels = torch.tensor([0, 1, 2, 3, 4, 0])
    hard = functional.one_hot(labels, 5).float()
    smooth = 0.9 * hard + 0.1 / 5
    for targets, s in ((hard, 0.0), (smooth, 0.1)):
        expected = functional.cross_entropy(logits, labels, label_smoothing=s)
        torch.testing.assert_close(soft_cross_entropy(logits, targets), expected)
