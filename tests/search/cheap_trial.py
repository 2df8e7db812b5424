"""A trial that trains nothing: it steps, keeps a checkpoint, reports, and can be killed anywhere.

SEARCH_TEST_DELAY is the length of a step in seconds. The trial whose folder SEARCH_TEST_HANG names
stands still after its second report. Every start and every step leaves a line in steps.txt.
"""

import os
import time
from pathlib import Path

os.environ["D2_CITYSCAPES_PLAIN"] = "1"

from d2_cityscapes.search.trials.process import Pruned, serve

STEPS = 4


def run(folder: Path, report) -> tuple[float, dict]:
    import json

    values = json.loads((folder / "trial.json").read_text())["values"]
    score = -abs(values["MODEL.RPN.IOU_THRESHOLDS[0]"] - 0.2)
    checkpoint = folder / "last_checkpoint"
    done = int(checkpoint.read_text()) if checkpoint.is_file() else 0
    _note(folder, f"start {done}")
    for step in range(done + 1, STEPS + 1):
        time.sleep(float(os.environ.get("SEARCH_TEST_DELAY", "0")))
        _note(folder, f"step {step}")
        checkpoint.write_text(str(step))
        if report(step, score) and step < STEPS:
            raise Pruned
        if step == 2 and folder.name == os.environ.get("SEARCH_TEST_HANG"):
            time.sleep(60)
    print("this is no report")
    return score, {"cheap": score}


def _note(folder: Path, line: str) -> None:
    with open(folder / "steps.txt", "a") as file:
        print(line, os.getpid(), file=file)


if __name__ == "__main__":
    serve(run)
