"""The staged recipe: weights and anchors are handed on, finished stages skipped, errors early."""

from __future__ import annotations

import re

import pytest
import torch
import torchvision

from d2_cityscapes.convert import torchvision_to_detectron2
from d2_cityscapes.engine.setup import ConfigError
from d2_cityscapes.errors import D2CityscapesError
from d2_cityscapes.evaluation.results import read_results, write_results
from d2_cityscapes.files import file_sha256, lock_folder
from d2_cityscapes.modeling.anchors.clustering import read_anchors
from d2_cityscapes.stages import run as stages_room
from d2_cityscapes.stages.changes import StageChangedError
from d2_cityscapes.stages.run import (
    StageError,
    plan_stages,
    run_stages,
    stage_results,
    summary,
)

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
    said = capsys.readouterr().out
    assert "stage 0 is 1 of 3\n" in said
    for number in (1, 2):
        assert re.search(rf"stage {number} is {number + 1} of 3, .* so far, .* to go", said)
    assert re.search(r"stage 2 is done in .*: segm AP .*4 images", said)
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

    assert list(stage_results(plan)) == ["stage0", "stage1", "stage2"]
    assert list(stage_results(plan[:2])) == ["stage0", "stage1"]
    assert list(stage_results(plan[2:])) == ["stage0", "stage1", "stage2"]

    # They are not trained again, wherever that runs, unless they would come out differently.
    before = {stage.number: stage.final_weights.stat().st_mtime_ns for stage in plan}
    capsys.readouterr()
    same = [*opts, "DATALOADER.NUM_WORKERS", "1", "SOLVER.CHECKPOINT_PERIOD", "1"]
    run_stages(_plan(repository, tmp_path, same, stages=[0, 1, 2]))
    assert capsys.readouterr().out.count("already done") == 3
    assert {s.number: s.final_weights.stat().st_mtime_ns for s in plan} == before
    with pytest.raises(StageChangedError, match=r"stage0 .* SOLVER.MAX_ITER was 2, now 4"):
        _plan(repository, tmp_path, [*opts, "SOLVER.MAX_ITER", "4"], stages=[0, 1, 2])
    anchors = tmp_path / "anchors.json"
    anchors.write_text(anchors.read_text().replace(f"{sizes[0]}", f"{sizes[0] + 1}"))
    with pytest.raises(StageChangedError, match=r"stage2 .* MODEL.ANCHOR_GENERATOR.SIZES was"):
        _plan(repository, tmp_path, opts, stages=[0, 1, 2])
    anchors.unlink()
    torch.save({"model": {}}, plan[1].final_weights)
    with pytest.raises(StageChangedError, match=r"stage2 has begun with other weights"):
        run_stages(_plan(repository, tmp_path, opts, stages=[2]))
    assert read_anchors(anchors).anchors.sizes == sizes


def test_a_stage_alone_needs_trained_weights(repository, tmp_path, tiny_opts):
    with pytest.raises(StageError, match=r"stage 1 freezes backbone.bottom_up.*run stage 0 first"):
        _plan(repository, tmp_path, tiny_opts, stages=[1])
    given = tmp_path / "given.pth"
    torch.save({"model": {}}, given)
    (stage,) = _plan(repository, tmp_path, [*tiny_opts, "MODEL.WEIGHTS", str(given)], stages=[1])
    assert given.samefile(stage.cfg.MODEL.WEIGHTS)


def test_mistakes_are_found_before_the_first_stage(repository, tmp_path, tiny_opts):
    with pytest.raises(StageError, match="stage 5"):
        _plan(repository, tmp_path, tiny_opts, stages=[0, 5])
    with pytest.raises(ConfigError, match="unknown config key"):
        _plan(repository, tmp_path, ["SOLVER.NONSENSE", "1"])
    with pytest.raises(ConfigError, match="is not registered"):
        _plan(repository, tmp_path, ["DATASETS.TEST", "('nowhere',)"])
    with pytest.raises(ConfigError, match="no such file"):
        _plan(repository, tmp_path, ["MODEL.WEIGHTS", "none.pth"], stages=[0])
    assert not list(tmp_path.iterdir())


def test_nothing_that_is_read_is_overwritten(repository, tmp_path, tiny_opts):
    """What a stage would write is a config that it is made from, or the weights it begins with."""
    folder, configs = tmp_path / "run" / "stage2", tmp_path / "configs"
    folder.mkdir(parents=True)
    configs.mkdir()
    base = f"_BASE_: {repository / 'configs' / 'demo' / 'stage2.yaml'}\n"
    (folder / "config.yaml").write_text(base)
    (folder / "given.pth").write_bytes(b"weights")
    (folder / "model_9.pth").hardlink_to(folder / "given.pth")
    for text, weights, word in (
        ("_BASE_: ../run/stage2/config.yaml\n", "", "config.yaml: is read here too"),
        (base, folder / "given.pth", "model_9.pth: is read here too"),
    ):
        (configs / "stage2.yaml").write_text(text)
        opts = [*tiny_opts, "MODEL.WEIGHTS", str(weights), "MODEL.FREEZE.MODULES", "[]"]
        with pytest.raises(D2CityscapesError, match=word):
            plan_stages(tmp_path / "run", config_dir=configs, stages=[2], opts=opts)
    assert (folder / "config.yaml").read_text() == base


