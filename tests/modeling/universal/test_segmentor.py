import copy

import pytest
import torch
from detectron2.modeling import build_model as build_detectron2_model

from d2_cityscapes.config import model_tasks
from d2_cityscapes.errors import D2CityscapesError
from d2_cityscapes.modeling import UniversalSegmentor, build_model
from d2_cityscapes.modeling.execution import dense
from tests.modeling.universal.conftest import make_input
from tests.support.losses import losses_of


def test_it_trains(cfg, batch):
    model = build_model(cfg)
    assert isinstance(model, UniversalSegmentor)
    losses = losses_of(model, batch)
    assert list(losses) == ["loss_class", "loss_mask", "loss_dice", "loss_aux"]
    sum(losses.values()).backward()
    idle = [n for n, p in model.named_parameters() if p.grad is None]
    assert idle == []
    assert all(name.startswith("network.") for name in model.state_dict())


def test_detectron2_builds_it_too(cfg):
    torch.manual_seed(0)
    theirs = build_detectron2_model(cfg)
    torch.manual_seed(0)
    ours = build_model(cfg)
    assert all(
        torch.equal(a, b)
        for a, b in zip(theirs.state_dict().values(), ours.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize("void", [False, True])
def test_a_picture_without_instances_or_of_void_alone_trains(cfg, void):
    model = build_model(cfg)
    losses = losses_of(model, [make_input([], void=void)])
    assert all(loss.isfinite() for loss in losses.values())
    assert (losses["loss_mask"] == 0) == void
    sum(losses.values()).backward()


def test_it_predicts_all_three_tasks_at_the_wanted_size(cfg, batch):
    inputs = [{"image": x["image"], "height": 50, "width": 100} for x in batch]
    model = build_model(cfg).eval()
    with torch.no_grad():
        found = model(inputs)
    for output in found:
        assert output["sem_seg"].shape == (19, 50, 100)
        assert output["panoptic_seg"][0].shape == (50, 100)
        assert output["instances"].image_size == (50, 100)
    assert {*model_tasks(cfg)} == {"bbox", "segm", "segm_cityscapes", "panoptic_seg", "sem_seg"}


def test_pictures_of_a_batch_are_predicted_as_by_themselves(mask2former_cfg):
    """But for the padding, which the network sees: of one size there is none."""
    model = build_model(mask2former_cfg).eval()
    inputs = [{"image": make_input([(5, 5, 50, 50)])["image"]}, {"image": make_input([])["image"]}]
    with torch.no_grad():
        together = model(inputs)
        alone = [model([x])[0] for x in inputs]
    for a, b in zip(together, alone, strict=True):
        torch.testing.assert_close(a["sem_seg"], b["sem_seg"], atol=1e-4, rtol=1e-4)


def test_semantics_alone_learn_things_as_classes(mask2former_cfg, batch):
    mask2former_cfg.MODEL.UNIVERSAL.INSTANCES = False
    assert model_tasks(mask2former_cfg) == ("sem_seg",)
    model = build_model(mask2former_cfg)
    inputs = [{"image": x["image"], "sem_seg": x["sem_seg"]} for x in batch]
    assert losses_of(model, inputs)["loss_mask"] > 0
    with torch.no_grad():
        assert list(model.eval()(inputs)[0]) == ["sem_seg"]


def test_activation_checkpointing_gives_the_same_gradients(cfg, batch):
    plain = build_model(cfg)
    cfg.MODEL.BACKBONE.ACTIVATION_CHECKPOINTING = True
    lean = build_model(cfg)
    lean.load_state_dict(copy.deepcopy(plain.state_dict()))
    kept = []
    for model in (plain, lean):
        saved: list[int] = []

        def pack(x: torch.Tensor, saved: list[int] = saved) -> torch.Tensor:
            saved.append(x.numel())
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            losses = losses_of(model, batch)
        sum(losses.values()).backward()
        kept.append(sum(saved))
    assert kept[1] < 0.9 * kept[0]
    for (name, a), b in zip(plain.named_parameters(), lean.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, msg=name)
    for a, b in zip(plain.buffers(), lean.buffers(), strict=True):
        assert torch.equal(a, b)  # statistics of batch norms moved once


def test_frozen_modules_stay(mask2former_cfg, batch):
    body = "network.model.pixel_level_module.encoder"
    mask2former_cfg.MODEL.FREEZE.MODULES = [body]
    model = build_model(mask2former_cfg)
    sum(losses_of(model, batch).values()).backward()
    frozen = [n for n, p in model.named_parameters() if not p.requires_grad]
    assert frozen
    assert all(name.startswith(body) for name in frozen)
    norms = [m for n, m in model.named_modules() if n.startswith(body) and "normal" in n]
    assert norms
    assert not any(norm.training for norm in norms)


def test_annealing_acts_by_iteration_and_stays_in_the_weights(eomt_cfg, batch):
    eomt_cfg.SOLVER.MAX_ITER = 60
    eomt_cfg.MODEL.UNIVERSAL.MASK_ANNEALING = [0.2, 0.8]
    model = build_model(eomt_cfg)
    parts = {}
    for iteration in (0, 30, 48):
        losses_of(model, batch, iteration=iteration)
        parts[iteration] = model.state_dict()["network.attn_mask_probs"].tolist()
    assert parts[0] == [1, 1]
    assert parts[30] == pytest.approx([0, 1])
    assert parts[48] == pytest.approx([0, 0])
    eomt_cfg.MODEL.UNIVERSAL.MASK_ANNEALING = []
    model = build_model(eomt_cfg)
    losses_of(model, batch, iteration=59)
    assert model.network.attn_mask_probs.tolist() == [1, 1]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("INPUT.FORMAT", "BGR", "takes RGB"),
        ("MODEL.PIXEL_STD", [1.0, 1.0, 1.0], "58.395"),
        ("MODEL.UNIVERSAL.NAME", "", "use mask2former or eomt"),
        ("MODEL.UNIVERSAL.OBJECT_THRESHOLD", 1.5, "from 0 to 1"),
        ("SOLVER.CHANNELS_LAST", True, "has no backbone"),
        ("INPUT.SIZE_DIVISIBILITY", 64, "has no backbone"),
    ],
)
def test_what_cannot_be_is_refused(cfg, key, value, message):
    cfg.merge_from_list([key, value])
    with pytest.raises(D2CityscapesError, match=message):
        build_model(cfg)


def test_there_is_nothing_to_compile(eomt_cfg, monkeypatch):
    monkeypatch.setattr(dense, "check_compiler", lambda device: None)
    eomt_cfg.MODEL.COMPILE = True
    with pytest.raises(D2CityscapesError, match="has no backbone to compile"):
        build_model(eomt_cfg)


@pytest.mark.parametrize("annealing", [[0.5], [0.8, 0.2], [0.0, 1.5]])
def test_annealing_is_two_parts_of_the_training(eomt_cfg, annealing):
    eomt_cfg.MODEL.UNIVERSAL.MASK_ANNEALING = annealing
    with pytest.raises(D2CityscapesError, match="two parts"):
        build_model(eomt_cfg)
