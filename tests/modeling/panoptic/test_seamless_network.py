"""The Seamless model as a whole: its size, its losses, and what its configs build."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from d2_cityscapes.engine.setup import load_config
from d2_cityscapes.layers import bootstrapped_cross_entropy
from d2_cityscapes.modeling.build import build_model
from tests.support.losses import losses_of

CONFIGS = Path(__file__).resolve().parents[3] / "configs"
SEAMLESS = "panoptic/seamless_R_50_FPN.yaml"
LEVELS = ("p2", "p3", "p4", "p5", "p6")


def read(name: str, *opts: object, device: str = "cpu") -> CfgNode:
    return load_config(CONFIGS / name, ["MODEL.DEVICE", device, *map(str, opts)], train=False)


def build_on_meta(name: str, *opts: object) -> nn.Module:
    with torch.device("meta"):  # every layer and shape, no numbers
        return build_model(read(name, *opts, device="meta"))


@pytest.fixture(scope="module")
def cityscapes_model() -> nn.Module:
    return build_on_meta(SEAMLESS)


# --- the published size ---


def test_parameters(cityscapes_model):
    """Those of the reference implementation, part by part."""
    model = cityscapes_model
    parts = {
        51_434_387: model,
        23_508_032: model.backbone.bottom_up,
        4_719_104: model.backbone.top_block,
        594_191: model.proposal_generator,
        16_565_809: model.roi_heads,
        13_897_728: model.roi_heads.box_head,
        9_225: model.roi_heads.box_predictor.cls_score,
        32_800: model.roi_heads.box_predictor.bbox_pred,
        2_056: model.roi_heads.mask_head.predictor,
        2_700_819: model.sem_seg_head,
        672_768: model.sem_seg_head.levels["p2"],
        9_747: model.sem_seg_head.predictor,
    }
    assert [sum(p.numel() for p in part.parameters()) for part in parts.values()] == list(parts)
    fpn = sum(p.numel() for p in model.backbone.parameters()) - 23_508_032
    assert fpn == 8_065_536
    trained = [p.numel() for p in model.parameters() if p.requires_grad]
    assert sum(trained) == 51_209_043  # stem and res2 are frozen
    norms = [m for m in model.modules() if isinstance(m, nn.SyncBatchNorm)]
    affine = [p for norm in norms for p in norm.parameters()]
    assert sum(p.numel() for p in affine) == 68_992
    trained_affine = [p.numel() for p in affine if p.requires_grad]
    assert (sum(trained_affine), len(trained_affine)) == (66_048, 134)


class Maps(nn.Module):
    """What is computed once for each image: all but the ROI heads."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.backbone = model.backbone
        self.rpn_head = model.proposal_generator.rpn_head
        self.sem_seg_head = model.sem_seg_head

    def forward(self, images):
        features = self.backbone(images)
        return self.rpn_head([features[k] for k in LEVELS]), self.sem_seg_head(features)


@torch.no_grad()
def test_multiply_adds_of_convolutions_at_1024_x_2048(cityscapes_model):
    """The paper's 0.514 T; classifying before resizing saves some, see `MiniDLSemSegHead`."""
    model = Maps(cityscapes_model.eval())
    with FlopCounterMode(display=False) as counter:  # two for each multiply-add
        model(torch.empty(1, 3, 1024, 2048, device="meta"))
    counts = counter.get_flop_counts()
    total = counts["Global"][torch.ops.aten.convolution] / 2e9
    assert total == pytest.approx(513.885, rel=0.005)
    parts = {"backbone": 292.025, "rpn_head": 103.649, "sem_seg_head": 118.212}
    for name, expected in parts.items():
        found = counts[f"Maps.{name}"][torch.ops.aten.convolution] / 2e9
        assert found == pytest.approx(expected, rel=0.012), name


