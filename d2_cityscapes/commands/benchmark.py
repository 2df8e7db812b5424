"""Measure this package beside stock Detectron2 and the official tools, in one run on this machine.

  data         listing, mapper, record read, first batch, throughput and memory: shards against
               Detectron2's own loading of the same PNG tree
  evaluation   panoptic quality against cityscapesscripts, instance AP against Detectron2's
               evaluators: the same noisy predictions, one thread
  decoding     our reading of PNGs against Pillow and the other decoders that are installed, in
               processor time; one that gives other pixels is a row that says so
  minidl       MiniDL and its semantic head against their direct form: the same parameters, one
               thread; on a GPU too, where there is one
  fusion       panoptic fusion, and all post-processing of an image, against Detectron2's: the same
               predictions, one thread; results that differ are an error
  train        training steps, data included, against Detectron2's trainer on the same PNG tree:
               the same model, weights and input size; losses that differ are an error. On the CPU
               stock computes in fp32, on a GPU also with TF32 and in mixed precision; there, peak
               memory and the share of time that the GPU is busy are compared too

               A contender that does not fit into the GPU is a row that says so

Several modes, e.g. "minidl fusion", run one after the other with the same options.
Where a mode needs scenes and has no --cityscapes, synthetic ones are made in --work-dir first, and
kept for the next run, as the shards are. Ratios above 1 are in favour of this package. Writes JSON,
and Markdown beside it, anew with every group of results: what ends a run loses none of them.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from d2_cityscapes.commands.cli import HelpFormatter, not_negative, positive
from d2_cityscapes.shipped import CONFIGS

if TYPE_CHECKING:
    from d2_cityscapes.benchmark.comparison import Comparison

__all__ = ["main"]

# A mode: its settings, and what measures by them.
Mode = tuple[Any, Callable[..., Any]]

SIZE = {"height": 1024, "width": 2048}


def parse_args(argv: Sequence[str] | None) -> list[argparse.Namespace]:
    """The arguments of each mode."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    modes = parser.add_subparsers(dest="mode", required=True)
    data = modes.add_parser("data", help="loading", formatter_class=HelpFormatter)
    evaluation = modes.add_parser("evaluation", help="scoring", formatter_class=HelpFormatter)
    decoding = modes.add_parser("decoding", help="PNGs", formatter_class=HelpFormatter)
    minidl = modes.add_parser("minidl", help="semantic head", formatter_class=HelpFormatter)
    fusion = modes.add_parser("fusion", help="post-processing", formatter_class=HelpFormatter)
    train = modes.add_parser("train", help="training steps", formatter_class=HelpFormatter)
    of_scenes = (
        (data, "train", 96, 3),
        (evaluation, "val", 16, 5),
        (decoding, "val", 16, 5),
        (train, "train", 24, 5),
    )
    for mode, split, images, rounds in of_scenes:
        mode.add_argument("--cityscapes", type=Path, help="root of a PNG tree; omit for synthetic")
        mode.add_argument("--split", default=split, choices=["train", "val"], help="of the tree")
        mode.add_argument(
            "--images", type=positive, default=images, help="synthetic scenes, 1024 x 2048, to make"
        )
        mode.add_argument(
            "--work-dir", type=Path, default=Path("benchmark_data"), help="for scenes and shards"
        )
        add_common(mode, rounds)
    add_training(train)
    add_common(minidl, rounds=1)  # the direct form takes two minutes
    add_common(fusion, rounds=5)
    data.add_argument(
        "--stock",
        nargs="+",
        default=["png-polygons", "png-rle", "json-polygons"],
        choices=["png-polygons", "png-rle", "json-polygons"],
        help="how Detectron2 reads the tree; polygons need OpenCV, JSON needs shapely",
    )
    data.add_argument(
        "--workers", type=not_negative, default=2, help="loader processes, both sides"
    )
    data.add_argument(
        "--batches", type=positive, default=24, help="batches of 4 for the throughput"
    )
    arguments = sys.argv[1:] if argv is None else list(argv)
    names = list(takewhile(modes.choices.__contains__, arguments))
    options = arguments[len(names) :]
    found = [parser.parse_args([name, *options]) for name in names] or [
        parser.parse_args(arguments)
    ]
    if len(found) > 1 and found[0].output is not None:
        parser.error("--output names the results of one mode; leave it out for several")
    return found


