"""The order of building, the classifier, the anchors, and what the network expects of images."""

import json

import pytest
import safetensors.torch
import torch

from nbtl_search.errors import SpecError, WeightsError
from nbtl_search.network.device import Placement
from nbtl_search.network.model import Network, build
from nbtl_search.spec import MethodSettings, Row, SearchSettings, StudySpec
from nbtl_search.training.probe import probe

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def head(network: Network) -> torch.Tensor:
    return network.model.get_parameter("fc.weight")


def test_the_order_load_replace_reset_anchor(tiny_recipe, tiny_weights, tiny_home):
    file = safetensors.torch.load_file(tiny_weights)
    network = build(tiny_recipe(dials={"reinit_layers": 3}), n_classes=3, home=tiny_home)
    kept = {n for b in network.layers.blocks[:-2] for n, _ in b.parameters}
    reset = {n for b in network.layers.blocks[-2:] for n, p in b.parameters if p.dim() > 1}
    parameters = dict(network.model.named_parameters())
    for name in kept:
        assert torch.equal(parameters[name], file[name]), name
    for name in reset:
        assert not torch.equal(parameters[name], file[name]), name
    assert network.anchors.keys() == kept
    for name, anchor in network.anchors.items():
        assert torch.equal(anchor, file[name])
        assert anchor.data_ptr() != parameters[name].data_ptr()
    assert parameters["fc.weight"].shape[0] == 3


def test_a_classifier_with_as_many_classes_as_the_file_is_fresh(
    tiny_recipe, tiny_weights, tiny_home
):
    """timm keeps the pre-trained head where the number of classes agrees (1000, say)."""
    file = safetensors.torch.load_file(tiny_weights)
    network = build(tiny_recipe(), n_classes=11, home=tiny_home)
    assert head(network).shape == file["fc.weight"].shape
    assert not torch.equal(head(network), file["fc.weight"])


def test_building_is_a_function_of_the_seed_and_leaves_the_global_state(tiny_recipe, tiny_home):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one = build(tiny_recipe(), n_classes=3, home=tiny_home)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    two = build(tiny_recipe(), n_classes=3, home=tiny_home)
    other = build(tiny_recipe(train={"seed": 99}), n_classes=3, home=tiny_home)
    assert torch.equal(head(one), head(two))
    assert not torch.equal(head(one), head(other))


def test_random_weights_have_no_anchors_and_depend_on_the_seed(tiny_recipe, tiny_home):
    one, two, three = (
        build(
            tiny_recipe(model={"weights": "random"}, train={"seed": seed}),
            n_classes=3,
            home=tiny_home,
        )
        for seed in (1, 1, 2)
    )
    assert one.anchors == {}
    assert one.weights_digest == "random"
    first = [network.model.state_dict()["layer1.0.conv1.weight"] for network in (one, two, three)]
    assert torch.equal(first[0], first[1])
    assert not torch.equal(first[0], first[2])


@pytest.mark.parametrize(
    ("normalisation", "compat", "expected"),
    [
        ("weights", "paper", ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))),
        ("weights", "authors", IMAGENET),
        ("imagenet", "paper", IMAGENET),
        ("inception", "authors", ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))),
    ],
)
def test_normalisation(tiny_recipe, tiny_home, normalisation, compat, expected):
    recipe = tiny_recipe(data={"normalisation": normalisation}, compat=compat)
    image_format = build(recipe, n_classes=3, home=tiny_home).image_format
    assert (image_format.mean, image_format.std) == expected
    assert image_format.image_px == 32


def test_normalisation_by_the_data_themselves(tiny_recipe, tiny_home, tiny_prepared):
    recipe = tiny_recipe(data={"normalisation": "dataset"})
    network = build(recipe, n_classes=3, home=tiny_home, prepared=tiny_prepared)
    measured = tiny_prepared.statistics()
    assert network.image_format.mean == measured.mean
    assert network.image_format.std == measured.std
    with pytest.raises(SpecError, match="needs the prepared data"):
        build(recipe, n_classes=3, home=tiny_home)


