"""DeepLabV3Segmentor: torchvision's network to the last bit, and targets worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.layers import FrozenBatchNorm2d
from torch import nn
from torch.nn import functional as F
from torchvision.models.segmentation import deeplabv3_resnet50, deeplabv3_resnet101

from d2_cityscapes import get_cfg
from d2_cityscapes.engine.setup import load_config
from d2_cityscapes.engine.validation_loss import validation_losses
from d2_cityscapes.errors import D2CityscapesError
from d2_cityscapes.modeling import DeepLabV3Segmentor, build_model

LAST_LAYERS = {
    f"{head}.4.{part}" for head in ("classifier", "aux_classifier") for part in ("weight", "bias")
}


@pytest.fixture(scope="module")
def network():
    """torchvision's own, with 21 classes and norm statistics that are not those of a new layer."""
    torch.manual_seed(0)
    network = deeplabv3_resnet50(weights=None, weights_backbone=None, aux_loss=True)
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_(std=0.1)
            layer.running_var.uniform_(0.8, 1.2)
    return network.eval()


@pytest.fixture
def cfg():
    cfg = get_cfg()
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.META_ARCHITECTURE = "DeepLabV3Segmentor"
    cfg.MODEL.RESNETS.NORM = "BN"
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 19
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = [123.675, 116.28, 103.53], [58.0, 57.0, 57.5]
    return cfg


@pytest.fixture
def cfg21(cfg):
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 21
    return cfg


@pytest.fixture
def inputs():
    """Two images of 65 x 129 pixels, a fifth of them void."""
    generator = torch.Generator().manual_seed(1)
    return [
        {
            "image": torch.randint(256, (3, 65, 129), generator=generator, dtype=torch.uint8),
            "sem_seg": torch.where(
                torch.rand(65, 129, generator=generator) < 0.2,
                255,
                torch.randint(19, (65, 129), generator=generator),
            ),
        }
        for _ in range(2)
    ]


def _normalised(cfg, inputs):
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD))
    return torch.stack([(x["image"] - mean) / std for x in inputs])


class _Strided(nn.Module):
    """A backbone of no layers: pixels in, every eighth out."""

    def forward(self, images):
        found = images[:, :, ::8, ::8]
        return {"out": found, "aux": found}


def _head(bias):
    """The same logits at every pixel."""
    head = nn.Conv2d(3, len(bias), 1)
    nn.init.zeros_(head.weight)
    head.bias.data = torch.tensor(bias)
    return head


def _constant(bias, aux_bias=(0.0,) * 20, **options):
    model = DeepLabV3Segmentor(
        backbone=_Strided(), classifier=_head(bias), aux_classifier=_head(aux_bias),
        pixel_mean=[0.0] * 3, pixel_std=[1.0] * 3, **options,
    )  # fmt: skip
    return model.train()


def _image(sem_seg):
    """A training input of the labels' size."""
    sem_seg = torch.tensor(sem_seg)
    return {"image": torch.zeros(3, *sem_seg.shape, dtype=torch.uint8), "sem_seg": sem_seg}


@torch.no_grad()
def test_torchvisions_weights_give_torchvisions_logits(network, cfg21, inputs):
    model = build_model(cfg21).eval()
    model.load_state_dict(network.state_dict(), strict=True)
    expected = network(_normalised(cfg21, inputs))["out"]
    assert model.logits(_normalised(cfg21, inputs))["out"].equal(expected)
    for found, own in zip(model(inputs), expected, strict=True):
        assert found["sem_seg"].equal(own[:19])


def test_training_is_torchvisions(network, cfg21, inputs):
    cfg21.MODEL.DEEPLAB.AUX_LOSS_WEIGHT = 0.4
    model = build_model(cfg21).train()
    model.load_state_dict(network.state_dict())
    torch.manual_seed(2)  # dropout
    losses = model(inputs)
    sum(losses.values()).backward()
    reference = deeplabv3_resnet50(weights=None, weights_backbone=None, aux_loss=True).train()
    reference.load_state_dict(network.state_dict())
    torch.manual_seed(2)
    logits = reference(_normalised(cfg21, inputs))
    targets = torch.stack([x["sem_seg"] for x in inputs])
    expected = [F.cross_entropy(logits[name], targets, ignore_index=255) for name in ("out", "aux")]
    assert list(losses) == ["loss_sem_seg", "loss_sem_seg_aux"]
    assert losses["loss_sem_seg"].item() == pytest.approx(expected[0].item(), rel=1e-5)
    assert losses["loss_sem_seg_aux"].item() == pytest.approx(0.4 * expected[1].item(), rel=1e-5)
    assert all(p.grad.abs().sum() > 0 for p in model.parameters()), "gradient reaches everything"
    statistics = dict(reference.named_buffers())
    for name, buffer in model.named_buffers():
        if not name.startswith("pixel_"):
            assert buffer.equal(statistics[name]), name


