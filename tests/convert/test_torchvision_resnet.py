"""torchvision's ResNets as bodies of Detectron2: same features, every tensor accounted for."""

import re

import pytest
import torch
import torchvision
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling import build_backbone

from d2_cityscapes.convert import ConversionError, convert_file, torchvision_to_detectron2
from d2_cityscapes.convert.torchvision_resnet import detectron2_name
from d2_cityscapes.engine.setup import load_config

BODY = "backbone.bottom_up."


@pytest.fixture(scope="module", autouse=True)
def seed():
    torch.manual_seed(0)


def randomise_norms(model: torch.nn.Module) -> torch.nn.Module:
    """Statistics and weights of batch norm as after a training, not 0 and 1."""
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.2, 0.8)
            torch.nn.init.uniform_(module.bias, -0.5, 0.5)
            torch.nn.init.uniform_(module.running_mean, -0.5, 0.5)
            torch.nn.init.uniform_(module.running_var, 0.5, 2)
            module.num_batches_tracked += 5
    return model.eval()


def resnet(depth: int) -> torch.nn.Module:
    return randomise_norms(getattr(torchvision.models, f"resnet{depth}")(weights=None))


@pytest.fixture(scope="module")
def deeplab() -> torch.nn.Module:
    build = torchvision.models.segmentation.deeplabv3_resnet50
    return randomise_norms(build(weights=None, weights_backbone=None, aux_loss=True))


@torch.no_grad()
def torchvision_features(model: torch.nn.Module, images: torch.Tensor) -> dict[str, torch.Tensor]:
    """res2 to res5, at strides 4 to 32."""
    x = model.maxpool(model.relu(model.bn1(model.conv1(images))))
    features = {}
    for k in range(1, 5):
        features[f"res{k + 1}"] = x = getattr(model, f"layer{k}")(x)
    return features


def detectron2_model(repository, depth: int, norm: str, keys: str = "") -> torch.nn.Module:
    opts = ["MODEL.RESNETS.DEPTH", depth, "MODEL.RESNETS.NORM", norm, *keys.split()]
    if depth < 50:
        opts += ["MODEL.RESNETS.RES2_OUT_CHANNELS", 64]
    cfg = load_config(repository / "configs" / "Base-RCNN-FPN-Cityscapes.yaml", opts)
    return torch.nn.ModuleDict({"backbone": build_backbone(cfg)}).eval()


@pytest.mark.parametrize(("depth", "norm"), [(18, "BN"), (50, "FrozenBN"), (50, "BN")])
def test_features_are_torchvisions(repository, tmp_path, depth, norm):
    source = resnet(depth)
    torch.save(source.state_dict(), tmp_path / "resnet.pth")
    convert_file("torchvision-deeplab", tmp_path / "resnet.pth", tmp_path / "body.pth")
    model = detectron2_model(repository, depth, norm)
    DetectionCheckpointer(model).load(str(tmp_path / "body.pth"))
    images = torch.randn(2, 3, 64, 128)
    expected = torchvision_features(source, images)
    with torch.no_grad():
        found = model.backbone.bottom_up(images)
    assert found.keys() == expected.keys()
    for name, features in expected.items():
        assert features.std() > 0.05, "features that say nothing"
        torch.testing.assert_close(found[name], features, rtol=0, atol=1e-4)
    assert found["res5"].shape[-2:] == (2, 4)  # stride 32


@pytest.mark.parametrize(
    ("name", "what", "keys"),
    [
        ("resnet34", "ResNet-34", "DEPTH 34 MODEL.RESNETS.RES2_OUT_CHANNELS 64"),
        ("resnet101", "ResNet-101", "DEPTH 101"),
        ("resnet152", "ResNet-152", "DEPTH 152"),
        ("resnext50_32x4d", "ResNeXt-50 32x4d", "NUM_GROUPS 32 MODEL.RESNETS.WIDTH_PER_GROUP 4"),
        ("resnext101_32x8d", "ResNeXt-101 32x8d", "NUM_GROUPS 32 MODEL.RESNETS.WIDTH_PER_GROUP 8"),
        ("resnext101_64x4d", "ResNeXt-101 64x4d", "NUM_GROUPS 64 MODEL.RESNETS.WIDTH_PER_GROUP 4"),
        ("wide_resnet50_2", "Wide-ResNet-50", "NUM_GROUPS 1 MODEL.RESNETS.WIDTH_PER_GROUP 128"),
        ("wide_resnet101_2", "Wide-ResNet-101", "NUM_GROUPS 1 MODEL.RESNETS.WIDTH_PER_GROUP 128"),
    ],
)
def test_every_resnet_of_torchvision(repository, name, what, keys):
    """Names and shapes are those of Detectron2's ResNet with the keys that the report gives."""
    with torch.device("meta"):
        weights = getattr(torchvision.models, name)(weights=None).state_dict()
        conversion = torchvision_to_detectron2(weights)
        said = conversion.report[-1].removeprefix("the config needs ")
        depth = int(what.split("-")[-1].split()[0])
        model = detectron2_model(repository, depth, "FrozenBN", said)
    assert what in conversion.report[0]
    assert keys in said
    wanted = {n: t.shape for n, t in model.state_dict().items() if n.startswith(BODY)}
    assert {n: t.shape for n, t in conversion.tensors.items()} == wanted


def test_features_of_groups_are_torchvisions(repository, tmp_path):
    source = randomise_norms(torchvision.models.resnext50_32x4d(weights=None))
    torch.save(source.state_dict(), tmp_path / "resnext.pth")
    report = convert_file("torchvision-resnet", tmp_path / "resnext.pth", tmp_path / "body.pth")
    keys = next(line for line in report if "NUM_GROUPS" in line).removeprefix("the config needs ")
    model = detectron2_model(repository, 50, "FrozenBN", keys)
    DetectionCheckpointer(model).load(str(tmp_path / "body.pth"))
    images = torch.randn(1, 3, 32, 64)
    with torch.no_grad():
        found = model.backbone.bottom_up(images)
    for name, features in torchvision_features(source, images).items():
        torch.testing.assert_close(found[name], features, rtol=0, atol=1e-4)


