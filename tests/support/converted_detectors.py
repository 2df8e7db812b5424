"""Converted detectors side by side with their source: what both tests share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from d2_cityscapes.engine.checkpoints.checkpointer import Checkpointer
from d2_cityscapes.engine.setup import load_config
from d2_cityscapes.modeling.build import build_model

# A small network of the same layers.
SMALL = [
    *("MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64),
    *("MODEL.FPN.OUT_CHANNELS", 32, "MODEL.ROI_BOX_HEAD.FC_DIM", 64),
    *("MODEL.ROI_BOX_HEAD.CONV_DIM", 32, "MODEL.ROI_MASK_HEAD.CONV_DIM", 32),
]


def randomise(model: nn.Module) -> nn.Module:
    """Weights as after a training: norms with statistics, predictors that have an opinion."""
    for name, module in model.named_modules():
        if hasattr(module, "running_var"):  # a norm, frozen or not
            nn.init.uniform_(module.weight, 0.5, 1.0)
            nn.init.uniform_(module.bias, -0.3, 0.3)
            nn.init.uniform_(module.running_mean, -0.3, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
        elif getattr(module, "bias", None) is not None:
            nn.init.uniform_(module.bias, -0.1, 0.1)
        if name.endswith(("cls_score", "fc_cls")):
            nn.init.normal_(module.weight, std=0.6)
        if name.endswith(("box_predictor.bbox_pred", "fc_reg")):
            nn.init.normal_(module.weight, std=0.3)
        if name.endswith(("rpn_conv", "cls_logits", "rpn_cls")):
            nn.init.normal_(module.weight, std=0.1)
    return model.eval()


@torch.no_grad()
def spread_classes(predictor: nn.Linear | nn.Conv2d, run: Callable[[], object]) -> None:
    """Let no class lead in all regions that `run` shows to a predictor with random weights."""
    seen: list[Tensor] = []
    handle = predictor.register_forward_hook(lambda *call: seen.append(call[-1]))
    run()
    handle.remove()
    scores = seen[0]  # (R, K), or (N, K, h, w) of a head that is a convolution
    predictor.bias -= scores.mean(dim=[d for d in range(scores.ndim) if d != 1])


def load_converted(repository: Path, name: str, weights: Path, opts: list) -> nn.Module:
    """A model of a config in configs/converted, with all of its weights from the file."""
    opts = ["MODEL.WEIGHTS", "", *opts]
    cfg = load_config(repository / "configs" / "converted" / name, opts, train=False)
    model = build_model(cfg).eval()
    Checkpointer(model).load(str(weights))  # refuses what is missing, left over or of another shape
    return model


@torch.no_grad()
def proposals_and_detections(model: nn.Module, picture: Tensor) -> tuple[dict, dict]:
    """Of Detectron2's model, for a (3, H, W) uint8 picture that is not resized.

    Returns:
        {"boxes": (P, 4)}, and {"boxes": (N, 4), "scores", "classes" (N,), "masks" (N, M, M)}.
    """
    images = model.preprocess_image([{"image": picture}])
    features = model.backbone(images.tensor)
    proposals, _ = model.proposal_generator(images, features, None)
    found, _ = model.roi_heads(images, features, proposals, None)
    detections = {
        "boxes": found[0].pred_boxes.tensor,
        "scores": found[0].scores,
        "classes": found[0].pred_classes,
    }
    if found[0].has("pred_masks"):
        detections["masks"] = found[0].pred_masks[:, 0]
    return {"boxes": proposals[0].proposal_boxes.tensor}, detections


def assert_same(
    found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float, *, strays: int = 0
) -> None:
    """Same number, same classes, and everything else within the tolerance.

    Whose scores are the same to rounding may change places; and where there are thousands, a few
    may be others.
    """
    assert found.keys() == expected.keys()
    assert len(found["boxes"]) == len(expected["boxes"])
    distances = torch.cdist(expected["boxes"], found["boxes"], p=float("inf"))
    if "classes" in expected:
        distances += 1e4 * (expected["classes"][:, None] != found["classes"])
        scores = (expected["scores"][:, None] - found["scores"]).abs()
        distances = distances.maximum(scores)
    nearest, order = distances.min(dim=1)
    near = nearest <= tolerance
    assert (~near).sum() <= strays, f"{nearest.max()} px away"
    assert (distances.min(dim=0).values > tolerance).sum() <= strays
    for name, tensor in expected.items():
        own = found[name][order]
        torch.testing.assert_close(own[near], tensor[near], rtol=0, atol=tolerance)


def picture_of(height: int, width: int) -> Tensor:
    """(3, H, W) uint8 with edges and colours, the same each time."""
    generator = torch.Generator().manual_seed(3)
    coarse = torch.rand(1, 3, height // 12, width // 12, generator=generator)
    fine = nn.functional.interpolate(coarse, size=(height, width), mode="nearest")[0]
    return (fine * 255).to(torch.uint8)
