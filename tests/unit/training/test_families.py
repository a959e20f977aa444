"""One network of every family of timm: its layers, and an update of every dial of `paper`."""

from pathlib import Path

import pytest
import timm
import torch
from timm.models import list_modules

from nbtl_search.network.model import Network, build
from nbtl_search.network.weights import Weights
from nbtl_search.spec import Dials, Recipe
from nbtl_search.training.gradients import soft_cross_entropy
from nbtl_search.training.method_losses import penalty_of
from nbtl_search.training.optimiser import optimiser_of
from nbtl_search.transfer.layers import layers_of
from nbtl_search.transfer.reinit import fresh_values, reinitialise

N_CLASSES = 7
DIALS = Dials(
    reinit_layers=3,
    lr_high=0.01,
    lr_head_ratio=2.0,
    n_low=1,
    lr_low_ratio=0.5,
    n_l2sp=1,
    alpha=0.1,
    beta=0.1,
)
# The smallest network of each family, and the side of small images that it takes.
FAMILIES = {
    "beit": ("beit_base_patch16_224", 224),
    "byoanet": ("halonet_h1", 256),
    "byobnet": ("test_byobnet", 64),
    "cait": ("cait_xxs24_224", 224),
    "coat": ("coat_tiny", 224),
    "convit": ("convit_tiny", 224),
    "convmixer": ("convmixer_768_32", 64),
    "convnext": ("test_convnext", 64),
    "cpubone": ("cpubone_nano", 64),
    "crossvit": ("crossvit_tiny_240", 240),
    "csatv2": ("csatv2", 64),
    "cspnet": ("cs3darknet_focus_s", 64),
    "cspnext": ("cspnext_tiny", 64),
    "davit": ("davit_tiny", 64),
    "deit": ("deit_tiny_patch16_224", 224),
    "densenet": ("densenet121", 64),
    "dla": ("dla46x_c", 64),
    "dpn": ("dpn48b", 64),
    "edgenext": ("edgenext_xx_small", 64),
    "efficientformer": ("efficientformer_l1", 224),
    "efficientformer_v2": ("efficientformerv2_s0", 224),
    "efficientnet": ("test_efficientnet", 64),
    "efficientvim": ("efficientvim_m1", 64),
    "efficientvit_mit": ("efficientvit_b0", 64),
    "efficientvit_msra": ("efficientvit_m0", 224),
    "eva": ("vit_tiny_patch16_dinov3_qkvb", 256),
    "fasternet": ("fasternet_t0", 64),
    "fastvit": ("fastvit_t8", 64),
    "focalnet": ("focalnet_tiny_srf", 64),
    "gcvit": ("gcvit_xxtiny", 224),
    "ghostnet": ("ghostnet_050", 64),
    "hardcorenas": ("hardcorenas_b", 64),
    "hgnet": ("hgnetv2_b0", 64),
    "hiera": ("hiera_tiny_224", 224),
    "hieradet_sam2": ("sam2_hiera_tiny", 64),
    "hrnet": ("hrnet_w18_small", 64),
    "iformer": ("iformer_t", 64),
    "inception_next": ("inception_next_atto", 64),
    "inception_resnet_v2": ("inception_resnet_v2", 96),
    "inception_v3": ("inception_v3", 96),
    "inception_v4": ("inception_v4", 96),
    "lcnetv2": ("lcnetv2_small", 64),
    "levit": ("levit_128s", 224),
    "lowformer": ("lowformer_b0", 64),
    "mambaout": ("test_mambaout", 64),
    "maxxvit": ("test_coatnet", 160),
    "metaformer": ("poolformerv2_s12", 64),
    "mlp_mixer": ("gmlp_ti16_224", 224),
    "mobilenetv3": ("mobilenetv3_small_050", 64),
    "mobilenetv5": ("mobilenetv5_base", 64),
    "mobilevit": ("mobilevit_xxs", 64),
    "mvitv2": ("mvitv2_tiny", 224),
    "naflexvit": ("naflexvit_base_patch16_parfac_gap", 224),
    "nasnet": ("nasnetalarge", 96),
    "nest": ("nest_tiny", 224),
    "nextvit": ("nextvit_small", 64),
    "nfnet": ("test_nfnet", 64),
    "pit": ("pit_ti_224", 224),
    "pnasnet": ("pnasnet5large", 96),
    "pvt_v2": ("pvt_v2_b0", 64),
    "qwen3_vit": ("qwen3_vit_88m", 224),
    "rdnet": ("rdnet_tiny", 64),
    "regnet": ("regnetx_002", 64),
    "repghost": ("repghostnet_050", 64),
    "repvit": ("repvit_m1", 64),
    "res2net": ("res2next50", 64),
    "resnest": ("resnest14d", 64),
    "resnet": ("test_resnet", 64),
    "resnetv2": ("resnetv2_18", 64),
    "rexnet": ("rexnet_100", 64),
    "selecsls": ("selecsls42", 64),
    "senet": ("legacy_seresnet18", 64),
    "sequencer": ("sequencer2d_s", 224),
    "shvit": ("shvit_s1", 64),
    "sknet": ("skresnet18", 64),
    "starnet": ("starnet_s050", 64),
    "swiftformer": ("swiftformer_xs", 224),
    "swin_transformer": ("swin_tiny_patch4_window7_224", 224),
    "swin_transformer_v2": ("swinv2_tiny_window16_256", 256),
    "swin_transformer_v2_cr": ("swinv2_cr_tiny_224", 224),
    "tiny_vit": ("tiny_vit_5m_224", 64),
    "tnt": ("tnt_s_legacy_patch16_224", 224),
    "tresnet": ("tresnet_m", 64),
    "twins": ("twins_svt_small", 224),
    "visformer": ("visformer_tiny", 224),
    "vision_transformer": ("test_vit", 160),
    "vision_transformer_hybrid": ("vit_tiny_r_s16_p8_224", 224),
    "vision_transformer_relpos": ("test_vit_relpos", 160),
    "vision_transformer_sam": ("samvit_base_patch16_224", 224),
    "vitamin": ("vitamin_small_224", 224),
    "volo": ("volo_d1_224", 224),
    "vovnet": ("ese_vovnet19b_slim_dw", 64),
    "xception": ("legacy_xception", 64),
    "xception_aligned": ("xception41p", 64),
    "xcit": ("xcit_nano_12_p8_224", 224),
}
# The smallest of these have 130 to 410 million parameters: their layers are looked at, and reset,
# without the memory that they would take.
TOO_LARGE = {
    "deepseek_vit": "deepseek_vit_412m",
    "gemma4_vit": "gemma4_vit_167m",
    "vgg": "vgg11",
}


