"""Searches that train nothing, with an effect that is known: how often is it found?

As the paper's search: 42 trials of 5 reports over its space, by the sampler and the pruner of
configs/search/stage2.yaml. The score is 0.19 + EFFECT * (IoU threshold - 0.5) / 0.2 and normal
noise of 0.004; random samples give an effect of 0.008 57 % of the variance.

    python tests/search/findings/simulated.py --effect 0.008 --studies 24
    python tests/search/findings/simulated.py --effect 0 --studies 60 --seed 100
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import optuna
import yaml
from optuna.trial import TrialState

from d2_cityscapes.search.findings.importance import importances
from d2_cityscapes.search.space.sampling import FeasibleSampler
from d2_cityscapes.search.space.space import parse_space
from d2_cityscapes.search.study import build_pruner

ACTING = "MODEL.ROI_HEADS.IOU_THRESHOLDS[0]"
SHIPPED = yaml.safe_load(
    (Path(__file__).parents[3] / "configs" / "search" / "stage2.yaml").read_text()
)
REPORTS, TRIALS = SHIPPED["budget"]["reports"], SHIPPED["trials"]
NOISE = 0.004


def simulated_study(
    seed: int,
    *,
    effect: float,
    pruner: dict = SHIPPED["pruner"],
    report_noise: float = NOISE,
) -> optuna.Study:
    """A finished search.

    Args:
        seed: of all chance.
        effect: see above.
        pruner: as in a search file.
        report_noise: what each report but the last has beside the noise of its trial.
    """
    chance = np.random.default_rng([seed, 77])
    space = parse_space(SHIPPED["space"], SHIPPED["constraints"])
    startup = SHIPPED["sampler"]["startup_trials"]
    study = optuna.create_study(
        direction="maximize",
        sampler=FeasibleSampler(space, name="tpe", startup_trials=startup, seed=seed),
        pruner=build_pruner(pruner, reports=REPORTS),
    )
    for _ in range(TRIALS):
        trial = study.ask(space.distributions)
        value = 0.19 + effect * (trial.params[ACTING] - 0.5) / 0.2 + chance.normal(0, NOISE)
        for step in range(1, REPORTS):
            trial.report(value - 0.02 * (REPORTS - step) + chance.normal(0, report_noise), step)
            if trial.should_prune():
                study.tell(trial, state=TrialState.PRUNED)
                break
        else:
            trial.report(value, REPORTS)
            study.tell(trial, value)
    return study


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--effect", type=float, required=True)
    parser.add_argument("--studies", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0, help="of the first study")
    parser.add_argument("--permutations", type=int, default=99)
    parser.add_argument("--report-noise", type=float, default=NOISE)
    parser.add_argument("--pruner", default=SHIPPED["pruner"], type=yaml.safe_load, help="as YAML")
    args = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    acting, any_acts, complete = 0, 0, []
    for seed in range(args.seed, args.seed + args.studies):
        study = simulated_study(
            seed, effect=args.effect, pruner=args.pruner, report_noise=args.report_noise
        )
        found = importances(study, seed=seed, permutations=args.permutations)
        complete.append(len(study.get_trials(states=(TrialState.COMPLETE,))))
        acting += any(one.acts for one in found if one.name == ACTING)
        any_acts += any(one.acts for one in found)
    print(
        f"effect {args.effect}, {args.studies} studies, complete trials {min(complete)} to "
        f"{max(complete)}: {ACTING} acts in {acting}, any parameter in {any_acts}"
    )


if __name__ == "__main__":
    main()
