"""`UniversalSegmentor`: instances, semantics and panoptics from one set of queries.

Shape letters: N images of h, w pixels; H, W pixels of the wanted output; C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import ImageList
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn

from d2_cityscapes.data.register import label_table_of
from d2_cityscapes.errors import D2CityscapesError
from d2_cityscapes.labels import CITYSCAPES, LabelTable
from d2_cityscapes.modeling.freezing.guard import KeepsFrozen
from d2_cityscapes.modeling.options import nothing, put_into_force
from d2_cityscapes.modeling.universal.eomt import annealed_parts
from d2_cityscapes.modeling.universal.hub import resolve_hub
from d2_cityscapes.modeling.universal.losses import Prediction
from d2_cityscapes.modeling.universal.network import (
    build_network,
    divisor,
    layers_of,
    network_loss,
    stages_of,
)
from d2_cityscapes.modeling.universal.postprocessing import postprocess_queries
from d2_cityscapes.modeling.universal.targets import find_segments, padded_maps

__all__ = ["UniversalSegmentor"]


@META_ARCH_REGISTRY.register()
class UniversalSegmentor(KeepsFrozen, nn.Module):
    """A mask transformer of Hugging Face transformers with Detectron2's inputs and outputs.

    Mask2Former (Cheng et al., CVPR 2022) or EoMT (Kerssies et al., CVPR 2025), with their losses
    and their inference. Its parameters are those of transformers, below ``network.``.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    @configurable
    def __init__(
        self,
        *,
        network: nn.Module,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        table: LabelTable = CITYSCAPES,
        instances: bool = True,
        sem_seg_scores: bool = True,
        detections: int = 100,
        object_threshold: float = 0.8,
        overlap_threshold: float = 0.8,
        mask_annealing: Sequence[float] = (),
        max_iter: int = 0,
        complete: Callable[[nn.Module], None] = nothing,
    ) -> None:
        """
        Args:
            network: from `build_network`.
            pixel_mean: of red, green and blue, 0 to 255.
            pixel_std: the same.
            table: the classes.
            instances: whether things are told apart (MODEL.UNIVERSAL.INSTANCES).
            sem_seg_scores: whether inference gives semantic scores, else classes
                (TEST.SEM_SEG_SCORES).
            detections: most instances of an image; see `postprocess_queries`.
            object_threshold: of panoptics, see there.
            overlap_threshold: likewise.
            mask_annealing: start and end as parts of `max_iter`, see `annealed_parts`; none leaves
                ``network.attn_mask_probs`` alone.
            max_iter: length of the training.
            complete: called with the model when it has all its parts.
        """
        super().__init__()
        self.network = network
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), False)
        self.table = table
        self.instances = instances
        self.mask_annealing = tuple(mask_annealing)
        self.max_iter = max_iter
        # which batches are padded to multiples of, in pixels
        self.size_divisibility = divisor(network)
        self._layers = layers_of(network)
        self._loss = network_loss(network)
        self._postprocess = partial(
            postprocess_queries,
            table=table,
            instances=instances,
            sem_seg_scores=sem_seg_scores,
            detections=detections,
            object_threshold=object_threshold,
            overlap_threshold=overlap_threshold,
        )
        complete(self)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """
        Raises:
            D2CityscapesError: a network that cannot be built, thresholds or an annealing that are
                none, or pixels that it would not see as it should.
        """
        cfg = resolve_hub(cfg)
        universal = cfg.MODEL.UNIVERSAL
        _check_pixels(cfg)
        table = label_table_of(cfg.DATASETS.TRAIN or cfg.DATASETS.TEST)
        return {
            "network": build_network(universal.NAME, _values(universal.CONFIG), len(table.classes)),
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "table": table,
            "instances": universal.INSTANCES,
            "sem_seg_scores": cfg.TEST.SEM_SEG_SCORES,
            **(_of_instances(cfg) if universal.INSTANCES else {}),
            "mask_annealing": _annealing(cfg),
            "max_iter": cfg.SOLVER.MAX_ITER,
            "complete": partial(put_into_force, cfg),
        }

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    def stages_to_checkpoint(self) -> list[nn.Module]:
        """What MODEL.BACKBONE.ACTIVATION_CHECKPOINTING computes again in the backward pass."""
        return stages_of(self.network)

    def forward(
        self, batched_inputs: list[dict[str, Any]]
    ) -> dict[str, Tensor] | list[dict[str, Any]]:
        """Train or predict.

        Args:
            batched_inputs: "image" (3, h, w) RGB; in training "sem_seg" (h, w) int64 train ids, and
                "instances" unless things are not told apart; else "height" and "width" of the
                wanted output, by default those of the image.

        Returns:
            In training the losses of `SetLoss`; else for each image what `postprocess_queries`
            returns.
        """
        images = [x["image"].to(self.device) for x in batched_inputs]
        images = [(x - self.pixel_mean) / self.pixel_std for x in images]
        batch = ImageList.from_tensors(images, self.size_divisibility)
        if self.training:
            self._anneal()
        predicted = self._layers(self.network, batch.tensor, self._masked_parts())
        padded = (batch.tensor.shape[-2], batch.tensor.shape[-1])
        if self.training:
            segments = [find_segments(x, self.table, self.device) for x in batched_inputs]
            return self._loss(predicted, padded_maps(segments, padded))
        return self._results(predicted[-1], batched_inputs, batch.image_sizes, padded)

    def _results(
        self,
        predicted: Prediction,
        batched_inputs: list[dict[str, Any]],
        image_sizes: list[tuple[int, int]],
        padded: tuple[int, int],
    ) -> list[dict[str, Any]]:
        results = []
        for classes, masks, inputs, (h, w) in zip(
            *predicted, batched_inputs, image_sizes, strict=True
        ):
            output = (inputs.get("height", h), inputs.get("width", w))
            results.append(self._postprocess(classes, masks, (padded, (h, w), output)))
        return results

    def _masked_parts(self) -> list[float] | None:
        parts = getattr(self.network, "attn_mask_probs", None)
        return None if parts is None else parts.tolist()

    def _anneal(self) -> None:
        """Set how many queries mask their attention, by the iteration of the training."""
        if not self.mask_annealing:
            return
        start, end = self.mask_annealing
        progress = get_event_storage().iter / self.max_iter
        parts: Tensor = self.network.attn_mask_probs  # type: ignore[assignment]
        parts.copy_(torch.tensor(annealed_parts(progress, start, end, len(parts))))


