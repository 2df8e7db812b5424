"""Trained models as files that run without this package: one graph from pixels to results."""

from d2_cityscapes.dependencies import lazy_exports

__all__ = ["ExportError", "export_model", "score_export"]

__getattr__ = lazy_exports(
    __name__,
    {
        "ExportError": "d2_cityscapes.export.kinds",
        "export_model": "d2_cityscapes.export.folder",
        "score_export": "d2_cityscapes.export.check",
    },
)
