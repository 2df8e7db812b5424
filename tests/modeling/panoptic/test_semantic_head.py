"""MiniDLSemSegHead: golden numbers, the loss, memory, Detectron2's interface, refusals."""

import numpy as np
import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.meta_arch.semantic_seg import build_sem_seg_head
from detectron2.utils.events import EventStorage
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from d2_cityscapes.errors import D2CityscapesError
from d2_cityscapes.layers import bootstrapped_cross_entropy, losses
from d2_cityscapes.modeling import MiniDLSemSegHead
from d2_cityscapes.modeling.build import build_model

STRIDES = {"p2": 4, "p3": 8, "p4": 16, "p5": 32}


def make_head(in_channels=16, **kwargs) -> MiniDLSemSegHead:
    shapes = {name: ShapeSpec(channels=in_channels, stride=s) for name, s in STRIDES.items()}
    torch.manual_seed(0)
    return MiniDLSemSegHead(shapes, **({"num_classes": 19, "channels": 8} | kwargs))


def make_features(sizes, images=1, channels=16, dtype=torch.float32):
    torch.manual_seed(1)
    return {
        name: torch.randn(images, channels, *size, dtype=dtype, requires_grad=True)
        for name, size in zip(STRIDES, sizes, strict=True)
    }


def direct_logits(head, features):
    """All levels resized, then classified together."""
    levels = [own(features[name]) for name, own in head.levels.items()]
    size = levels[0].shape[2:]
    resized = [F.interpolate(x, size=size, mode="bilinear", align_corners=False) for x in levels]
    return head.predictor(torch.cat(resized, dim=1))


@pytest.fixture(scope="module")
def golden(repository):
    return np.load(repository / "tests" / "golden" / "semantic_head.npz")


@torch.no_grad()
def test_golden_numbers(golden):
    head = make_head().eval()
    names = {
        "branch_local": "branch_local.conv3x3",
        "branch_dilated": "branch_dilated.conv3x3_d6",
        "branch_context": "branch_pool.conv1x1",
        "branch_norm": "branches.bn",
        "fuse": "fuse.conv1x1",
        "fuse_norm": "fuse.bn",
    }
    state = head.state_dict()
    for key in state:
        part, _, kind = key.rpartition(".")
        if part == "predictor":
            state[key] = torch.from_numpy(golden[f"w/classifier.conv1x1.{kind}"])
        elif kind != "num_batches_tracked":
            _, level, part = part.split(".")
            name = f"w/level{list(STRIDES).index(level)}/{names[part]}.{kind}"
            state[key] = torch.from_numpy(golden[name])
    head.load_state_dict(state)
    cases = sorted({key.split("/")[0] for key in golden if key.startswith("case")})
    assert cases
    for case in cases:
        features = {
            name: torch.from_numpy(golden[f"{case}/x_level{i}"]) for i, name in enumerate(STRIDES)
        }
        logits = torch.from_numpy(golden[f"{case}/logits"])
        torch.testing.assert_close(head.layers(features), logits, atol=1e-4, rtol=1e-4)
        full, nothing = head(features)
        assert nothing == {}
        assert full.shape[2:] == tuple(golden[f"{case}/image_size_hw"])
        every_seventh = torch.from_numpy(golden[f"{case}/full_logits_sub"])
        torch.testing.assert_close(full[..., ::7, ::7], every_seventh, atol=1e-4, rtol=1e-4)
        same = full.argmax(dim=1).numpy() == golden[f"{case}/full_argmax"]
        assert same.mean() >= 0.999