def _of_instances(cfg: CfgNode) -> dict[str, Any]:
    """What is asked where things are told apart, and read there alone."""
    universal = cfg.MODEL.UNIVERSAL
    for key in ("OBJECT_THRESHOLD", "OVERLAP_THRESHOLD"):
        if not 0 <= universal[key] <= 1:
            raise D2CityscapesError(
                f"MODEL.UNIVERSAL.{key} {universal[key]}: use a number from 0 to 1"
            )
    return {
        "detections": cfg.TEST.DETECTIONS_PER_IMAGE,
        "object_threshold": universal.OBJECT_THRESHOLD,
        "overlap_threshold": universal.OVERLAP_THRESHOLD,
    }


def _values(node: CfgNode) -> dict[str, Any]:
    """A section as plain values, each of which counts as read."""
    return {
        key: _values(node[key]) if isinstance(node[key], CfgNode) else node[key] for key in node
    }


def _annealing(cfg: CfgNode) -> Sequence[float]:
    """MODEL.UNIVERSAL.MASK_ANNEALING of an EoMT; of others, which do not read it, none."""
    if cfg.MODEL.UNIVERSAL.NAME != "eomt":
        return ()
    found = cfg.MODEL.UNIVERSAL.MASK_ANNEALING
    if found and not (len(found) == 2 and 0 <= found[0] < found[1] <= 1):
        raise D2CityscapesError(
            f"MODEL.UNIVERSAL.MASK_ANNEALING {found}: use [start, end], two parts of "
            "SOLVER.MAX_ITER from 0 to 1, or []"
        )
    return found


def _check_pixels(cfg: CfgNode) -> None:
    if cfg.INPUT.FORMAT != "RGB":
        raise D2CityscapesError(
            f"INPUT.FORMAT {cfg.INPUT.FORMAT}: UniversalSegmentor takes RGB, as the weights of its "
            "networks do"
        )
    if list(cfg.MODEL.PIXEL_STD) == [1.0, 1.0, 1.0]:
        raise D2CityscapesError(
            "MODEL.PIXEL_STD [1.0, 1.0, 1.0]: UniversalSegmentor takes pixels of about -2 to 2; of "
            "ImageNet in RGB, PIXEL_MEAN [123.675, 116.28, 103.53] and PIXEL_STD "
            "[58.395, 57.12, 57.375]"
        )
