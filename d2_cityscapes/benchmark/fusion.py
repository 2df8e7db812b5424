"""Panoptic fusion and all post-processing of an image beside Detectron2's, on equal predictions.

Shape letters: N detections, C classes, H W pixels of the output, h w cells of the semantic head.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.modeling.meta_arch.panoptic_fpn import combine_semantic_and_instance_outputs
from detectron2.modeling.postprocessing import detector_postprocess, sem_seg_postprocess
from detectron2.structures import Boxes, Instances
from torch import Tensor
from torch.nn import functional as F

from d2_cityscapes.benchmark.comparison import (
    Comparison,
    compare,
    one_thread,
    reported,
    size_text,
    time_in_turn,
)
from d2_cityscapes.labels import CITYSCAPES
from d2_cityscapes.modeling.panoptic.fusion import fuse_panoptic
from d2_cityscapes.modeling.panoptic.postprocessing import (
    postprocess_instances,
    resize_scores,
    resize_to_labels,
)

__all__ = ["FusionBenchmark", "benchmark_fusion"]

_STRIDE = 4  # of the semantic head
_THRESHOLD, _OVERLAP, _AREA = 0.5, 0.5, 4096
_RULES: dict[str, Any] = {
    "score_threshold": _THRESHOLD,
    "overlap_threshold": _OVERLAP,
    "stuff_area_limit": _AREA,
}

# The panoptic map, its segments, the semantic prediction and the masks.
_Results = tuple[Tensor, list[dict[str, Any]], Tensor, Tensor]


@dataclass(frozen=True)
class FusionBenchmark:
    """What is compared.

    Attributes:
        size: (height, width) of the output, in pixels.
        detections: how many there are.
        above: how many of them have a score above the threshold of fusion.
        rounds: how often each side runs; medians are reported.
    """

    size: tuple[int, int] = (1024, 2048)
    detections: int = 100
    above: tuple[int, ...] = (100, 30)
    rounds: int = 5


def benchmark_fusion(
    settings: FusionBenchmark, *, report: Callable[[Sequence[Comparison]], None]
) -> list[Comparison]:
    """Run all comparisons; ``report`` gets each group of them as soon as it is measured.

    Raises:
        RuntimeError: our results are not those of Detectron2.
    """
    with one_thread(), torch.no_grad():
        return reported((_fusion_and_whole(settings, above) for above in settings.above), report)


def _fusion_and_whole(settings: FusionBenchmark, above: int) -> list[Comparison]:
    half = (settings.size[0] // 2, settings.size[1] // 2)
    found = _fusion(settings, above)
    for image_size in (settings.size, half):
        found += _whole(settings, above, image_size)
    return found


def _fusion(settings: FusionBenchmark, above: int) -> list[Comparison]:
    instances = detector_postprocess(_detections(settings, settings.size, above), *settings.size)
    labels = _upsampled(_logits(settings.size)).argmax(dim=0)
    stuff = _as_stuff(labels)

    def ours() -> tuple[Tensor, list[dict[str, Any]]]:
        return fuse_panoptic(labels, instances, **_RULES)

    def stock() -> tuple[Tensor, list[dict[str, Any]]]:
        return combine_semantic_and_instance_outputs(instances, stuff, _OVERLAP, _AREA, _THRESHOLD)

    _check("fuse_panoptic", _same_panoptic(ours(), stock()))
    peer = "Detectron2's combine_semantic_and_instance_outputs"
    seconds = time_in_turn({"ours": ours, peer: stock}, rounds=settings.rounds)
    return compare(
        f"fuse_panoptic, {size_text(settings.size)}, {_counts(settings, above)}", "ms",
        1000 * seconds["ours"], {peer: 1000 * seconds[peer]},
    )  # fmt: skip


def _whole(settings: FusionBenchmark, above: int, image_size: tuple[int, int]) -> list[Comparison]:
    """From the logits of the semantic head and the masks of the mask head to the panoptic."""
    size, coarse = settings.size, _logits(image_size)

    def detections() -> Instances:
        return _detections(settings, image_size, above)  # anew, as both sides scale its boxes

    def scores() -> _Results:
        sem_seg = resize_scores(_upsampled(coarse), image_size, size)
        return _finish(sem_seg, postprocess_instances(detections(), size))

    def labels() -> _Results:
        sem_seg = resize_to_labels(coarse, image_size, image_size, size)
        return _finish(sem_seg, postprocess_instances(detections(), size))

    def stock() -> _Results:
        sem_seg = sem_seg_postprocess(_upsampled(coarse), image_size, *size)
        instances = detector_postprocess(detections(), *size)
        panoptic, segments = combine_semantic_and_instance_outputs(
            instances, _as_stuff(sem_seg.argmax(dim=0)), _OVERLAP, _AREA, _THRESHOLD
        )
        return panoptic, segments, sem_seg, instances.pred_masks

    expected = stock()
    for name, run in {"with scores": scores, "classes only": labels}.items():
        _check(name, _same(run(), expected))
    peer = "PanopticFPN's inference path"
    own = {"semantic scores kept": scores, "semantic classes only": labels}
    seconds = time_in_turn({**own, peer: stock}, rounds=settings.rounds)
    found = []
    for name in own:
        found += compare(
            f"all post-processing, {size_text(image_size)} to {size_text(size)}, "
            f"{_counts(settings, above)}, {name}",
            "ms", 1000 * seconds[name], {peer: 1000 * seconds[peer]},
        )  # fmt: skip
    return found


def _finish(sem_seg: Tensor, instances: Instances) -> _Results:
    panoptic, segments = fuse_panoptic(sem_seg, instances, **_RULES)
    return panoptic, segments, sem_seg, instances.pred_masks


def _same(ours: _Results, stock: _Results) -> bool:
    ours_sem_seg, stock_sem_seg = ours[2], stock[2]
    if ours_sem_seg.dim() == 2:
        stock_sem_seg = stock_sem_seg.argmax(dim=0).to(torch.uint8)
    return (
        _same_panoptic(ours[:2], stock[:2])
        and torch.equal(ours_sem_seg, stock_sem_seg)
        and torch.equal(ours[3], stock[3])
    )


def _same_panoptic(
    ours: tuple[Tensor, list[dict[str, Any]]], stock: tuple[Tensor, list[dict[str, Any]]]
) -> bool:
    """Equal maps and equal segments, but for the numbers of the classes and areas, which are ours.

    Detectron2 gives things their thing id and stuff the class of `_as_stuff`.
    """
    renumbered = [
        {**segment, "category_id": _train_id(segment), "area": mine["area"]}
        for segment, mine in zip(stock[1], ours[1], strict=False)
    ]
    return torch.equal(ours[0], stock[0]) and ours[1] == renumbered


def _train_id(segment: dict[str, Any]) -> int:
    """Train id of a segment of Detectron2's function."""
    number = segment["category_id"]
    return CITYSCAPES.things[number].train_id if segment["isthing"] else number - 1