def test_a_directory_says_what_its_weights_expect(tiny_recipe, tiny_weights, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(tiny_weights.read_bytes())
    expects = {"mean": [0.1, 0.2, 0.3], "crop_pct": 0.9, "interpolation": "bilinear"}
    config = {"architecture": "test_resnet", "pretrained_cfg": expects}
    (tmp_path / "config.json").write_text(json.dumps(config))
    network = build(tiny_recipe(model={"weights": str(tmp_path)}), n_classes=3, home=tmp_path)
    assert network.image_format.mean == (0.1, 0.2, 0.3)
    assert network.image_format.crop_pct == 0.9
    assert network.image_format.interpolation == "bilinear"


@pytest.mark.parametrize("name", ["inception_v5", "hf-hub:someone/inception_v4"])
def test_an_unknown_model_is_refused_with_a_near_one(tiny_recipe, tiny_home, name):
    with pytest.raises(SpecError, match=r"timm model.*inception_v4"):
        build(tiny_recipe(model={"name": name}), n_classes=3, home=tiny_home)


def test_a_model_of_one_size_refuses_others(tiny_recipe, tiny_home):
    recipe = tiny_recipe(model={"name": "test_vit", "weights": "random"})
    with pytest.raises(SpecError, match="image_px == 160"):
        build(recipe, n_classes=3, home=tiny_home)


def test_channels_last_reaches_parameters_and_anchors(tiny_recipe, tiny_home):
    placement = Placement(device=torch.device("cpu"), bf16=True)
    network = build(tiny_recipe(), n_classes=3, home=tiny_home, placement=placement)
    name = "layer1.0.conv1.weight"
    for tensor in (network.model.get_parameter(name), network.anchors[name]):
        assert tensor.is_contiguous(memory_format=torch.channels_last)


@pytest.fixture
def tiny_study(tiny_recipe):
    def make(**sections):
        recipe = tiny_recipe(**sections)
        return StudySpec(name="tiny", data=recipe.data, model=recipe.model, train=recipe.train)

    return make


def test_probe_states_the_facts(tiny_study, tiny_home, tiny_prepared, tiny_weights):
    import hashlib

    facts = probe(tiny_study(), home=tiny_home)
    assert facts.n_blocks == 5
    assert facts.n_classes == 3
    assert (facts.n_train, facts.n_val, facts.n_test) == (
        tiny_prepared.n_train, tiny_prepared.n_val, tiny_prepared.n_test,
    )  # fmt: skip
    assert facts.data_digest == tiny_prepared.digest
    assert facts.weights_digest == hashlib.sha256(tiny_weights.read_bytes()).hexdigest()


def test_probe_refuses_weights_that_do_not_fit_and_images_that_are_too_small(tiny_study, tiny_home):
    with pytest.raises(WeightsError, match="another architecture"):
        probe(tiny_study(model={"name": "test_efficientnet"}), home=tiny_home)
    small = tiny_study(model={"name": "inception_v4", "weights": "random"})
    with pytest.raises(SpecError, match=r"data\.image_px must suit model 'inception_v4', got 32"):
        probe(small, home=tiny_home)


@pytest.fixture
def headless(tiny_weights, tmp_path):
    """The same weights without their classifier."""
    state = safetensors.torch.load_file(tiny_weights)
    file = tmp_path / "headless.safetensors"
    safetensors.torch.save_file({n: v for n, v in state.items() if not n.startswith("fc.")}, file)
    return file


def test_probe_refuses_a_search_for_what_the_weights_cannot_do(tiny_study, tiny_home, headless):
    spec = tiny_study(model={"weights": str(headless)})
    assert probe(spec, home=tiny_home).n_blocks == 5
    rows: dict[str, Row] = {}
    for name, off in (("source_head", "replace"), ("distill", 0.0)):
        search = SearchSettings(space="extended", rows=rows)
        with pytest.raises(WeightsError, match=rf"search\.rows\.{name}.* got none; ") as error:
            probe(spec.replace(search=search), home=tiny_home)
        assert f"search.rows.{name}.fixed = {off!r}" in str(error.value)
        rows = {**rows, name: Row(fixed=off)}
    search = SearchSettings(space="extended", rows=rows)
    assert probe(spec.replace(search=search), home=tiny_home).n_blocks == 5


def test_probe_takes_a_search_of_every_method_from_random_weights(tiny_study, tiny_home):
    spec = tiny_study(model={"weights": "random"})
    facts = probe(spec.replace(search=SearchSettings(space="extended")), home=tiny_home)
    assert facts.weights_digest == "random"


def test_probe_refuses_spectral_shrinkage_of_single_images(tiny_study, tiny_home):
    spec = tiny_study(train={"micro_batch": 1}).replace(search=SearchSettings(space="extended"))
    with pytest.raises(SpecError, match=r"search\.rows\.bss .* 2 images or more"):
        probe(spec, home=tiny_home)


def test_probe_refuses_feature_maps_that_may_all_be_new(tiny_study, tiny_home):
    spec = tiny_study().replace(search=SearchSettings(space="extended"))
    assert probe(spec, home=tiny_home).n_blocks == 5
    one_map = spec.replace(methods=MethodSettings(delta_taps=1))
    with pytest.raises(SpecError, match=r"search\.rows\.delta .* reinit_layers = 3"):
        probe(one_map, home=tiny_home)


def test_probe_refuses_precomputed_predictions_of_images_that_are_mixed(tiny_study, tiny_home):
    spec = tiny_study().replace(
        search=SearchSettings(space="extended"),
        methods=MethodSettings(distill_teacher="precomputed"),
    )
    with pytest.raises(SpecError, match=r"search\.rows\.distill .*mixup == 0"):
        probe(spec, home=tiny_home)
