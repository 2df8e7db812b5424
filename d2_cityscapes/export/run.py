"""Run the exported model that lies beside this file, on one picture or from Python.

    python run.py picture.jpg --output seen.png

    from run import load
    found = load("FOLDER")(image)  # (H, W, 3) uint8 RGB

It needs numpy, Pillow, and what runs the format: onnxruntime, openvino, or torch with torchvision.
`found` has, as the model predicts:

    "sem_seg"       (H, W) uint8 train ids, by model.json's list "classes"
    "instances"     {"boxes": (N, 4) float32 XYXY in pixels, "scores": (N,) float32, descending,
                    "classes": (N,) int64, by model.json's list "things", "masks": (N, H, W) bool}
    "panoptic_ids"  (H, W) int32: label id * 1000 + k for an instance, the plain label id for
                    other pixels, 0 for none

Nothing but model.json and the model's own files in the folder is read, and none of it is code.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

__all__ = ["draw", "load", "main", "network_size"]

Arrays = dict[str, Any]
Runtime = Callable[[list[np.ndarray]], Sequence]
_DRAWN = 0.5  # least score of an instance in a drawing


def load(folder: str | Path) -> Callable[[np.ndarray], Arrays]:
    """The model of a folder, as a function of a picture: (H, W, 3) uint8 RGB, as above."""
    folder = Path(folder)
    about = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    run = _RUNTIMES[about["format"]](folder)
    return lambda image: _predict(about, run, image)


def _predict(about: Arrays, run: Runtime, image: np.ndarray) -> Arrays:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"a picture is (H, W, 3) uint8; this is {image.shape} {image.dtype}")
    size, fixed, wanted = image.shape[:2], about["input"]["fixed"], about["input"]
    if fixed and list(size) != fixed:
        raise ValueError(f"exported for pictures of {fixed} (H, W) alone; this is {list(size)}")
    h, w = network_size(wanted, *size)
    pixels, multiple = _resized(image, (h, w), wanted["filter"]), wanted["multiple"]
    if not fixed:
        pixels = np.pad(pixels, ((0, -h % multiple), (0, -w % multiple), (0, 0)))
    inputs = [np.ascontiguousarray(pixels), np.array([h, w, *size], dtype=np.int64)]
    outputs = dict(zip(about["outputs"], run(inputs[: 1 if fixed else 2]), strict=True))
    found: Arrays = {}
    if "sem_seg" in outputs:
        found["sem_seg"] = outputs["sem_seg"]
    if "boxes" in outputs:
        found["instances"] = _instances(outputs, (h, w), size)
    if about["panoptic"]:
        found["panoptic_ids"] = _fused(found["sem_seg"], found["instances"], about)
    return found


def network_size(wanted: Arrays, height: int, width: int) -> tuple[int, int]:
    """(h, w) that the network sees a picture in: by its short edge, or always the same."""
    if wanted["network"]:
        return wanted["network"][0], wanted["network"][1]
    short, longest = wanted["short_edge"], wanted["longest_edge"]
    if not short:
        return height, width
    scale = short / min(height, width)
    h, w = (short, scale * width) if height < width else (scale * height, short)
    if max(h, w) > longest:
        shrink = longest / max(h, w)
        h, w = h * shrink, w * shrink
    return int(h + 0.5), int(w + 0.5)


def _resized(image: np.ndarray, size: tuple[int, int], kind: str) -> np.ndarray:
    """Bilinear, as the model was tested: by Pillow, as PyTorch does it to the bit, or "plain"."""
    if image.shape[:2] == size:
        return image
    if kind == "pil":
        return np.array(Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR))
    along = {"torch": _resized_along, "plain": _between_two}[kind]
    for axis in (1, 0):
        if image.shape[axis] != size[axis]:
            image = along(image, axis, size[axis])
    return image if kind == "torch" else np.round(image).astype(np.uint8)


def _between_two(image: np.ndarray, axis: int, length: int) -> np.ndarray:
    """Without antialiasing, as float32."""
    old = image.shape[axis]
    scale, half = np.float32(old / length), np.float32(0.5)
    places = np.maximum((np.arange(length, dtype=np.float32) + half) * scale - half, 0)
    first = places.astype(int)
    shape = [length if axis == own else 1 for own in range(3)]
    part = (places - first.astype(np.float32)).reshape(shape)
    before = image.take(first, axis=axis).astype(np.float32)
    behind = image.take(np.minimum(first + 1, old - 1), axis=axis).astype(np.float32)
    return before * (1 - part) + behind * part


def _resized_along(image: np.ndarray, axis: int, length: int) -> np.ndarray:
    """PyTorch's filter of bytes: weights of 16 bits, as precise as the largest of them allows."""
    old = image.shape[axis]
    scale = old / length
    reach = max(scale, 1.0)
    centres = scale * (np.arange(length) + 0.5)
    first = np.maximum((centres - reach + 0.5).astype(int), 0)
    last = np.minimum((centres + reach + 0.5).astype(int), old)
    places = first[:, None] + np.arange((last - first).max())
    weights = np.maximum(1 - np.abs((places - centres[:, None] + 0.5) * (1 / reach)), 0)
    weights *= places < last[:, None]
    weights /= weights.sum(axis=1, keepdims=True)
    bits = 0
    while bits < 22 and int(0.5 + weights.max() * (1 << (bits + 1))) < 1 << 15:
        bits += 1
    whole = (0.5 + weights * (1 << bits)).astype(np.int32)
    places = np.minimum(places, old - 1)
    shape = [1, 1, 1]
    shape[axis] = length
    total: Any = np.int32(1 << (bits - 1))
    for place, weight in zip(places.T, whole.T, strict=True):
        total = total + weight.reshape(shape) * image.take(place, axis=axis)
    result: np.ndarray = np.clip(total >> bits, 0, 255).astype(np.uint8)
    return result


