"""A trained model exported to a folder: written, compared with the model, and only then there."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode

from d2_cityscapes.data.register import label_table_of
from d2_cityscapes.engine.computing import computing
from d2_cityscapes.engine.prediction.loading import model_config
from d2_cityscapes.engine.prediction.predictor import Predictor
from d2_cityscapes.errors import D2CityscapesError
from d2_cityscapes.evaluation.results import ResultRow, ResultsError, read_results
from d2_cityscapes.export import run as runner
from d2_cityscapes.export.arrays import as_arrays
from d2_cityscapes.export.build import build_graph, check_exportable
from d2_cityscapes.export.card import model_card
from d2_cityscapes.export.check import Comparison, Picture, Run, compare, pictures_of, test_pictures
from d2_cityscapes.export.describe import MADE_BY, describe, sizes_of
from d2_cityscapes.export.graph.pixels import Size
from d2_cityscapes.export.kinds import GRAPHS, ExportError
from d2_cityscapes.export.weights import as_stock_predicts, run_weights, write_weights_folder
from d2_cityscapes.export.write import exporter_of, trace, write_graph
from d2_cityscapes.files import check_folder, file_sha256, write_atomically, write_json
from d2_cityscapes.labels import LabelTable
from d2_cityscapes.run_folder import RESULTS

__all__ = ["export_model"]

_ABOUT = "model.json"
_LARGE = 2 * 1000**3  # bytes, of a file of ONNX; weights beyond lie beside it


def export_model(
    model: Any,
    output: str | Path,
    kind: str,
    *,
    opts: Sequence[str] = (),
    size: Size | None = None,
    check: int = 20,
    pictures: Sequence[Path] = (),
) -> tuple[str, ...]:
    """Export a trained model to a folder, which is whole and compared, or not there.

    Args:
        model: folder of a run, weights beside their config, or (config, weights); see
            `d2_cityscapes.engine.prediction.loading.load`.
        output: the folder; one of an earlier export is replaced.
        kind: a key of `FORMATS`.
        opts: KEY VALUE overrides of the config. MODEL.DEVICE, by default the CPU, is where the
            model is run to be compared with; the export runs on the CPU.
        size: (H, W) of the pictures of a fixed graph; None for any.
        check: most pictures of DATASETS.TEST to compare on.
        pictures: files to compare on instead.

    Returns:
        Lines about what was written and how it compares.

    Raises:
        ExportError: a model without such an export; one that differs from its model.
        D2CityscapesError: a model that cannot be read, a dataset that is missing, an output that
            cannot be written.
    """
    output = Path(output)
    if size is not None and kind not in GRAPHS:
        raise ExportError(f"--size is for {', '.join(GRAPHS)}: {kind} holds weights, of no size")
    _check_replaceable(output)
    cfg = model_config(model, ["MODEL.DEVICE", "cpu", *opts])
    check_exportable(cfg)
    seen = pictures_of(pictures, size) if pictures else test_pictures(cfg, check, size)
    with computing(cfg), _new_folder(output) as folder:
        lines = _fill(cfg, folder, output, kind, size, seen)
    return (*lines, f"wrote {output}")


def _fill(
    cfg: CfgNode,
    folder: Path,
    output: Path,
    kind: str,
    size: Size | None,
    pictures: Sequence[Picture],
) -> list[str]:
    """Write all files of an export to `folder`, which will be `output`; returns lines about it."""
    table, graph = label_table_of(cfg.DATASETS.TEST or cfg.DATASETS.TRAIN), None
    if kind in GRAPHS:
        graph = _write_graph(cfg, table, folder, kind, size)
        shutil.copyfile(runner.__file__, folder / "run.py")
    else:
        write_weights_folder(cfg, kind, folder, output)
    about = describe(cfg, table, kind, weights_sha256=file_sha256(cfg.MODEL.WEIGHTS), graph=graph)
    write_json(folder / _ABOUT, about)
    comparison = _compared(cfg, table, folder, kind, pictures)
    about["comparison"] = comparison.agreement.numbers() | {
        "scores": [
            dict(zip(("dataset", "task", "metric", "model", "export"), row, strict=True))
            for row in comparison.scores
        ]
    }
    write_json(folder / _ABOUT, about)
    files = sorted({*(path.name for path in folder.iterdir()), "README.md"})
    lines = [*comparison.lines(), *_large(folder)]
    card = model_card(cfg, about, _results(cfg), lines, files)
    write_atomically(folder / "README.md", [card.encode()])
    return lines


def _write_graph(
    cfg: CfgNode, table: LabelTable, folder: Path, kind: str, size: Size | None
) -> dict[str, Any]:
    graph: Any = build_graph(cfg, table, sizes=None if size is None else sizes_of(cfg, size))
    write_graph(trace(graph), kind, folder, graph.outputs)
    return {
        "outputs": graph.outputs,
        "fixed": None if size is None else list(size),
        "multiple": 1 if size is not None else graph.pixels.multiple,
        **exporter_of(kind),
    }


def _compared(
    cfg: CfgNode, table: LabelTable, folder: Path, kind: str, pictures: Sequence[Picture]
) -> Comparison:
    """The comparison, where it is within the tolerances.

    Raises:
        ExportError: it is not; with the numbers.
    """
    export: Run = runner.load(folder) if kind in GRAPHS else run_weights(kind, folder, table)
    cfg = as_stock_predicts(cfg) if kind == "detectron2" else cfg
    predictor = Predictor(cfg)

    def model(image: Any) -> dict[str, Any]:
        return as_arrays(predictor(image), table)

    comparison = compare(cfg, model, export, pictures)
    problems = comparison.problems()
    if problems:
        raise ExportError(
            f"the export differs from the model, and was not kept: {'; '.join(problems)}",
            details=comparison.lines(),
        )
    return comparison


def _large(folder: Path) -> list[str]:
    return [
        f"{path.name} has {path.stat().st_size / 1e9:.1f} GB of weights, more than a file of ONNX "
        "may: keep it beside model.onnx"
        for path in sorted(folder.glob("model.onnx.*"))
    ]


def _results(cfg: CfgNode) -> list[ResultRow]:
    """The scores of these very weights, where the run beside them has recorded them."""
    weights = Path(cfg.MODEL.WEIGHTS)
    with contextlib.suppress(ResultsError):
        rows, document = read_results(weights.parent / RESULTS)
        twins = [path for path in (weights, weights.with_suffix(".pth")) if path.is_file()]
        known = document.get("weights_sha256")
        if any(file_sha256(path) == known for path in twins):
            return rows
    return []


def _check_replaceable(output: Path) -> None:
    """Refuse a folder that holds anything but an earlier export.

    Raises:
        ExportError: it does.
        D2CityscapesError: it cannot be written.
    """
    check_folder(output)
    if output.is_dir() and any(output.iterdir()) and not _is_export(output):
        raise ExportError(f"{output}: holds something else than an export; name another folder")


def _is_export(folder: Path) -> bool:
    try:
        about = json.loads((folder / _ABOUT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(about, dict) and str(about.get("made_by", "")).startswith(MADE_BY)


@contextlib.contextmanager
def _new_folder(output: Path) -> Iterator[Path]:
    """A folder beside `output` that takes its place when the block ends, or is gone if it fails."""
    folder = output.parent / f".{output.name}.{os.getpid()}.tmp"
    old = output.parent / f".{output.name}.{os.getpid()}.old"
    above = [path for path in output.parents if not path.exists()]
    try:
        folder.mkdir(parents=True)
        yield folder
        _exchange(folder, output, old)
    except OSError as error:
        raise D2CityscapesError(
            f"{output}: cannot be written ({error.strerror or error})"
        ) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):  # the first that is not empty ends it
            for path in above:
                path.rmdir()


def _exchange(folder: Path, output: Path, old: Path) -> None:
    """Put `folder` in the place of `output`, which stays as it is if that fails."""
    if not output.exists():
        os.replace(folder, output)
        return
    os.replace(output, old)
    try:
        os.replace(folder, output)
    except OSError:
        os.replace(old, output)
        raise
    shutil.rmtree(old, ignore_errors=True)