@pytest.mark.parametrize(
    "sizes",
    [
        [(16, 32), (8, 16), (4, 8), (2, 4)],
        [(15, 33), (8, 17), (4, 9), (2, 5)],  # odd sizes, halved and rounded up
        [(1, 1)] * 4,
    ],
)
@pytest.mark.parametrize("images", [1, 3])
def test_classifying_before_resizing_changes_nothing(sizes, images):
    head = make_head().double()
    for module in head.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()  # a map of one cell has no statistics
    features = make_features(sizes, images, dtype=torch.float64)
    ours, direct = head.layers(features), direct_logits(head, features)
    assert ours.shape == (images, 19, *sizes[0])
    torch.testing.assert_close(ours, direct)
    inputs = [*features.values(), *head.parameters()]
    gradients = [torch.autograd.grad(x.square().sum(), inputs) for x in (ours, direct)]
    torch.testing.assert_close(*gradients)


def test_parameters_of_the_paper():
    head = make_head(256, channels=128)
    assert sum(p.numel() for p in head.parameters()) == 2_700_819


def test_the_classifier_starts_small():
    head = make_head(channels=128)
    spread = 0.1 * (2 / (4 * 128 + 19)) ** 0.5
    assert head.predictor.weight.std().item() == pytest.approx(spread, rel=0.05)
    assert not head.predictor.bias.any()


def test_the_loss_is_that_of_the_upsampled_logits():
    head = make_head(loss_weight=0.5, loss_top_k=0.1, ignore_value=200)
    features = make_features([(16, 32), (8, 16), (4, 8), (2, 4)], images=2)
    targets = torch.randint(19, (2, 64, 128))
    targets[:, :9] = 200
    nothing, found = head(features, targets)
    upsampled = F.interpolate(direct_logits(head, features), scale_factor=4, mode="bilinear")
    expected = 0.5 * bootstrapped_cross_entropy(upsampled, targets, 0.1, 200)
    assert nothing is None
    assert found.keys() == {"loss_sem_seg"}
    torch.testing.assert_close(found["loss_sem_seg"], expected)
    inputs = [*features.values(), *head.parameters()]
    torch.testing.assert_close(
        torch.autograd.grad(found["loss_sem_seg"], inputs),
        torch.autograd.grad(expected, inputs),
    )


def test_images_of_their_own_size_have_no_padding_in_the_loss():
    head = make_head(norm="")
    features = make_features([(16, 32), (8, 16), (4, 8), (2, 4)], images=2)
    targets = [torch.randint(19, (64, 101)), torch.randint(19, (50, 128))]
    loss = head(features, targets)[1]["loss_sem_seg"]
    full = F.interpolate(head.layers(features), scale_factor=4, mode="bilinear")
    expected = [
        bootstrapped_cross_entropy(own[None, :, : len(y), : y.shape[1]], y[None])
        for own, y in zip(full, targets, strict=True)
    ]
    torch.testing.assert_close(loss, sum(expected) / 2)


def test_only_void_gives_zero():
    head = make_head()
    features = make_features([(16, 32), (8, 16), (4, 8), (2, 4)], images=2)
    loss = head(features, torch.full((2, 64, 128), 255))[1]["loss_sem_seg"]
    loss.backward()
    assert loss.item() == 0
    assert all(p.grad is not None and not p.grad.any() for p in head.parameters())


