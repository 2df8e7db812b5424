"""Mask2Former's networks as `UniversalSegmentor`s: the same outputs, every tensor used once.

tests/golden/mask2former.json holds the names and shapes of two small networks of
facebookresearch/Mask2Former (commit 9b0651c) and what they predict with the weights of `made_up`
for `picture`: its MaskFormerHead over Detectron2's ResNet-50 of 8 channels and over a Swin of 8, by
the PyTorch form of its deformable attention. The full R50 and Swin-T, with random weights, gave
logits that differ by 1e-6 of the largest one.
"""

import json
import zlib
from pathlib import Path

import pytest
import torch

from d2_cityscapes.convert import ConversionError, convert_file, mask2former_to_universal
from d2_cityscapes.labels import CITYSCAPES
from d2_cityscapes.labels.record import class_record

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "mask2former.json").read_text())
KINDS = tuple(GOLDEN)
HEAD = {
    "num_queries": 6,
    "feature_size": 32,
    "mask_feature_size": 32,
    "hidden_dim": 32,
    "num_attention_heads": 4,
    "encoder_layers": 1,
    "decoder_layers": 3,
    "dim_feedforward": 16,
}
STAGES = ["stage1", "stage2", "stage3", "stage4"]
BACKBONES = {
    "resnet": {
        "model_type": "resnet",
        "embedding_size": 4,
        "hidden_sizes": [8, 16, 32, 64],
        "depths": [3, 4, 6, 3],
        "out_features": STAGES,
    },
    "swin": {
        "model_type": "swin",
        "embed_dim": 8,
        "depths": [1, 2, 1, 1],
        "num_heads": [1, 2, 2, 2],
        "window_size": 4,
        "out_features": STAGES,
    },
}


def made_up(shapes: dict[str, list[int]]) -> dict[str, torch.Tensor]:
    """Weights that follow from their names; no position index, which is no weight."""
    weights = {}
    for name, shape in shapes.items():
        if name.endswith(("relative_position_index", "num_batches_tracked")):
            weights[name] = torch.zeros(shape, dtype=torch.int64)
            continue
        values = torch.randn(
            shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode()))
        )
        fan_in = max(values[0].numel() if values.dim() > 1 else 1, 1)
        weights[name] = values / fan_in**0.5 if values.dim() > 1 else 0.3 * values
        if name.endswith("running_var") or ("norm" in name and name.endswith(".weight")):
            weights[name] = 1 + 0.3 * values.abs()
    return weights


def picture() -> torch.Tensor:
    return torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))


@pytest.fixture(params=KINDS)
def kind(request) -> str:
    return request.param


def converted(kind: str):
    return mask2former_to_universal(made_up(GOLDEN[kind]["shapes"]))


def network(kind: str) -> torch.nn.Module:
    pytest.importorskip("transformers")
    from d2_cityscapes.modeling.universal.network import build_network

    return build_network("mask2former", {**HEAD, "backbone_config": BACKBONES[kind]}, 19).eval()


def as_of_network(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.removeprefix("network."): tensor for name, tensor in tensors.items()}


def test_it_predicts_what_the_original_does(kind):
    model = network(kind)
    lost = model.load_state_dict(as_of_network(converted(kind).tensors), strict=False)
    assert lost.unexpected_keys == []
    assert [n for n in lost.missing_keys if not n.endswith("num_batches_tracked")] == []
    with torch.no_grad():
        found = model(picture())
    classes = found.class_queries_logits[0, :, :4].flatten()
    masks = found.masks_queries_logits[0, :, 3, 5:9].flatten()
    wanted = {name: torch.tensor(GOLDEN[kind][name]) for name in ("classes", "masks")}
    assert wanted["classes"].std() > 0.3
    torch.testing.assert_close(classes, wanted["classes"], atol=2e-4, rtol=1e-4)
    torch.testing.assert_close(masks, wanted["masks"], atol=2e-3, rtol=1e-4)


def test_every_tensor_is_used_once(kind):
    weights = made_up(GOLDEN[kind]["shapes"])
    kept = {
        name: tensor
        for name, tensor in weights.items()
        if not name.endswith(("num_batches_tracked", "relative_position_index", "empty_weight"))
    }
    found = converted(kind)
    assert sum(t.numel() for t in found.tensors.values()) == sum(t.numel() for t in kept.values())
    assert found.classes == class_record(CITYSCAPES)
    assert f"converted {len(kept)} tensors of {len(weights)}" in found.report[0]


def test_names_of_its_first_checkpoints(kind):
    weights = made_up(GOLDEN[kind]["shapes"])
    old = {
        name.replace("pixel_decoder.", "").replace("query_feat", "static_query"): tensor
        for name, tensor in weights.items()
    }
    assert old.keys() != weights.keys()
    found, wanted = mask2former_to_universal(old).tensors, converted(kind).tensors
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())


@pytest.mark.parametrize("prefix", ["", "backbone.", "backbone.bottom_up."])
def test_a_backbone_alone(kind, prefix):
    weights = made_up(GOLDEN[kind]["shapes"])
    body = {
        prefix + name.removeprefix("backbone."): tensor
        for name, tensor in weights.items()
        if name.startswith("backbone.")
    }
    found = mask2former_to_universal(body)
    wanted = converted(kind).tensors
    assert found.classes is None
    assert "a backbone alone" in found.report[-1]
    assert {n for n in wanted if ".encoder." in n and "decoder" not in n} == {*found.tensors}


def test_other_classes_are_said(kind):
    weights = made_up(GOLDEN[kind]["shapes"])
    for part in ("weight", "bias"):
        name = f"sem_seg_head.predictor.class_embed.{part}"
        weights[name] = weights[name].repeat_interleave(7, dim=0)[:134]
    found = mask2former_to_universal(weights)
    assert found.classes is None
    assert found.report[-1].startswith("133 classes, not those of Cityscapes")


def test_another_network_is_refused(tmp_path):
    weights = made_up(GOLDEN["swin"]["shapes"]) | {"backbone.absolute_pos_embed": torch.zeros(1)}
    with pytest.raises(ConversionError, match=r"unknown: backbone.absolute_pos_embed"):
        mask2former_to_universal(weights)
    with pytest.raises(ConversionError, match="not a network of Mask2Former"):
        mask2former_to_universal({"classifier.weight": torch.zeros(1)})
    torch.save({"model": weights}, tmp_path / "in.pth")
    with pytest.raises(ConversionError, match=r"in.pth: not a network"):
        convert_file("mask2former", tmp_path / "in.pth", tmp_path / "out.pth")


def test_from_file_to_a_training(kind, tmp_path):
    from d2_cityscapes.tensor_files import read_tensor_file

    torch.save({"model": made_up(GOLDEN[kind]["shapes"])}, tmp_path / "in.pkl.pth")
    report = convert_file("mask2former", tmp_path / "in.pkl.pth", tmp_path / "out.pth")
    assert report[-1] == f"wrote {tmp_path / 'out.pth'}"
    assert {*read_tensor_file(tmp_path / "out.pth")["model"]} == {*converted(kind).tensors}
