"""Where weights come from; every way they can be wrong is one line that says what to do."""

import json
import pickle

import pytest
import safetensors.torch
import timm
import torch

from nbtl_search.errors import WeightsError
from nbtl_search.network.weights import load_weights, read_weights
from nbtl_search.spec import ModelSettings
from nbtl_search.transfer.kept_architecture import config_entries
from nbtl_search.transfer.source_classifier import append_layers

NAME = "test_resnet"


@pytest.fixture
def state(tiny_weights):
    return safetensors.torch.load_file(tiny_weights)


def settings(place, name=NAME):
    return ModelSettings(name=name, weights=str(place))


def refused(place, *, home, name=NAME):
    with pytest.raises(WeightsError) as caught:
        load_weights(
            timm.create_model(name, num_classes=3),
            read_weights(settings(place, name), home=home),
            model_name=name,
        )
    text = str(caught.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize("form", ["safetensors", "pth", "checkpoint", "directory"])
def test_every_form_gives_the_same_network_and_a_fresh_classifier(
    state, tiny_weights, tmp_path, form
):
    place = tmp_path / "weights.pth"
    if form == "safetensors":
        place = tiny_weights
    elif form == "pth":
        torch.save(state, place)
    elif form == "checkpoint":
        torch.save({"epoch": 3, "state_dict": state}, place)
    else:
        place = tmp_path / "saved"
        place.mkdir()
        safetensors.torch.save_file(state, place / "model.safetensors")
        config = {"architecture": NAME, "num_classes": 11, "pretrained_cfg": {"mean": [0.1] * 3}}
        (place / "config.json").write_text(json.dumps(config))
    model = timm.create_model(NAME, num_classes=3)
    head = model.get_parameter("fc.weight").clone()
    found = read_weights(settings(place), home=tmp_path)
    load_weights(model, found, model_name=NAME)
    for name, value in model.state_dict().items():
        if not name.startswith("fc."):
            assert torch.equal(value, state[name]), name
    assert torch.equal(model.get_parameter("fc.weight"), head)
    assert found.pretrained
    assert len(found.digest) == 64
    assert found.config.get("mean") == ([0.1] * 3 if form == "directory" else None)


def test_the_digest_is_of_the_content(tiny_weights, tmp_path):
    copied = tmp_path / "a.safetensors"
    copied.write_bytes(tiny_weights.read_bytes())
    first, second = (read_weights(settings(p), home=tmp_path) for p in (tiny_weights, copied))
    assert first.digest == second.digest


def test_random_is_random_only_when_asked(tmp_path):
    found = read_weights(settings("random"), home=tmp_path)
    assert not found.pretrained
    assert found.digest == "random"


def test_another_architecture_is_named_with_counts(tiny_weights, tmp_path):
    text = refused(tiny_weights, home=tmp_path, name="test_efficientnet")
    assert "of 'test_efficientnet'" in text
    assert str(tiny_weights) in text
    assert "weights of another architecture" in text
    assert " missing (" in text
    assert " unexpected (" in text


def test_another_width_is_named_with_shapes(state, tmp_path):
    state["layer1.0.conv1.weight"] = torch.zeros(5, 5, 3, 3)
    torch.save(state, tmp_path / "w.pth")
    text = refused(tmp_path / "w.pth", home=tmp_path)
    assert "1 of another shape (layer1.0.conv1.weight (5, 5, 3, 3) instead of (" in text


def test_nothing_is_stripped_silently(state, tmp_path):
    torch.save({f"module.{name}": value for name, value in state.items()}, tmp_path / "w.pth")
    assert "unexpected (module." in refused(tmp_path / "w.pth", home=tmp_path)


def test_one_missing_tensor_is_enough(state, tmp_path):
    del state["layer2.0.conv1.weight"]
    torch.save(state, tmp_path / "w.pth")
    assert "1 missing (layer2.0.conv1.weight)" in refused(tmp_path / "w.pth", home=tmp_path)


def test_files_from_before_batch_counters_load(state, tmp_path):
    old = {n: v for n, v in state.items() if not n.endswith("num_batches_tracked")}
    torch.save(old, tmp_path / "w.pth")
    model, name = timm.create_model(NAME, num_classes=3), "layer1.0.conv1.weight"
    load_weights(model, read_weights(settings(tmp_path / "w.pth"), home=tmp_path), model_name=NAME)
    assert torch.equal(model.get_parameter(name), state[name])


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("kept", [0, 7, 1000, -1])
def test_a_truncated_file_is_refused(state, tmp_path, suffix, kept):
    whole = tmp_path / f"whole{suffix}"
    if suffix == ".pth":
        torch.save(state, whole)
    else:
        safetensors.torch.save_file(state, whole)
    cut = tmp_path / f"cut{suffix}"
    cut.write_bytes(whole.read_bytes()[:kept])
    text = refused(cut, home=tmp_path)
    assert str(cut) in text
    assert "download it again" in text


class Evil:
    """Would run a command if it were unpickled."""

    def __reduce__(self):
        return (print, ("unpickled",))


def test_code_in_a_file_is_never_run(tmp_path, capsys):
    with (tmp_path / "w.pth").open("wb") as file:
        pickle.dump({"fc.weight": Evil()}, file)
    refused(tmp_path / "w.pth", home=tmp_path)
    torch.save({"fc.weight": Evil()}, tmp_path / "w.pth")
    refused(tmp_path / "w.pth", home=tmp_path)
    assert "unpickled" not in capsys.readouterr().out


@pytest.mark.parametrize("content", [[torch.zeros(2)], {}, {"a": 3}, torch.zeros(3)])
def test_other_contents_are_refused(tmp_path, content):
    torch.save(content, tmp_path / "w.pth")
    assert "dictionary of tensors" in refused(tmp_path / "w.pth", home=tmp_path)


def test_missing_places_are_refused(tmp_path):
    assert "no such file" in refused(tmp_path / "none.pth", home=tmp_path)
    assert "model.safetensors" in refused(tmp_path, home=tmp_path)


def test_an_unreadable_file_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "w.pth"
    path.write_bytes(b"secret")

    def denied(*_, **__):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("pathlib.Path.open", denied)  # root may read files of any mode
    assert "Permission denied" in refused(path, home=tmp_path)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ("{", "config.json"),
        ("[1]", "config.json"),
        ('{"pretrained_cfg": 3}', "config.json"),
        ('{"architecture": "resnet18"}', "'resnet18'"),
    ],
)
def test_a_directory_with_another_config_is_refused(state, tmp_path, config, said):
    safetensors.torch.save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(config)
    assert said in refused(tmp_path, home=tmp_path)


