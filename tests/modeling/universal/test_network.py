import sys

import pytest
import torch

from d2_cityscapes.errors import D2CityscapesError
from d2_cityscapes.modeling.universal.eomt import annealed_parts, eomt_layers
from d2_cityscapes.modeling.universal.network import (
    build_network,
    divisor,
    layers_of,
    settings_of,
    stages_of,
)
from tests.modeling.universal.conftest import EOMT, MASK2FORMER, SWIN


def images(height: int = 64, width: int = 64) -> torch.Tensor:
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("mask3former", {}, "use mask2former or eomt"),
        ("oneformer", {}, "vocabulary of CLIP"),
        ("eomt", {"num_querys": 3}, "no such setting; nearest: num_queries"),
        ("eomt", {"num_queries": "many"}, "expected int"),
        ("mask2former", {"backbone_config": {"model_type": "swin", "depth": 3}}, "depths"),
        ("eomt", {**EOMT, "hidden_size": 30}, "cannot be built"),
    ],
)
def test_networks_that_there_are_not(name, values, message):
    with pytest.raises(D2CityscapesError, match=message):
        build_network(name, values, 19)


def test_without_transformers_one_line_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(D2CityscapesError, match=r"pip install 'd2_cityscapes\[transformers\]'"):
        build_network("eomt", EOMT, 19)


@pytest.mark.parametrize(
    ("name", "values"),
    [("mask2former", {**MASK2FORMER, "backbone_config": SWIN}), ("eomt", EOMT)],
)
def test_settings_make_the_same_network_again(name, values):
    network = build_network(name, values, 19)
    again = build_network(name, settings_of(network.config), 19)
    sizes = {key: tuple(x.shape) for key, x in network.state_dict().items()}
    assert {key: tuple(x.shape) for key, x in again.state_dict().items()} == sizes
    assert settings_of(again.config) == settings_of(network.config)


@pytest.mark.parametrize("backbone", [MASK2FORMER["backbone_config"], SWIN])
def test_mask2former_predicts_in_all_its_layers(backbone):
    network = build_network("mask2former", {**MASK2FORMER, "backbone_config": backbone}, 19)
    found = layers_of(network)(network.eval(), images(64, 96))
    assert divisor(network) == 32
    assert len(found) == 3
    wanted = network(images(64, 96))
    assert torch.equal(found[-1].masks, wanted.masks_queries_logits)
    assert torch.equal(found[-1].classes, wanted.class_queries_logits)
    assert len(stages_of(network)) == 5  # four of the backbone, one of the pixel decoder


@pytest.mark.parametrize("masked", [0.0, 1.0])
@pytest.mark.parametrize("mode", [False, True])
def test_eomt_is_that_of_transformers(masked, mode):
    network = build_network("eomt", EOMT, 19).train(mode)
    network.attn_mask_probs.fill_(masked)
    with torch.no_grad():
        found = eomt_layers(network, images(), [masked] * 2)
        wanted = network(images())
    assert len(found) == (3 if mode or masked else 1)
    torch.testing.assert_close(found[-1].masks, wanted.masks_queries_logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found[-1].classes, wanted.class_queries_logits)


def test_masks_of_attention_change_what_eomt_predicts():
    network = build_network("eomt", EOMT, 19).eval()
    with torch.no_grad():
        free, masked = (eomt_layers(network, images(), [part] * 2)[-1] for part in (0.0, 1.0))
    assert not torch.allclose(free.classes, masked.classes, atol=1e-4)


def test_eomt_takes_pictures_of_another_shape_than_it_was_built_for():
    network = build_network("eomt", EOMT, 19).eval()
    (found,) = eomt_layers(network, images(64, 128), [0.0, 0.0])
    assert found.masks.shape == (2, 20, 8, 16)
    network.embeddings.position_embeddings.weight.data[:] = 1.0  # the same at all places
    with torch.no_grad():
        wide = torch.cat([images(), images()], dim=3)
        (again,) = eomt_layers(network, wide, [0.0, 0.0])
    torch.testing.assert_close(again.masks[..., 2:6], again.masks[..., 10:14])


def test_blocks_cease_to_mask_one_after_another():
    sixth = 1 / 6
    published = lambda progress: annealed_parts(progress, sixth, 5 * sixth, 4)  # noqa: E731
    assert published(0.0) == published(sixth) == [1, 1, 1, 1]
    assert published(2 * sixth) == pytest.approx([0, 1, 1, 1])
    assert published(2.5 * sixth) == pytest.approx([0, 0.5**0.9, 1, 1])
    assert published(5 * sixth) == pytest.approx([0, 0, 0, 0], abs=1e-9)
    assert published(1.0) == [0, 0, 0, 0]


def test_a_part_of_the_queries_masks_its_attention_in_training():
    network = build_network("eomt", EOMT, 19).train()
    torch.manual_seed(0)
    with torch.no_grad():
        some = [eomt_layers(network, images(), [0.5] * 2)[-1].classes for _ in range(2)]
        network.eval()
        fixed = [eomt_layers(network, images(), [0.6] * 2)[-1].classes for _ in range(2)]
    assert not torch.equal(*some)
    assert torch.equal(*fixed)
