"""The answer of a search as pictures and one self-contained HTML page."""

from __future__ import annotations

import importlib.metadata
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import distribution_to_json
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from d2_cityscapes.evaluation.results import package_versions
from d2_cityscapes.files import write_atomically
from d2_cityscapes.report.page import (
    escaped,
    facts_html,
    page_html,
    picture_url,
    table_html,
)
from d2_cityscapes.search.findings.confirm_table import (
    ConfirmedTrial,
    confirm_cells,
    confirm_verdict,
    top_trials,
)
from d2_cityscapes.search.findings.importance import Importance, importances
from d2_cityscapes.search.findings.plots import plot_search, short_names
from d2_cityscapes.search.findings.summary import (
    importance_verdict,
    objective_label,
    objective_name,
    param_text,
    state_counts,
    state_text,
    summary,
)
from d2_cityscapes.search.trials.storage import SEARCH, shown
from d2_cityscapes.search.trials.trial_queue import REASON

__all__ = ["report_files", "write_search_report"]

_STYLE = """
pre { background: #fff; padding: 14px 18px; border-radius: 8px; box-shadow: 0 1px 3px #0002;
      overflow-x: auto; font-size: 13px; line-height: 1.45 }
img { background: #fff }
tr.best td { background: #fdeeea } tr.failed td { color: #9b2c1f }
tr.pruned td, tr.interrupted td { color: #7a8591 }
tr.failed td:nth-child(3), tr.interrupted td:nth-child(3) { min-width: 220px }
"""

_PAGE = "report.html"
_TITLES = {
    "history": "History",
    "importances": "Importances beside chance",
    "slices": "Each parameter",
    "parallel_coordinates": "All parameters together",
}


def write_search_report(
    study: optuna.Study,
    output_dir: str | Path,
    *,
    confirmed: Sequence[ConfirmedTrial] = (),
    found: Sequence[Importance] | None = None,
) -> Path:
    """Write a search's pictures and its page, each file whole or not at all.

    Args:
        study: in any state.
        output_dir: receives report.html, which stands alone, and the pictures as PNG.
        confirmed: trials that were run again.
        found: its `importances`; None to compute them.

    Returns:
        report.html, the first of `report_files`.
    """
    output_dir = Path(output_dir)
    found = importances(study) if found is None else found
    pictures = plot_search(study, found)
    for name, picture in pictures.items():
        write_atomically(output_dir / f"{name}.png", [picture])
    title = f"Search {study.study_name}"
    parts = [
        f"<h1>{escaped(title)}</h1>",
        f"<p>{escaped(objective_name(study))}; {escaped(state_counts(study))}</p>",
        f"<pre>{escaped(summary(study, found=found))}</pre>",
        _confirmed(study, confirmed),
        *(_picture(name, pictures.get(name), study, found) for name in _TITLES),
        _trials(study),
        _provenance(study),
    ]
    path = output_dir / _PAGE
    write_atomically(path, [page_html(title, parts, style=_STYLE).encode()])
    return path


def report_files(output_dir: Path) -> list[Path]:
    """What `write_search_report` writes: the page, and the pictures."""
    return [output_dir / _PAGE, *(output_dir / f"{name}.png" for name in _TITLES)]


def _confirmed(study: optuna.Study, rows: Sequence[ConfirmedTrial]) -> str:
    if not rows:
        return ""
    maximize = study.direction == StudyDirection.MAXIMIZE
    head, lines = confirm_cells(rows, maximize=maximize)
    verdict = escaped(confirm_verdict(rows, maximize=maximize))
    return f"<h2>The best trials with other seeds</h2><p>{verdict}</p>{table_html(head, lines, 1)}"


def _picture(
    name: str, picture: bytes | None, study: optuna.Study, found: Sequence[Importance]
) -> str:
    heading = f"<h2>{_TITLES[name]}</h2>"
    if picture is None:
        verdict = escaped(importance_verdict(study, found))
        return f"{heading}<p>{verdict}</p>" if name == "importances" else ""
    image = f"<img alt='{escaped(_TITLES[name])}' src='{picture_url(picture)}'>"
    if name != "importances":
        return heading + image
    explanation = (
        "<p>A parameter acts where fANOVA, or a trend of the ranks, gives it more than scores "
        "shuffled over the trials do, allowing for the number of parameters. Noise means that "
        "these trials do not tell it from chance, not that it cannot matter; not shown, that so "
        "many were pruned, or so few are complete, that they hardly could. PED-ANOVA is shown "
        "beside them and does not decide: a sampler that gathers around good trials makes it see "
        "more than there is.</p>"
    )
    return heading + explanation + image


def _trials(study: optuna.Study) -> str:
    """All trials, whatever became of them."""
    trials = study.get_trials(deepcopy=False)
    names = list(dict.fromkeys(name for trial in trials for name in trial.params))
    best = [trial.number for trial in top_trials(study, 1)]
    short = short_names(names)
    numbers = [objective_label(study), *(short[name] for name in names), "duration"]
    head = ["trial", "state", "why", *numbers]
    lines, kinds = [], []
    for trial in trials:
        values = [param_text(trial, name) for name in names]
        state = state_text(trial)
        reason = str(trial.user_attrs.get(REASON, ""))
        value = _value_text(trial)
        lines.append([str(trial.number), state, reason, value, *values, _duration(trial)])
        kinds.append("best" if trial.number in best else state)
    return "<h2>Trials</h2>" + (table_html(head, lines, 3, kinds) if lines else "<p>None yet.</p>")


def _value_text(trial: FrozenTrial) -> str:
    """The value; of a pruned trial its last report, marked as such."""
    if trial.state == TrialState.COMPLETE:
        return f"{trial.value:.5g}"
    reports = trial.intermediate_values
    return f"({reports[max(reports)]:.5g} at {max(reports)})" if reports else ""


def _duration(trial: FrozenTrial) -> str:
    """ "1:02:03", hours, minutes and seconds."""
    return "" if trial.duration is None else str(trial.duration).partition(".")[0]


def _provenance(study: optuna.Study) -> str:
    """What is needed to do it again."""
    search: dict[str, Any] = study.user_attrs.get(SEARCH, {})
    config = search.get("config", "")
    versions = package_versions() | {"optuna": importlib.metadata.version("optuna")}
    fields = {
        "command": shlex.join(map(shown, sys.argv)),
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
        **{f"space: {name}": text for name, text in _space(study, search).items()},
        **{part: json.dumps(search[part]) for part in _DESCRIBED if search.get(part)},
        "first trial": _start(study),
    }
    text = f"<details><summary>config of all trials</summary><pre>{escaped(config)}</pre></details>"
    return f"<h2>How to do it again</h2>{facts_html(fields)}{text if config else ''}"


_DESCRIBED = ("constraints", "objective", "budget")


def _space(study: optuna.Study, search: dict[str, Any]) -> dict[str, str]:
    """Name -> range, as in the search file; as Optuna has it for other studies."""
    if "space" in search:
        return {name: json.dumps(entry) for name, entry in search["space"].items()}
    distributions = {}
    for trial in study.get_trials(deepcopy=False):
        distributions.update(trial.distributions)
    return {name: distribution_to_json(d) for name, d in distributions.items()}


def _start(study: optuna.Study) -> str:
    starts = [t.datetime_start for t in study.get_trials(deepcopy=False) if t.datetime_start]
    return min(starts).isoformat(" ", "seconds") if starts else ""