@pytest.mark.parametrize("form", ["directory", "file"])
def test_an_export_with_a_kept_classifier_is_no_source(tmp_path, form):
    model = timm.create_model(NAME, num_classes=11)
    append_layers(model, n_classes=3, generator=torch.Generator())
    state, file = model.state_dict(), tmp_path / "model.safetensors"
    safetensors.torch.save_file(state, file)
    (tmp_path / "config.json").write_text(json.dumps(config_entries(NAME, state)))
    said = refused(tmp_path if form == "directory" else file, home=tmp_path)
    assert "a kept source classifier in it; pass another file" in said


def test_shipped_weights_are_found_by_model_name(state, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.resources.files", lambda _: tmp_path)
    (tmp_path / "weights").mkdir()
    assert f"got '{NAME}'; use weights = 'timm'" in refused("shipped", home=tmp_path)
    safetensors.torch.save_file(state, tmp_path / "weights" / f"{NAME}.safetensors")
    found = read_weights(settings("shipped"), home=tmp_path)
    assert torch.equal(found.state["fc.bias"], state["fc.bias"])


def test_a_hub_that_does_not_answer_names_the_file_to_fetch(tmp_path, monkeypatch):
    def offline(*_, **kwargs):
        assert kwargs["cache_dir"] == tmp_path / "weights"
        message = "connection refused\nand more lines"
        raise ConnectionError(message)

    monkeypatch.setattr("timm.create_model", offline)
    with pytest.raises(WeightsError) as caught:
        read_weights(ModelSettings(), home=tmp_path)
    text = str(caught.value)
    assert "\n" not in text
    assert "https://huggingface.co/timm/inception_v4.tf_in1k/resolve/main/model.safetensors" in text
    assert "pass its path as model.weights" in text


def test_the_hub_is_asked_once(state, tmp_path, monkeypatch):
    """Compute nodes often have no network: a later run needs only what the first one kept."""
    asked = []

    def hub(name, **_):
        asked.append(name)
        model = create(NAME, num_classes=11)
        model.load_state_dict(state)
        return model

    create = timm.create_model
    monkeypatch.setattr("timm.create_model", hub)
    before = torch.get_rng_state()
    first, second = (read_weights(settings("timm"), home=tmp_path) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert asked == [NAME]
    assert first.digest == second.digest
    assert all(torch.equal(value, second.state[name]) for name, value in state.items())
    state["conv1.0.weight"].add_(1)
    assert read_weights(settings("timm"), home=tmp_path / "other").digest != first.digest
