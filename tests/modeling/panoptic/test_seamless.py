"""SeamlessPanoptic: training, inference and fusion settings."""

import pytest
import torch
from detectron2.utils.events import EventStorage

from d2_cityscapes.engine.setup import load_config
from d2_cityscapes.errors import D2CityscapesError
from d2_cityscapes.modeling.build import build_model
from d2_cityscapes.modeling.panoptic.fusion import fuse_panoptic
from d2_cityscapes.modeling.panoptic.seamless import SeamlessPanoptic


@pytest.fixture
def model(panoptic_cfg) -> SeamlessPanoptic:
    """A model whose semantic head says road and building, and whose scores pass 0.1."""
    panoptic_cfg.MODEL.PANOPTIC_FPN.COMBINE.INSTANCES_CONFIDENCE_THRESH = 0.1
    panoptic_cfg.MODEL.PANOPTIC_FPN.COMBINE.STUFF_AREA_LIMIT = 64
    torch.manual_seed(0)
    return build_model(panoptic_cfg).eval()


def test_trains(panoptic_cfg, batch):
    torch.manual_seed(0)
    model = build_model(panoptic_cfg).train()
    with EventStorage():
        losses = model(batch)
    assert losses.keys() == {
        *("loss_sem_seg", "loss_rpn_cls", "loss_rpn_loc", "loss_cls", "loss_box_reg", "loss_mask")
    }
    sum(losses.values()).backward()
    assert model.sem_seg_head.predictor.weight.grad.abs().sum() > 0
    assert model.backbone.bottom_up.stem.conv1.weight.grad.abs().sum() > 0


def test_trains_on_an_image_without_instances(panoptic_cfg, empty_batch):
    model = build_model(panoptic_cfg).train()
    with EventStorage():
        losses = model(empty_batch)
    sum(losses.values()).backward()
    assert all(torch.isfinite(loss) for loss in losses.values())


@torch.no_grad()
def test_inference_at_the_original_size(model, batch):
    inputs = [
        {"image": batch[0]["image"], "height": 128, "width": 256},
        {"image": batch[1]["image"]},
    ]
    results = model(inputs)
    for result, size in zip(results, [(128, 256), (64, 128)], strict=True):
        assert result["sem_seg"].shape == (19, *size)
        assert result["instances"].image_size == size
        assert result["instances"].pred_masks.shape[1:] == size
        panoptic, segments = result["panoptic_seg"]
        assert panoptic.shape == size
        assert panoptic.dtype == torch.int32
        assert panoptic.max() == len(segments) > 0
        expected = fuse_panoptic(
            result["sem_seg"], result["instances"], score_threshold=0.1, stuff_area_limit=64
        )
        assert torch.equal(panoptic, expected[0])
        assert segments == expected[1]
    assert any(s["isthing"] for _, found in [r["panoptic_seg"] for r in results] for s in found)


@torch.no_grad()
def test_semantic_and_instances_are_those_of_panoptic_fpn(model, panoptic_cfg, batch):
    panoptic_cfg.MODEL.META_ARCHITECTURE = "PanopticFPN"
    stock = build_model(panoptic_cfg).eval()
    stock.load_state_dict(model.state_dict())
    ours, theirs = model(batch[:1])[0], stock(batch[:1])[0]
    assert torch.equal(ours["sem_seg"], theirs["sem_seg"])
    assert torch.equal(ours["instances"].pred_masks, theirs["instances"].pred_masks)


@torch.no_grad()
def test_combine_can_be_off(panoptic_cfg, batch, caplog):
    panoptic_cfg.MODEL.PANOPTIC_FPN.COMBINE.ENABLED = False
    result = build_model(panoptic_cfg).eval()(batch[:1])[0]
    assert result.keys() == {"sem_seg", "instances"}
    assert "no longer used" not in caplog.text
    assert panoptic_cfg.MODEL.PANOPTIC_FPN.COMBINE.ENABLED is False


@torch.no_grad()
def test_raw_outputs(model, batch):
    detections, logits = model.inference(batch[:1], do_postprocess=False)
    assert detections[0].pred_masks.shape[1:] == (1, 28, 28)
    assert logits[0].shape == (19, 64, 128)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("MODEL.SEM_SEG_HEAD.NUM_CLASSES", 54),
        ("MODEL.ROI_HEADS.NUM_CLASSES", 80),
        ("MODEL.MASK_ON", False),
    ],
)
def test_refuses_other_classes(panoptic_cfg, key, value):
    panoptic_cfg.merge_from_list([key, value])
    with pytest.raises(D2CityscapesError, match=f"{key} is {value}; SeamlessPanoptic needs"):
        build_model(panoptic_cfg)


def test_the_classes_are_those_of_the_dataset(repository):
    opts = ["DATASETS.TRAIN", '("idd_shards_train",)', "MODEL.DEVICE", "cpu"]
    config = repository / "configs" / "quick" / "panoptic.yaml"
    with pytest.raises(D2CityscapesError, match=r"NUM_CLASSES is 8; .* needs 9 for idd"):
        build_model(load_config(config, opts))
    opts += ["MODEL.ROI_HEADS.NUM_CLASSES", "9"]
    with pytest.raises(D2CityscapesError, match=r"NUM_CLASSES is 19; .* needs 26 for idd"):
        build_model(load_config(config, opts))
    opts += ["MODEL.SEM_SEG_HEAD.NUM_CLASSES", "26"]
    model = build_model(load_config(config, opts)).eval()
    with torch.no_grad():
        (found,) = model([{"image": torch.zeros(3, 64, 128, dtype=torch.uint8)}])
    assert model.table.name == "idd"
    assert found["sem_seg"].shape == (26, 64, 128)