def test_a_failing_stage_says_why(repository, tmp_path, tiny_opts, capfd):
    plan = _plan(repository, tmp_path, [*tiny_opts, "SOLVER.OPTIMIZER", "LION"], stages=[0])
    with pytest.raises(StageError, match=r"^stage 0: .*SOLVER.OPTIMIZER 'LION'") as caught:
        run_stages(plan)
    assert "resumes" not in str(caught.value)  # nothing has begun
    assert "error" not in capfd.readouterr().err  # the line is said once, by who catches it


def test_missed_expectations_stay_an_error_when_rerun(repository, tmp_path, tiny_opts):
    opts = [*tiny_opts, "SOLVER.MAX_ITER", "1", "TEST.NUM_PICTURES", "0"]
    opts[opts.index("TEST.EXPECTED_RESULTS") + 1] = '[["sem_seg", "mIoU", 99.0, 0.5]]'
    for _ in range(2):
        with pytest.raises(StageError, match=r"stage 0: .*expected sem_seg mIoU 99 \+- 0.5, found"):
            run_stages(_plan(repository, tmp_path, opts, stages=[0]))


@pytest.fixture
def prepared(monkeypatch):
    """(plan) -> None: `run_stages` up to the training of the first stage, which fails at once."""

    def prepare(plan):
        with monkeypatch.context() as patch:
            patch.setattr(stages_room, "train_in_fresh_process", lambda *_: -9)
            with pytest.raises(StageError, match=r"failed with signal 9.*same command resumes it"):
                run_stages(plan)

    return prepare


@pytest.fixture
def deeplab_dir(repository, tmp_path):
    """A config folder whose stage 0 is a DeepLabv3, and whose stage 1 is the demo's."""
    folder, configs = tmp_path / "configs", repository / "configs"
    folder.mkdir()
    (folder / "stage0.yaml").write_text(f"_BASE_: {configs / 'stage0.yaml'}\n")
    (folder / "stage1.yaml").write_text(f"_BASE_: {configs / 'demo' / 'stage1.yaml'}\n")
    return folder


def _save_deeplab(path, seed):
    """Weights of a semantic model around torchvision's ResNet-18, the depth of the demo."""
    torch.manual_seed(seed)
    body = torchvision.models.resnet18(weights=None).state_dict()
    weights = {f"backbone.{name}": x for name, x in body.items() if not name.startswith("fc.")}
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"model": weights | {"classifier.4.weight": torch.zeros(19, 256, 1, 1)}}, path)
    return torchvision_to_detectron2(weights).tensors


def test_a_deeplab_hands_on_its_backbone(deeplab_dir, tmp_path, tiny_opts, prepared):
    output = tmp_path / "out"
    opts = [*tiny_opts, "SOLVER.MAX_ITER", "1", "TEST.NUM_PICTURES", "0"]

    def plan():
        return plan_stages(output, config_dir=deeplab_dir, stages=[1], opts=opts)

    output.mkdir()
    _save_deeplab(output / "stage0" / "model_final.pth", seed=1)
    prepared(plan())
    # stage 0 was trained again before stage 1 began
    backbone = _save_deeplab(output / "stage0" / "model_final.pth", seed=2)
    (stage,) = plan()
    assert str(output / "stage0" / "backbone.pth") == stage.cfg.MODEL.WEIGHTS
    run_stages([stage])
    trained = _weights(stage.final_weights)
    assert len(backbone) == 100
    assert all(trained[name].equal(tensor) for name, tensor in backbone.items())

    (output / "stage0" / "backbone.pth").unlink()
    run_stages(plan())
    assert _weights(output / "stage0" / "backbone.pth").keys() == backbone.keys()


def test_a_deeplab_over_a_network_of_timm_is_handed_on_as_it_is(deeplab_dir, tmp_path, tiny_opts):
    """Its tensors have the names that they have under an FPN."""
    pytest.importorskip("timm")
    _save_deeplab(tmp_path / "out" / "stage0" / "model_final.pth", seed=1)
    opts = ["MODEL.BACKBONE.NAME", "build_timm_fpn_backbone", "MODEL.TIMM.NAME", "resnet18"]
    config_dir, opts = deeplab_dir, [*tiny_opts, *opts]
    (stage,) = plan_stages(tmp_path / "out", config_dir=config_dir, stages=[1], opts=opts)
    assert stage.handover is None
    assert str(tmp_path / "out" / "stage0" / "model_final.pth") == stage.cfg.MODEL.WEIGHTS


