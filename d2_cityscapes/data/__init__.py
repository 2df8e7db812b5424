"""Shards, the datasets made of them, and the mapper that turns a record into model input."""

from d2_cityscapes.dependencies import lazy_exports
from d2_cityscapes.shards.reader import ShardError, ShardReader
from d2_cityscapes.shards.writer import write_shards

__all__ = [
    "CityscapesShardMapper",
    "ShardError",
    "ShardReader",
    "register_cityscapes_shards",
    "write_shards",
]

__getattr__ = lazy_exports(
    __name__,
    {
        "CityscapesShardMapper": "d2_cityscapes.data.mapper",
        "register_cityscapes_shards": "d2_cityscapes.data.register",
    },
)
