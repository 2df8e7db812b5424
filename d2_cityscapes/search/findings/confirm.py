"""The best trials once more, with other seeds: does the winner stay the winner?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from optuna.trial import FrozenTrial

from d2_cityscapes.search.errors import SearchError
from d2_cityscapes.search.run import start_trial, trial_job
from d2_cityscapes.search.space.plan import SearchPlan
from d2_cityscapes.search.study import Search
from d2_cityscapes.search.trials.folders import remove_checkpoints, write_job
from d2_cityscapes.search.trials.process import read_outcome
from d2_cityscapes.search.trials.workers import Process, Workers

__all__ = ["run_again"]


def run_again(
    search: Search,
    plan: SearchPlan,
    trials: Sequence[FrozenTrial],
    *,
    seeds: int,
    output_dir: str | Path,
    workers: int = 1,
    start: Callable[[Path, Mapping[str, str]], Process] = start_trial,
    say: Callable[[str], None] = print,
) -> dict[int, dict[int, float]]:
    """Run trials again with their values and other seeds, none of them pruned.

    What is done already is not done again. The study does not change.

    Args:
        search, plan: of the trials.
        trials: of the study.
        seeds: how many for each: those that follow the seed of the search.
        output_dir: receives confirm/trial_0007_seed_1 and so on.
        workers, start, say: as in `run_search`.

    Returns:
        Trial number -> seed -> value of the objective.

    Raises:
        SearchError: one of them failed.
    """
    first = plan.config({}).SEED + 1
    open_runs = [(trial, first + k) for trial in reversed(trials) for k in reversed(range(seeds))]
    values: dict[int, dict[int, float]] = {trial.number: {} for trial in trials}
    pool = Workers(start, count=workers)

    def work(environment: Mapping[str, str]) -> None:
        while open_runs and not pool.stopping.is_set():
            trial, seed = open_runs.pop()
            folder = Path(output_dir) / "confirm" / f"trial_{trial.number:04d}_seed_{seed}"
            outcome = read_outcome(folder)
            if outcome is None or outcome.state != "complete":
                write_job(folder, *trial_job(search, plan, trial, folder, seed=seed))
                outcome = pool.run_process(folder, environment, lambda *_: False)
            if outcome is None:
                return
            if outcome.value is None:
                raise SearchError(
                    f"trial {trial.number} with seed {seed}: {outcome.reason}; see "
                    f"{folder / 'output.txt'}"
                )
            values[trial.number][seed] = outcome.value
            remove_checkpoints(folder)
            say(f"trial {trial.number} with seed {seed}: {plan.objective} {outcome.value:.4g}")

    pool.run(work)
    return {number: dict(sorted(found.items())) for number, found in values.items()}