def test_of_deeplab_the_body_is_converted_and_the_rest_named(repository, deeplab):
    weights = deeplab.state_dict()
    conversion = torchvision_to_detectron2(weights)
    wanted = detectron2_model(repository, 50, "FrozenBN").state_dict()
    body = {name: tensor for name, tensor in wanted.items() if name.startswith(BODY)}
    assert conversion.tensors.keys() == body.keys()
    assert all(t.shape == body[name].shape for name, t in conversion.tensors.items())
    assert sum(t.ndim == 4 for t in conversion.tensors.values()) == 53
    assert f"converted 265 of {len(weights)} tensors" in conversion.report[0]
    left = dict(re.findall(r"(\w+) \((\d+)\)", conversion.report[1]))
    assert left.keys() == {"classifier", "aux_classifier", "num_batches_tracked"}
    assert sum(map(int, left.values())) + 265 == len(weights), "none is lost silently"


def test_each_tensor_goes_where_its_values_say(deeplab):
    """Of equal shapes, too: every tensor arrives once."""
    weights = deeplab.state_dict()
    found = torchvision_to_detectron2(weights).tensors
    expected = {
        "backbone.conv1.weight": "stem.conv1.weight",
        "backbone.bn1.running_var": "stem.conv1.norm.running_var",
        "backbone.layer1.0.downsample.0.weight": "res2.0.shortcut.weight",
        "backbone.layer2.0.downsample.1.bias": "res3.0.shortcut.norm.bias",
        "backbone.layer3.5.conv2.weight": "res4.5.conv2.weight",
        "backbone.layer4.2.bn3.running_mean": "res5.2.conv3.norm.running_mean",
    }
    for ours, theirs in expected.items():
        assert found[BODY + theirs] is weights[ours]
        assert detectron2_name(ours.removeprefix("backbone.")) == theirs
    assert len({id(tensor) for tensor in found.values()}) == len(found)


@pytest.mark.parametrize("prefix", ["", "backbone.body.", "module.backbone."])
def test_finds_the_resnet_under_any_prefix(prefix):
    weights = {prefix + name: tensor for name, tensor in resnet(18).state_dict().items()}
    weights["rpn.head.bias"] = torch.zeros(3)
    conversion = torchvision_to_detectron2(weights)
    assert len(conversion.tensors) == 100  # 20 convolutions and their norms
    assert "fc (2), num_batches_tracked (20), rpn (1)" in conversion.report[1]


def test_a_checkpoint_of_ours(tmp_path, deeplab):
    """{"model": ...} with more beside it, as training writes it."""
    torch.save({"model": deeplab.state_dict(), "iteration": 5}, tmp_path / "model_final.pth")
    report = convert_file(
        "torchvision-deeplab", tmp_path / "model_final.pth", tmp_path / "backbone.pth"
    )
    content = torch.load(tmp_path / "backbone.pth", weights_only=True)
    assert content.keys() == {"model"}
    stem = content["model"]["backbone.bottom_up.stem.conv1.weight"]
    assert torch.equal(stem, deeplab.backbone.conv1.weight)
    assert report[-1] == f"wrote {tmp_path / 'backbone.pth'}"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("layer3.2.conv2.weight"), "missing: layer3.2.conv2.weight"),
        (lambda w: w.pop("bn1.running_var"), "missing: bn1.running_var"),
        (
            lambda w: w.update({"conv1.weight": torch.zeros(64, 4, 7, 7)}),
            r"another shape: conv1.weight is \(64, 4, 7, 7\), in ResNet-50 \(64, 3, 7, 7\)",
        ),
        (
            lambda w: w.update({"layer1.0.conv4.weight": torch.zeros(1)}),
            "not in ResNet-50: layer1.0.conv4.weight",
        ),
        (lambda w: w.update({"layer3.6.conv1.weight": torch.zeros(1)}), "7 blocks in layer3"),
    ],
)
def test_another_network_is_refused(change, message):
    with torch.device("meta"):
        weights = torchvision.models.resnet50(weights=None).state_dict()
    change(weights)
    with pytest.raises(ConversionError, match=message) as error:
        torchvision_to_detectron2(weights)
    assert "\n" not in str(error.value)


def test_all_problems_are_in_the_details():
    with torch.device("meta"):
        weights = torchvision.models.resnet50(weights=None).state_dict()
    changed = {n: torch.zeros(1) for n in weights if n.startswith("layer2")}
    weights |= changed
    with pytest.raises(ConversionError, match=r"another shape: .* and \d+ more") as error:
        torchvision_to_detectron2(weights)
    assert len(error.value.details) > 10


def test_detectron2s_own_names_need_no_conversion():
    with pytest.raises(ConversionError, match=r"use it as MODEL\.WEIGHTS"):
        torchvision_to_detectron2({"backbone.bottom_up.res2.0.conv1.weight": torch.zeros(1)})


def test_no_resnet_at_all_leaves_no_output(tmp_path):
    torch.save({"a": torch.zeros(1)}, tmp_path / "a.pth")
    with pytest.raises(ConversionError, match="0 ResNets in torchvision's names") as error:
        convert_file("torchvision-deeplab", tmp_path / "a.pth", tmp_path / "b.pth")
    assert str(error.value).startswith(str(tmp_path / "a.pth"))
    assert not (tmp_path / "b.pth").exists()
