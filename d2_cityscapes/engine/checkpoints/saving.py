"""Checkpoints that a kill at any moment leaves whole."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from detectron2.engine import DefaultTrainer
from fvcore.common.checkpoint import Checkpointer
from torch import Tensor

from d2_cityscapes.files import write_atomically
from d2_cityscapes.run_folder import FINAL, LAST_CHECKPOINT
from d2_cityscapes.tensor_files import write_tensor_file

__all__ = [
    "complete_final_weights",
    "save_checkpoint",
    "save_weights",
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


def save_weights(path: Path, weights: Mapping[str, Tensor], **extra: Any) -> None:
    """Write weights to use or to start from, without what a resumed training needs."""
    write_tensor_file(path, {"model": dict(weights), **extra})


def tag_checkpoint(checkpointer: Checkpointer, name: str) -> None:
    """Name the file to resume from, in place of ``Checkpointer.tag_last_checkpoint``."""
    write_atomically(Path(checkpointer.save_dir) / LAST_CHECKPOINT, [name.encode()])


def complete_final_weights(trainer: DefaultTrainer) -> None:
    """Write the final weights of a run that was killed between its last two checkpoints.

    Detectron2 writes them after the last step only, which such a run has behind it when it resumes.
    """
    path = Path(trainer.cfg.OUTPUT_DIR) / FINAL
    if trainer.start_iter >= trainer.max_iter and not path.is_file():
        trainer.checkpointer.save(path.stem, iteration=trainer.iter)
