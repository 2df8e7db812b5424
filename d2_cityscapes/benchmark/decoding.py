"""Our reading of PNGs beside other decoders, on the files of a Cityscapes tree.

In processor time, on one thread: what else the machine does counts for little. Decoders that are
not installed are left out; one that gives other pixels is a row that says so.
"""

from __future__ import annotations

import importlib.util
import io
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from d2_cityscapes.benchmark.comparison import Comparison, Value, compare, one_thread, reported
from d2_cityscapes.errors import D2CityscapesError
from d2_cityscapes.png import IDS, RGB, PngKind, read_png
from d2_cityscapes.sources.cityscapes import find_sources

__all__ = ["DecodingBenchmark", "benchmark_decoding"]

Decoder = Callable[[bytes], np.ndarray]


@dataclass(frozen=True)
class DecodingBenchmark:
    """What is compared.

    Attributes:
        cityscapes: root of a PNG tree in the official layout.
        split: "train" or "val".
        images: how many of the split are read.
        rounds: how often each decoder reads them; medians are reported.
    """

    cityscapes: Path
    split: str = "val"
    images: int = 16
    rounds: int = 5


def benchmark_decoding(
    settings: DecodingBenchmark, *, report: Callable[[Sequence[Comparison]], None]
) -> list[Comparison]:
    """Run all comparisons; ``report`` gets each group of them as soon as it is measured."""
    sources = find_sources(settings.cityscapes, settings.split)[: settings.images]
    files = {
        "pictures": (RGB, [source.image_path for source in sources]),
        "instance ids": (IDS, [s.ids_path for s in sources if s.ids_path is not None]),
    }
    with one_thread():
        groups = (
            _decode(f"{name} read, processor time", kind, paths, settings.rounds)
            for name, (kind, paths) in files.items()
            if paths
        )
        return reported(groups, report)


def _decode(measure: str, kind: PngKind, paths: Sequence[Path], rounds: int) -> list[Comparison]:
    others = _decoders()
    broken: dict[str, Value] = {
        name: "gives other pixels" for name in others if not _agrees(others[name], paths[0], kind)
    }
    runs: dict[str, Callable[[Path], object]] = {"ours": partial(read_png, kind=kind)}
    for name in others.keys() - broken.keys():
        runs[name] = partial(_read, others[name])
    seconds = _processor_seconds(runs, paths, rounds)
    peers = {name: broken.get(name) or 1e3 * seconds[name] / len(paths) for name in others}
    return compare(measure, "ms", 1e3 * seconds["ours"] / len(paths), peers)


def _read(decode: Decoder, path: Path) -> np.ndarray:
    return decode(path.read_bytes())


def _agrees(decode: Decoder, path: Path, kind: PngKind) -> bool:
    try:
        return np.array_equal(_read(decode, path), read_png(path, kind))
    except D2CityscapesError:
        raise
    except Exception:  # a decoder that cannot read such a file, in its own way
        return False


def _processor_seconds(
    runs: Mapping[str, Callable[[Path], object]], paths: Sequence[Path], rounds: int
) -> dict[str, float]:
    """Median over the rounds, in each of which every decoder reads all files once."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, read in runs.items():
            started = time.process_time()
            for path in paths:
                read(path)
            seconds[name].append(time.process_time() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}


def _decoders() -> dict[str, Decoder]:
    found: dict[str, Decoder] = {"Pillow": _pillow}
    for module, name, decoder in (
        ("cv2", "OpenCV", _opencv),
        ("torchcodec", "TorchCodec", _torchcodec),
        ("pywuffs", "pywuffs", _wuffs),
    ):
        if importlib.util.find_spec(module) is not None:
            found[name] = decoder
    return found


def _pillow(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data), formats=["PNG"]))


def _torchcodec(data: bytes) -> np.ndarray:
    from torchcodec.decoders import decode_png

    return decode_png(torch.frombuffer(bytearray(data), dtype=torch.uint8)).permute(1, 2, 0).numpy()


def _opencv(data: bytes) -> np.ndarray:
    import cv2

    pixels = np.asarray(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED))
    return pixels if pixels.ndim == 2 else pixels[..., ::-1]


def _wuffs(data: bytes) -> np.ndarray:
    from pywuffs import ImageDecoderQuirks, PixelFormat
    from pywuffs.aux import ImageDecoder, ImageDecoderConfig

    config = ImageDecoderConfig()
    config.quirks = {ImageDecoderQuirks.IGNORE_CHECKSUM: 0}
    is_rgb = data[25] == 2  # the colour type in its header
    config.pixel_format = PixelFormat.RGB if is_rgb else PixelFormat.Y_16LE
    pixels = ImageDecoder(config).decode(data).pixbuf
    return pixels if is_rgb else pixels.view("<u2")[..., 0]
