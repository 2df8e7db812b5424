"""Keys that are set but act on nothing of the run are refused; shipped configs have none."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
import torch
from detectron2.utils import comm

from d2_cityscapes.commands.train_net import main
from d2_cityscapes.config import get_cfg
from d2_cityscapes.engine.key_effects import (
    changed_keys,
    check_key_effects,
    idle_keys,
    recorded,
    why_without_effect,
)
from d2_cityscapes.engine.setup import ConfigError, load_config
from d2_cityscapes.engine.trainer import build_run, evaluate, train

pytestmark = pytest.mark.usefixtures("datasets")

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
TRAINED = sorted(
    str(path.relative_to(CONFIGS))
    for path in CONFIGS.rglob("*.yaml")
    if "search" not in path.parts and not path.name.startswith("Base-")
)


def without_effect(cfg) -> set[str]:
    """What `train` would refuse."""
    trainer, reads = build_run(cfg, resumes=True)  # without the weights of timm, from the Hub
    return set(why_without_effect(trainer.cfg, reads, changed_keys(trainer.cfg)))


@pytest.mark.parametrize("name", TRAINED)
def test_every_key_of_a_shipped_config_acts(name, tmp_path):
    opts = ["MODEL.DEVICE", "cpu", "DATALOADER.NUM_WORKERS", "0", "OUTPUT_DIR", str(tmp_path)]
    # there is no train_extra here, nor are there other streets
    opts += ["DATASETS.TRAIN", "('cityscapes_shards_train',)"]
    if name.endswith("_to_cityscapes/stage0.yaml"):
        opts += ["MODEL.ROI_HEADS.NUM_CLASSES", "8", "MODEL.SEM_SEG_HEAD.NUM_CLASSES", "19"]
        opts += ["DATASETS.TEST", "('cityscapes_shards_val',)"]
    assert without_effect(load_config(CONFIGS / name, opts)) == set()


@pytest.mark.parametrize(
    ("kind", "key", "value"),
    [
        ("semantic", "MODEL.SEM_SEG_HEAD.VOID_CLASS", "19"),
        ("semantic", "MODEL.SEM_SEG_HEAD.LOSS_TOP_K", "0.5"),
        ("semantic", "MODEL.SEM_SEG_HEAD.POOL_SIZE", "[8, 8]"),
        ("semantic", "MODEL.DEEPLAB.AUX_LOSS_WEIGHT", "0.4"),
        ("semantic", "MODEL.RPN.NMS_THRESH", "0.6"),
        ("instance", "MODEL.RPN.NORM", "BN"),
        ("instance", "MODEL.FPN.EXTRA_LEVELS", "3"),
        ("instance", "MODEL.SEM_SEG_HEAD.LOSS_WEIGHT", "0.5"),
        ("instance", "MODEL.ROI_MASK_HEAD.FC_DIM", "64"),
        ("instance", "MODEL.RETINANET.FOCAL_LOSS_GAMMA", "1.0"),
        ("deeplab", "MODEL.BACKBONE.FREEZE_AT", "5"),
        ("deeplab", "MODEL.BACKBONE.NAME", "build_resnet_fpn_backbone"),
        ("instance", "MODEL.TIMM.DROP_PATH", "0.1"),
        ("instance", "TEST.AUG.MAX_SIZE", "1000"),
        ("semantic", "TEST.SLIDING_WINDOW.STRIDE", "[64, 64]"),
        ("semantic", "MODEL.ROI_BOX_HEAD.IOU_LOSS", "ciou"),
        ("instance", "SOLVER.POLY_LR_POWER", "0.5"),
        ("instance", "SOLVER.AMP.DTYPE", "bfloat16"),
        ("instance", "SOLVER.MOMENTUM", "0.5"),
        ("instance", "SOLVER.GAMMA", "0.5"),
        ("instance", "SOLVER.PLATEAU.FACTOR", "0.5"),
        ("instance", "SOLVER.CLIP_GRADIENTS.CLIP_VALUE", "0.5"),
        ("instance", "INPUT.CROP.TYPE", "absolute"),
        ("deeplab", "INPUT.MIN_SIZE_TRAIN", "(96,)"),
        ("instance", "DATALOADER.REPEAT_THRESHOLD", "0.5"),
        ("instance", "TEST.VAL_LOSS_DATASET", "cityscapes_shards_val"),
        ("instance", "TEST.PRECISE_BN.NUM_ITER", "7"),
        ("panoptic", "MODEL.ROI_MASK_HEAD.FC_DIM", "64"),
    ],
)
def test_a_key_without_effect_is_found(kind, key, value, tmp_path):
    opts = ["OUTPUT_DIR", str(tmp_path), key, value]
    assert without_effect(load_config(CONFIGS / "quick" / f"{kind}.yaml", opts)) == {key}


@pytest.mark.parametrize(
    ("opts", "key"),
    [
        (["SOLVER.WARMUP_ITERS", "0", "SOLVER.WARMUP_FACTOR", "0.1"], "SOLVER.WARMUP_FACTOR"),
        (
            ["MODEL.RPN.BBOX_REG_LOSS_TYPE", "giou", "MODEL.RPN.SMOOTH_L1_BETA", "0.5"],
            "MODEL.RPN.SMOOTH_L1_BETA",
        ),
        (["MODEL.FREEZE.NORM_EVAL", "False"], "MODEL.FREEZE.NORM_EVAL"),
        (["INPUT.SCALE_JITTER.RANGE", "[0.1, 2.0]"], "INPUT.SCALE_JITTER.RANGE"),
        (["INPUT.COPY_PASTE.STUFF", "0.5"], "INPUT.COPY_PASTE.STUFF"),
        (["INPUT.SMALL_INSTANCE_AREA", "1024"], "INPUT.SMALL_INSTANCE_AREA"),
        (["DATALOADER.BALANCE", "0.3"], "DATALOADER.BALANCE"),
        (["DATALOADER.SMALL_AREA", "500"], "DATALOADER.SMALL_AREA"),
    ],
)
def test_a_key_that_another_setting_switches_off_is_found(opts, key):
    assert key in idle_keys(load_config(CONFIGS / "quick" / "instance.yaml", opts))
    acts = ["SOLVER.WARMUP_ITERS", "5", "MODEL.RPN.BBOX_REG_LOSS_TYPE", "smooth_l1"]
    acts += ["MODEL.FREEZE.MODULES", "['backbone']"]
    acts += ["INPUT.SCALE_JITTER.ENABLED", "True", "INPUT.COPY_PASTE.PROB", "0.5"]
    acts += ["INPUT.SMALL_INSTANCE_WEIGHT", "3.0"]
    acts += ["DATALOADER.SAMPLER_TRAIN", "SmallObjectTrainingSampler"]
    assert idle_keys(load_config(CONFIGS / "quick" / "instance.yaml", [*opts, *acts])) == {}


def test_train_and_evaluate_refuse_and_name_the_component(tmp_path):
    opts = ["OUTPUT_DIR", str(tmp_path), "MODEL.SEM_SEG_HEAD.LOSS_TOP_K", "0.5"]
    cfg = load_config(CONFIGS / "quick" / "semantic.yaml", opts)
    message = r"SEM_SEG_HEAD.LOSS_TOP_K 0.5 is not read by StagedSegmentor with SemSegFPNHead"
    with pytest.raises(ConfigError, match=message):
        train(cfg)
    augmented = ["TEST.AUG.MAX_SIZE", "1000", "MODEL.WEIGHTS", str(tmp_path / "w.pth")]
    cfg = load_config(CONFIGS / "quick" / "semantic.yaml", augmented)
    with pytest.raises(ConfigError, match=r"MAX_SIZE 1000 acts with TEST\.AUG\.ENABLED True only"):
        evaluate(cfg)
    assert not [path for path in tmp_path.iterdir() if path.suffix in (".pth", ".yaml")]


def test_allowed_keys_are_warned_of(tmp_path, log):
    cfg = load_config(CONFIGS / "quick" / "semantic.yaml", ["MODEL.RPN.NMS_THRESH", "0.6"])
    check_key_effects(cfg, {key for key in _leaves(cfg) if "RPN" not in key}, allowed=True)
    assert "WARNING without effect: MODEL.RPN.NMS_THRESH 0.6" in log.text
    with pytest.raises(ConfigError, match=r"MODEL\.RPN\.NMS_THRESH"):
        check_key_effects(cfg, set(_leaves(cfg)) - {"MODEL.RPN.NMS_THRESH"}, allowed={"SEED"})


def test_the_command_trains_on_where_it_is_meant(tmp_path, capfd):
    arguments = ["--config-file", str(CONFIGS / "quick" / "semantic.yaml"), "--allow-unused"]
    opts = ["OUTPUT_DIR", str(tmp_path), "SOLVER.MAX_ITER", "2", "SOLVER.WARMUP_ITERS", "1"]
    opts += ["TEST.EXPECTED_RESULTS", "[]", "MODEL.RPN.NMS_THRESH", "0.6"]
    main([*arguments, *opts])
    assert (tmp_path / "model_final.pth").is_file()
    assert "without effect: MODEL.RPN.NMS_THRESH 0.6" in (tmp_path / "log.txt").read_text()


def test_keys_of_an_evaluation_may_wait_for_one(tmp_path):
    opts = ["DATASETS.TEST", "()", "TEST.EXPECTED_RESULTS", "[]", "TEST.NUM_PICTURES", "3"]
    opts += ["OUTPUT_DIR", str(tmp_path), "INPUT.MIN_SIZE_TEST", "96"]
    trainer, reads = build_run(load_config(CONFIGS / "quick" / "semantic.yaml", opts))
    check_key_effects(trainer.cfg, reads)


def test_other_ranks_read_less_and_do_not_judge(tmp_path, monkeypatch):
    """Checkpoints and writers are the main process's."""
    opts = ["SOLVER.MAX_ITER", "1", "SOLVER.WARMUP_ITERS", "0", "TEST.EXPECTED_RESULTS", "[]"]
    opts += ["OUTPUT_DIR", str(tmp_path)]
    cfg = load_config(CONFIGS / "quick" / "semantic.yaml", opts)
    assert cfg.SOLVER.CHECKPOINT_PERIOD != get_cfg().SOLVER.CHECKPOINT_PERIOD
    monkeypatch.setattr(comm, "is_main_process", lambda: False)
    assert train(cfg) is None


