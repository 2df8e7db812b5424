"""The staged recipe: weights and anchors are handed on, finished stages skipped, errors early."""

from __future__ import annotations

import pytest
import torch

from d2_cityscapes.engine.setup import ConfigError
from d2_cityscapes.engine.stages import StageError, plan_stages, run_stages, summary
from d2_cityscapes.modeling.anchor_clustering import read_anchors

pytestmark = pytest.mark.usefixtures("datasets")


def _plan(repository, folder, opts, stages=(0, 1, 2, 3)):
    config_dir = repository / "configs" / "demo"
    return plan_stages(folder, config_dir=config_dir, stages=stages, opts=opts)


def _weights(path):
    return torch.load(path, weights_only=False)["model"]


def test_stages_hand_on_weights_and_anchors(repository, tmp_path, tiny_opts, capsys):
    opts = [*tiny_opts, "SOLVER.MAX_ITER", "2"]
    plan = _plan(repository, tmp_path, opts, stages=[2, 0, 1])
    assert [stage.number for stage in plan] == [0, 1, 2]
    run_stages(plan)
    zero, one, two = (_weights(stage.final_weights) for stage in plan)
    body = [name for name in one if name.startswith("backbone.bottom_up")]
    assert all(zero[name].equal(one[name]) for name in body)
    backbone = [name for name in two if name.startswith("backbone.")]
    assert all(one[name].equal(two[name]) for name in backbone)
    assert not all(zero[name].equal(one[name]) for name in backbone)
    heads = [name for name in two if name.startswith("roi_heads.") and name.endswith("weight")]
    near = max(float((one[name] - two[name]).abs().max()) for name in heads)
    assert 0 < near < 0.05  # stage 2 began with the heads of stage 1, two steps of 1e-3 away
    sizes = read_anchors(tmp_path / "anchors.json").anchors.sizes
    assert len(sizes) == 5
    lines = summary(plan)
    assert lines[0].startswith("stage 0: sem_seg mIoU")
    assert "segm AP50" in lines[2] and "cityscapes_shards_val_report, 4 images" in lines[2]

    before = {stage.number: stage.final_weights.stat().st_mtime_ns for stage in plan}
    capsys.readouterr()
    run_stages(_plan(repository, tmp_path, opts, stages=[0, 1, 2]))
    assert capsys.readouterr().out.count("already done") == 3
    assert {s.number: s.final_weights.stat().st_mtime_ns for s in plan} == before


def test_a_stage_alone_needs_trained_weights(repository, tmp_path, tiny_opts):
    with pytest.raises(StageError, match=r"stage 1 freezes backbone.bottom_up.*run stage 0 first"):
        _plan(repository, tmp_path, tiny_opts, stages=[1])
    given = tmp_path / "given.pth"
    torch.save({"model": {}}, given)
    (stage,) = _plan(repository, tmp_path, [*tiny_opts, "MODEL.WEIGHTS", str(given)], stages=[1])
    assert given.samefile(stage.cfg.MODEL.WEIGHTS)


def test_mistakes_are_found_before_the_first_stage(repository, tmp_path, tiny_opts):
    with pytest.raises(StageError, match="stage 4"):
        _plan(repository, tmp_path, tiny_opts, stages=[0, 4])
    with pytest.raises(ConfigError, match="unknown config key"):
        _plan(repository, tmp_path, ["SOLVER.NONSENSE", "1"])
    with pytest.raises(ConfigError, match="is not registered"):
        _plan(repository, tmp_path, ["DATASETS.TEST", "('nowhere',)"])
    with pytest.raises(ConfigError, match="no such file"):
        _plan(repository, tmp_path, ["MODEL.WEIGHTS", "none.pth"], stages=[0])
    assert not list(tmp_path.iterdir())


def test_a_failing_stage_is_named(repository, tmp_path, tiny_opts):
    plan = _plan(repository, tmp_path, [*tiny_opts, "SOLVER.OPTIMIZER", "LION"], stages=[0])
    with pytest.raises(StageError, match="stage 0 failed with exit code 1"):
        run_stages(plan)


def test_missed_expectations_stay_an_error_when_rerun(repository, tmp_path, tiny_opts):
    opts = [*tiny_opts, "SOLVER.MAX_ITER", "1", "TEST.NUM_PICTURES", "0"]
    opts[opts.index("TEST.EXPECTED_RESULTS") + 1] = '[["sem_seg", "mIoU", 99.0, 0.5]]'
    for _ in range(2):
        with pytest.raises(StageError, match=r"stage 0: .*expected sem_seg mIoU 99 \+- 0.5, found"):
            run_stages(_plan(repository, tmp_path, opts, stages=[0]))
