"""Meta-architectures that cannot be used on shards."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from d2_cityscapes.engine.checks.model import check_architecture
from d2_cityscapes.engine.setup import ConfigError


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("PanopticFPN", "use SeamlessPanoptic"),
        ("ProposalNetwork", "use StagedRCNN"),
        ("SeamlesPanoptic", "nearest: SeamlessPanoptic"),
        ("X", "use one of .*GeneralizedRCNN"),
    ],
)
def test_refused(configure: Callable, name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=f"META_ARCHITECTURE '{name}': .*{message}"):
        check_architecture(configure("quick/instance.yaml", "MODEL.META_ARCHITECTURE", name))


@pytest.mark.parametrize("name", ["StagedRCNN", "GeneralizedRCNN", "RetinaNet", "StagedSegmentor"])
def test_taken(configure: Callable, name: str) -> None:
    check_architecture(configure("quick/instance.yaml", "MODEL.META_ARCHITECTURE", name))