def test_every_family_is_here():
    # This project teaches timm one more, where its module is imported.
    assert {*FAMILIES, *TOO_LARGE} == set(list_modules()) - {"kept_architecture"}


@pytest.mark.parametrize("family", FAMILIES)
def test_one_of_the_family_trains_an_update_of_every_dial(family, tmp_path, monkeypatch):
    name, image_px = FAMILIES[family]
    torch.manual_seed(1)
    created = timm.create_model(name, num_classes=N_CLASSES).state_dict()
    # Nothing, scales and biases included, is where a new layer would start.
    pretrained = {n: v + 0.01 if v.is_floating_point() else v for n, v in created.items()}
    network = _built(name, image_px, pretrained, tmp_path)
    before = {n: p.detach().clone() for n, p in network.model.named_parameters()}
    recipe = _recipe(name, image_px)
    network.model.train()
    optimiser = optimiser_of(recipe, network.layers)
    # The oneDNN of torch 2.15 spoils the heap in its backward pass on CPUs without AVX-512.
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", family != "fastvit")
    logits = network.model(torch.randn(2, 3, image_px, image_px))
    soft_cross_entropy(logits, torch.full((2, N_CLASSES), 1 / N_CLASSES)).backward()
    penalty_of(recipe, network).add_gradient_()
    optimiser.step()

    layers = network.layers
    new = {n for b in layers.blocks[layers.n_blocks - 2 :] for n, _ in b.parameters}
    after = dict(network.model.named_parameters())
    assert all(bool(torch.isfinite(value).all()) for value in after.values())
    assert logits.shape == (2, N_CLASSES)
    assert not [n for n in new if torch.equal(before[n], pretrained[n])]
    kept = before.keys() - new - {n for n, _ in layers.head.parameters}
    assert all(torch.equal(before[n], pretrained[n]) for n in kept)
    # Every layer learns; a tensor of it need not, at its first update.
    for block in (*layers.blocks, layers.head):
        assert any(not torch.equal(after[n], before[n]) for n, _ in block.parameters), block.name


@pytest.mark.parametrize("family", TOO_LARGE)
def test_the_layers_of_one_too_large_to_train_here_can_be_reset(family):
    with torch.device("meta"):
        model = timm.create_model(TOO_LARGE[family], num_classes=N_CLASSES)
        layers = layers_of(model)
        names = [n for block in (*layers.blocks, layers.head) for n, _ in block.parameters]
        assert sorted(names) == sorted(n for n, _ in model.named_parameters())
        reinitialise(layers, 3, generator=torch.Generator(), fresh=fresh_values(layers))


def _built(name: str, image_px: int, pretrained: dict[str, torch.Tensor], home: Path) -> Network:
    weights = Weights(origin="this test", digest="0" * 64, state=pretrained)
    return build(_recipe(name, image_px), n_classes=N_CLASSES, home=home, weights=weights)


def _recipe(name: str, image_px: int) -> Recipe:
    return Recipe.parse(
        {
            "data": {"dataset": "unread", "image_px": image_px},
            "model": {"name": name},
            "dials": DIALS.model_dump(),
        }
    )
