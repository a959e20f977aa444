"""Layers, groups and reinitialisation of any timm model."""

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from nbtl_search.errors import SpecError
from nbtl_search.spec import Dials
from nbtl_search.transfer.layers import kind_of, layers_of
from nbtl_search.transfer.learning_rates import learning_rate_groups
from nbtl_search.transfer.penalties import l2sp
from nbtl_search.transfer.reinit import fresh_values, reinitialise, reset_layers

MODELS = (
    "mobilenetv2_100",
    "resnet18",
    "convnext_atto",
    "vit_tiny_patch16_224",
    "deit_tiny_distilled_patch16_224",
    "regnety_002",
    "densenet121",
)


def on_meta(name: str) -> nn.Module:
    with torch.device("meta"):
        model: nn.Module = timm.create_model(name, num_classes=7)
    return model


NETWORKS = {name: on_meta(name) for name in MODELS}


@settings(max_examples=40, deadline=None)
@given(
    name=st.sampled_from(MODELS),
    n_low=st.integers(0, 70),
    n_l2sp=st.integers(0, 70),
    reinit_layers=st.integers(1, 70),
    scope=st.sampled_from(["no_norm", "weights", "all"]),
)
def test_every_parameter_is_in_exactly_one_place(name, n_low, n_l2sp, reinit_layers, scope):
    model = NETWORKS[name]
    layers = layers_of(model)
    every = [n for n, _ in model.named_parameters()]
    in_layers = [n for b in (*layers.blocks, layers.head) for n, _ in b.parameters]
    assert sorted(in_layers) == sorted(every)
    dials = Dials(n_low=n_low, n_l2sp=n_l2sp, reinit_layers=reinit_layers, alpha=0.1, beta=0.1)
    grouped = [n for _, _, parameters in learning_rate_groups(layers, dials) for n, _ in parameters]
    assert sorted(grouped) == sorted(every)
    penalty = l2sp(layers, dials, anchors=dict.fromkeys(every, torch.empty(0)), scope=scope)
    pulled = [pull.name for pull in (*penalty.sp, *penalty.l2)]
    assert len(set(pulled)) == len(pulled)
    if scope == "all":
        assert sorted(pulled) == sorted(every)


@pytest.mark.parametrize("name", MODELS)
def test_the_head_is_the_classifier_and_blocks_are_in_order(name):
    model = NETWORKS[name]
    layers = layers_of(model)
    assert all(p.shape[0] == 7 for _, p in layers.head.parameters)
    order = [n for n, _ in model.named_parameters()]
    firsts = [order.index(block.parameters[0][0]) for block in layers.blocks]
    assert firsts == sorted(firsts)
    assert len({block.name for block in layers.blocks}) == layers.n_blocks


def test_a_layer_norm_where_timm_groups_the_classifier_with_it_stays_a_block():
    layers = layers_of(NETWORKS["convnext_atto"])
    assert layers.blocks[-1].name == "head.norm"
    assert layers.head.name == "head.fc"


def test_mobilenet_reset_matches_fresh_values_and_leaves_the_rest():
    model = timm.create_model("mobilenetv2_100", num_classes=7)
    layers = layers_of(model)
    for value in model.state_dict().values():
        value.fill_(7)
    reinitialise(layers, 3, generator=torch.Generator().manual_seed(0))
    changed = {n for n, v in model.state_dict().items() if not bool((v == 7).all())}
    places = ("classifier.", "conv_head.", "bn2.", "blocks.6.0.", "blocks.5.2.")
    assert changed == {n for n in model.state_dict() if n.startswith(places)}


