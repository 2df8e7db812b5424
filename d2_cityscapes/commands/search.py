"""Search hyperparameters of any training config: Optuna, one process for each trial.

  d2c search --config-file configs/search/stage2.yaml --output-dir DIR MODEL.WEIGHTS w.pth

The search file names a training config, the keys to vary, their ranges and constraints, and what
trials are judged by; configs/search/stage2.yaml explains it. KEY VALUE pairs reach every trial.

DIR receives trial_0000, trial_0001 ... (config.yaml, logs, results.json), best.yaml (a config for
d2c train), and a report. Safe to interrupt or kill: the same command goes on until there are
--trials complete or pruned trials; other machines may help, with the same --storage and
--study-name. optuna-dashboard works on the same --storage.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from d2_cityscapes import register_components
from d2_cityscapes.commands.cli import HelpFormatter

__all__ = ["main"]


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--config-file", type=Path, required=True, help="search file (YAML)")
    parser.add_argument("--output-dir", type=Path, required=True, help="folder of the search")
    parser.add_argument(
        "--trials", type=int, help="complete and pruned trials in all; default: the file's"
    )
    parser.add_argument(
        "--storage",
        help="sqlite:///FILE, postgresql://USER@HOST/NAME for many machines, or journal:///FILE in "
        "a shared folder, where an absolute FILE begins with a fourth slash; default: "
        "OUTPUT_DIR/study.db",
    )
    parser.add_argument("--study-name", help="default: the name of the search file")
    parser.add_argument("--workers", type=int, default=1, help="trials at once on this machine")
    parser.add_argument(
        "--confirm", type=int, default=0, metavar="K", help="run the best K again with other seeds"
    )
    parser.add_argument("--confirm-seeds", type=int, default=2, help="runs for each of them")
    parser.add_argument(
        "--seed", type=int, default=0, help="of the sampler, and of trials whose config has none"
    )
    parser.add_argument(
        "--keep-checkpoints", action="store_true", help="keep those of finished trials too"
    )
    parser.add_argument(
        "--allow-unused",
        action="store_true",
        help="go on though the config sets keys that have no effect in any trial",
    )
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="overrides for every trial")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command with these arguments, or those of the process."""
    args = parse_args(argv)
    register_components()
    from d2_cityscapes.config_files import files_read
    from d2_cityscapes.files import check_not_read
    from d2_cityscapes.search.errors import SearchError
    from d2_cityscapes.search.findings.best import BEST, write_best
    from d2_cityscapes.search.findings.confirm import run_again
    from d2_cityscapes.search.findings.confirm_table import (
        ConfirmedTrial,
        confirm_table,
        top_trials,
    )
    from d2_cityscapes.search.findings.importance import importances
    from d2_cityscapes.search.findings.report import report_files, write_search_report
    from d2_cityscapes.search.findings.summary import summary
    from d2_cityscapes.search.preflight.preflight import check_reach
    from d2_cityscapes.search.run import run_search
    from d2_cityscapes.search.space.plan_file import read_plan
    from d2_cityscapes.search.study import check_study, open_search
    from d2_cityscapes.search.trials.folders import check_folder, make_folder
    from d2_cityscapes.search.trials.storage import storage_errors, storage_file
    from d2_cityscapes.search.trials.trial_queue import count_finished

    # a config is read for every trial; that there is no GPU need not be said each time
    logging.getLogger("d2_cityscapes.engine.setup").setLevel(logging.ERROR)
    plan = read_plan(args.config_file, args.opts, seed=args.seed)
    total = plan.trials if args.trials is None else args.trials
    if total is None:
        raise SearchError(f"{args.config_file}: names no number of trials; use --trials")
    for option, value, least in (
        ("trials", total, 1),
        ("workers", args.workers, 1),
        ("confirm", args.confirm, 0),
        ("confirm-seeds", args.confirm_seeds, 1),
    ):
        if value < least:
            raise SearchError(f"--{option} {value}: use {least} or more")
    own = args.output_dir.absolute() / "study.db"
    storage = args.storage or f"sqlite:///{own}"
    name = args.study_name or args.config_file.stem
    file = storage_file(storage)
    outputs = [args.output_dir / BEST, *report_files(args.output_dir), *([file] if file else [])]
    check_not_read(outputs, [args.config_file, *files_read(plan.base, plan.unsampled)])
    known = None
    if args.storage or own.exists():
        known = check_study(plan, storage=storage, study_name=name)
    check_folder(args.output_dir, known)
    print("checking that every parameter reaches what trains ...", flush=True)
    for parameter, paths in check_reach(plan, allow_unused=args.allow_unused).items():
        print(f"  {parameter} acts on {', '.join(paths)}")
    make_folder(args.output_dir)
    search = open_search(plan, storage=storage, study_name=name)
    with storage_errors(storage), tqdm(total=total, unit="trial", disable=None) as bar:

        def say(line: str) -> None:
            bar.write(line)
            sys.stdout.flush()
            bar.n = count_finished(search.study)
            bar.refresh()

        run_search(
            search, plan,
            total=total, output_dir=args.output_dir, workers=args.workers,
            keep_checkpoints=args.keep_checkpoints, say=say,
        )  # fmt: skip
        confirmed = []
        if args.confirm:
            best = top_trials(search.study, args.confirm)
            again = run_again(
                search, plan, best,
                seeds=args.confirm_seeds, output_dir=args.output_dir, workers=args.workers, say=say,
            )  # fmt: skip
            confirmed = [ConfirmedTrial(t.number, t.values[0], again[t.number]) for t in best]
    found = importances(search.study, seed=args.seed)
    print(summary(search.study, found=found))
    if confirmed:
        print(confirm_table(confirmed, maximize=plan.objective.direction == "maximize"))
    page = write_search_report(search.study, args.output_dir, confirmed=confirmed, found=found)
    print(f"report:      {page}")
    best_config = write_best(search, plan, args.output_dir, confirmed=confirmed)
    print(f"best config: {best_config or 'no trial is complete'}")
