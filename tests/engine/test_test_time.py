"""TEST.AUG and TEST.SLIDING_WINDOW from the command line's config to results.json."""

from __future__ import annotations

import argparse
import json

import numpy as np
import pytest
import tiny_trainings
import torch

from d2_cityscapes.engine.key_effects import idle_keys
from d2_cityscapes.engine.prediction import Predictor
from d2_cityscapes.engine.setup import ConfigError, load_config
from d2_cityscapes.engine.trainer import Trainer, evaluate, setup, train
from d2_cityscapes.errors import D2CityscapesError
from d2_cityscapes.evaluation.results import read_results

pytestmark = pytest.mark.usefixtures("datasets")

SEMANTIC = "quick/semantic.yaml"
SMALL = [
    "MODEL.RESNETS.DEPTH", "50", "MODEL.RESNETS.STEM_OUT_CHANNELS", "16",
    "MODEL.RESNETS.WIDTH_PER_GROUP", "16", "MODEL.RESNETS.RES2_OUT_CHANNELS", "32",
]  # fmt: skip
AUGMENTED = ["TEST.AUG.ENABLED", "True", "TEST.AUG.MIN_SIZES", "(48,)"]


@pytest.fixture
def configure(repository, tmp_path):
    """(config file, overrides) -> config of a training of one step."""

    def make(file: str, *opts: str, folder: str = "out", eval_only: bool = False):
        args = argparse.Namespace(
            config_file=str(repository / "configs" / file),
            opts=[
                "OUTPUT_DIR", str(tmp_path / folder), "SOLVER.MAX_ITER", "1",
                "SOLVER.WARMUP_ITERS", "0", "SOLVER.IMS_PER_BATCH", "1", "MODEL.DEVICE", "cpu",
                "DATALOADER.NUM_WORKERS", "0", "TEST.EXPECTED_RESULTS", "[]",
                "TEST.NUM_PICTURES", "1", "MODEL.FROM_SCRATCH", "True", "SEED", "3",
                "DATASETS.TEST", "('cityscapes_shards_val_1',)",
                *(SMALL if file == SEMANTIC else []), *opts,
            ],
            eval_only=eval_only,
        )  # fmt: skip
        return setup(args)

    return make


def _rows(cfg) -> dict[tuple[str, str], float | None]:
    rows, _ = read_results(f"{cfg.OUTPUT_DIR}/results.json")
    return {(row.task, row.metric): row.value for row in rows}


AVERAGE = ["SOLVER.EMA_DECAY", "0.5", "SOLVER.BASE_LR", "0.05"]


@pytest.mark.slow
def test_a_training_is_the_same_with_it(configure, tmp_path):
    """Its weights, and its scores without TEST.AUG."""
    found = []
    for opts, folder in (([], "plain"), (AUGMENTED, "out")):
        cfg = configure(SEMANTIC, *AVERAGE, *opts, folder=folder)
        train(cfg)
        found.append(_rows(cfg))
    without, rows = found
    assert {key: rows[key] for key in without} == without
    ends = [torch.load(tmp_path / name / "model_final_ema.pth") for name in ("plain", "out")]
    assert all(tensor.equal(ends[1]["model"][key]) for key, tensor in ends[0]["model"].items())


def test_a_training_ends_with_scores_of_both(configure, tmp_path):
    expected = '[["sem_seg_TTA", "mIoU", 50.0, 50.0]]'
    cfg = configure(SEMANTIC, *AVERAGE, *AUGMENTED, "TEST.EXPECTED_RESULTS", expected)
    results, rows = train(cfg), _rows(cfg)
    assert {task for task, _ in rows} == {"sem_seg", "sem_seg_TTA"} == results.keys()
    assert {m for t, m in rows if t == "sem_seg_TTA"} == {m for t, m in rows if t == "sem_seg"}
    assert rows["sem_seg_TTA", "mIoU"] == results["sem_seg_TTA"]["mIoU"]
    assert rows["sem_seg_TTA", "mIoU"] != rows["sem_seg", "mIoU"]
    logged = [json.loads(line) for line in (tmp_path / "out" / "metrics.json").open()]
    assert logged[-1]["sem_seg_TTA/mIoU"] == pytest.approx(rows["sem_seg_TTA", "mIoU"])
    assert len(list((tmp_path / "out/TTA/pictures/cityscapes_shards_val_1").iterdir())) == 1
    # what was evaluated was the average, as in an evaluation of its own
    again = configure(
        SEMANTIC, *AUGMENTED, "MODEL.WEIGHTS",
        str(tmp_path / "out/model_final_ema.pth"), folder="again", eval_only=True,
    )  # fmt: skip
    assert evaluate(again).keys() == results.keys()
    assert _rows(again) == rows


