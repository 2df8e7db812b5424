"""Weights of facebookresearch/Mask2Former as those of a `UniversalSegmentor`.

Its networks are Detectron2's or Swin's with the same layers as transformers', under other names;
only attention in one matrix there is three here. Values stay.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from torch import Tensor

from d2_cityscapes.convert.files import (
    STEPS,
    Conversion,
    convert_weights,
    counted,
    mismatch,
)
from d2_cityscapes.labels import CITYSCAPES
from d2_cityscapes.labels.record import class_record

__all__ = ["convert_mask2former_file", "mask2former_to_universal"]

_PIXELS = "network.model.pixel_level_module."
_ENCODER, _DECODER = f"{_PIXELS}encoder.", f"{_PIXELS}decoder."
_TRANSFORMER = "network.model.transformer_module."
_SWIN = f"{_ENCODER}swin."
_CLASSES = "network.class_predictor."
# Left behind: what the network computes by itself, what only trains, an ImageNet classifier.
_IDLE = re.compile(
    rf".*{STEPS}|criterion\..*|.*relative_position_index|backbone\.(head|norm|stem\.fc|fc)\..*"
)
_STAGE = f"{_ENCODER}encoder.stages.{{0}}.layers.{{1}}."
_BLOCK = f"{_SWIN}encoder.layers.{{0}}.blocks.{{1}}."
_LAYER = f"{_TRANSFORMER}decoder.layers.{{0}}."
_HEAD, _PREDICTOR = r"sem_seg_head\.pixel_decoder\.", r"sem_seg_head\.predictor\."
_RES, _SWIN_BLOCK = r"backbone\.res(\d)\.(\d+)\.", r"backbone\.layers\.(\d)\.blocks\.(\d+)\."
_PIXEL_LAYER = rf"{_HEAD}transformer\.encoder\.layers\.(\d+)\."
# Their module, as a pattern -> ours, in which {0}, {1}, ... are its groups.
_RULES = {
    r"backbone\.stem\.conv1": f"{_ENCODER}embedder.embedder.convolution",
    r"backbone\.stem\.conv1\.norm": f"{_ENCODER}embedder.embedder.normalization",
    rf"{_RES}shortcut": f"{_STAGE}shortcut.convolution",
    rf"{_RES}shortcut\.norm": f"{_STAGE}shortcut.normalization",
    rf"{_RES}conv(\d)": f"{_STAGE}layer.{{2}}.convolution",
    rf"{_RES}conv(\d)\.norm": f"{_STAGE}layer.{{2}}.normalization",
    r"backbone\.patch_embed\.proj": f"{_SWIN}embeddings.patch_embeddings.projection",
    r"backbone\.patch_embed\.norm": f"{_SWIN}embeddings.norm",
    rf"{_SWIN_BLOCK}norm1": f"{_BLOCK}layernorm_before",
    rf"{_SWIN_BLOCK}norm2": f"{_BLOCK}layernorm_after",
    rf"{_SWIN_BLOCK}attn": f"{_BLOCK}attention.relative_position_bias",
    rf"{_SWIN_BLOCK}attn\.qkv": f"{_BLOCK}attention.?_proj",
    rf"{_SWIN_BLOCK}attn\.proj": f"{_BLOCK}attention.o_proj",
    rf"{_SWIN_BLOCK}mlp\.(fc[12])": f"{_BLOCK}mlp.{{2}}",
    r"backbone\.layers\.(\d)\.downsample\.(reduction|norm)": (
        f"{_SWIN}encoder.layers.{{0}}.downsample.{{1}}"
    ),
    r"backbone\.norm(\d)": f"{_ENCODER}hidden_states_norms.stage{{0}}",
    rf"{_HEAD}(adapter|layer)_(\d)": f"{_DECODER}{{0}}_{{1}}.0",
    rf"{_HEAD}(adapter|layer)_(\d)\.norm": f"{_DECODER}{{0}}_{{1}}.1",
    rf"{_HEAD}input_proj\.(\d)\.(\d)": f"{_DECODER}input_projections.{{0}}.{{1}}",
    rf"{_HEAD}transformer": _DECODER.rstrip("."),
    rf"{_PIXEL_LAYER}self_attn\.(\w+)": f"{_DECODER}encoder.layers.{{0}}.self_attn.{{1}}",
    rf"{_PIXEL_LAYER}norm1": f"{_DECODER}encoder.layers.{{0}}.self_attn_layer_norm",
    rf"{_PIXEL_LAYER}norm2": f"{_DECODER}encoder.layers.{{0}}.final_layer_norm",
    rf"{_PIXEL_LAYER}linear([12])": f"{_DECODER}encoder.layers.{{0}}.fc{{1}}",
    rf"{_HEAD}mask_features": f"{_DECODER}mask_projection",
    rf"{_PREDICTOR}transformer_self_attention_layers\.(\d+)\.self_attn": (
        f"{_LAYER}self_attn.?_proj"
    ),
    rf"{_PREDICTOR}transformer_self_attention_layers\.(\d+)\.self_attn\.out_proj": (
        f"{_LAYER}self_attn.out_proj"
    ),
    rf"{_PREDICTOR}transformer_self_attention_layers\.(\d+)\.norm": (
        f"{_LAYER}self_attn_layer_norm"
    ),
    rf"{_PREDICTOR}transformer_cross_attention_layers\.(\d+)\.multihead_attn": (
        f"{_LAYER}cross_attn"
    ),
    rf"{_PREDICTOR}transformer_cross_attention_layers\.(\d+)\.multihead_attn\.out_proj": (
        f"{_LAYER}cross_attn.out_proj"
    ),
    rf"{_PREDICTOR}transformer_cross_attention_layers\.(\d+)\.norm": (
        f"{_LAYER}cross_attn_layer_norm"
    ),
    rf"{_PREDICTOR}transformer_ffn_layers\.(\d+)\.linear([12])": f"{_LAYER}fc{{1}}",
    rf"{_PREDICTOR}transformer_ffn_layers\.(\d+)\.norm": f"{_LAYER}final_layer_norm",
    rf"{_PREDICTOR}decoder_norm": f"{_TRANSFORMER}decoder.layernorm",
    rf"{_PREDICTOR}mask_embed\.layers\.(\d)": (
        f"{_TRANSFORMER}decoder.mask_predictor.mask_embedder.{{0}}.0"
    ),
    rf"{_PREDICTOR}query_embed": f"{_TRANSFORMER}queries_embedder",
    rf"{_PREDICTOR}(query_feat|static_query)": f"{_TRANSFORMER}queries_features",
    rf"{_PREDICTOR}level_embed": f"{_TRANSFORMER}level_embed",
    rf"{_PREDICTOR}input_proj\.(\d)": f"{_TRANSFORMER}input_projections.{{0}}",
    rf"{_PREDICTOR}class_embed": _CLASSES.rstrip("."),
}
_COUNTED_FROM = {rf"{_RES}": (2, 0, 1), r"backbone\.norm": (-1,)}  # groups that begin elsewhere


def convert_mask2former_file(
    input: Path, output: Path, *, details: bool = False
) -> tuple[str, ...]:
    """See `mask2former_to_universal` and `d2_cityscapes.convert.convert_file`."""
    return convert_weights(mask2former_to_universal, input, output, details=details)


def mask2former_to_universal(weights: Mapping[str, Tensor]) -> Conversion:
    """Rename a network of Mask2Former, or a backbone alone, for a `UniversalSegmentor`.

    Args:
        weights: by their names. A ResNet of Detectron2 or a Swin, with or without the heads; a
            backbone alone may lack the "backbone." before its names, or have "backbone.bottom_up."
            as in the output of "torchvision-deeplab".

    Raises:
        ConversionError: another network.
    """
    alone = not any(name.startswith("sem_seg_head.") for name in weights)
    whole = _as_backbone if alone else _as_of_now
    names = {whole(name): name for name in weights}
    own = {ours: weights[name] for ours, name in names.items()}
    left = [name for name in own if _IDLE.fullmatch(name)]
    tensors: dict[str, Tensor] = {}
    sources: dict[str, str] = {}
    unknown = []
    for name, tensor in own.items():
        if name in left:
            continue
        found = dict(_renamed(name, tensor))
        tensors |= found
        sources |= dict.fromkeys(found, names[name])
        if not found:
            unknown.append(f"unknown: {name}")
    if not tensors or unknown:
        raise mismatch("not a network of Mask2Former", unknown or ["no weights"])
    rows = len(tensors.get(f"{_CLASSES}bias", ())) - 1
    of_cityscapes = rows == len(CITYSCAPES.classes)
    return Conversion(
        tensors,
        (
            f"converted {counted(len(own) - len(left), 'tensor')} of {len(own)}: "
            f"{sum(t.numel() for t in tensors.values()):,} numbers",
            f"left behind: {', '.join(left[:3]) + ', ...' * (len(left) > 3) or 'nothing'}",
            *_about(alone, rows, of_cityscapes),
        ),
        class_record(CITYSCAPES) if of_cityscapes else None,
        sources,
    )


def _as_backbone(name: str) -> str:
    return "backbone." + name.removeprefix("backbone.").removeprefix("bottom_up.")


def _as_of_now(name: str) -> str:
    """Its first checkpoints did not tell the pixel decoder from the head."""
    return re.sub(r"^sem_seg_head\.(?!pixel_decoder\.|predictor\.)", _HEAD.replace("\\", ""), name)


def _renamed(name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Our names of a tensor and what belongs to each; none where it is unknown."""
    module, _, kind = name.rpartition(".")
    for pattern, place in _RULES.items():
        match = re.fullmatch(pattern, module)
        if match is None:
            continue
        first = next((n for begin, n in _COUNTED_FROM.items() if pattern.startswith(begin)), ())
        groups = list(match.groups())
        for i, number in enumerate(first[: len(groups)]):
            if groups[i].isdecimal():
                groups[i] = str(int(groups[i]) - number)
        ours = place.format(*groups)
        if "?" not in ours:
            yield f"{ours}.{kind}", tensor
            return
        parts = zip("qkv", tensor.chunk(3), strict=True)
        yield from ((f"{ours.replace('?', n)}.{kind.split('_')[-1]}", part) for n, part in parts)
        return


def _about(alone: bool, rows: int, of_cityscapes: bool) -> Iterator[str]:
    """What to do with it."""
    if alone:
        yield "a backbone alone: a training begins with it (configs/universal)"
    elif of_cityscapes:
        yield "19 classes, taken for those of Cityscapes in its order"
    else:
        yield (
            f"{rows} classes, not those of Cityscapes: training begins from all but what predicts "
            "them"
        )
