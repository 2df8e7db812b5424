"""What rounded boxes cost: RoI heads in bfloat16, with Detectron2's poolers and with ours.

    DETECTRON2_DATASETS=DIR python tests/support/rounded_boxes.py --config-file RUN/config.yaml \
        --weights RUN/model_final.pth --steps 20 INPUT.MIN_SIZE_TRAIN "(1024,)" ...

A training in float32 goes along. In each of its steps the losses of the RoI heads, and the
gradients of their weights, are computed from the same weights, proposals and samples three times:
in float32, and under autocast to bfloat16 with poolers that round their boxes (Detectron2's) and
with those of this package. Printed is how far both are from float32, in the mean over the steps.
"""

from __future__ import annotations

import argparse
import statistics
from collections import defaultdict

import torch
from detectron2.config import CfgNode
from detectron2.layers import ROIAlign
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from d2_cityscapes.data.loader import build_train_loader
from d2_cityscapes.engine.checkpoints.checkpointer import Checkpointer
from d2_cityscapes.engine.proposed_objects import objects_proposed
from d2_cityscapes.engine.setup import load_config
from d2_cityscapes.engine.step.optimizer import build_optimizer
from d2_cityscapes.modeling.build import build_model

__all__ = ["measure"]

KINDS = {"float32": False, "rounded": True, "exact": True}  # whether in bfloat16


def measure(cfg: CfgNode, steps: int) -> dict[str, dict[str, float]]:
    """Loss, or "gradients" -> {"rounded", "exact"}: distance from float32, relative."""
    seed_all_rng(1)
    model = build_model(cfg)
    if cfg.MODEL.WEIGHTS:
        Checkpointer(model).resume_or_load(cfg.MODEL.WEIGHTS, resume=False)
    model.train()
    model.proposal_generator.register_forward_hook(objects_proposed(cfg))
    optimizer = build_optimizer(cfg, model)
    loader = iter(build_train_loader(cfg))
    poolers = {m: type(m) for m in model.modules() if isinstance(m, ROIAlign)}
    distances: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    with EventStorage():
        for step in range(steps):
            batch = next(loader)
            proposals = _proposals(model, batch, step)
            found = {}
            for kind in ("rounded", "exact", "float32"):  # whose gradients are taken
                for pooler, own in poolers.items():
                    pooler.__class__ = ROIAlign if kind == "rounded" else own
                found[kind] = _heads(model, batch, proposals, KINDS[kind], step)
            for kind in ("rounded", "exact"):
                for name, true in found["float32"].items():
                    distance = (found[kind][name] - true).norm() / true.norm()
                    distances[name][kind].append(distance.item())
            optimizer.step()
    return {
        name: {kind: statistics.mean(values) for kind, values in kinds.items()}
        for name, kinds in distances.items()
    }


def _proposals(model: nn.Module, batch: list[dict], seed: int) -> list:
    seed_all_rng(seed)
    images = model.preprocess_image(batch)
    with torch.no_grad():
        features = model.backbone(images.tensor)
        return model.proposal_generator(images, features, _objects(model, batch))[0]


def _objects(model: nn.Module, batch: list[dict]) -> list:
    return [x["instances"].to(model.device)[:] for x in batch]


def _heads(
    model: nn.Module, batch: list[dict], proposals: list, low: bool, seed: int
) -> dict[str, Tensor]:
    """Losses of the RoI heads, and the gradients of all their weights in a row."""
    model.zero_grad()
    images = model.preprocess_image(batch)
    with torch.autocast(model.device.type, dtype=torch.bfloat16, enabled=low):
        features = model.backbone(images.tensor)
        seed_all_rng(seed)  # of the samples
        given = [image[:] for image in proposals]
        _, losses = model.roi_heads(images, features, given, _objects(model, batch))
    sum(losses.values()).backward()
    weights = [p.grad.flatten() for p in model.roi_heads.parameters() if p.grad is not None]
    return {**{k: v.detach() for k, v in losses.items()}, "gradients": torch.cat(weights)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config-file", required=True)
    parser.add_argument("--weights", default="")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE")
    args = parser.parse_args()
    opts = [*args.opts, "SOLVER.AMP.ENABLED", "False", "MODEL.WEIGHTS", args.weights]
    for name, kinds in measure(load_config(args.config_file, opts), args.steps).items():
        print(f"{name:<16} rounded {kinds['rounded']:.2%}  exact {kinds['exact']:.2%}")


if __name__ == "__main__":
    main()
