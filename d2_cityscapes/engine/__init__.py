"""Training: configs, trainer, hooks, and the staged recipe."""

from d2_cityscapes.dependencies import lazy_exports

__all__ = ["FreezeHook", "Trainer", "ValidationLossHook", "load_config"]

__getattr__ = lazy_exports(
    __name__,
    {
        "FreezeHook": "d2_cityscapes.engine.hooks",
        "Trainer": "d2_cityscapes.engine.trainer",
        "ValidationLossHook": "d2_cityscapes.engine.validation_loss",
        "load_config": "d2_cityscapes.engine.setup",
    },
)