def _as_stuff(labels: Tensor) -> Tensor:
    """(H, W) train ids as Detectron2 wants them: all things 0, stuff from 1."""
    return torch.where(labels < len(CITYSCAPES.stuff), labels + 1, 0)


def _check(what: str, same: bool) -> None:
    if not same:
        raise RuntimeError(f"{what}: other results than those of Detectron2")


def _upsampled(coarse: Tensor) -> Tensor:
    """(C, h, w) at the size of the image, as semantic heads do it."""
    return F.interpolate(coarse[None], scale_factor=_STRIDE, mode="bilinear", align_corners=False)[
        0
    ]


def _logits(image_size: tuple[int, int]) -> Tensor:
    """(C, h, w) of regions of a few hundred pixels, with noise."""
    generator = torch.Generator().manual_seed(0)
    classes = len(CITYSCAPES.classes)
    height, width = (n // _STRIDE for n in image_size)
    regions = torch.randn(1, classes, 8, 16, generator=generator)
    smooth = F.interpolate(regions, size=(height, width), mode="bilinear", align_corners=False)[0]
    return smooth + 0.1 * torch.randn(classes, height, width, generator=generator)


def _detections(settings: FusionBenchmark, image_size: tuple[int, int], above: int) -> Instances:
    """Round things with ragged edges, at random places, many on each other."""
    generator = torch.Generator().manual_seed(1)
    number, (height, width) = settings.detections, image_size
    centres = torch.rand(number, 2, generator=generator) * torch.tensor([width, height])
    parts = torch.rand(number, 2, generator=generator) ** 2 * torch.tensor([0.15, 0.25])
    sides = (parts + 0.01) * torch.tensor([width, height])
    y, x = torch.meshgrid(torch.linspace(-1, 1, 28), torch.linspace(-1, 1, 28), indexing="ij")
    ragged = 0.1 * torch.randn(number, 1, 28, 28, generator=generator)
    scores = torch.rand(number, generator=generator)
    scores = torch.where(torch.arange(number) < above, 0.51 + 0.48 * scores, 0.05 + 0.4 * scores)
    found = Instances(image_size)
    found.pred_boxes = Boxes(torch.cat([centres - sides / 2, centres + sides / 2], dim=1))
    found.scores = scores
    found.pred_classes = torch.arange(number) % len(CITYSCAPES.things)
    found.pred_masks = (8 * (0.9 - x**2 - y**2 + ragged)).sigmoid()
    return found


def _counts(settings: FusionBenchmark, above: int) -> str:
    return f"{above} of {settings.detections} detections above the threshold"
