"""What a trained model sees in pictures, videos, cameras and shards of one's own."""

from d2_cityscapes.dependencies import lazy_exports

__all__ = ["PictureError", "Predictor", "find_pictures", "predict_pictures"]

__getattr__ = lazy_exports(
    __name__,
    {
        "PictureError": "d2_cityscapes.engine.prediction.pictures",
        "Predictor": "d2_cityscapes.engine.prediction.predictor",
        "find_pictures": "d2_cityscapes.engine.prediction.pictures",
        "predict_pictures": "d2_cityscapes.engine.prediction.run",
    },
)
