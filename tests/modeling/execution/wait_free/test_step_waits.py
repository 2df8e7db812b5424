"""Host waits of a whole optimizer step of the stages on a pretended GPU: docs/benchmarks.md."""

from __future__ import annotations

import pytest
import tiny_trainings

from d2_cityscapes.engine.trainer import Trainer


@pytest.mark.usefixtures("datasets")
@pytest.mark.parametrize(("family", "precision"), [("stage3", "float16"), ("stage4", "bfloat16")])
def test_at_most_four(fake_gpu, tmp_path, family, precision):
    """Two for the proposals, one for the samples, and in float16 one for the scaler."""
    file, opts = tiny_trainings.settings(family, [precision, "PREFETCH", "WAIT_FREE"])
    opts += ["SOLVER.MAX_ITER", "3"]
    trainer = Trainer(tiny_trainings.config(file, opts, "cuda", tmp_path))
    trainer.resume_or_load(resume=False)
    steps, run_step = [], trainer.run_step

    def watched() -> None:
        with fake_gpu.watch() as seen:
            run_step()
        steps.append(seen)

    trainer.run_step = watched
    trainer.train()
    seen = steps[1]  # the first one builds states, and losses of the last are read with it
    assert seen.total <= (4 if precision == "float16" else 3), seen.table()
