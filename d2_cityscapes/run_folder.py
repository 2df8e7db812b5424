"""The files in the folder of a training, OUTPUT_DIR of its config, by name."""

from __future__ import annotations

__all__ = [
    "CONFIG",
    "FINAL",
    "FINAL_AVERAGE",
    "LAST_CHECKPOINT",
    "METRICS",
    "PICTURES",
    "RESULTS",
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
