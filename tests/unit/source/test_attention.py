"""Attention: against a literal measurement, kept, shared, and the same after a kill."""

import fcntl
import logging
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from torch.nn import functional

from nbtl_search.data.prepared import prepare
from nbtl_search.errors import DivergedError, OutOfMemoryError, SpecError
from nbtl_search.files import arrays
from nbtl_search.network.device import derive_seed
from nbtl_search.network.model import build
from nbtl_search.source import attention
from nbtl_search.source import attention as engine
from nbtl_search.source.attention import channel_attention, linear_head, trained_head
from nbtl_search.source.features import source_network
from nbtl_search.spec import DataSettings, Dials
from nbtl_search.transfer.delta import Importance, channel_importance
from nbtl_search.transfer.feature_hooks import hooks_of

N_HOOKS, N_CHANNELS = 2, 192 + 96
METHODS = {"delta_taps": N_HOOKS, "delta_batches": 2}


class KilledError(Exception):
    pass


@pytest.fixture
def measure(tiny_recipe, tiny_prepared, home):
    """Return a maker of attention, by changes to the recipe and the arguments."""

    def make(*, prepared=tiny_prepared, home=home, arguments=None, **sections):
        sections["methods"] = METHODS | sections.get("methods", {})
        recipe = tiny_recipe(**sections)
        source = source_network(
            recipe, home=home, prepared=prepared, n_threads=recipe.train.n_threads
        )
        usual = {
            "source": source,
            "hooks": hooks_of(source.model, n=recipe.methods.delta_taps),
            "n_batches": recipe.methods.delta_batches,
            "prepared": prepared,
            "home": home,
        }
        return channel_attention(**(usual | (arguments or {})))

    return make


@pytest.fixture
def passes(monkeypatch):
    """Return a list that grows with each group of channels that is measured."""
    seen = []
    original = channel_importance

    def counted(*args, **options):
        for one in original(*args, **options):
            seen.append(one)
            yield one

    monkeypatch.setattr(engine, "channel_importance", counted)
    return seen


def part_files(home):
    return sorted((home / "attention").rglob("*.part"))


def kept_head(home):
    (path,) = (home / "attention").rglob("head.part")
    rows = arrays.read(path, n=3)
    assert rows is not None
    return rows


def equal(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def test_the_weights_of_a_hook_are_positive_and_sum_to_one(measure):
    found = measure()
    assert {module: len(a) for module, a in found.items()} == {"layer3": 192, "layer4": 96}
    for a in found.values():
        assert a.dtype == torch.float32
        assert a.min() > 0
        assert a.sum().item() == pytest.approx(1, abs=1e-6)
        assert a.max() / a.min() > 1.05


def literal_head(features, labels):
    """Return a head trained in numpy: softmax regression by SGD with momentum."""
    x = features.astype(np.float64)
    weight, bias = literal_start(x.shape[1])
    seed = derive_seed("order", literal_seed)
    generator = torch.Generator().manual_seed(seed)
    steps = [np.zeros_like(weight), np.zeros_like(bias)]
    for epoch in range(10):
        order = torch.randperm(len(x), generator=generator).numpy()
        for first in range(0, len(x), 32):
            rows = order[first : first + 32]
            logits = x[rows] @ weight.T + bias
            p = np.exp(logits - logits.max(axis=1, keepdims=True))
            p /= p.sum(axis=1, keepdims=True)
            p[np.arange(len(rows)), labels[rows]] -= 1
            gradients = [p.T @ x[rows] / len(rows), p.mean(axis=0)]
            steps = [0.9 * step + g for step, g in zip(steps, gradients, strict=True)]
            lr = 0.01 if epoch < 6 else 0.001
            weight, bias = weight - lr * steps[0], bias - lr * steps[1]
    return weight, bias


literal_seed = 5


def literal_start(n_features):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed("initialise", literal_seed))
        head = torch.nn.Linear(n_features, 3)
    return head.weight.detach().double().numpy(), head.bias.detach().double().numpy()


