"""A network of timm as the bottom-up part of a Detectron2 backbone.

Shape letters: N pictures of a batch, H, W pixels.
"""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone
from torch import Tensor, nn

from d2_cityscapes.errors import D2CityscapesError
from d2_cityscapes.modeling.backbones.create import create_network
from d2_cityscapes.modeling.backbones.pixels import pixel_statistics
from d2_cityscapes.modeling.backbones.stages import (
    change_norms,
    drop_unused,
    freeze_stages,
    has_parameters,
    stages_of,
)
from d2_cityscapes.modeling.backbones.weights import import_timm, weights_of

__all__ = ["TimmNet", "build_timm_net"]

logger = logging.getLogger(__name__)

_PATCH = 16  # pixels of a patch where the weights have one that no pyramid can be built on, like 14


class TimmNet(Backbone):
    """(N, 3, H, W) pictures to maps of a network of timm, by name.

    The network keeps timm's names, below ``net``. What it gives are the ends of its stages, without
    norms that timm has behind them for its classifier.

    Attributes:
        stages: names below ``net`` of its modules in the order of their use: of the stem, and of
            each stage; of plain networks, of each quarter of their blocks. Empty where timm does
            not tell.
    """

    def __init__(
        self,
        net: nn.Module,
        outputs: Mapping[str, int],
        *,
        stages: Sequence[Sequence[str]] = (),
        turned: bool = False,
        again: tuple[Sequence[float], Sequence[float]] | None = None,
    ) -> None:
        """
        Args:
            net: with timm's ``forward_intermediates``, on the CPU.
            outputs: name -> index among its feature maps, ascending.
            stages: see above.
            turned: whether pictures come as BGR, which becomes RGB.
            again: (factor, summand) of each channel as it comes, where pictures are normalised
                otherwise than for the network; None where they are not.
        """
        super().__init__()
        self.net = net
        self.stages = tuple(tuple(names) for names in stages)
        self._turned = turned
        self._again = again is not None
        for name, values in zip(("factor", "summand"), again or ([], []), strict=True):
            self.register_buffer(name, torch.tensor(values).view(-1, 1, 1), False)
        self._out_features = list(outputs)
        self._indices = list(outputs.values())
        self._out_feature_channels: dict[str, int] = {}
        self._out_feature_strides: dict[str, int] = {}

    @torch.enable_grad()
    def measure(self, strides: Sequence[int], name: str) -> None:
        """Let it tell channels and strides of its maps, found by a picture that no network knows.

        What none of the maps depends on, and would wait for a gradient, is taken away.

        Args:
            strides: of its maps, as timm tells them.
            name: of the network, for messages.

        Raises:
            D2CityscapesError: it takes pictures of one size alone, or maps have other strides.
        """
        self._out_feature_strides = dict(zip(self._out_features, strides, strict=True))
        unit = math.lcm(*strides)
        height, width = (unit * math.ceil(size / unit) for size in (64, 96))
        training = self.training
        try:
            maps = self.eval()(torch.zeros(1, 3, height, width))
        except Exception as error:  # timm's networks raise what they like
            reason = (" ".join(str(error).split()) or type(error).__name__)[:100]
            raise D2CityscapesError(
                f"MODEL.TIMM.NAME {name}: takes no pictures of {height} x {width} ({reason}); use "
                "a network for pictures of any size"
            ) from error
        finally:
            self.train(training)
        for key, stride in self._out_feature_strides.items():
            if maps[key].shape[-2:] != (height // stride, width // stride):
                raise D2CityscapesError(
                    f"MODEL.TIMM.NAME {name}: the maps of timm {import_timm().__version__} have "
                    f"other strides than it says: {tuple(maps[key].shape)}, not {stride}"
                )
        self._out_feature_channels = {key: tensor.shape[1] for key, tensor in maps.items()}
        drop_unused(self.net, list(maps.values()))

    @property
    def size_divisibility(self) -> int:
        """Pixels, a multiple of which height and width are padded to."""
        return max(self._out_feature_strides.values())

    @property
    def is_plain(self) -> bool:
        """Whether its one map is to become a pyramid, see `SimpleFeaturePyramid`."""
        return self._out_features == ["last"]

    def stages_to_checkpoint(self) -> list[nn.Module]:
        """The modules of its stages, without the stem."""
        names = itertools.chain.from_iterable(self.stages[1:])
        return [self.net.get_submodule(name) for name in names]

    def output_shape(self) -> dict[str, ShapeSpec]:
        return {
            name: ShapeSpec(
                channels=self._out_feature_channels[name], stride=self._out_feature_strides[name]
            )
            for name in self._out_features
        }

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Maps by name, (N, C, H / stride, W / stride).

        Args:
            x: (N, 3, H, W), normalised by MODEL.PIXEL_MEAN and PIXEL_STD.
        """
        if self._again:
            x = x * self.factor + self.summand
        if self._turned:
            x = x.flip(1)
        net: Any = self.net
        maps = net.forward_intermediates(
            x, indices=self._indices, output_fmt="NCHW", intermediates_only=True
        )
        return dict(zip(self._out_features, maps, strict=True))


def build_timm_net(
    cfg: CfgNode,
    *,
    wanted: Sequence[str] = (),
    ends: Sequence[str] = (),
    freeze_at: int = 0,
    **options: Any,
) -> TimmNet:
    """The network of MODEL.TIMM, with its weights where the training begins with them.

    Args:
        cfg: a config.
        wanted: its maps: "res2" of stride 4 to "res5" of 32; empty for all of these that it has. A
            plain network, whose maps have one size, gives "last" whatever is wanted.
        ends: instead of that, names for its last maps, whatever their strides.
        freeze_at: as MODEL.BACKBONE.FREEZE_AT: 1 freezes the stem, 2 its first stage too, ...
        options: of its constructor.

    Raises:
        D2CityscapesError: no such network, or one that cannot be used so; weights that do not fit
            or cannot be fetched.
    """
    weights = weights_of(cfg.MODEL.TIMM.NAME)
    if cfg.MODEL.RESNETS.FOLD_FROZEN_NORM:
        raise D2CityscapesError(
            "MODEL.RESNETS.FOLD_FROZEN_NORM True: not with a network of timm: set it to False"
        )
    net = create_network(cfg, weights, **options)
    if not _is_power(_features(net)[-1]["reduction"]):
        logger.info("%s: with patches of %d pixels", weights.name, _PATCH)
        net = create_network(cfg, weights, patch_size=_PATCH, **options)
    features = _features(net)
    strides = [feature["reduction"] for feature in features]
    plain = len(set(strides)) == 1
    if ends:
        outputs = dict(zip(ends, range(len(features) - len(ends), len(features)), strict=True))
    elif plain:
        outputs = {"last": len(features) - 1}
    else:
        outputs = _chosen(strides, wanted, weights.name)
    stages = stages_of(net, features, plain)
    kept = list(outputs.values())
    if hasattr(net, "prune_intermediate_layers"):
        kept = net.prune_intermediate_layers(kept, prune_norm=True)
    stages = [[name for name in names if has_parameters(net, name)] for names in stages]
    mean, std = pixel_statistics(cfg)
    found = TimmNet(
        net,
        dict(zip(outputs, kept, strict=True)),
        stages=stages,
        turned=cfg.INPUT.FORMAT == "BGR",
        again=_renormalisation(cfg, mean, std),
    )
    found.measure([strides[index] for index in outputs.values()], weights.name)
    change_norms(net, cfg.MODEL.TIMM.NORM, weights.name)
    freeze_stages(net, stages, freeze_at, weights.name)
    return found


def _features(net: Any) -> list[dict[str, Any]]:
    """What timm tells of its maps: "num_chs", "reduction" (stride), "module" (where one ends)."""
    return list(getattr(net.feature_info, "info", net.feature_info))


def _is_power(number: int) -> bool:
    return number > 0 and number & (number - 1) == 0


def _chosen(strides: Sequence[int], wanted: Sequence[str], name: str) -> dict[str, int]:
    """Name -> index of the last map of each stride that is wanted, finest first."""
    known = {
        f"res{stride.bit_length() - 1}": index
        for index, stride in enumerate(strides)
        if stride >= 4 and _is_power(stride)
    }
    missing = [key for key in wanted if key not in known]
    if missing or not known:
        raise D2CityscapesError(
            f"MODEL.FPN.IN_FEATURES, MODEL.TIMM.OUT_FEATURES: {name} has no {', '.join(missing)}; "
            f"it has {', '.join(known)}"
        )
    return {key: index for key, index in known.items() if not wanted or key in wanted}


def _renormalisation(
    cfg: CfgNode, mean: Sequence[float], std: Sequence[float]
) -> tuple[list[float], list[float]] | None:
    """From what the meta-architecture does by the config to what the network needs.

    The two differ where nobody has settled the config, see `settle_pixels`: when Detectron2 itself
    builds one of its own models.
    """
    given = list(zip(cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD, strict=True))
    wanted = list(zip(mean, std, strict=True))
    if all(
        math.isclose(a, b, abs_tol=0.01)
        for one, other in zip(given, wanted, strict=True)
        for a, b in zip(one, other, strict=True)
    ):
        return None
    factor = [b / d for (_, b), (_, d) in zip(given, wanted, strict=True)]
    summand = [(a - c) / d for (a, _), (c, d) in zip(given, wanted, strict=True)]
    return factor, summand
