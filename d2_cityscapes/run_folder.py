"""The files in the folder of a training, OUTPUT_DIR of its config, by name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

__all__ = [
    "AUGMENTED_FOLDER",
    "CONFIG",
    "EVALUATION_CONFIG",
    "FINAL",
    "FINAL_AVERAGE",
    "FOLDS",
    "LAST_CHECKPOINT",
    "METRICS",
    "PICTURES",
    "RESULTS",
    "evaluation_folder",
    "portable",
    "written_by_training",
]

# Detectron2's: the config as it was read, a JSON object for each log line, the weights behind the
# last step, and the name of the checkpoint to resume from.
CONFIG = "config.yaml"
METRICS = "metrics.json"
FINAL = "model_final.pth"
LAST_CHECKPOINT = "last_checkpoint"
# Ours: the average of the weights, scores, and a folder of pictures for each dataset.
FINAL_AVERAGE = "model_final_ema.pth"
RESULTS = "results.json"
PICTURES = "pictures"
# Of a run of several folds, above them: how the partitions were dealt, and the table.
FOLDS = "folds.json"
# Pictures and submissions of an evaluation with TEST.AUG.
AUGMENTED_FOLDER = "TTA"
# Of an evaluation alone: its config, by which its folder is told from that of a training.
EVALUATION_CONFIG = "evaluation.yaml"

_EVALUATIONS = "evaluation"  # folder of those of a training's folder
_OF_A_TRAINING = (CONFIG, METRICS, LAST_CHECKPOINT, FINAL, FINAL_AVERAGE)


def evaluation_folder(output_dir: str | Path, datasets: Sequence[str]) -> Path:
    """Where an evaluation alone writes, so that it never touches the record of a training.

    That is ``output_dir`` itself where no training, and no results of other origin, are; else
    evaluation/DATASET below it (A+B for two of them). The same evaluation finds the same folder
    again.

    Args:
        output_dir: OUTPUT_DIR of the config.
        datasets: the names of what is evaluated on.
    """
    folder = Path(output_dir)
    foreign = (folder / RESULTS).exists() and not (folder / EVALUATION_CONFIG).exists()
    if foreign or any((folder / name).exists() for name in _OF_A_TRAINING):
        return folder / _EVALUATIONS / "+".join(datasets).replace("/", "_")
    return folder


def portable(path: Path) -> Path:
    """The file of the weights alone, ``.safetensors``, beside a file of PyTorch."""
    return path.with_suffix(".safetensors")


def written_by_training(output_dir: str | Path) -> list[Path]:
    """The files of a folder that a training into it writes anew, checkpoints that are there too."""
    folder = Path(output_dir)
    paths = [folder / name for name in (*_OF_A_TRAINING, RESULTS)]
    paths += [portable(folder / name) for name in (FINAL, FINAL_AVERAGE)]
    return [*paths, *folder.glob("model_*.pth")]