@pytest.mark.no_fake_gpu("torch.jit.trace")
@torch.no_grad()
def test_multiply_adds_by_fvcores_counter():
    """It computes, so at a quarter of the size, with windows of that size: 1 / 16 of the work."""
    from fvcore.nn import FlopCountAnalysis

    model = build_model(read(SEAMLESS, "MODEL.SEM_SEG_HEAD.POOL_SIZE", [16, 16])).eval()
    counter = FlopCountAnalysis(Maps(model), torch.zeros(1, 3, 256, 512))
    counter.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    with warnings.catch_warnings():  # fvcore traces
        warnings.simplefilter("ignore")
        total = counter.by_operator()["conv"] * 16 / 1e9
    assert total == pytest.approx(513.885, rel=0.005)


# --- losses ---


@pytest.fixture
def small_cfg() -> CfgNode:
    """The gate's model, with group norm, whose results do not depend on the other images."""
    opts = [
        "MODEL.RESNETS.NORM", "FrozenBN", "MODEL.FPN.NORM", "GN", "MODEL.RPN.NORM", "GN",
        "MODEL.ROI_BOX_HEAD.NORM", "GN", "MODEL.ROI_MASK_HEAD.NORM", "GN",
        "MODEL.SEM_SEG_HEAD.NORM", "GN", "MODEL.FPN.OUT_CHANNELS", 64,
        "MODEL.SEM_SEG_HEAD.CONVS_DIM", 64, "MODEL.ROI_BOX_HEAD.GIOU_WEIGHT", 0.0,
        "MODEL.RPN.CONV_DIMS", [64], "MODEL.ROI_MASK_HEAD.CONV_DIM", 64,
    ]  # fmt: skip
    cfg = read("quick/panoptic.yaml", *opts)
    cfg.defrost()
    return cfg


def build(cfg: CfgNode) -> nn.Module:
    torch.manual_seed(0)
    return build_model(cfg)


NAMES = {"loss_sem_seg", "loss_rpn_cls", "loss_rpn_loc", "loss_cls", "loss_box_reg", "loss_mask"}


@pytest.mark.parametrize("norm", ["BN", "SyncBN", "GN"])
def test_trains(small_cfg, batch, norm):
    """`SyncBN` in one process is batch norm, on a CPU too."""
    parts = ("RESNETS", "FPN", "RPN", "ROI_BOX_HEAD", "ROI_MASK_HEAD", "SEM_SEG_HEAD")
    for part in parts:
        small_cfg.MODEL[part].NORM = norm
    model = build(small_cfg)
    losses = losses_of(model, batch)
    assert losses.keys() == NAMES
    sum(losses.values()).backward()
    without = [name for name, p in model.named_parameters() if p.grad is None]
    assert without == []
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_trains_on_an_image_without_instances(small_cfg, empty_batch):
    losses = losses_of(build(small_cfg), empty_batch)
    assert losses["loss_mask"] == 0
    sum(losses.values()).backward()
    assert all(torch.isfinite(loss) for loss in losses.values())


def test_padding_is_no_void(small_cfg, batch):
    """A small image beside a large one has the loss that it has alone."""
    model = build(small_cfg)
    small = {**batch[0], "image": batch[0]["image"][:, :40, :70]}
    small["sem_seg"] = batch[0]["sem_seg"][:40, :70]
    together = losses_of(model, [small, batch[1]])["loss_sem_seg"]
    images = model.preprocess_image([small, batch[1]])
    assert images.tensor.shape[-2:] == (64, 128)
    with torch.no_grad():
        logits = model.sem_seg_head.layers(model.backbone(images.tensor))
    upsampled = F.interpolate(logits, scale_factor=4, mode="bilinear", align_corners=False)
    alone = [
        bootstrapped_cross_entropy(upsampled[:1, :, :40, :70], small["sem_seg"][None]),
        bootstrapped_cross_entropy(upsampled[1:], batch[1]["sem_seg"][None]),
    ]
    torch.testing.assert_close(together, sum(alone) / 2, rtol=1e-4, atol=1e-5)