def test_a_part_may_be_switched_off(tmp_path, log):
    """Masks, whose head the config goes on to describe; mixed precision, by a missing GPU."""
    opts = ["OUTPUT_DIR", str(tmp_path), "MODEL.MASK_ON", "False", "TEST.EXPECTED_RESULTS", "[]"]
    trainer, reads = build_run(load_config(CONFIGS / "quick" / "instance.yaml", opts))
    check_key_effects(trainer.cfg, reads)
    assert "without effect: MODEL.ROI_MASK_HEAD.NUM_CONV 1" in log.text
    opts = ["SOLVER.AMP.DTYPE", "bfloat16", "MODEL.DEVICE", "cuda"]
    cfg = load_config(CONFIGS / "stage1.yaml", opts)
    assert torch.cuda.is_available() or idle_keys(cfg) == {}


def test_reads_of_copies_count_and_listing_does_not():
    cfg, reads = recorded(get_cfg())
    cfg.dump()
    dict(cfg.SOLVER.items())
    assert set(reads) == set()
    again = copy.deepcopy(cfg).clone()
    assert (again.SOLVER.BASE_LR, cfg.MODEL.RPN.get("NMS_THRESH")) == (0.001, 0.7)
    assert set(reads) == {"SOLVER.BASE_LR", "MODEL.RPN.NMS_THRESH"}
    assert pickle.loads(pickle.dumps(cfg)) == get_cfg()


def _leaves(cfg) -> list[str]:
    from d2_cityscapes.config import leaves

    return [key for key, _ in leaves(cfg)]
