"""Loading weights: reports, refusals, excluded parts, and anchors that travel."""

from __future__ import annotations

import argparse
import pickle
from pathlib import Path

import pytest
import torch
from detectron2.layers import FrozenBatchNorm2d
from torch import nn

from d2_cityscapes.engine.checkpoints.checkpointer import Checkpointer, CheckpointError
from d2_cityscapes.engine.setup import load_config
from d2_cityscapes.engine.trainer import Trainer, evaluate, setup, train
from d2_cityscapes.modeling.anchors.clustering import AnchorError
from d2_cityscapes.modeling.anchors.generator import fit_anchors


class Model(nn.Module):
    """A backbone of 400 numbers with a norm, and a head."""

    def __init__(self, classes: int = 8, norm: type[nn.Module] = nn.BatchNorm2d):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(1, 40, 3, bias=False), norm(40))
        self.head = nn.Linear(4, classes)


class State:
    """What a checkpoint holds beside weights."""

    value = 0

    def state_dict(self):
        return {"value": self.value}

    def load_state_dict(self, state):
        self.value = state["value"]


@pytest.fixture
def saved(tmp_path):
    """(state dict) -> file with it."""

    def save(weights: dict, name: str = "model.pth") -> str:
        torch.save({"model": weights}, tmp_path / name)
        return str(tmp_path / name)

    return save


def _start(model: nn.Module, path: str, **kwargs) -> None:
    Checkpointer(model, **kwargs).resume_or_load(path, resume=False)


def _one_line(caught, *parts: str) -> None:
    message = str(caught.value)
    assert "\n" not in message
    assert all(part in message for part in parts), message


# --- reports ---


def test_complete_weights(saved, log):
    source, model = Model(), Model()
    path = saved(source.state_dict())
    Checkpointer(model).load(path)
    assert all(t.equal(model.state_dict()[name]) for name, t in source.state_dict().items())
    assert f"{path}: loaded 7 of 7 tensors" in log.text
    assert "WARNING" not in log.text


def test_a_training_may_begin_with_a_part(saved, log):
    source, model = Model(classes=81), Model(classes=9)
    weights = source.state_dict() | {"other.a": torch.ones(1), "other.b": torch.ones(1)}
    _start(model, saved(weights))
    assert model.backbone[0].weight.equal(source.backbone[0].weight)
    assert "skipped 2: head.weight (81, 4) vs (9, 4), head.bias (81,) vs (9,)" in log.text
    assert "not loaded, so as initialised (random): head (2 tensors)" in log.text
    assert "in the file, but not in the model: other (2 tensors)" in log.text
    assert log.text.count("head.weight") == 1  # said once


def test_counters_of_norms_are_not_missed(saved, log):
    weights = {k: v for k, v in Model().state_dict().items() if "num_batches" not in k}
    path = saved(dict(weights))
    Checkpointer(Model()).load(path)
    Checkpointer(Model(norm=FrozenBatchNorm2d)).load(saved(Model().state_dict()))
    assert "not in the model" not in log.text


def test_files_with_matching_heuristics(tmp_path, log):
    """Detectron2's pickles of backbones name tensors without the module around them."""
    source, model = Model(), Model()
    weights = {name: tensor.numpy() for name, tensor in source.backbone.state_dict().items()}
    path = tmp_path / "R.pkl"
    content = {"model": weights, "__author__": "test", "matching_heuristics": True}
    path.write_bytes(pickle.dumps(content))
    _start(model, str(path))
    assert model.backbone[0].weight.equal(source.backbone[0].weight)
    assert "loaded 5 of 7 tensors" in log.text and "(random): head (2 tensors)" in log.text


def test_no_weights_are_no_error():
    assert Checkpointer(Model()).resume_or_load("", resume=False) == {}


# --- refusals ---


