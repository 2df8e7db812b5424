"""What a check of a card does, and in which sizes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from d2_cityscapes.benchmark.comparison import size_text
from d2_cityscapes.benchmark.device import is_gpu
from d2_cityscapes.benchmark.trainers import TrainingBenchmark
from d2_cityscapes.shipped import CONFIGS

__all__ = ["SMALL_NETWORK", "GpuCheck"]

Size = tuple[int, int]  # height, width, px

# A ResNet-18 with few channels and boxes, for machines without a card.
SMALL_NETWORK = (
    "MODEL.RESNETS.DEPTH", "18", "MODEL.RESNETS.RES2_OUT_CHANNELS", "64",
    "MODEL.FPN.OUT_CHANNELS", "32", "MODEL.RPN.CONV_DIMS", "[32]",
    "MODEL.ANCHOR_GENERATOR.SIZES", "[[8], [16], [32], [64], [128]]",
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN", "200", "MODEL.RPN.POST_NMS_TOPK_TRAIN", "100",
    "MODEL.RPN.PRE_NMS_TOPK_TEST", "100", "MODEL.RPN.POST_NMS_TOPK_TEST", "50",
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "32", "MODEL.ROI_BOX_HEAD.FC_DIM", "32",
    "MODEL.ROI_MASK_HEAD.NUM_CONV", "1", "MODEL.ROI_MASK_HEAD.CONV_DIM", "32",
    "MODEL.SEM_SEG_HEAD.CONVS_DIM", "32",
)  # fmt: skip


@dataclass(frozen=True)
class GpuCheck:
    """What is checked.

    Attributes:
        output: folder for scenes, what was found, and the report.
        device: "cuda", "cuda:1"; "cpu" to try the check itself.
        tiny: small networks on small scenes, a step or two of everything.
        budget: seconds; no task begins after them.
        workers: loader processes of each trainer.
        stock: how stock Detectron2 reads the scenes, see `stock_tree.STOCK`.
    """

    output: Path
    device: str = "cuda"
    tiny: bool = False
    budget: float = 600.0
    workers: int = 8
    stock: str = "png-rle"

    @property
    def gpu(self) -> bool:
        """Whether it is a GPU."""
        return is_gpu(self.device)

    @property
    def compared_size(self) -> Size:
        """Of the scenes on which both sides compute the same."""
        return (64, 128) if self.tiny else (256, 512)

    @property
    def full_size(self) -> Size:
        """Of the scenes on which speed and memory are measured."""
        return (64, 128) if self.tiny else (1024, 2048)

    @property
    def images(self) -> int:
        """Scenes of the full size."""
        return 4 if self.tiny else 16

    def scenes(self, size: Size, images: int) -> Path:
        """Folder of so many scenes of a size, as PNG files."""
        return self.output / "scenes" / f"{images}_of_{size_text(size)}"

    def shards(self, size: Size, images: int) -> Path:
        """Folder of the same as shards."""
        return self.output / "shards" / f"{images}_of_{size_text(size)}"

    @property
    def batch(self) -> int:
        """Images of a step in which speed and memory are measured."""
        return 2 if self.tiny else 4

    @property
    def network(self) -> tuple[str, ...]:
        """KEY VALUE pairs that make the networks small, if they are to be."""
        return SMALL_NETWORK if self.tiny else ()

    @property
    def training(self) -> TrainingBenchmark:
        """The training benchmark, on the scenes of the full size."""
        height, width = self.full_size
        config = "stage3.yaml" if self.tiny else "full_resolution/stage3.yaml"
        return TrainingBenchmark(
            cityscapes=self.scenes(self.full_size, self.images),
            shards=self.shards(self.full_size, self.images),
            config=CONFIGS / config,
            stock=self.stock,
            height=height,
            width=width,
            batch=self.batch,
            workers=0 if self.tiny else self.workers,
            steps=1 if self.tiny else 8,
            rounds=1 if self.tiny else 2,
            device=self.device,
            common=self.network,
        )