class PeakMemory(TorchDispatchMode):
    """Counts the largest number of bytes that lived at once in results of operations."""

    def __init__(self) -> None:
        super().__init__()
        self.peak, self._alive = 0, {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for x in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(x, torch.Tensor):
                storage = x.untyped_storage()
                self._alive[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self._alive = {k: v for k, v in self._alive.items() if not v[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self._alive.values()))
        return result


def test_the_loss_never_holds_the_upsampled_logits(monkeypatch):
    """Forward and backward pass; a plain form has four such tensors of the whole batch at once."""
    monkeypatch.setattr(losses, "_BAND", 19 * 256 * 512 // 16)
    head = make_head()
    logits = torch.randn(3, 19, 64, 128, requires_grad=True)
    targets = torch.randint(19, (3, 256, 512))
    with PeakMemory() as memory:
        head.losses(logits, targets)["loss_sem_seg"].backward()
    upsampled_image = 19 * 256 * 512 * 4
    assert logits.grad is not None
    assert 0 < memory.peak < upsampled_image


def test_bfloat16_autocast_is_close():
    head = make_head()
    features = make_features([(16, 32), (8, 16), (4, 8), (2, 4)], images=2)
    targets = torch.randint(19, (2, 64, 128))
    expected = head(features, targets)[1]["loss_sem_seg"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = head(features, targets)[1]["loss_sem_seg"]
        predicted, _ = head.eval()(features)
    assert loss.dtype == predicted.dtype == torch.float32
    torch.testing.assert_close(loss, expected, atol=0.05, rtol=0.02)


@pytest.fixture
def minidl_cfg(panoptic_cfg):
    panoptic_cfg.MODEL.SEM_SEG_HEAD.NAME = "MiniDLSemSegHead"
    panoptic_cfg.MODEL.SEM_SEG_HEAD.POOL_SIZE = [8, 12]
    panoptic_cfg.MODEL.SEM_SEG_HEAD.NORM = "BN"
    return panoptic_cfg


def test_the_config_reaches_the_head(minidl_cfg):
    head = minidl_cfg.MODEL.SEM_SEG_HEAD
    head.LOSS_TOP_K, head.LOSS_WEIGHT, head.IGNORE_VALUE = 0.5, 2.0, 254
    head.IN_FEATURES, head.CONVS_DIM, head.NORM = ["p5", "p3"], 64, "GN"
    head.COMMON_STRIDE = 8
    shapes = {name: ShapeSpec(channels=32, stride=s) for name, s in STRIDES.items()}
    built = build_sem_seg_head(minidl_cfg, shapes)
    assert isinstance(built, MiniDLSemSegHead)
    assert (built.loss_top_k, built.loss_weight, built.ignore_value) == (0.5, 2.0, 254)
    assert built.stride == 8
    assert list(built.levels) == ["p3", "p5"]
    level = built.levels["p5"]
    assert level.pool_size == (8, 12)
    assert isinstance(level.fuse_norm, nn.GroupNorm)
    assert level.fuse.weight.shape == (64, 192, 1, 1)
    assert built.predictor.weight.shape == (19, 128, 1, 1)


@pytest.mark.parametrize("architecture", ["SeamlessPanoptic", "PanopticFPN", "SemanticSegmentor"])
def test_trains_and_predicts_in_detectron2s_models(minidl_cfg, batch, architecture):
    minidl_cfg.MODEL.META_ARCHITECTURE = architecture
    torch.manual_seed(0)
    model = build_model(minidl_cfg).train()
    with EventStorage():
        found = model(batch)
    sum(found.values()).backward()
    assert found["loss_sem_seg"] > 0
    assert all(p.grad is not None for p in model.sem_seg_head.parameters())
    assert model.backbone.bottom_up.stem.conv1.weight.grad.abs().sum() > 0
    with torch.no_grad():
        inputs = {"image": batch[0]["image"][:, :50, :90], "height": 100, "width": 180}
        assert model.eval()([inputs])[0]["sem_seg"].shape == (19, 100, 180)


def test_giou_weight_reaches_the_loss(minidl_cfg):
    minidl_cfg.MODEL.ROI_BOX_HEAD.GIOU_WEIGHT = 0.25
    assert build_model(minidl_cfg).sem_seg_head.loss_weight == 0.75


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("IN_FEATURES", ["p2", "p7"], r"has \['p7'\], which the backbone does not give"),
        ("COMMON_STRIDE", 8, "set it to 4"),
        ("POOL_SIZE", [64], "height, width"),
        ("POOL_SIZE", [0, 64], "height, width"),
        ("LOSS_TOP_K", 0.0, "above 0"),
        ("LOSS_TOP_K", 25.0, "above 0"),
    ],
)
def test_refuses_what_it_could_not_follow(minidl_cfg, key, value, message):
    minidl_cfg.MODEL.SEM_SEG_HEAD[key] = value
    with pytest.raises(D2CityscapesError, match=f"MODEL.SEM_SEG_HEAD.{key}.*{message}"):
        build_model(minidl_cfg)
