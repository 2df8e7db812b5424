"""The start of a run: where it writes, and that an evaluation leaves the record of a training."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from d2_cityscapes.engine.setup import ConfigError
from d2_cityscapes.engine.start import checked_config, setup
from d2_cityscapes.engine.trainer import Trainer, evaluate, train
from d2_cityscapes.errors import D2CityscapesError
from d2_cityscapes.evaluation.results import read_results
from d2_cityscapes.run_folder import evaluation_folder
from d2_cityscapes.yaml_text import load_yaml

pytestmark = pytest.mark.usefixtures("datasets")
ONE, TWO = "cityscapes_shards_val_1", "cityscapes_shards_val_2"


@pytest.fixture
def arguments(repository: Path, tmp_path: Path) -> Callable[..., argparse.Namespace]:
    """(KEY, VALUE, ...) -> arguments of a command line; OUTPUT_DIR in the test's folder."""

    def make(
        *opts: object, eval_only: bool = False, config: str | Path = "semantic"
    ) -> argparse.Namespace:
        file = repository / f"configs/quick/{config}.yaml" if isinstance(config, str) else config
        own = ["SOLVER.MAX_ITER", "1", "TEST.EXPECTED_RESULTS", "[]", "DATALOADER.NUM_WORKERS", "0"]
        place = ["OUTPUT_DIR", str(tmp_path / "out"), "DATASETS.TEST", f"({ONE!r},)"]
        return argparse.Namespace(
            config_file=str(file), opts=[*own, *place, *map(str, opts)], eval_only=eval_only
        )

    return make


@pytest.fixture
def weights(arguments: Callable, tmp_path: Path) -> Path:
    torch.manual_seed(0)
    model = Trainer.build_model(checked_config(arguments()))
    torch.save({"model": model.state_dict()}, tmp_path / "weights.pth")
    return tmp_path / "weights.pth"


def _content(folder: Path) -> dict[str, bytes]:
    """Of all files but those of evaluations, and the log, which goes on in this process."""
    files = [p for p in folder.rglob("*") if p.is_file()]
    names = {p.relative_to(folder).as_posix(): p for p in files}
    own = {n: p for n, p in names.items() if not n.startswith("evaluation/") and n != "log.txt"}
    return {n: p.read_bytes() for n, p in own.items()}


def test_a_training_does_not_overwrite_what_it_is_made_from(
    arguments: Callable, weights: Path, tmp_path: Path
) -> None:
    """A config that begins with that of another run, and so writes where that did; weights."""
    out = tmp_path / "out"
    out.mkdir()
    cfg = checked_config(arguments())
    (out / "config.yaml").write_text(cfg.dump())
    weights.rename(out / "model_final.pth")
    (out / "model_final.safetensors").touch()
    before = _content(out)
    (tmp_path / "mine.yaml").write_text("_BASE_: out/config.yaml\nSOLVER: {BASE_LR: 0.5}\n")
    for config, weight, word in (
        (tmp_path / "mine.yaml", "", "config.yaml"),
        ("semantic", out / "model_final.pth", "model_final.pth"),
        ("semantic", out / "model_final.safetensors", "model_final.safetensors"),
    ):
        args = arguments("MODEL.WEIGHTS", weight, config=config)
        args.resume = False
        with pytest.raises(D2CityscapesError, match=f"{word}: is read here too"):
            setup(args)
        assert _content(out) == before
    args = arguments(config=out / "config.yaml")
    args.resume = False
    setup(args)  # a rerun: the values that are there come out again
    assert load_yaml((out / "config.yaml").read_text()) == load_yaml(cfg.dump())