def add_training(train: argparse.ArgumentParser) -> None:
    train.add_argument(
        "--height", type=positive, help="px of the input; 512 on the CPU, 1024 on a GPU"
    )
    train.add_argument(
        "--width", type=positive, help="px of the input; 1024 on the CPU, 2048 on a GPU"
    )
    train.add_argument("--batch", type=positive, help="images in a step; 2 on the CPU, 4 on a GPU")
    train.add_argument(
        "--workers", type=not_negative, help="of each side; 0 on the CPU, 8 on a GPU"
    )
    train.add_argument("--steps", type=positive, help="timed in a turn; 3 on the CPU, 20 on a GPU")
    train.add_argument(
        "--amp",
        default="bfloat16",
        choices=["bfloat16", "float16", "none"],
        help="our mixed precision; Detectron2's is float16, on a GPU only",
    )
    train.add_argument(
        "--stock",
        default="json-polygons",
        choices=["png-polygons", "png-rle", "json-polygons"],
        help="how Detectron2 reads the tree; polygons need OpenCV, JSON needs shapely",
    )
    train.add_argument("--device", default="", help="cpu, cuda or cuda:1; a GPU where there is one")
    train.add_argument(
        "--no-profile", action="store_true", help="leave out the time that the GPU is busy"
    )
    train.add_argument("--compile", action="store_true", help="our model with MODEL.COMPILE")
    train.add_argument("--weights", default="", help="checkpoint for both sides; else random ones")
    train.add_argument(
        "--ours", nargs="*", default=[], metavar="KEY VALUE", help="overrides for our side"
    )


