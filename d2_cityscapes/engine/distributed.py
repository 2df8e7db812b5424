"""Training on several processes: start, data-parallel model, and a config made for another number."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer
from detectron2.engine import launch as launch_detectron2
from detectron2.engine.defaults import create_ddp_model
from torch import nn

from d2_cityscapes.engine.setup import check_gpus

__all__ = ["distribute", "launch", "scale_to_world"]


def launch(main: Callable[[argparse.Namespace], Any], args: argparse.Namespace) -> None:
    """Run ``main(args)`` in every process that the command line or torchrun asks for."""
    check_gpus(args.num_gpus)
    launch_detectron2(
        main,
        args.num_gpus,
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url,
        args=(args,),
    )


def distribute(cfg: CfgNode, model: nn.Module) -> nn.Module:
    """The model in DistributedDataParallel where there are several processes."""
    return create_ddp_model(model, broadcast_buffers=False)


def scale_to_world(cfg: CfgNode, world_size: int) -> CfgNode:
    """The config for another number of processes than SOLVER.REFERENCE_WORLD_SIZE."""
    return DefaultTrainer.auto_scale_workers(cfg, world_size)