def test_weights_of_another_architecture(saved):
    layout = {f"backbone.layer1.{k}.conv1.weight": torch.ones(2) for k in range(3)}
    for load in (_start, lambda model, path: Checkpointer(model).load(path)):
        with pytest.raises(CheckpointError) as caught:
            load(Model(), saved({}))
        _one_line(caught, "another architecture, which fit 0% of the backbone")
        assert "torchvision" not in str(caught.value)
        with pytest.raises(CheckpointError) as caught:
            load(Model(), saved(layout))
        _one_line(caught, "d2c convert torchvision-deeplab")
    others = {"torchvision-rcnn": "backbone.body.", "mmdetection": "backbone."}
    for kind, body in others.items():
        names = [f"{body}layer1.0.conv1.weight", "roi_head.bbox_head.fc_cls.bias"]
        with pytest.raises(CheckpointError) as caught:
            _start(Model(), saved(dict.fromkeys(names, torch.ones(2))))
        _one_line(caught, f"run d2c convert {kind} first")
    head = {name: t for name, t in Model().state_dict().items() if name.startswith("head")}
    with pytest.raises(CheckpointError, match="fit 0% of"):
        _start(Model(), saved(head))
    _start(Model(), saved(head), exclude=["backbone.*"])  # asked for
    norm = {name: t for name, t in Model().state_dict().items() if name.startswith("backbone.1")}
    with pytest.raises(CheckpointError, match="fit 31% of"):
        _start(Model(), saved(norm))


def test_a_model_in_use_needs_everything(saved):
    weights = Model(classes=81).state_dict()
    with pytest.raises(CheckpointError) as caught:
        Checkpointer(Model(classes=9)).load(saved(weights))
    _one_line(caught, "head.weight (81, 4) vs (9, 4)", "without head (2 tensors)", "config.yaml")
    del weights["head.weight"]
    with pytest.raises(CheckpointError, match=r"without head\.weight"):
        Checkpointer(Model(classes=81)).load(saved(weights))
    extra = Model().state_dict() | {"more.weight": torch.ones(1)}
    Checkpointer(Model()).load(saved(extra))  # a whole head more


class Deeper(Model):
    """`Model` with a further layer in its backbone."""

    def __init__(self):
        super().__init__()
        self.backbone.append(nn.Linear(4, 4))


def test_weights_of_a_deeper_network(saved):
    """Its first layers fit, and compute nothing of use without the others."""
    path = saved(Deeper().state_dict())
    for load in (lambda: Checkpointer(Model()).load(path), lambda: _start(Model(), path)):
        with pytest.raises(CheckpointError) as caught:
            load()
        _one_line(caught, f"{path}: has backbone.2 (2 tensors), which the model lacks: ")
    _start(Model(), path, exclude=["backbone.2.*", "head.*"])  # what it lacks is known


def test_a_pattern_for_what_only_the_file_has(saved):
    path = saved(Deeper().state_dict())
    _start(Model(), path, exclude=["backbone.2.*"])
    with pytest.raises(CheckpointError, match=r"'backbone.3.\*' matches no"):
        _start(Model(), path, exclude=["backbone.3.*"])


@pytest.mark.parametrize("depth", [50, 101])
def test_a_deeper_body_by_name_and_by_heuristics(read, tmp_path, depth):
    """R-101 in R-50, as weights of a whole training and as Detectron2's pickle of a body."""
    small = ("MODEL.RESNETS.STEM_OUT_CHANNELS", "8", "MODEL.RESNETS.RES2_OUT_CHANNELS", "16")

    def build(depth):
        depth = ("MODEL.RESNETS.DEPTH", str(depth), "MODEL.RESNETS.WIDTH_PER_GROUP", "8")
        return Trainer.build_model(read("demo_full/stage1.yaml", *depth, *small))

    weights = build(depth).state_dict()
    torch.save({"model": weights}, tmp_path / "whole.pth")
    body = {
        name.removeprefix("backbone.bottom_up."): tensor.numpy()
        for name, tensor in weights.items()
        if name.startswith("backbone.bottom_up.")
    }
    body |= {"stem.fc.weight": torch.ones(1000, 128).numpy()}  # the classifier of ImageNet
    content = {"model": body, "__author__": "test", "matching_heuristics": True}
    (tmp_path / "body.pkl").write_bytes(pickle.dumps(content))
    model = build(50)
    loads = [
        (
            lambda: Checkpointer(model).load(str(tmp_path / "whole.pth")),
            "backbone.bottom_up.res4.6",
        ),
        (lambda: _start(model, str(tmp_path / "whole.pth")), "backbone.bottom_up.res4.6"),
        (lambda: _start(model, str(tmp_path / "body.pkl")), "res4"),
    ]
    for load, block in loads:
        if depth == 50:
            load()
            continue
        with pytest.raises(CheckpointError) as caught:
            load()
        _one_line(caught, f": has {block} (", "which the model lacks")