def test_a_semantic_fpn_is_handed_on_as_it_is(repository, tmp_path, tiny_opts):
    _save_deeplab(tmp_path / "stage0" / "model_final.pth", seed=1)
    (stage,) = _plan(repository, tmp_path, tiny_opts, stages=[1])
    assert str(tmp_path / "stage0" / "model_final.pth") == stage.cfg.MODEL.WEIGHTS


def test_averaged_weights_are_what_is_scored_and_handed_on(repository, tmp_path, tiny_opts):
    opts = [*tiny_opts, "SOLVER.EMA_DECAY", "0.9"]
    one, two = _plan(
        repository, tmp_path, ["MODEL.WEIGHTS", "detectron2://x", *opts], stages=[1, 2]
    )
    average = tmp_path / "stage1" / "model_final_ema.pth"
    assert str(average) == two.cfg.MODEL.WEIGHTS
    one.output_dir.mkdir()
    for seed, path in enumerate((one.output_dir / "model_final.pth", average)):
        _save_deeplab(path, seed)
    write_results(one.results, [], seconds=1.0, weights=average)
    assert one.is_done and list(stage_results([two])) == ["stage1"]
    (alone,) = _plan(repository, tmp_path, opts, stages=[2])
    assert str(average) == alone.cfg.MODEL.WEIGHTS


@pytest.mark.slow
def test_stages_with_averaged_weights_run_to_their_end(repository, tmp_path, tiny_opts, capsys):
    """The table shows the average, the next stage begins with it, and the line says so."""
    opts = [*tiny_opts, "SOLVER.MAX_ITER", "2", "SOLVER.EMA_DECAY", "0.9"]
    zero, one = plan = _plan(repository, tmp_path, opts, stages=[0, 1])
    run_stages(plan)
    printed = capsys.readouterr().out
    assert "stage0, from random weights" in printed
    assert f"stage1, from {tmp_path / 'stage0/model_final_ema.pth'}" in printed
    about = read_results(zero.results)[1]
    assert about["weights_sha256"] == file_sha256(tmp_path / "stage0/model_final_ema.pth")
    average, began = _weights(zero.final_weights), _weights(one.output_dir / "model_final.pth")
    body = [name for name in began if name.startswith("backbone.bottom_up")]
    assert all(average[name].equal(began[name]) for name in body)
    assert list(stage_results(plan)) == ["stage0", "stage1"]
    run_stages(_plan(repository, tmp_path, opts, stages=[0, 1]))
    assert capsys.readouterr().out.count("already done") == 2


def test_anchors_are_fitted_again_until_their_first_stage_has_begun(
    repository, tmp_path, tiny_opts, prepared
):
    (tmp_path / "stage1").mkdir()
    torch.save({"model": {}}, tmp_path / "stage1" / "model_final.pth")
    found = []
    for edge, kept in (("64", False), ("128", False), ("128", True)):
        if kept:
            (tmp_path / "anchors.json").write_text("kept")
        opts = [*tiny_opts, "INPUT.MIN_SIZE_TRAIN", f"({edge},)", "INPUT.MAX_SIZE_TRAIN", "512"]
        two, three = _plan(repository, tmp_path, opts, stages=[2, 3])
        assert (two.fits_anchors, three.fits_anchors) == (True, False)
        if kept:  # stage 3 takes those of stage 2
            torch.save({"model": {}}, three.output_dir.with_name("stage2") / "model_final.pth")
            prepared([three])
            assert (tmp_path / "anchors.json").read_text() == "kept"
        else:
            prepared([two])
            found.append(read_anchors(tmp_path / "anchors.json").anchors.sizes)
    assert [round(b / a, 1) for a, b in zip(*found, strict=True)] == [2.0] * 5


def test_one_writer_at_a_time(repository, tmp_path, tiny_opts):
    (stage,) = _plan(repository, tmp_path, tiny_opts, stages=[0])
    with (
        lock_folder(stage.output_dir),
        pytest.raises(D2CityscapesError, match="stage0: another process is writing here"),
    ):
        run_stages([stage])


def test_what_killed_writers_left_is_removed(repository, tmp_path, tiny_opts, prepared):
    (stage,) = _plan(repository, tmp_path, tiny_opts, stages=[0])
    stage.output_dir.mkdir()
    left = stage.output_dir / ".model_final.pth.123.tmp"
    left.write_bytes(b"half of it")
    prepared([stage])
    assert not left.exists()
