"""The stages side by side, as in Table 5 of Attias & Oner's staged Mask R-CNN.

One table for each task and dataset: a line for each stage, with AP, AP50, AP75, AP by size, and
AR@100; and a second one with the AP of each class. A column holds numbers of one protocol.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from d2_cityscapes.evaluation.instances.coco import BOX_SIZE_PROTOCOL, PROTOCOL
from d2_cityscapes.evaluation.results import ResultRow, percent_text
from d2_cityscapes.files import write_atomically, write_json
from d2_cityscapes.report.text_table import aligned, markdown_table

__all__ = ["StageTable", "make_stage_tables", "write_stage_tables"]

TASKS = {"bbox": "boxes", "segm": "masks"}
# (protocol, metric of results.json, head of the column)
COLUMNS = (
    (PROTOCOL, "AP", "AP"),
    (PROTOCOL, "AP50", "AP50"),
    (PROTOCOL, "AP75", "AP75"),
    (BOX_SIZE_PROTOCOL, "APs", "AP_S"),
    (BOX_SIZE_PROTOCOL, "APm", "AP_M"),
    (BOX_SIZE_PROTOCOL, "APl", "AP_L"),
    (PROTOCOL, "AR@100", "AR@100"),
)

# Of boxes, on the second half of val; the paper prints parts of 1. It had no train among its truth.
PUBLISHED_DATASET, PUBLISHED_IMAGES = "cityscapes_shards_val_report", 250
PUBLISHED = {
    "stage1": (27.06, 50.81, 25.07, 4.97, 20.63, 46.90, 37.67),
    "stage2": (27.51, 50.37, 26.91, 3.60, 21.83, 46.65, 38.38),
    "stage3": (29.78, 52.90, 29.21, 9.50, 23.52, 50.33, 40.20),
}


@dataclass(frozen=True)
class StageTable:
    """One table, of stages or of classes.

    Attributes:
        title: what it shows.
        notes: how to read it: protocol, images and classes; and what others published.
        head: names of the columns, that of the first one included.
        lines: name of a stage or class -> its numbers in percent; None where there is none.
        task, dataset, images: what was scored, as in `ResultRow`.
        protocols: of each number in a line.
    """

    title: str
    notes: tuple[str, ...]
    head: tuple[str, ...]
    lines: dict[str, tuple[float | None, ...]]
    task: str
    dataset: str
    images: int
    protocols: tuple[str, ...]

    def cells(self) -> list[list[str]]:
        """The lines without the head, as text."""
        return [[name, *map(percent_text, values)] for name, values in self.lines.items()]

    def text(self) -> str:
        """Aligned columns for a terminal."""
        head, *lines = aligned([list(self.head), *self.cells()], words=1)
        rule = "-" * max(map(len, (head, *lines)))
        return "\n".join([self.title, *self.notes, head, rule, *lines])

    def markdown(self) -> str:
        """A heading, the table, and the notes below it."""
        table = markdown_table(self.head, self.cells(), words=1)
        return "\n\n".join([f"## {self.title}", table, *self.notes])

    def document(self) -> dict[str, Any]:
        """For JSON: numbers in percent, null where there is none."""
        first, *names = self.head
        return {
            "title": self.title,
            "notes": self.notes,
            "task": self.task,
            "dataset": self.dataset,
            "images": self.images,
            "protocols": dict(zip(names, self.protocols, strict=True)),
            "lines": [
                {first: name, **dict(zip(names, values, strict=True))}
                for name, values in self.lines.items()
            ],
        }


def make_stage_tables(stages: Mapping[str, Sequence[ResultRow]]) -> list[StageTable]:
    """For each task and dataset a table of the stages, and one of the classes.

    Args:
        stages: name of a stage -> the rows of its results.json. Stages that found no objects, like
            the semantic stage 0, do not appear.
    """
    scopes = dict.fromkeys(
        (task, row.dataset, row.images)
        for task in TASKS
        for rows in stages.values()
        for row in rows
        if row.task == task
    )
    tables = []
    for task, dataset, images in scopes:
        scored = {
            name: {(row.protocol, row.metric): row for row in own}
            for name, rows in stages.items()
            if (
                own := [r for r in rows if (r.task, r.dataset, r.images) == (task, dataset, images)]
            )
        }
        tables += [_stage_table(scored, task, dataset, images)]
        if by_class := _class_table(scored, task, dataset, images):
            tables.append(by_class)
    return tables


def write_stage_tables(
    stages: Mapping[str, Sequence[ResultRow]], output: str | Path
) -> list[StageTable]:
    """Write the tables of `make_stage_tables` as ``output``.json and ``output``.md.

    Where no stage found objects, neither file is left: there is nothing to compare.
    """
    tables, output = make_stage_tables(stages), Path(output)
    as_json = output.with_name(f"{output.name}.json")
    as_markdown = output.with_name(f"{output.name}.md")
    if tables:
        text = "\n\n".join(["# Stages", *(table.markdown() for table in tables)])
        write_json(as_json, {"tables": [table.document() for table in tables]})
        write_atomically(as_markdown, [f"{text}\n".encode()])
    else:
        as_json.unlink(missing_ok=True)
        as_markdown.unlink(missing_ok=True)
    return tables


_Scored = Mapping[str, Mapping[tuple[str, str], ResultRow]]


def _stage_table(scored: _Scored, task: str, dataset: str, images: int) -> StageTable:
    notes = [
        f"{dataset}, {images} images; percent, mean over {_class_counts(scored)}. AP and AR@100: "
        f"protocol {PROTOCOL}. AP_S, AP_M, AP_L: protocol {BOX_SIZE_PROTOCOL}."
    ]
    if (task, dataset, images) == ("bbox", PUBLISHED_DATASET, PUBLISHED_IMAGES):
        numbers = ", ".join(
            f"{name} {' / '.join(map(percent_text, values))}" for name, values in PUBLISHED.items()
        )
        notes.append(
            "As published, not measured here, over the 7 classes without train, and with other "
            f"anchors in the evaluation than in the training of stages 2 and 3: {numbers}."
        )
    return StageTable(
        f"{task}: the stages, scored by their {TASKS[task]}",
        tuple(notes),
        ("stage", *(head for _, _, head in COLUMNS)),
        {
            name: tuple(_value(rows, protocol, metric) for protocol, metric, _ in COLUMNS)
            for name, rows in scored.items()
        },
        task,
        dataset,
        images,
        tuple(protocol for protocol, _, _ in COLUMNS),
    )


def _class_table(scored: _Scored, task: str, dataset: str, images: int) -> StageTable | None:
    metrics = dict.fromkeys(
        metric
        for rows in scored.values()
        for protocol, metric in rows
        if protocol == PROTOCOL and metric.startswith("AP-")
    )
    if not metrics:
        return None
    return StageTable(
        f"{task}: AP by class, scored by {TASKS[task]}",
        (f"{dataset}, {images} images; percent, protocol {PROTOCOL}.",),
        ("class", *scored),
        {
            metric.removeprefix("AP-"): tuple(
                _value(rows, PROTOCOL, metric) for rows in scored.values()
            )
            for metric in metrics
        },
        task,
        dataset,
        images,
        (PROTOCOL,) * len(scored),
    )


def _class_counts(scored: _Scored) -> str:
    """ "8 classes", or "8 classes (AP_S 6)" where fewer have objects of a size."""
    counts: dict[str, int] = {}
    for rows in scored.values():
        for protocol, metric, head in COLUMNS:
            if (protocol, metric) in rows:
                counts.setdefault(head, rows[protocol, metric].classes)
    most = max(counts.values(), default=0)
    fewer = ", ".join(f"{head} {count}" for head, count in counts.items() if count < most)
    return f"{most} classes" + (f" ({fewer})" if fewer else "")


def _value(rows: Mapping[tuple[str, str], ResultRow], protocol: str, metric: str) -> float | None:
    row = rows.get((protocol, metric))
    return None if row is None else row.value
