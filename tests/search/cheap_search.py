"""tools/search.py with trials that train nothing: SEARCH.yaml OUTPUT_DIR STORAGE TOTAL."""

import sys
from functools import partial
from pathlib import Path

from d2_cityscapes.search.run import run_search
from d2_cityscapes.search.space.plan_file import read_plan
from d2_cityscapes.search.study import open_search
from d2_cityscapes.search.trials.process import TrialProcess

source, output_dir, storage, total = sys.argv[1:]
trial = [sys.executable, str(Path(__file__).with_name("cheap_trial.py"))]
plan = read_plan(source)
run_search(
    open_search(plan, storage=storage, study_name="one"),
    plan,
    total=int(total),
    output_dir=output_dir,
    start=partial(TrialProcess, trial),
    heartbeat=1.0,
    say=partial(print, flush=True),
)