def test_the_head_is_softmax_regression_by_ten_epochs_of_sgd():
    rng = np.random.default_rng(0)
    features = rng.normal(0, 2, (70, 5)).astype(np.float32)
    labels = rng.integers(0, 3, 70)
    rows = trained_head(features, labels, n_classes=3, seed=literal_seed)
    weight, bias = literal_head(features, labels)
    np.testing.assert_allclose(rows, np.hstack([weight, bias[:, None]]), rtol=1e-4, atol=1e-6)
    x = torch.from_numpy(features)
    torch.testing.assert_close(
        linear_head(rows)(x[:, :, None, None]),
        torch.from_numpy(features @ weight.T + bias).float(),
        rtol=1e-4,
        atol=1e-5,
    )


def test_a_head_that_diverges_is_an_error(extracted, tiny_recipe, measure, home, monkeypatch):
    features = np.full((40, 3), 1e30, dtype=np.float32)
    with pytest.raises(DivergedError, match=r"rate 0\.01, got one that is not"):
        trained_head(features, np.arange(40) % 2, n_classes=2, seed=0)
    found = extracted(tiny_recipe(), home=home)
    broken = replace(found, train=found.train * np.float32(1e30))
    monkeypatch.setattr(engine, "extract", lambda *_args, **_options: broken)
    with pytest.raises(DivergedError):
        measure()
    assert part_files(home) == []


def importances(weights, prepared, head, image_format, n_images):
    """Return importances in float64: each channel zeroed alone, on all images at once."""
    model = timm.create_model("test_resnet", num_classes=11)
    model.load_state_dict(safetensors.torch.load_file(weights))
    model = model.double().eval()
    seed = derive_seed("attention images", prepared.digest)
    order = torch.randperm(prepared.n_train, generator=torch.Generator().manual_seed(seed))
    chosen = order[:n_images].numpy()
    pixels = prepared.evaluation("train", image_format)[chosen].astype(np.float64) / 255
    x = torch.from_numpy((pixels - image_format.mean) / image_format.std).permute(0, 3, 1, 2)
    y = torch.from_numpy(prepared.labels("train")[chosen])
    head = head.double()

    @torch.no_grad()
    def loss(hook=None, channel=None):
        out = x
        for name in ("conv1", "bn1", "act1", "maxpool", "layer1", "layer2", "layer3", "layer4"):
            out = getattr(model, name)(out)
            if name == hook:
                out[:, channel] = 0
        return functional.cross_entropy(head(out.mean(dim=(2, 3))), y).item()

    whole = loss()
    return {
        hook: np.array([loss(hook, channel) - whole for channel in range(n)])
        for hook, n in (("layer3", 192), ("layer4", 96))
    }


@pytest.mark.parametrize(("batch", "micro_batch"), [(32, 8), (8, 4)])
def test_it_is_the_softmax_of_standardised_rises_of_the_loss(
    measure, tiny_recipe, tiny_prepared, tiny_weights, home, monkeypatch, batch, micro_batch
):
    monkeypatch.setattr(attention, "BATCH", batch)
    monkeypatch.setattr(attention, "MICRO_BATCH", micro_batch)
    found = measure()
    head = linear_head(kept_head(home))
    image_format = build(tiny_recipe(), n_classes=3, home=home).image_format
    n_images = min(2 * batch, tiny_prepared.n_train)  # two batches, or the short one there is
    rises = importances(tiny_weights, tiny_prepared, head, image_format, n_images)
    for hook, rise in rises.items():
        assert rise.std() > 0
        z = (rise - rise.mean()) / rise.std()
        expected = np.exp(z / 5) / np.exp(z / 5).sum()
        np.testing.assert_allclose(found[hook].numpy(), expected, rtol=2e-4)


def test_the_head_is_trained_on_the_features_of_the_training_images(
    extracted, measure, tiny_recipe, home
):
    measure()
    features = extracted(tiny_recipe(), home=home)
    seed = derive_seed("attention head", features.data_digest)
    expected = trained_head(features.train, features.train_labels, n_classes=3, seed=seed)
    np.testing.assert_array_equal(kept_head(home), expected)


def test_what_is_kept_is_read_without_a_forward_pass(measure, passes):
    first = measure()
    assert len(passes) == N_CHANNELS
    passes.clear()

    def refuse(*_):
        pytest.fail("a forward pass")

    hook = torch.nn.modules.module.register_module_forward_pre_hook(refuse)
    try:
        again = measure()
    finally:
        hook.remove()
    assert equal(first, again)
    assert passes == []