def test_an_evaluation_leaves_the_training_as_it_is(
    arguments: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    train(setup(arguments("TEST.NUM_PICTURES", 1)))
    before = _content(out)
    assert {"config.yaml", "results.json", "model_final.pth"} <= before.keys()
    by_hand = ["MODEL.WEIGHTS", out / "model_final.pth", "TEST.NUM_PICTURES", 1]
    for dataset in (TWO, ONE, TWO):
        cfg = setup(
            arguments(
                *by_hand, "DATASETS.TEST", f"({dataset!r},)",
                config=out / "config.yaml", eval_only=True,
            )
        )  # fmt: skip
        evaluate(cfg)
    assert _content(out) == before
    for dataset in (ONE, TWO):
        own = out / "evaluation" / dataset
        rows, about = read_results(own / "results.json")
        assert {row.dataset for row in rows} == {dataset}
        assert about["weights_sha256"] == read_results(out / "results.json")[1]["weights_sha256"]
        assert {p.name for p in own.iterdir()} >= {"evaluation.yaml", "log.txt", "pictures"}
        assert [p.name for p in (own / "pictures").iterdir()] == [dataset]


def test_an_evaluation_has_a_folder_without_training_to_itself(
    arguments: Callable, weights: Path, tmp_path: Path, log
) -> None:
    out = tmp_path / "out"
    for dataset in (ONE, ONE, TWO):
        opts = ["MODEL.WEIGHTS", weights, "DATASETS.TEST", f"({dataset!r},)"]
        evaluate(setup(arguments(*opts, eval_only=True)))
        rows, _ = read_results(out / "results.json")
        assert {row.dataset for row in rows} == {dataset}
    assert not (out / "evaluation").exists()
    assert log.text.count(f"results.json of {ONE} is replaced") == 1


@pytest.mark.parametrize(
    ("there", "beside"),
    [
        ([], False),
        (["evaluation.yaml", "results.json"], False),
        (["log.txt"], False),
        (["config.yaml"], True),
        (["metrics.json"], True),
        (["model_final.pth", "evaluation.yaml"], True),
        (["results.json"], True),  # of run_stages, or of evaluate_panoptic
    ],
)
def test_place_of_an_evaluation(tmp_path: Path, there: list[str], beside: bool) -> None:
    for name in there:
        (tmp_path / name).touch()
    expected = tmp_path / "evaluation" / "a+b" if beside else tmp_path
    assert evaluation_folder(tmp_path, ["a", "b"]) == expected


def test_an_evaluation_needs_a_dataset(arguments: Callable, weights: Path) -> None:
    args = arguments("MODEL.WEIGHTS", weights, "DATASETS.TEST", "()", eval_only=True)
    with pytest.raises(ConfigError, match=r"DATASETS.TEST is empty"):
        setup(args)


@pytest.mark.parametrize("eval_only", [False, True])
@pytest.mark.parametrize("place", ["file", "file/below", "/proc/out", "a\0b", "n" * 300])
def test_an_output_dir_that_cannot_be_written(
    arguments: Callable, weights: Path, tmp_path: Path, place: str, eval_only: bool
) -> None:
    (tmp_path / "file").write_text("of the user")
    args = arguments("MODEL.WEIGHTS", weights, eval_only=eval_only)
    args.opts += ["OUTPUT_DIR", str(tmp_path / place)]
    with pytest.raises(D2CityscapesError, match="cannot be written to") as caught:
        setup(args)
    assert "\n" not in str(caught.value) and (tmp_path / "file").read_text() == "of the user"


@pytest.mark.parametrize("eval_only", [False, True])
def test_checks_are_of_training_and_of_evaluation(
    arguments: Callable, weights: Path, tmp_path: Path, eval_only: bool
) -> None:
    for opts, message in (
        (["MODEL.SEM_SEG_HEAD.NUM_CLASSES", 34], "NUM_CLASSES is 34; .* needs 19"),
        (["INPUT.FORMAT", "bgr"], "INPUT.FORMAT 'bgr'"),
        (["MODEL.META_ARCHITECTURE", "PanopticFPN"], "use SeamlessPanoptic"),
        (["TEST.EXPECTED_RESULTS", [["sem_seg", "mIou", 1.0, 1.0]]], "nearest: mIoU"),
    ):
        args = arguments("MODEL.WEIGHTS", weights, *opts, eval_only=eval_only)
        with pytest.raises(D2CityscapesError, match=message):
            checked_config(args)
    assert not (tmp_path / "out").exists()
