"""Detectron2's meta-architectures with the options of this package, whoever builds them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNN, SemanticSegmentor
from detectron2.structures import ImageList, Instances
from torch import Tensor, nn

from d2_cityscapes.modeling.freezing.guard import KeepsFrozen
from d2_cityscapes.modeling.options import nothing, put_into_force
from d2_cityscapes.modeling.panoptic.postprocessing import CROPPED, postprocess_instances
from d2_cityscapes.modeling.small_instances import are_weighted, weighted_semantic_losses
from d2_cityscapes.modeling.void import zero_if_void

__all__ = ["StagedRCNN", "StagedSegmentor"]


class _Staged(KeepsFrozen):
    """A meta-architecture, which comes behind it in the list of bases, with the options in force.

    With none of them set it is that meta-architecture, bit for bit, wherever a pixel counts.
    """

    @configurable
    def __init__(self, *, complete: Callable[[nn.Module], None] = nothing, **kwargs: Any) -> None:
        """
        Args:
            complete: called with the model when it has all its parts.
            kwargs: the arguments of the meta-architecture.
        """
        super().__init__(**kwargs)
        complete(self)  # type: ignore[arg-type]

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        parts = super().from_config(cfg)  # type: ignore[misc]
        return {**parts, "complete": partial(put_into_force, cfg)}


@META_ARCH_REGISTRY.register()
class StagedRCNN(_Staged, GeneralizedRCNN):
    """`GeneralizedRCNN` that freezes by MODEL.FREEZE and computes by the dense options.

    Masks are pasted by `postprocess_instances`: each in its own box, where Detectron2 takes 3 GB of
    a GPU for a hundred of 1024 x 2048 pixels.
    """

    def inference(
        self,
        batched_inputs: list[dict[str, Any]],
        detected_instances: list[Instances] | None = None,
        do_postprocess: bool = True,
    ) -> list[Any]:
        """As `GeneralizedRCNN`: {"instances"} of each image, or the Instances themselves."""
        found = super().inference(batched_inputs, detected_instances, do_postprocess=False)
        if not do_postprocess:
            return found
        return [
            {
                "instances": postprocess_instances(
                    own,
                    _wanted_size(inputs, own.image_size),
                    cropped=inputs.get(CROPPED, False),
                )
            }
            for own, inputs in zip(found, batched_inputs, strict=True)
        ]


@META_ARCH_REGISTRY.register()
class StagedSegmentor(_Staged, SemanticSegmentor):
    """`SemanticSegmentor`, likewise, but for batches of void alone."""

    def forward(
        self, batched_inputs: list[dict[str, Any]]
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """As `SemanticSegmentor`; the loss of a batch of void alone is 0, not nan."""
        if self.training and are_weighted(batched_inputs):
            return self._weighted_losses(batched_inputs)
        output = super().forward(batched_inputs)
        return zero_if_void(output, batched_inputs, self.sem_seg_head) if self.training else output

    def _weighted_losses(self, batched_inputs: list[dict[str, Any]]) -> dict[str, Tensor]:
        images = [x["image"].to(self.device) for x in batched_inputs]
        images = [(x - self.pixel_mean) / self.pixel_std for x in images]
        batch = ImageList.from_tensors(images, self.backbone.size_divisibility)
        features = self.backbone(batch.tensor)
        return weighted_semantic_losses(self.sem_seg_head, features, batched_inputs, self.device)


def _wanted_size(inputs: dict[str, Any], image_size: tuple[int, int]) -> tuple[int, int]:
    return inputs.get("height", image_size[0]), inputs.get("width", image_size[1])