def _instances(outputs: Arrays, network: tuple[int, int], size: tuple[int, ...]) -> Arrays:
    """Detections in pixels of the picture, their masks pasted; those of no area are left out."""
    (h, w), (height, width) = network, size
    scales = np.array([width / w, height / h] * 2, dtype=np.float32)
    boxes = np.clip(outputs["boxes"] * scales, 0, np.array([width, height] * 2, dtype=np.float32))
    kept = ((boxes[:, 2:] - boxes[:, :2]) > 0).all(axis=1)
    found = {name: outputs[name][kept] for name in ("scores", "classes")} | {"boxes": boxes[kept]}
    if "masks" in outputs:
        found["masks"] = np.zeros((len(found["boxes"]), height, width), dtype=bool)
        for mask, cells, box in zip(
            found["masks"], outputs["masks"][kept], found["boxes"], strict=True
        ):
            x0, y0 = np.maximum(np.floor(box[:2]).astype(int) - 1, 0)
            x1, y1 = np.minimum(np.ceil(box[2:]).astype(int) + 1, [width, height])
            rows = _weights(y0, y1, box[1], box[3], len(cells))
            columns = _weights(x0, x1, box[0], box[2], len(cells))
            mask[y0:y1, x0:x1] = rows @ cells @ columns.T >= 0.5
    return found


def _weights(first: int, last: int, start: float, end: float, cells: int) -> np.ndarray:
    """(last - first, cells) bilinear weights of the cells of a box, 0 outside of it."""
    places = (np.arange(first, last, dtype=np.float32) + 0.5 - start) / (end - start) * cells - 0.5
    return np.maximum(1 - np.abs(places[:, None] - np.arange(cells)), 0).astype(np.float32)


def _fused(labels: np.ndarray, instances: Arrays, about: Arrays) -> np.ndarray:
    """(H, W) int32 ids: instances, best first, where no better one is; then stuff of some area."""
    rules, classes = about["panoptic"], about["classes"]
    ids, free = np.zeros(labels.shape, dtype=np.int32), np.ones(labels.shape, dtype=bool)
    counts: Counter[int] = Counter()
    for i in np.argsort(-instances["scores"], kind="stable"):
        if not instances["scores"][i] > rules["score_threshold"]:
            break
        mask = instances["masks"][i]
        new = mask & free
        area, own = int(mask.sum()), int(new.sum())
        if own and (area - own) / area <= rules["overlap_threshold"]:
            label = classes[about["things"][instances["classes"][i]]]["label_id"]
            ids[new] = label * 1000 + counts[label]
            counts[label] += 1
            free &= ~new
    for train_id, entry in enumerate(classes):
        where = free & (labels == train_id)
        if not entry["is_thing"] and where.sum() >= max(rules["stuff_area_limit"], 1):
            ids[where] = entry["label_id"]
    return ids