def test_without_its_loss_the_auxiliary_head_rests(network, cfg21, inputs):
    model = build_model(cfg21).train()
    model.load_state_dict(network.state_dict())
    losses = model(inputs)
    assert list(losses) == ["loss_sem_seg"]
    losses["loss_sem_seg"].backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) is name.startswith("aux_classifier."), name
    torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1).step()
    before = network.aux_classifier.state_dict()
    after = model.aux_classifier.state_dict()
    assert all(tensor.equal(before[name]) for name, tensor in after.items()), "statistics too"


def test_a_torchvision_file_is_a_checkpoint(network, cfg, tmp_path):
    """As downloaded, without Detectron2's "model" key; only the last layers have another size."""
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES, cfg.MODEL.SEM_SEG_HEAD.VOID_CLASS = 20, 19
    torch.save(network.state_dict(), tmp_path / "deeplabv3_resnet50.pth")
    model = build_model(cfg)
    own = {name: model.state_dict()[name].clone() for name in LAST_LAYERS}
    DetectionCheckpointer(model).load(str(tmp_path / "deeplabv3_resnet50.pth"))
    given = network.state_dict()
    for name, tensor in model.state_dict().items():
        assert tensor.equal(own[name] if name in LAST_LAYERS else given[name]), name
    assert all(own[name].shape[0] == 20 for name in LAST_LAYERS)


def test_the_loss_by_hand():
    """Two images, the second of one row: 6 labelled pixels, of which 2 are void, and 3 of padding.

    Class c has probability p[c] everywhere.
    """
    p = torch.softmax(torch.arange(20.0) / 10, dim=0)
    bias = p.log().tolist()
    batch = [_image([[0, 1, 255], [1, 1, 18]]), _image([[255, 7, 7]])]
    log = [math.log(value) for value in p.tolist()]
    counted = [log[c] for c in (0, 1, 1, 1, 18, 7, 7)]
    ignored = _constant(bias)(batch)["loss_sem_seg"].item()
    assert ignored == pytest.approx(-sum(counted) / 7)
    trained = _constant(bias, void_class=19)(batch)["loss_sem_seg"].item()
    assert trained == pytest.approx(-(sum(counted) + 2 * log[19]) / 9), "the padding never counts"
    assert batch[0]["sem_seg"].tolist() == [[0, 1, 255], [1, 1, 18]], "the input stays as it is"


def test_the_weights_of_the_losses():
    losses = _constant([0.0] * 20, loss_weight=2.0, aux_loss_weight=0.5)([_image([[3, 4]])])
    assert losses["loss_sem_seg"].item() == pytest.approx(2 * math.log(20))
    assert losses["loss_sem_seg_aux"].item() == pytest.approx(math.log(20))


def test_an_image_of_void_alone():
    model = _constant([0.5, *[0.0] * 19], aux_loss_weight=1.0)
    losses = model([_image([[255, 255], [255, 255]])])
    assert [x.item() for x in losses.values()] == [0, 0]
    sum(losses.values()).backward()
    assert all(p.grad.eq(0).all() for p in model.parameters())
    as_class = _constant([0.0] * 20, void_class=19)([_image([[255]])])
    assert as_class["loss_sem_seg"].item() == pytest.approx(math.log(20))


def test_the_loss_is_in_float32_under_mixed_precision():
    bias = [30.0, *[0.0] * 19]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = _constant(bias, aux_loss_weight=0.5)([_image([[0, 1]])])
    assert all(x.dtype == torch.float32 for x in loss.values())
    assert loss["loss_sem_seg"].item() == pytest.approx(15.0)


@torch.no_grad()
def test_void_is_never_predicted_and_the_size_is_the_wanted_one():
    model = _constant([0.0, 1.0, *[0.0] * 17, 9.0], void_class=19).eval()
    images = [{**_image([[0] * 16] * 16), "height": 24, "width": 64}, _image([[0] * 20] * 8)]
    found = [x["sem_seg"] for x in model(images)]
    assert [tuple(x.shape) for x in found] == [(19, 24, 64), (19, 8, 20)]
    assert all((x.argmax(0) == 1).all() for x in found)


def test_norms_are_what_the_key_says(cfg):
    kinds = {"BN": nn.BatchNorm2d, "SyncBN": nn.SyncBatchNorm, "FrozenBN": FrozenBatchNorm2d}
    norms = tuple(kinds.values())
    for norm, kind in kinds.items():
        cfg.MODEL.RESNETS.NORM = norm
        with torch.device("meta"):
            model = DeepLabV3Segmentor(cfg)
        found = [type(x) for x in model.backbone.modules() if isinstance(x, norms)]
        assert found == [kind] * 53
        heads = [type(x) for x in model.classifier.modules() if isinstance(x, norms)]
        head_kind = nn.BatchNorm2d if norm == "FrozenBN" else kind  # new heads learn their own
        assert heads == [head_kind] * 7