@pytest.mark.slow
def test_panoptic_models_are_tested_in_all_their_tasks(configure, tmp_path):
    file, small = tiny_trainings.FAMILIES["stage4"]
    opts = [
        *small, "INPUT.MIN_SIZE_TEST", "64", "INPUT.MAX_SIZE_TEST", "128",
        "TEST.AUG.ENABLED", "True", "TEST.AUG.MIN_SIZES", "(64,)",
        "DATASETS.TEST", "('cityscapes_shards_val_1', 'cityscapes_shards_val_2')",
    ]  # fmt: skip
    cfg = configure(file, *opts, "MODEL.WEIGHTS", "")
    weights = tmp_path / "weights.pth"
    torch.save({"model": Trainer.build_model(cfg).state_dict()}, weights)
    cfg = configure(file, *opts, "MODEL.WEIGHTS", str(weights), eval_only=True)
    results = evaluate(cfg, allow_unused=True)
    tasks = {"bbox", "segm", "segm_cityscapes", "sem_seg", "panoptic_seg"}
    both = tasks | {f"{task}_TTA" for task in tasks}
    assert all(results[dataset].keys() == both for dataset in cfg.DATASETS.TEST)
    assert {task for task, _ in _rows(cfg)} == both


@pytest.fixture
def weights(configure, tmp_path) -> str:
    cfg = configure(SEMANTIC)
    torch.manual_seed(0)
    path = tmp_path / "weights.pth"
    torch.save({"model": Trainer.build_model(cfg).state_dict()}, path)
    return str(path)


def test_pictures_are_predicted_so_too(configure, weights):
    image = np.random.default_rng(0).integers(0, 256, (64, 128, 3), dtype=np.uint8)
    window = ["TEST.SLIDING_WINDOW.ENABLED", "True", "TEST.SLIDING_WINDOW.SIZE"]
    found = {}
    for name, opts in {
        "plain": [],
        "augmented": AUGMENTED,
        "one window": [*window, "[64, 128]"],
        "windows": [*window, "[64, 64]", "TEST.SLIDING_WINDOW.STRIDE", "[64, 32]"],
        "labels": [*window, "[64, 64]", "TEST.SLIDING_WINDOW.STRIDE", "[64, 32]",
                   "TEST.SEM_SEG_SCORES", "False"],
    }.items():  # fmt: skip
        if name == "one window":
            opts += ["TEST.SLIDING_WINDOW.STRIDE", "[64, 128]"]
        cfg = configure(SEMANTIC, "MODEL.WEIGHTS", weights, *opts)
        found[name] = Predictor(cfg)(image)["sem_seg"]
    assert found["augmented"].sum(0).allclose(torch.ones(64, 128))
    torch.testing.assert_close(found["one window"], found["plain"], rtol=1e-5, atol=1e-5)
    assert not found["windows"].allclose(found["plain"], atol=1e-3)
    assert found["labels"].equal(found["windows"].argmax(0).to(torch.uint8))


@pytest.mark.slow
def test_evaluations_see_windows(configure, weights):
    opts = ["MODEL.WEIGHTS", weights, "TEST.SLIDING_WINDOW.ENABLED", "True"]
    rows = []
    for number, (size, stride) in enumerate([("[64, 128]", "[64, 128]"), ("[64, 64]", "[64, 64]")]):
        part = ["TEST.SLIDING_WINDOW.SIZE", size, "TEST.SLIDING_WINDOW.STRIDE", stride]
        cfg = configure(SEMANTIC, *opts, *part, folder=f"windows{number}", eval_only=True)
        evaluate(cfg)
        rows.append(_rows(cfg))
    plain = configure(SEMANTIC, *opts[:2], folder="plain", eval_only=True)
    evaluate(plain)
    assert rows[0] == _rows(plain) != rows[1]


def test_mistakes_are_found_at_the_start(configure, repository):
    file = repository / "configs/quick/semantic.yaml"
    for key in ("TEST.AUG.MIN_SIZES", "TEST.SLIDING_WINDOW.SIZE"):
        assert key in idle_keys(load_config(file, [key, "[32, 32]"]))
    with pytest.raises(D2CityscapesError, match=r"STRIDE \[768, 768\] is larger than SIZE"):
        configure(SEMANTIC, "TEST.SLIDING_WINDOW.ENABLED", "True",
                  "TEST.SLIDING_WINDOW.SIZE", "[64, 64]")  # fmt: skip
    expected = ["TEST.EXPECTED_RESULTS", '[["sem_seg_TTA", "mIoU", 50.0, 50.0]]']
    with pytest.raises(ConfigError, match=r"the model predicts sem_seg$"):
        configure(SEMANTIC, *expected)
    with pytest.raises(ConfigError, match=r"sem_seg_TTA has no mIou on .* mIoU"):
        configure(SEMANTIC, *AUGMENTED, expected[0], expected[1].replace("oU", "ou"))