def draw(image: np.ndarray, found: Arrays, about: Arrays) -> np.ndarray:
    """(H, W, 3) uint8: the picture under the colours of what was found, instances outlined."""
    classes, things = about["classes"], about.get("things", [])
    ids = found.get("panoptic_ids")
    if ids is None and "sem_seg" in found:
        ids = np.array([c["label_id"] for c in classes] + [0] * 256)[found["sem_seg"]]
    if ids is None:
        ids, own = np.zeros(image.shape[:2], dtype=int), found["instances"]
        for i in np.flatnonzero(own["scores"] >= _DRAWN)[::-1]:
            label = classes[things[own["classes"][i]]]["label_id"]
            x0, y0, x1, y1 = own["boxes"][i].astype(int)
            where = own["masks"][i] if "masks" in own else np.s_[y0:y1, x0:x1]
            ids[where] = label * 1000 + i
    colours = {c["label_id"]: c["color"] for c in classes}
    seen, which = np.unique(ids, return_inverse=True)
    of_id = [colours.get(i // 1000 if i >= 1000 else i) for i in seen.tolist()]
    painted = np.array([c or [0, 0, 0] for c in of_id])[which.reshape(ids.shape)]
    known = np.array([c is not None for c in of_id])[which.reshape(ids.shape)]
    drawn = np.where(known[..., None], (image.astype(int) + painted) // 2, image)
    edges = np.zeros(ids.shape, dtype=bool)
    edges[:, 1:] |= ids[:, 1:] != ids[:, :-1]
    edges[1:] |= ids[1:] != ids[:-1]
    drawn[edges & (ids >= 1000)] = 255
    return drawn.astype(np.uint8)


def _onnx(folder: Path) -> Runtime:
    import onnxruntime

    path = str(folder / "model.onnx")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]
    return lambda inputs: session.run(None, dict(zip(names, inputs, strict=True)))


def _openvino(folder: Path) -> Runtime:
    import openvino

    exact = {"INFERENCE_PRECISION_HINT": "f32"}
    model = openvino.Core().compile_model(str(folder / "model.xml"), "CPU", exact)
    return lambda inputs: list(model(inputs).values())


def _torch_export(folder: Path) -> Runtime:
    import torch
    import torchvision  # noqa: F401  # its operators

    program = torch.export.load(folder / "model.pt2")
    try:  # of the sizes, it would ask for what the tracing met, which small pictures are not
        module = program.module(check_guards=False)
    except TypeError:  # older ones do not check
        module = program.module()

    def run(inputs: list[np.ndarray]) -> Sequence:
        with torch.no_grad():
            return [output.numpy() for output in module(*map(torch.from_numpy, inputs))]

    return run


_RUNTIMES = {"onnx": _onnx, "openvino": _openvino, "torch-export": _torch_export}


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command with these arguments, or those of the process."""
    parser = argparse.ArgumentParser(description="Run the model beside this file on a picture.")
    parser.add_argument("picture", type=Path, help="PNG, JPEG or another that Pillow reads")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="drawing")
    args = parser.parse_args(argv)
    folder = Path(__file__).resolve().parent
    try:
        with Image.open(args.picture) as picture:
            image = np.array(ImageOps.exif_transpose(picture).convert("RGB"))
        found = load(folder)(image)
        about = json.loads((folder / "model.json").read_text(encoding="utf-8"))
        Image.fromarray(draw(image, found, about)).save(args.output)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {args.picture}: {error}")
    if "instances" in found:
        own = found["instances"]
        strong = own["classes"][own["scores"] >= _DRAWN].tolist()
        names = [about["classes"][about["things"][c]]["name"] for c in strong]
        print(", ".join(f"{n} {name}" for name, n in Counter(names).items()) or "no instances")
    print(f"wrote {args.output}")


if __name__ == "__main__":
    main()