@torch.no_grad()
def test_frozen_norms_keep_their_statistics(network, cfg21, inputs):
    """BatchNorm in eval mode and FrozenBN are the same function."""
    cfg21.MODEL.RESNETS.NORM = "FrozenBN"
    model = build_model(cfg21)
    model.load_state_dict(network.state_dict(), strict=False)
    images = _normalised(cfg21, inputs)
    expected = network.backbone(images)["out"]
    found = model.train().backbone(images)["out"]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_one_image_is_too_few_for_the_norm_after_pooling(cfg, inputs):
    model = build_model(cfg)
    with pytest.raises(D2CityscapesError, match=r"two or more images.*IMS_PER_BATCH"):
        model.train()(inputs[:1])
    image = {**inputs[0], "image_id": "town"}
    assert math.isfinite(validation_losses(model, [[image]])["loss_sem_seg"]), "norms are in eval"
    model.classifier.eval()  # as of a frozen head
    assert math.isfinite(model(inputs[:1])["loss_sem_seg"].item())


def test_other_mistakes_in_a_head_stay_what_they_are():
    class Broken(nn.Module):
        def forward(self, features):
            raise ValueError("something else")

    model = _constant([0.0] * 20)
    model.classifier = Broken()
    with pytest.raises(ValueError, match="something else"):
        model([_image([[0]])])


@pytest.mark.parametrize(
    ("classes", "void_class", "message"),
    [
        (18, -1, r"NUM_CLASSES is 18; .* at least the 19 classes"),
        (19, 19, r"VOID_CLASS is 19 with NUM_CLASSES 19: void is class 19 of 20, or -1"),
        (20, 20, r"VOID_CLASS is 20 with NUM_CLASSES 20"),
        (20, 3, r"VOID_CLASS is 3 with NUM_CLASSES 20"),
        (20, 255, r"VOID_CLASS is 255 with NUM_CLASSES 20"),
        (21, 20, r"VOID_CLASS is 20 with NUM_CLASSES 21"),
    ],
)
def test_channels_that_do_not_fit_are_refused(cfg, classes, void_class, message):
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = classes
    cfg.MODEL.SEM_SEG_HEAD.VOID_CLASS = void_class
    with pytest.raises(D2CityscapesError, match=message):
        build_model(cfg)


def test_networks_that_there_are_not_are_refused(cfg):
    cfg.MODEL.RESNETS.DEPTH = 18
    with pytest.raises(D2CityscapesError, match=r"DEPTH is 18; .* has 50 and 101"):
        build_model(cfg)
    cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.RESNETS.NORM = 50, "GN"
    with pytest.raises(D2CityscapesError, match=r"NORM is 'GN'; .* BN, FrozenBN and SyncBN"):
        build_model(cfg)


def test_depth_101_is_torchvisions(cfg21):
    cfg21.MODEL.RESNETS.DEPTH = 101
    with torch.device("meta"):
        ours = DeepLabV3Segmentor(cfg21)
        theirs = deeplabv3_resnet101(weights=None, weights_backbone=None, aux_loss=True)
    shapes = {name: tensor.shape for name, tensor in theirs.state_dict().items()}
    assert {name: tensor.shape for name, tensor in ours.state_dict().items()} == shapes


@pytest.mark.parametrize(
    ("config", "channels", "void_class", "lr", "batch", "iterations"),
    [
        ("stage0.yaml", 19, -1, 1e-6, 4, 12360),
        ("stage0_lr1e-4.yaml", 19, -1, 1e-4, 4, 12360),
        ("semantic/deeplabv3_R_50_768x1024.yaml", 20, 19, 1e-4, 24, 2480),
        ("semantic/deeplabv3_R_50_768x1024_ignore.yaml", 20, -1, 1e-4, 24, 2480),
        ("semantic/deeplabv3_R_50_768x1024_semantic19.yaml", 19, -1, 1e-4, 24, 2480),
    ],
)
def test_the_recipes_build(config, channels, void_class, lr, batch, iterations, repository):
    cfg = load_config(repository / "configs" / config, ["MODEL.DEVICE", "meta"])
    with torch.device("meta"):
        model = build_model(cfg)
    assert model.classifier[4].out_channels == model.aux_classifier[4].out_channels == channels
    assert model.void_class == void_class
    assert isinstance(model.backbone["bn1"], nn.BatchNorm2d)
    assert cfg.SOLVER.OPTIMIZER == "ADAM" and cfg.SOLVER.WEIGHT_DECAY == 0
    found = (cfg.SOLVER.BASE_LR, cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.MAX_ITER)
    assert found == (lr, batch, iterations)
    published = config.startswith("semantic/")
    size, flip = ([768, 1024], "horizontal") if published else ([], "none")
    found = cfg.INPUT.FIXED_SIZE, cfg.INPUT.RANDOM_FLIP
    assert found == (size, flip)
    assert not cfg.INPUT.CROP.ENABLED and cfg.SOLVER.AMP.ENABLED is not published
