# PYTHON_ARGCOMPLETE_OK
"""The command ``d2c``: every command of d2_cityscapes as a subcommand.

It stands beside the package because importing that registers its parts with Detectron2, which takes
seconds. Here a command reads its arguments first, and imports afterwards what they ask for.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

__all__ = ["main", "run_command"]

# subcommand: (module of d2_cityscapes.commands, what it does)
COMMANDS = {
    "scenes": ("make_synthetic", "make up street scenes in the layout of Cityscapes"),
    "prepare": ("prepare_shards", "pack a dataset, or pictures of your own, into shards, once"),
    "stats": ("dataset_stats", "count images, objects, sizes and classes of a dataset"),
    "anchors": ("kmeans_anchors", "fit anchors to the boxes of a dataset"),
    "train": ("train_net", "train or evaluate a model that a config describes"),
    "stages": ("run_stages", "train the stages of the recipe, one after another"),
    "search": ("search", "search the hyperparameters of a training"),
    "predict": ("predict", "draw and save what a trained model finds in pictures"),
    "evaluate": ("evaluate_panoptic", "score anybody's panoptic predictions"),
    "report": ("report", "write the report page of a training"),
    "convert": ("convert_weights", "convert weights from and to other code bases"),
    "export": ("export", "export a trained model to run elsewhere: ONNX, OpenVINO, ..."),
    "benchmark": ("benchmark", "measure this package beside stock Detectron2"),
    "doctor": ("doctor", "look for what keeps a training from working here"),
    "install-detectron2": ("install_detectron2", "install Detectron2 into this Python"),
}
_ASKED = ("-h", "--help")
_COMPLETING = "_ARGCOMPLETE"  # set by the shell when TAB is pressed
_PLAIN = "D2_CITYSCAPES_PLAIN"


def main(argv: Sequence[str] | None = None) -> None:
    """Run ``d2c SUBCOMMAND ...`` and leave the process: 0 done, 1 failed, 2 wrong arguments."""
    if _COMPLETING in os.environ:
        _complete()
    arguments = list(sys.argv[1:] if argv is None else argv)
    name = arguments[0] if arguments else "--help"
    if name in _ASKED:
        print(_help())
    elif name == "--version":
        print(_plain_import("d2_cityscapes").__version__)
    elif name in COMMANDS:
        run_command(COMMANDS[name][0], arguments[1:], program=f"d2c {name}")
    else:
        hint = _plain_import("d2_cityscapes.errors").nearest(name, COMMANDS)
        print(f"error: d2c has no command {name!r}{hint}; d2c --help lists them", file=sys.stderr)
        sys.exit(2)


def run_command(
    module: str, argv: Sequence[str] | None = None, *, program: str | None = None
) -> None:
    """Run a command and leave the process: 0 done, 1 failed with one line, 2 wrong arguments.

    Args:
        module: its module below ``d2_cityscapes.commands``.
        argv: its arguments; None for those of the process.
        program: what its help calls it; None for the script that runs.
    """
    command = _plain_import(f"d2_cityscapes.commands.{module}")
    if program:
        sys.argv[0] = program
    _plain_import("d2_cityscapes.errors").run(lambda: command.main(argv))


def __getattr__(name: str) -> object:
    """``d2c.load``, for those who import the command in place of the package."""
    if name != "load":
        raise AttributeError(f"module 'd2c' has no attribute {name!r}")
    return importlib.import_module("d2_cityscapes").load


def _complete() -> None:
    """Offer the shell what may stand where TAB was pressed, and leave the process."""
    _plain_import("d2_cityscapes.commands.completion").complete(
        {name: does for name, (_, does) in COMMANDS.items()},
        lambda name, words: run_command(COMMANDS[name][0], words, program=f"d2c {name}"),
    )


def _plain_import(name: str) -> object:
    """Import without registering anything, unless that is done already.

    Commands register what they need. So do processes that they start, which begin anew.
    """
    before = os.environ.get(_PLAIN)
    os.environ[_PLAIN] = "1"
    try:
        return importlib.import_module(name)
    finally:
        del os.environ[_PLAIN]
        if before is not None:
            os.environ[_PLAIN] = before


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = (f"  {name:<{width}}  {does}" for name, (_, does) in COMMANDS.items())
    return "\n".join(
        [
            "usage: d2c COMMAND ...",
            "",
            "Instance, semantic and panoptic segmentation of street scenes, on Detectron2.",
            "",
            *lines,
            "",
            'eval "$(register-python-argcomplete d2c)"  # in bash and zsh: TAB completes d2c',
            "",
            "d2c COMMAND --help says more. A first tour, in this order:",
            "",
            "  d2c scenes --output tree --train 24 --val 8 --height 256 --width 512",
            "  d2c prepare --cityscapes tree --output datasets/cityscapes_shards",
            "  DETECTRON2_DATASETS=datasets d2c train --config-file quick/instance.yaml",
            "  d2c report output",
        ]
    )


if __name__ == "__main__":
    main()