@pytest.mark.parametrize("after", [0, 8, 40, 72])
def test_a_killed_measurement_goes_on_bit_for_bit(measure, passes, home, tmp_path, after):
    def kill(done, _all):
        if done >= after:
            raise KilledError

    with pytest.raises(KilledError):
        measure(arguments={"progress": kill})
    before = {path: path.stat().st_mtime_ns for path in part_files(home)}
    assert len([path for path in before if path.name != "head.part"]) == after // 8
    passes.clear()
    resumed = measure()
    assert len(passes) == N_CHANNELS - after
    assert {path: path.stat().st_mtime_ns for path in before} == before
    other = tmp_path / "other"
    other.mkdir()
    (other / "data").symlink_to(home / "data")
    whole = measure(home=other)
    assert equal(resumed, whole)
    contents = [[path.read_bytes() for path in part_files(place)] for place in (home, other)]
    assert contents[0] == contents[1]


def flipped(content):
    return content[:130] + bytes([content[130] ^ 1]) + content[131:]


@pytest.mark.parametrize("damage", [flipped, lambda content: content[:-40], lambda _: b""])
def test_a_damaged_part_is_measured_again(measure, passes, home, damage):
    first = measure()
    path = next(path for path in part_files(home) if path.name == "0-00008.part")
    sound = path.read_bytes()
    path.write_bytes(damage(sound))
    passes.clear()
    assert equal(first, measure())
    assert [(one.module, one.channel) for one in passes] == [
        ("layer3", channel) for channel in range(8, 16)
    ]
    assert path.read_bytes() == sound


def test_a_damaged_head_is_trained_again(measure, home):
    first = measure()
    (head,) = (home / "attention").rglob("head.part")
    sound = head.read_bytes()
    head.write_bytes(b"nothing")
    for path in part_files(home):
        if path != head:
            path.unlink()
    assert equal(first, measure())
    assert head.read_bytes() == sound


TWICE = """
import sys
from pathlib import Path
from nbtl_search.data.prepared import prepare
from nbtl_search.files import shared_folder
from nbtl_search.source import attention
from nbtl_search.source.features import source_network
from nbtl_search.spec import Recipe
from nbtl_search.transfer.feature_hooks import hooks_of

shared_folder.WAIT_S = 0.02
recipe, home = Recipe.model_validate_json(sys.argv[1]), Path(sys.argv[2])
prepared = prepare(recipe.data, home=home)
source = source_network(recipe, home=home, prepared=prepared, n_threads=1)
original, measured = attention.channel_importance, []

def counted(*args, **options):
    for one in original(*args, **options):
        measured.append(one)
        yield one

attention.channel_importance = counted
print("ready", flush=True)
sys.stdin.readline()
found = attention.channel_attention(
    source, hooks_of(source.model, n=2), n_batches=recipe.methods.delta_batches,
    prepared=prepared, home=home,
)
print(len(measured), [a.tolist() for a in found.values()])
"""


def test_two_processes_at_once_measure_once(tiny_recipe, home, measure):
    recipe = tiny_recipe(methods=METHODS).replace(dials=Dials())
    command = [sys.executable, "-c", TWICE, recipe.model_dump_json(), str(home)]
    pipe = subprocess.PIPE
    processes = [subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) for _ in range(2)]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    outputs = [process.communicate(timeout=60)[0].split(maxsplit=1) for process in processes]
    assert sorted(int(n) for n, _ in outputs) == [0, N_CHANNELS]
    assert outputs[0][1] == outputs[1][1] == f"{[a.tolist() for a in measure().values()]}\n"


def test_who_waits_is_told_how_far_the_other_is_and_may_leave(measure, home):
    def kill(done, _all):
        if done >= 16:
            raise KilledError

    with pytest.raises(KilledError):
        measure(arguments={"progress": kill})
    (lock,) = (home / "attention").glob(".*-lock")
    seen = []

    def leave(done, n_all):
        seen.append((done, n_all))
        raise KilledError

    with lock.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(KilledError):
            measure(arguments={"progress": leave})
    assert seen == [(16, N_CHANNELS)]


def keys(home):
    return {path.name for path in (home / "attention").iterdir() if path.is_dir()}


def moved(weights, path):
    state = safetensors.torch.load_file(weights)
    safetensors.torch.save_file({**state, "bn1.weight": state["bn1.weight"] * 1.5}, path)
    return str(path)