def test_every_layer_can_be_reset_and_the_draw_depends_on_the_seed_alone():
    states = []
    for seed in (1, 1, 2):
        model = timm.create_model("mobilenetv2_100", num_classes=7)
        layers = layers_of(model)
        assert len(reset_layers(layers, layers.n_blocks + 1)) == layers.n_blocks + 1
        reinitialise(layers, 19, generator=torch.Generator().manual_seed(seed))
        states.append(model.state_dict())
    assert all(torch.equal(states[0][n], states[1][n]) for n in states[0])
    assert not torch.equal(states[0]["conv_stem.weight"], states[2]["conv_stem.weight"])


def test_a_module_of_its_own_kind_resets_itself_without_touching_the_global_state():
    model = timm.create_model("test_vit", num_classes=7)
    layers = layers_of(model)
    before = torch.get_rng_state()
    reinitialise(layers, 2, generator=torch.Generator().manual_seed(0))
    assert torch.equal(torch.get_rng_state(), before)


class Odd(nn.Module):
    """Has a parameter that nobody knows how to reset."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((3,), 5.0))


class OddModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.odd, self.fc = nn.Linear(3, 3), Odd(), nn.Linear(3, 2)

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:  # noqa: FBT001, FBT002, ARG002
        return {"stem": r"^first", "blocks": r"^odd"}

    def get_classifier(self) -> nn.Module:
        return self.fc


def test_an_unknown_module_is_refused_before_anything_is_changed():
    model = OddModel()
    layers = layers_of(model)
    before = model.fc.weight.clone()
    with pytest.raises(SpecError, match=r"Odd at 'odd' with parameters \['scale'\]") as caught:
        reinitialise(layers, 2, generator=torch.Generator())
    assert "\n" not in str(caught.value)
    assert torch.equal(model.fc.weight, before)
    reinitialise(layers, 1, generator=torch.Generator())
    assert not torch.equal(model.fc.weight, before)


def test_what_has_no_initialiser_takes_the_values_it_was_created_with():
    model = OddModel()
    layers = layers_of(model)
    fresh = fresh_values(layers)
    assert list(fresh) == ["odd.scale"]
    with torch.no_grad():
        model.odd.scale.fill_(7)  # as loading weights does
    reinitialise(layers, 2, generator=torch.Generator(), fresh=fresh)
    assert model.odd.scale.tolist() == [5.0, 5.0, 5.0]
    with torch.no_grad():
        model.odd.scale.fill_(7)
    assert fresh["odd.scale"].tolist() == [5.0, 5.0, 5.0]  # a copy, for the next one


def test_blocks_follow_from_the_order_of_modules_where_timm_names_none():
    layers = layers_of(on_meta("poolformerv2_s12"))
    names = [block.name for block in layers.blocks]
    assert names[:2] == ["stem", "stages.0.blocks.0"]
    assert names[-2:] == ["stages.3.blocks.0", "stages.3.blocks.1+head.norm"]
    assert names.count("stages.2.downsample") == 1
    first = [name for name, _ in layers_of(on_meta("pit_ti_224")).blocks[0].parameters]
    assert first == ["pos_embed", "cls_token", "patch_embed.conv.weight", "patch_embed.conv.bias"]


@pytest.mark.parametrize(
    "model", [nn.Linear(2, 2), timm.create_model("test_resnet", num_classes=0)]
)
def test_a_model_without_classifier_is_refused(model):
    with pytest.raises(SpecError, match="choose"):
        layers_of(model)


def headless(name: str) -> nn.Module:
    model: nn.Module = timm.create_model(name, num_classes=0)
    return model


def test_kinds_go_by_type_and_not_by_name():
    from timm.layers import BatchNormAct2d, LayerNorm2d, RmsNorm

    for norm in (BatchNormAct2d(3), LayerNorm2d(3), RmsNorm(3), nn.GroupNorm(1, 3)):
        assert kind_of(norm, "weight") == "norm"
    assert kind_of(nn.Conv2d(3, 3, 1), "weight") == "kernel"
    assert kind_of(nn.Conv2d(3, 3, 1), "bias") == "other"
    assert kind_of(Odd(), "scale") == "other"