def test_with_the_parts_of_detectron2_it_is_panoptic_fpn(panoptic_cfg, batch):
    """The zero setting: losses are bit for bit those of the stock meta-architecture."""
    ours = losses_of(build(panoptic_cfg), batch)
    panoptic_cfg.MODEL.META_ARCHITECTURE = "PanopticFPN"
    stock = losses_of(build(panoptic_cfg), batch)
    assert ours.keys() == stock.keys()
    assert all(torch.equal(ours[name], stock[name]) for name in ours)


def test_giou_can_be_part_of_it(small_cfg, batch):
    plain = losses_of(build(small_cfg), batch)
    small_cfg.MODEL.ROI_BOX_HEAD.GIOU_WEIGHT = 0.25
    mixed = losses_of(build(small_cfg), batch)
    assert mixed.keys() == plain.keys() | {"loss_box_giou"}
    for name, loss in plain.items():
        torch.testing.assert_close(mixed[name], 0.75 * loss)
    assert mixed["loss_box_giou"] > 0


def test_losses_have_weights(small_cfg, batch):
    small_cfg.MODEL.ROI_BOX_HEAD.GIOU_WEIGHT = 0.25
    plain = losses_of(build(small_cfg), batch)
    small_cfg.MODEL.SEM_SEG_HEAD.LOSS_WEIGHT = 0.5
    small_cfg.MODEL.RPN.LOSS_WEIGHT = 3.0
    small_cfg.MODEL.PANOPTIC_FPN.INSTANCE_LOSS_WEIGHT = 2.0
    found = losses_of(build(small_cfg), batch)
    weights = {
        "loss_sem_seg": 0.5,
        "loss_rpn_cls": 3.0,
        "loss_rpn_loc": 3.0,
        "loss_cls": 2.0,  # which Detectron2 leaves out
        "loss_box_giou": 2.0,
        "loss_box_reg": 2.0,
        "loss_mask": 2.0,
    }
    for name, weight in weights.items():
        torch.testing.assert_close(found[name], weight * plain[name], msg=name)


# --- inference ---


@torch.no_grad()
@pytest.mark.parametrize("size", [(64, 128), (37, 101)])
def test_predicts_at_any_size(small_cfg, size):
    small_cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    model = build(small_cfg).eval()
    image = torch.randint(0, 256, (3, *size), dtype=torch.uint8)
    (result,) = model([{"image": image, "height": 2 * size[0] + 1, "width": 2 * size[1] - 1}])
    shape = (2 * size[0] + 1, 2 * size[1] - 1)
    assert result["sem_seg"].shape == (19, *shape)
    assert result["instances"].pred_masks.shape[1:] == shape
    assert len(result["instances"]) > 0
    assert result["panoptic_seg"][0].shape == shape


# --- configs ---


def test_nothing_but_the_semantic_head_is_new_to_stage_4():
    stage3 = build_on_meta("stage3.yaml").state_dict()
    stage4 = build_on_meta("stage4.yaml").state_dict()
    shapes = {name: tensor.shape for name, tensor in stage4.items()}
    assert {name: tensor.shape for name, tensor in stage3.items()}.items() <= shapes.items()
    assert {name.split(".")[0] for name in shapes.keys() - stage3.keys()} == {"sem_seg_head"}


def test_on_one_card_no_norm_needs_other_images():
    model = build_on_meta("panoptic/seamless_R_50_FPN_1gpu.yaml")
    norms = {type(m).__name__ for m in model.modules() if "Norm" in type(m).__name__}
    assert norms == {"FrozenBatchNorm2d", "GroupNorm", "NormLinear", "NormConvTranspose2d"}


def test_one_card_has_the_batch_and_schedule_of_eight():
    one, eight = (read(name).SOLVER for name in ("panoptic/seamless_R_50_FPN_1gpu.yaml", SEAMLESS))
    assert one.IMS_PER_BATCH * one.ACCUMULATE_STEPS == eight.IMS_PER_BATCH
    for key in ("BASE_LR", "MAX_ITER", "WARMUP_ITERS", "STEPS"):
        assert one[key] == eight[key]