def test_other_weights_formats_and_counts_have_keys_of_their_own(
    measure, home, tiny_weights, tmp_path
):
    measure()
    first = keys(home)
    changes = (
        {"model": {"weights": moved(tiny_weights, tmp_path / "moved.safetensors")}},
        {"data": {"normalisation": "imagenet"}},
        {"methods": {"delta_taps": 1}},
        {"methods": {"delta_batches": 1}},
    )
    for n, change in enumerate(changes, start=2):
        measure(**change)
        assert len(keys(home)) == n
    for same in ({"train": {"seed": 9}}, {"dials": {"lr_high": 1.0}}, {"augment": {"mixup": 0.0}}):
        measure(**same)
    assert len(keys(home)) == 1 + len(changes)
    assert first < keys(home)


def test_few_images_of_other_data_are_measured_too(measure, tiny_folder, tmp_path, home):
    folder = tmp_path / "few"
    for source in sorted(tiny_folder.iterdir()):
        (folder / source.name).mkdir(parents=True)
        for picture in sorted(source.iterdir())[:6]:
            (folder / source.name / picture.name).symlink_to(picture)
    data = DataSettings(dataset=str(folder), image_px=32)
    prepared = prepare(data, home=home)
    assert prepared.n_train < 32
    measure()
    found = measure(prepared=prepared, data={"dataset": str(folder)})
    assert all(a.sum().item() == pytest.approx(1, abs=1e-6) for a in found.values())
    assert len(keys(home)) == 2


def test_random_weights_are_refused(measure, home):
    with pytest.raises(SpecError, match=r"model\.weights != 'random'"):
        measure(model={"weights": "random"})
    assert not (home / "attention").exists()


def test_memory_that_runs_out_is_an_error_of_ours(measure, monkeypatch):
    def allocate(_n):
        message = "DefaultCPUAllocator: can't allocate memory"
        raise RuntimeError(message)

    def full(*_args, **_options):
        return map(allocate, range(1))

    monkeypatch.setattr(engine, "channel_importance", full)
    with pytest.raises(OutOfMemoryError, match="16 images without gradients"):
        measure()


def test_where_memory_is_short_fewer_channels_are_silenced_at_once(measure, monkeypatch, tmp_path):
    expected, tried = measure(), []
    measured = channel_importance

    def short(*arguments, n_at_once, **options):
        tried.append(n_at_once)
        if n_at_once > 3:
            message = "DefaultCPUAllocator: can't allocate memory"
            raise RuntimeError(message)
        return measured(*arguments, n_at_once=n_at_once, **options)

    monkeypatch.setattr(engine, "channel_importance", short)
    found = measure(home=tmp_path / "elsewhere")
    assert max(tried) > 3
    assert min(tried) <= 3
    for module, weights in expected.items():
        torch.testing.assert_close(found[module], weights, rtol=1e-4, atol=1e-7)


def test_one_line_when_it_begins_and_one_when_it_ends(measure, caplog):
    with caplog.at_level(logging.INFO, logger=engine.__name__):
        measure()
        measure()
    texts = [record.message for record in caplog.records if record.name == engine.__name__]
    assert texts[0] == f"measuring the attention of {N_CHANNELS} channels"
    assert texts[1].startswith(f"measured the attention of {N_CHANNELS} channels in ")
    assert len(texts) == 2


def test_progress_counts_channels(measure):
    seen: list[tuple[int, int]] = []
    measure(arguments={"progress": lambda *now: seen.append(now)})
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert {n_all for _, n_all in seen} == {N_CHANNELS}
    assert {done for done, _ in seen} == set(range(0, N_CHANNELS + 1, 8))


def test_the_caller_keeps_its_random_state_and_threads(measure, monkeypatch):
    def rises(_model, _head, hooks, _images, *, done, **_options):
        for hook in hooks:
            assert torch.get_num_threads() == 2
            missing = (c for c in range(hook.n_channels) if (hook.module, c) not in done)
            yield from (Importance(hook.module, c, 1.0) for c in missing)

    monkeypatch.setattr(engine, "channel_importance", rises)
    before = torch.get_rng_state(), torch.get_num_threads()
    measure(train={"n_threads": 2})
    assert torch.equal(torch.get_rng_state(), before[0])
    assert torch.get_num_threads() == before[1]
