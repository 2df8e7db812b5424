"""best.yaml: the config to train with, once a search has found its values."""

from __future__ import annotations

from pathlib import Path

from optuna.trial import TrialState

from d2_cityscapes.files import write_atomically
from d2_cityscapes.search.plan import SearchPlan
from d2_cityscapes.search.study import Search

__all__ = ["write_best"]


def write_best(search: Search, plan: SearchPlan, output_dir: str | Path) -> Path | None:
    """Write the base config with the values of the best trial, for tools/train_net.py.

    It trains as long, and on the data, as the base does; what a trial itself ran is config.yaml in
    its folder.

    Returns:
        DIR/best.yaml; None where no trial is complete.
    """
    complete = search.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if not complete:
        return None
    best = search.study.best_trial
    values = search.space.values(best.params)
    output_dir = Path(output_dir)
    cfg = plan.final_config(values, output_dir=output_dir / "best")
    comments = [
        f"Best of {len(complete)} complete trials of study {search.study.study_name}: trial "
        f"{best.number}, {plan.objective} {best.value:.4f} on {plan.objective.dataset}.",
        f"{plan.base.name} with these values, which {plan.source.name} searched over:",
        *(f"  {name} {value}" for name, value in values.items()),
        "tools/train_net.py --config-file best.yaml trains with them, as long as the base does.",
    ]
    text = "".join(f"# {line}\n" for line in comments) + cfg.dump()
    path = output_dir / "best.yaml"
    write_atomically(path, [text.encode()])
    return path