def add_common(mode: argparse.ArgumentParser, rounds: int) -> None:
    mode.add_argument("--rounds", type=positive, default=rounds, help="runs of each side, in turn")
    mode.add_argument("--output", type=Path, help="results; default benchmark_MODE.json")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command with these arguments, or those of the process."""
    modes = parse_args(argv)
    from d2_cityscapes import register_components

    register_components()
    from d2_cityscapes.files import check_beside, check_outputs

    for args in modes:
        args.output = args.output or Path(f"benchmark_{args.mode}.json")
        check_outputs([args.output, args.output.with_suffix(".md")], files_read(args))
        check_beside(args.output, args.output.with_suffix(".md"))
        check_weights(getattr(args, "weights", ""))
    for args in modes:
        measure_mode(args)


def check_weights(path: str) -> None:
    """Refuse a file that neither side could read; an address is left to them."""
    from d2_cityscapes.files import file_errors
    from d2_cityscapes.tensor_files import TensorFileError, read_tensor_file

    if path and "://" not in path:
        with file_errors(path, TensorFileError):
            read_tensor_file(path)


def files_read(args: argparse.Namespace) -> Iterator[Path]:
    """What a mode reads and was told of: weights, and the pictures and labels of a tree."""
    if getattr(args, "weights", ""):
        yield Path(args.weights)
    if getattr(args, "cityscapes", None) is not None:
        yield from args.cityscapes.rglob("*.*")


def measure_mode(args: argparse.Namespace) -> None:
    from d2_cityscapes.benchmark.comparison import as_markdown, write_comparisons

    prepare = {
        "data": prepare_data,
        "evaluation": prepare_evaluation,
        "decoding": prepare_decoding,
        "minidl": prepare_minidl,
        "fusion": prepare_fusion,
        "train": prepare_training,
    }[args.mode]
    settings, measure = prepare(args)
    found: list[Comparison] = []

    def write() -> None:
        write_comparisons(
            args.output,
            found,
            command=shlex.join(sys.argv),
            settings={name: str(value) for name, value in asdict(settings).items()},
        )

    def report(group: Sequence[Comparison]) -> None:
        print(as_markdown(group), flush=True)
        found.extend(group)
        write()

    measure(settings, report=report)
    write()
    print(f"wrote {args.output} and {args.output.with_suffix('.md')}")


def scenes(args: argparse.Namespace) -> Path:
    """Root of the PNG tree, made first unless there is one."""
    from d2_cityscapes.synthetic.dataset import make_tree

    if args.cityscapes is not None:
        return args.cityscapes
    tree = args.work_dir / f"cityscapes_{args.split}"
    counts = {"train": 0, "val": 0} | {args.split: args.images}
    make_tree(tree, **counts, **SIZE, seed=1, progress=True)
    return tree


def of_tree(args: argparse.Namespace) -> dict[str, Any]:
    """Settings of what reads the files of a tree."""
    names = ("split", "images", "rounds")
    return {"cityscapes": scenes(args)} | {name: getattr(args, name) for name in names}


def prepare_data(args: argparse.Namespace) -> Mode:
    from d2_cityscapes.benchmark.data import DataBenchmark, benchmark_data
    from d2_cityscapes.shards.writer import write_shards
    from d2_cityscapes.sources.cityscapes import find_sources

    tree, shards = scenes(args), args.work_dir / "shards"
    write_shards(find_sources(tree, args.split), shards, split=args.split, progress=True)
    settings = DataBenchmark(
        cityscapes=tree,
        shards=shards,
        stock=args.stock,
        split=args.split,
        workers=args.workers,
        rounds=args.rounds,
        batches=args.batches,
    )
    return settings, benchmark_data


def prepare_evaluation(args: argparse.Namespace) -> Mode:
    from d2_cityscapes.benchmark.evaluation import EvaluationBenchmark, benchmark_evaluation

    return EvaluationBenchmark(**of_tree(args)), benchmark_evaluation


def prepare_decoding(args: argparse.Namespace) -> Mode:
    from d2_cityscapes.benchmark.decoding import DecodingBenchmark, benchmark_decoding

    return DecodingBenchmark(**of_tree(args)), benchmark_decoding


def prepare_minidl(args: argparse.Namespace) -> Mode:
    from d2_cityscapes.benchmark.minidl import MiniDLBenchmark, benchmark_minidl

    settings = MiniDLBenchmark(rounds=args.rounds)
    return settings, benchmark_minidl


def prepare_fusion(args: argparse.Namespace) -> Mode:
    from d2_cityscapes.benchmark.fusion import FusionBenchmark, benchmark_fusion

    settings = FusionBenchmark(rounds=args.rounds)
    return settings, benchmark_fusion


def prepare_training(args: argparse.Namespace) -> Mode:
    from d2_cityscapes.benchmark.device import check_device, default_device, is_gpu
    from d2_cityscapes.benchmark.trainers import TrainingBenchmark
    from d2_cityscapes.benchmark.training import benchmark_training
    from d2_cityscapes.shards.writer import write_shards
    from d2_cityscapes.sources.cityscapes import find_sources

    device = args.device or default_device()
    check_device(device)
    tree, shards = scenes(args), args.work_dir / "shards"
    write_shards(find_sources(tree, args.split), shards, split=args.split, progress=True)
    sizes = {"height": 512, "width": 1024, "batch": 2, "workers": 0, "steps": 3}
    if is_gpu(device):
        sizes = {"height": 1024, "width": 2048, "batch": 4, "workers": 8, "steps": 20}
    given = {name: getattr(args, name) for name in sizes if getattr(args, name) is not None}
    settings = TrainingBenchmark(
        cityscapes=tree,
        shards=shards,
        config=CONFIGS / "stage3.yaml",
        split=args.split,
        stock=args.stock,
        rounds=args.rounds,
        amp="" if args.amp == "none" else args.amp,
        compile=args.compile,
        weights=args.weights,
        overrides=args.ours,
        device=device,
        profile=not args.no_profile,
        **sizes | given,
    )
    return settings, benchmark_training
