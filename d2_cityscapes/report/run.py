"""One self-contained HTML page about a training run, the stages of a recipe, or folds of these."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from d2_cityscapes.errors import D2CityscapesError
from d2_cityscapes.evaluation.results import ResultRow, percent_text, read_results
from d2_cityscapes.files import check_outputs, write_atomically
from d2_cityscapes.labels import CITYSCAPES, LabelTable
from d2_cityscapes.png import picture_errors
from d2_cityscapes.report.curves import loss_curves_png
from d2_cityscapes.report.fold_table import WORDS, FoldTable, read_fold_table
from d2_cityscapes.report.page import (
    escaped,
    facts_html,
    page_html,
    picture_url,
    table_html,
)
from d2_cityscapes.report.stage_table import make_stage_tables
from d2_cityscapes.run_folder import CONFIG, FOLDS, METRICS, PICTURES, RESULTS

__all__ = ["Run", "find_runs", "write_report"]

_MARKS = (METRICS, RESULTS, PICTURES, CONFIG)
_PAGES = (".html", ".htm")
_PICTURES = 12  # at most, of each dataset
_PICTURE_WIDTH = 2048
_HEADLINES = ("AP", "AP50", "mIoU", "PQ", "PQ_dagger")

_STYLE = """
.cards { display: flex; flex-wrap: wrap; gap: 12px }
.card { background: #fff; border-radius: 8px; padding: 12px 18px; box-shadow: 0 1px 3px #0002 }
.card b { display: block; font-size: 28px } .card small { color: #5b6b7b }
figure { margin: 0 0 18px calc(50% - 50vw + 24px); width: calc(100vw - 60px); max-width: 2048px }
figcaption { color: #5b6b7b; font-size: 13px }
.legend { display: flex; flex-wrap: wrap; gap: 6px 16px }
.legend i { display: inline-block; width: 14px; height: 14px; border-radius: 3px;
            margin-right: 6px; vertical-align: -2px }
"""


@dataclass(frozen=True)
class Run:
    """The folder of one training, OUTPUT_DIR of its config; which files it holds may vary."""

    name: str
    folder: Path

    @property
    def metrics(self) -> Path:
        return self.folder / METRICS

    def results(self) -> tuple[list[ResultRow], dict[str, Any]]:
        """Rows and other fields of its results.json; nothing where it was not evaluated."""
        path = self.folder / RESULTS
        return read_results(path) if path.is_file() else ([], {})

    def pictures(self) -> dict[str, list[Path]]:
        """Dataset -> its pictures by name."""
        folders = sorted(p for p in self.folder.glob(f"{PICTURES}/*") if p.is_dir())
        return {f.name: files for f in folders if (files := sorted(f.glob("*.png")))}


def find_runs(folder: str | Path) -> list[Run]:
    """The stages of a run_stages folder in order, the last one of each fold, or the one run that a
    folder is.

    Raises:
        D2CityscapesError: it is neither.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise D2CityscapesError(f"{folder}: no such folder")
    stages = [Run(p.name, p) for p in sorted(folder.glob("stage*")) if _is_run(p)]
    if stages:
        return stages
    if (folder / FOLDS).is_file():
        folds = sorted(folder.glob("fold*/"), key=lambda p: (len(p.name), p.name))
        last = [
            (fold.name, [p for p in sorted(fold.glob("stage*")) if _is_run(p)]) for fold in folds
        ]
        return [Run(name, stages[-1]) for name, stages in last if stages]
    if not _is_run(folder):
        raise D2CityscapesError(
            f"{folder}: neither the output of d2c train ({', '.join(_MARKS)}) nor that of "
            "d2c stages (stage0, stage1, ...)"
        )
    return [Run(folder.resolve().name, folder)]


def write_report(
    folder: str | Path, output: str | Path | None = None, *, table: LabelTable = CITYSCAPES
) -> Path:
    """Write the report of a run or of a run_stages folder, whole or not at all.

    Args:
        folder: as in `find_runs`.
        output: the HTML file; None for report.html in the folder.
        table: the classes, for the legend.

    Returns:
        The file written.

    Raises:
        D2CityscapesError: no run; one of its files cannot be read, or would be overwritten.
    """
    folder = Path(folder)
    runs = find_runs(folder)
    output = folder / "report.html" if output is None else Path(output)
    check_outputs([output], _all_but_pages(folder))
    title = folder.resolve().name
    if (folder / FOLDS).is_file():
        scores = _folds(read_fold_table(folder / FOLDS))
        parts = [*scores, _pictures(runs, table), _curves(runs)]
    else:
        parts = _stages(folder, runs, table)
    parts = [f"<h1>{escaped(title)}</h1>", *parts]
    write_atomically(output, [page_html(title, parts, style=_STYLE).encode()])
    return output


def _stages(folder: Path, runs: Sequence[Run], table: LabelTable) -> list[str]:
    """The page of a training, or of the stages of a recipe."""
    results = {run.name: run.results() for run in runs}
    final = Run("final", folder)
    if runs[0].folder != folder and final.results()[0]:
        results[final.name] = final.results()
    scored = [name for name, (rows, _) in results.items() if rows]
    rows, about = results[scored[-1]] if scored else ([], {})
    return [
        _headlines(rows),
        _pictures(runs, table),
        _stage_tables({run.name: results[run.name][0] for run in runs}),
        _result_tables({name: result[0] for name, result in results.items()}),
        _class_table(rows),
        _curves(runs),
        _provenance(about),
    ]


def _folds(table: FoldTable) -> list[str]:
    """Mean and spread of each metric: of the last stage on cards, of all in tables."""
    parts = [f"<p>{escaped(f'{table.title}. {table.note}')}</p>"]
    if not table.rows:
        return [*parts, "<p>Not all folds are done.</p>"]
    last = table.stages[-1]
    cards = [
        f'<div class="card"><b>{percent_text(row.mean)} ± {percent_text(row.sd)}</b>'
        f"{escaped(f'{row.task} {row.metric}')}<br>"
        f"<small>{escaped(row.protocol)}, {len(row.known)} folds</small></div>"
        for row in table.rows
        if row.stage == last and row.metric in _HEADLINES
    ]
    parts.append(f'<div class="cards">{"".join(cards)}</div>')
    for stage in reversed(table.stages):
        for by_class, title in ((False, stage), (True, f"{stage}, by class")):
            if lines := table.cells(stage, by_class=by_class):
                parts.append(f"<h2>{escaped(title)}</h2>" + table_html(table.head, lines, WORDS))
    return parts


def _all_but_pages(folder: Path) -> Iterator[Path]:
    """What trainings left in a folder: their files, and nothing that a report could have been."""
    return (p for p in folder.rglob("*") if p.is_file() and p.suffix.lower() not in _PAGES)


def _is_run(folder: Path) -> bool:
    return any((folder / mark).exists() for mark in _MARKS)


def _headlines(rows: Sequence[ResultRow]) -> str:
    cards = [
        f'<div class="card"><b>{percent_text(row.value)}</b>'
        f"{escaped(f'{row.task} {row.metric}')}<br>"
        f"<small>{escaped(row.protocol)}, {escaped(row.dataset)}, {row.images} images</small></div>"
        for row in rows
        if row.metric in _HEADLINES
    ]
    return f'<div class="cards">{"".join(cards)}</div>' if cards else "<p>Not evaluated.</p>"


def _stage_tables(results: dict[str, list[ResultRow]]) -> str:
    """The stages of a recipe side by side; nothing for a single run."""
    if len(results) < 2:
        return ""
    tables = [
        f"<h3>{escaped(table.title)}</h3>"
        + table_html(table.head, table.cells(), 1)
        + "".join(f"<p>{escaped(note)}</p>" for note in table.notes)
        for table in make_stage_tables(results)
    ]
    return "<h2>Stages</h2>" + "".join(tables) if tables else ""


def _result_tables(results: dict[str, list[ResultRow]]) -> str:
    """One table for each task and protocol: numbers of different protocols never share a column."""
    flat = [(run, row) for run, rows in results.items() for row in rows if "-" not in row.metric]
    tables = []
    for task, protocol in dict.fromkeys((row.task, row.protocol) for _, row in flat):
        own = [(run, row) for run, row in flat if (row.task, row.protocol) == (task, protocol)]
        metrics = list(dict.fromkeys(row.metric for _, row in own))
        lines = []
        for run, dataset in dict.fromkeys((run, row.dataset) for run, row in own):
            line = {r.metric: r for name, r in own if (name, r.dataset) == (run, dataset)}
            first = next(iter(line.values()))
            values = [percent_text(line[m].value) if m in line else "" for m in metrics]
            lines.append([run, dataset, str(first.images), str(first.classes), *values])
        head = ["run", "dataset", "images", "classes", *metrics]
        tables.append(
            f"<h3>{escaped(task)}, protocol {escaped(protocol)}</h3>" + table_html(head, lines, 2)
        )
    return "<h2>Results</h2>" + "".join(tables) if tables else ""


def _class_table(rows: Sequence[ResultRow]) -> str:
    """Per-class numbers of the last evaluation, a column for each task and protocol."""
    columns: dict[str, dict[str, float | None]] = {}
    classes: dict[str, None] = {}
    for row in rows:
        metric, dash, name = row.metric.partition("-")
        if dash:
            head = f"{row.task} {metric} ({row.protocol}, {row.dataset})"
            columns.setdefault(head, {})[name] = row.value
            classes[name] = None
    lines = [
        [
            name,
            *(percent_text(column[name]) if name in column else "" for column in columns.values()),
        ]
        for name in classes
    ]
    return "<h2>By class</h2>" + table_html(["class", *columns], lines, 1) if lines else ""


def _pictures(runs: Sequence[Run], table: LabelTable) -> str:
    """Pictures of the last run that has some."""
    for run in reversed(runs):
        if datasets := run.pictures():
            figures = "".join(
                f"<figure><img alt='{escaped(path.stem)}' src='{_jpeg(path)}'>"
                f"<figcaption>{escaped(f'{run.name}, {dataset}: {path.stem}')}</figcaption>"
                "</figure>"
                for dataset, files in datasets.items()
                for path in files[:_PICTURES]
            )
            return f"<h2>Predictions beside the truth</h2>{_legend(table)}{figures}"
    return ""


def _legend(table: LabelTable) -> str:
    items = "".join(
        f'<span><i style="background:rgb{c.color}"></i>{escaped(c.name)}</span>'
        for c in (*table.things, *table.stuff)
    )
    return (
        f'<p class="legend">{items}</p><p>Instances vary around the colour of their class. Pixels '
        "of the bare image are void or not predicted.</p>"
    )


def _curves(runs: Sequence[Run]) -> str:
    picture = loss_curves_png({run.name: run.metrics for run in runs if run.metrics.is_file()})
    if not picture:
        return ""
    return f"<h2>Training losses</h2><img alt='loss curves' src='{picture_url(picture)}'>"


def _provenance(about: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in about.get("versions", {}).items())
    fields = {
        "command": about.get("command"),
        "config SHA-256": about.get("config_sha256"),
        "weights SHA-256": about.get("weights_sha256"),
        "versions": versions,
        "seconds": about.get("seconds"),
    }
    facts = facts_html(fields)
    return f"<h2>How the last numbers were made</h2>{facts}" if facts else ""


def _jpeg(path: Path) -> str:
    """A picture as a data URL, made small enough to send around."""
    with picture_errors(path, kind="picture"), Image.open(path, formats=["PNG"]) as picture:
        small = picture.convert("RGB")
    if small.width > _PICTURE_WIDTH:
        height = round(small.height * _PICTURE_WIDTH / small.width)
        small = small.resize((_PICTURE_WIDTH, height), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=88)
    return picture_url(buffer.getvalue(), "jpeg")