def test_what_nothing_would_train_must_be_there(saved):
    weights = Model().state_dict()
    del weights["head.bias"]
    path, model = saved(weights), Model()
    model.head.requires_grad_(False)
    with pytest.raises(CheckpointError) as caught:
        _start(model, path)
    _one_line(caught, "head.bias (1 tensor), which nothing would ever train", "MODEL.FREEZE")
    _start(model, path, trained=model.parameters())  # unfrozen later
    with pytest.raises(CheckpointError, match=r"without head \(2 tensors\), which nothing would"):
        _start(model, saved(Model().state_dict()), exclude=["head.*"])


def test_constant_norms_must_be_there(saved):
    weights = {k: v for k, v in Model().state_dict().items() if "running" not in k}
    _start(Model(), saved(dict(weights)))
    ordered = Model(norm=FrozenBatchNorm2d).state_dict()  # knows that it is no old file
    del ordered["backbone.1.running_mean"]
    with pytest.raises(CheckpointError, match=r"backbone.1.running_mean .* nothing would ever"):
        _start(Model(norm=FrozenBatchNorm2d), saved(ordered))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.pth", b"", "cannot be read as weights"),
        ("a.pth", b"no weights at all", "cannot be read as weights"),
        ("a.pkl", b"\x80\x04nonsense", "cannot be read as weights"),
        ("a.pkl", pickle.dumps([1, 2]), "cannot be read as weights"),
        ("a.pkl", pickle.dumps({"model": {"a": "b"}, "__author__": ""}), "it holds a"),
        ("a.pkl", pickle.dumps({"model": [1], "__author__": ""}), "holds a list, not weights"),
    ],
)
def test_files_that_are_no_weights(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        Checkpointer(Model()).load(str(tmp_path / name))
    _one_line(caught, f"{tmp_path / name}: ", message)


def test_damaged_and_foreign_files(tmp_path, saved):
    whole = Path(saved(Model().state_dict()))
    whole.write_bytes(whole.read_bytes()[:-500])
    with pytest.raises(CheckpointError) as caught:
        Checkpointer(Model()).load(str(whole))
    _one_line(caught, f"{whole}: cannot be read as weights")
    torch.save({"state_dict": Model().state_dict(), "epoch": 3}, whole)
    with pytest.raises(CheckpointError) as caught:
        Checkpointer(Model()).load(str(whole))
    _one_line(caught, "under the key 'model'; it holds state_dict, epoch")
    torch.save(torch.ones(3), whole)
    with pytest.raises(CheckpointError, match=r"model.pth"):
        Checkpointer(Model()).load(str(whole))
    with pytest.raises(CheckpointError, match=r"none.pth: no such file$"):
        Checkpointer(Model()).load(str(tmp_path / "none.pth"))


def test_an_address_that_does_not_answer():
    with pytest.raises(CheckpointError) as caught:
        Checkpointer(Model()).load("http://127.0.0.1:9/none.pth")
    _one_line(caught, "http://127.0.0.1:9/none.pth: cannot be fetched")


def test_plain_state_dicts_are_taken(tmp_path):
    source, model = Model(), Model()
    torch.save(source.state_dict(), tmp_path / "plain.pth")
    Checkpointer(model).load(str(tmp_path / "plain.pth"))
    assert model.head.weight.equal(source.head.weight)


# --- resume ---


def test_resume_must_be_complete(tmp_path, saved):
    def run(model, **kwargs):
        return Checkpointer(model, str(tmp_path), state=State(), **kwargs)

    first = run(Model())
    first.checkpointables["state"].value = 7
    first.save("model_0")
    again = run(Model(), exclude=["head.*"])  # for the beginning only
    again.resume_or_load("elsewhere.pth", resume=True)
    assert again.checkpointables["state"].value == 7
    assert again.model.head.weight.equal(first.model.head.weight)

    class Larger(Model):
        def __init__(self):
            super().__init__()
            self.more = nn.Linear(2, 2)

    with pytest.raises(CheckpointError) as caught:
        run(Larger()).resume_or_load("", resume=True)
    _one_line(caught, "without more (2 tensors)", "resume with the config.yaml")
    run(Larger()).save("model_1")
    with pytest.raises(CheckpointError) as caught:
        run(Model()).resume_or_load("", resume=True)
    _one_line(caught, "has more (2 tensors), which the model lacks")

    saved(Model().state_dict(), "model_1.pth")
    with pytest.raises(CheckpointError) as caught:
        run(Model()).resume_or_load("", resume=True)
    _one_line(caught, "no state of state", "MODEL.WEIGHTS")
    (tmp_path / "model_1.pth").unlink()
    with pytest.raises(CheckpointError, match=r"model_1.pth: no such file, though .*names it"):
        run(Model()).resume_or_load("", resume=True)


# --- MODEL.WEIGHTS_EXCLUDE ---


def test_excluded_parts_stay_as_they_were(saved, log):
    source, model = Model(), Model()
    bias, moved = model.head.bias.clone(), model.head.weight.clone()
    _start(model, saved(source.state_dict()), exclude=["*.bias", "head.*"])
    assert model.head.bias.equal(bias) and model.head.weight.equal(moved)
    assert model.backbone[0].weight.equal(source.backbone[0].weight)
    assert not model.backbone[1].running_mean.requires_grad
    assert "kept out by MODEL.WEIGHTS_EXCLUDE: " in log.text and "head (2 tensors)" in log.text
    assert "(random)" not in log.text
    used = Model()
    Checkpointer(used, exclude=["head.*"]).load(saved(source.state_dict()))
    assert used.head.weight.equal(source.head.weight)


def test_an_exclude_pattern_that_matches_nothing(saved):
    with pytest.raises(CheckpointError) as caught:
        _start(Model(), saved(Model().state_dict()), exclude=["head.wieght"])
    _one_line(caught, "MODEL.WEIGHTS_EXCLUDE: 'head.wieght' matches no", "nearest: head.weight")


# --- with trainer and configs ---


@pytest.fixture
def options(repository, tmp_path, tiny_opts, datasets):
    """(config, overrides) -> its file, and all overrides: one step, nothing frozen."""

    def make(config: str, *opts: str) -> tuple[str, list[str]]:
        return str(repository / "configs" / config), [
            *tiny_opts, "SOLVER.MAX_ITER", "1", "TEST.NUM_PICTURES", "0",
            "MODEL.FREEZE.MODULES", "[]", "OUTPUT_DIR", str(tmp_path / "out"), *opts,
        ]  # fmt: skip

    return make


@pytest.fixture
def read(options):
    """(config, overrides) -> config."""
    return lambda *args: load_config(*options(*args))


def _set_up(file: str, opts: list[str], *, eval_only: bool = False):
    """The config of a command line, as the commands read it."""
    return setup(argparse.Namespace(config_file=file, opts=opts, eval_only=eval_only))


ANCHORS = "MODEL.ANCHOR_GENERATOR."


def test_anchors_travel_from_the_tool_to_the_evaluation(options, read, tmp_path, log):
    """F5: trained with fitted anchors; evaluated with others only against an error."""
    file, out = tmp_path / "anchors.json", tmp_path / "out"
    fitted = fit_anchors(read("demo_full/stage2.yaml"), file).anchors
    train(_set_up(*options("demo_full/stage2.yaml", f"{ANCHORS}KMEANS.SOURCE", str(file))))
    file.unlink()
    weights = ("MODEL.WEIGHTS", str(out / "model_final.pth"))
    evaluate(_set_up(*options(str(out / "config.yaml"), *weights), eval_only=True))

    literal = (f"{ANCHORS}SIZES", str([[size] for size in fitted.sizes]))
    literal += (f"{ANCHORS}ASPECT_RATIOS", str([list(ratios) for ratios in fitted.aspect_ratios]))
    stock = read("demo_full/stage1.yaml", *literal)
    assert stock.MODEL.ANCHOR_GENERATOR.NAME == "DefaultAnchorGenerator"
    Checkpointer(Trainer.build_model(stock)).load(weights[1])

    for config in ("demo_full/stage1.yaml", "demo_full/stage2.yaml"):  # stock and fitted generator
        with pytest.raises(AnchorError) as caught:
            evaluate(read(config, *weights))
        _one_line(caught, f"SIZES [[{fitted.sizes[0]:g}], ", "SIZES [[8], [16], ", "config.yaml")
    with pytest.raises(AnchorError, match=r"the model has SIZES \[\[8\], \[16\]"):
        Trainer(read("demo_full/stage2.yaml")).resume_or_load(resume=True)

    with pytest.raises(AnchorError) as caught:
        Trainer(read("demo_full/stage2.yaml", *weights)).resume_or_load(resume=False)
    _one_line(caught, "the model has SIZES [[8], ", f"{ANCHORS}KMEANS.ALLOW_OTHER True")
    log.lines.clear()
    anew = (*weights, f"{ANCHORS}KMEANS.ALLOW_OTHER", "True")
    Trainer(read("demo_full/stage2.yaml", *anew)).resume_or_load(resume=False)
    assert f"{weights[1]}: trained with anchors of SIZES [[{fitted.sizes[0]:g}]" in log.text
    assert "the model has SIZES [[8], [16], " in log.text and "learns from here on" in log.text
    with pytest.raises(AnchorError):
        evaluate(read("demo_full/stage2.yaml", *anew))
    # nothing that has learned from the others is taken over
    exclude = (*weights, "MODEL.WEIGHTS_EXCLUDE", "['proposal_generator.*']")
    Trainer(read("demo_full/stage2.yaml", *exclude)).resume_or_load(resume=False)


def test_weights_that_tell_no_anchors_are_warned_of(read, tmp_path, log):
    weights = tmp_path / "weights.pth"
    torch.save({"model": Trainer.build_model(read("demo_full/stage1.yaml")).state_dict()}, weights)
    model = Trainer.build_model(read("demo_full/stage2.yaml"))
    Checkpointer(model).load(str(weights))
    assert "does not tell the anchors that it was trained with; the model has SIZES [[8]" in (
        log.text
    )
    log.lines.clear()
    _start(model, str(weights))
    assert "does not tell" not in log.text


def test_a_stage_takes_over_body_rpn_and_heads(read, tmp_path, log):
    """F6: what a stage learned arrives in the next one, and the log says so."""
    one = Trainer.build_model(read("demo_full/stage1.yaml")).state_dict()
    torch.save({"model": one}, tmp_path / "one.pth")
    weights = ("MODEL.WEIGHTS", str(tmp_path / "one.pth"))

    def start(*opts):
        trainer = Trainer(read("demo_full/stage2.yaml", *weights, *opts))
        trainer.resume_or_load(resume=False)
        return trainer.model.state_dict()

    two = start()
    assert {name.split(".")[0] for name in one} == {"backbone", "proposal_generator", "roi_heads"}
    assert all(tensor.equal(two[name]) for name, tensor in one.items())
    number = len([name for name in one if not name.endswith("num_batches_tracked")])
    assert f"loaded {number} of {number} tensors" in log.text

    exclude = "MODEL.WEIGHTS_EXCLUDE"
    part = start(exclude, "['roi_heads.box_predictor.*', 'proposal_generator.*']")
    others = {".".join(name.split(".")[:2]) for name in one if not part[name].equal(one[name])}
    assert others == {"roi_heads.box_predictor", "proposal_generator.rpn_head"}
    with pytest.raises(CheckpointError, match=r"without backbone \(\d+ tensors\), which nothing"):
        start("MODEL.FREEZE.MODULES", "['backbone']", exclude, "['backbone.*']")
    # unfrozen in the end
    schedule = ("MODEL.FREEZE.SCHEDULE", "[[1, ['backbone']]]", "SOLVER.MAX_ITER", "2")
    start("MODEL.FREEZE.MODULES", "['backbone']", exclude, "['backbone.*']", *schedule)


def test_evaluation_of_half_a_model_is_refused(read, tmp_path):
    weights = tmp_path / "weights.pth"
    state = Trainer.build_model(read("demo_full/stage1.yaml")).state_dict()
    torch.save({"model": {k: v for k, v in state.items() if k.startswith("backbone")}}, weights)
    with pytest.raises(CheckpointError) as caught:
        evaluate(read("demo_full/stage1.yaml", "MODEL.WEIGHTS", str(weights)))
    _one_line(caught, "without proposal_generator (6 tensors), roi_heads (")
