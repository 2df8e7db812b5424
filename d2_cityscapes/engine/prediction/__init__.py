"""What a trained model sees in pictures, videos, cameras and shards of one's own."""

from d2_cityscapes.dependencies import lazy_exports

__all__ = [
    "Options",
    "PictureError",
    "Predictor",
    "find_pictures",
    "load",
    "predict",
    "predict_pictures",
    "to_supervision",
]

__getattr__ = lazy_exports(
    __name__,
    {
        "Options": "d2_cityscapes.engine.prediction.run",
        "PictureError": "d2_cityscapes.engine.prediction.pictures",
        "Predictor": "d2_cityscapes.engine.prediction.predictor",
        "find_pictures": "d2_cityscapes.engine.prediction.inputs",
        "load": "d2_cityscapes.engine.prediction.loading",
        "predict": "d2_cityscapes.engine.prediction.run",
        "predict_pictures": "d2_cityscapes.engine.prediction.run",
        "to_supervision": "d2_cityscapes.engine.prediction.detections",
    },
)
