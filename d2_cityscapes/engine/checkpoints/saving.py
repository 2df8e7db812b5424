"""Checkpoints that a kill at any moment leaves whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer
from fvcore.common.checkpoint import Checkpointer

from d2_cityscapes.data.register import index_digests
from d2_cityscapes.engine.checkpoints.weights_file import About, write_weights_file
from d2_cityscapes.files import write_atomically
from d2_cityscapes.run_folder import FINAL, LAST_CHECKPOINT, portable
from d2_cityscapes.tensor_files import write_tensor_file

__all__ = [
    "about_training",
    "complete_final_weights",
    "save_checkpoint",
    "save_portable",
    "tag_checkpoint",
]


def save_checkpoint(checkpointer: Checkpointer, name: str, **extra: Any) -> None:
    """What fvcore's ``Checkpointer.save`` does, with a file that is whole or not there.

    fvcore writes into the file itself: killed at the end of a training, it would leave half of
    model_final.pth beside a complete checkpoint, which nothing would ever write again.
    """
    if not checkpointer.save_dir or not checkpointer.save_to_disk:
        return
    states = {key: part.state_dict() for key, part in checkpointer.checkpointables.items()}
    path = Path(checkpointer.save_dir) / f"{name}.pth"
    checkpointer.logger.info("Saving checkpoint to %s", path)
    write_tensor_file(path, {"model": checkpointer.model.state_dict(), **states, **extra})
    checkpointer.tag_last_checkpoint(path.name)


def about_training(cfg: CfgNode) -> About:
    """What weights tell of the training that made them, whose config is in force."""
    return About(config=cfg.dump(), data=index_digests(cfg.DATASETS.TRAIN))


def save_portable(checkpointer: Checkpointer, path: Path, about: About) -> None:
    """Write the weights alone as ``.safetensors`` beside a file of PyTorch.

    Behind that one, which a training resumes from, and so can make this one if it is lost.
    """
    if checkpointer.save_to_disk:
        write_weights_file(portable(path), checkpointer.model.state_dict(), about)


def tag_checkpoint(checkpointer: Checkpointer, name: str) -> None:
    """Name the file to resume from, in place of ``Checkpointer.tag_last_checkpoint``."""
    write_atomically(Path(checkpointer.save_dir) / LAST_CHECKPOINT, [name.encode()])


def complete_final_weights(trainer: DefaultTrainer) -> None:
    """Write the final weights of a run that was killed before they were there, in both formats.

    Detectron2 writes them after the last step only, which such a run has behind it when it resumes.
    """
    path = Path(trainer.cfg.OUTPUT_DIR) / FINAL
    if trainer.start_iter < trainer.max_iter:
        return
    if not path.is_file():
        trainer.checkpointer.save(path.stem, iteration=trainer.iter)
    elif not portable(path).is_file():
        trainer.checkpointer.save_portable(path)
