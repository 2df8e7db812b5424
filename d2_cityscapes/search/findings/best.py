"""best.yaml: the config to train with, once a search has found its values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from detectron2.config import CfgNode
from optuna.trial import TrialState

from d2_cityscapes.config import get_cfg, value_of
from d2_cityscapes.engine.key_effects import idle_keys
from d2_cityscapes.files import write_atomically
from d2_cityscapes.search.findings.confirm_table import ConfirmedTrial, by_mean
from d2_cityscapes.search.space.plan import SearchPlan
from d2_cityscapes.search.space.space import split_name
from d2_cityscapes.search.study import Search

__all__ = ["BEST", "write_best"]

BEST = "best.yaml"


def write_best(
    search: Search,
    plan: SearchPlan,
    output_dir: str | Path,
    *,
    confirmed: Sequence[ConfirmedTrial] = (),
) -> Path | None:
    """Write the base config with the values of the best trial, for d2c train.

    It trains as long, and on the data, as the base and the command line say; what a trial itself
    ran is config.yaml in its folder. Keys that have no effect beside the best values are left out.

    Args:
        search, plan: finished.
        output_dir: receives it.
        confirmed: trials that were run again: the one with the best mean is the best.

    Returns:
        DIR/best.yaml (`BEST`); None where no trial is complete.
    """
    complete = search.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if not complete:
        return None
    best, why = search.study.best_trial, ""
    ranked = by_mean(confirmed, maximize=plan.objective.direction == "maximize")
    if ranked:
        best = next(trial for trial in complete if trial.number == ranked[0].number)
        why = (
            f" Mean of {len(ranked[0].values)} runs with other seeds {ranked[0].mean:.4f}, best "
            f"of {len(ranked)} trials run again."
        )
    values = search.space.values(best.params)
    output_dir = Path(output_dir)
    cfg = plan.final_config(values, output_dir=output_dir / "best")
    idle = idle_keys(cfg)
    comments = [
        f"Best of {len(complete)} complete trials of study {search.study.study_name}: trial "
        f"{best.number}, {plan.objective} {best.value:.4f} on {plan.objective.dataset}.{why}",
        f"{plan.base.name} and KEY VALUE pairs of the command line, without the overrides of "
        f"{plan.source.name}, with the values that it searched over:",
        *(f"  {name} {value}" + _left_out(name, idle) for name, value in values.items()),
        f"d2c train --config-file {BEST} trains with them.",
    ]
    text = "".join(f"# {line}\n" for line in comments) + _without(idle, cfg).dump()
    path = output_dir / BEST
    write_atomically(path, [text.encode()])
    return path


def _left_out(name: str, idle: Mapping[str, str]) -> str:
    needed = idle.get(split_name(name)[0])
    return f" (left out: acts with {needed} only)" if needed else ""


def _without(idle: Iterable[str], cfg: CfgNode) -> CfgNode:
    """The config without keys that have no effect in it, which a training would refuse."""
    default, cfg = get_cfg(), cfg.clone()
    cfg.defrost()
    cfg.merge_from_list([part for key in idle for part in (key, value_of(default, key))])
    return cfg
