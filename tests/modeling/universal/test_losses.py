import pytest
import torch

from d2_cityscapes.modeling.universal.losses import Prediction, SetLoss
from d2_cityscapes.modeling.universal.targets import NO_SEGMENT, Segments

POINTS = 50


def predictions(layers: int, images: int, seed: int = 0) -> list[Prediction]:
    generator = torch.Generator().manual_seed(seed)
    return [
        Prediction(
            torch.randn(images, 7, 20, generator=generator),
            torch.randn(images, 7, 8, 16, generator=generator) * 3,
        )
        for _ in range(layers)
    ]


def segments(number: int, seed: int = 0) -> Segments:
    generator = torch.Generator().manual_seed(seed)
    blocks = torch.randint(-1, number, (4, 8), generator=generator)
    found = blocks.repeat_interleave(8, 0).repeat_interleave(8, 1)
    return Segments(found, torch.randperm(19, generator=generator)[:number])


def test_the_losses_are_those_of_transformers():
    modeling = pytest.importorskip("transformers.models.mask2former.modeling_mask2former")
    from transformers import Mask2FormerConfig

    config = Mask2FormerConfig(num_labels=19, train_num_points=POINTS)
    weights = {"loss_cross_entropy": 2.0, "loss_mask": 5.0, "loss_dice": 5.0}
    theirs = modeling.Mask2FormerLoss(config, weights)
    predicted, targets = predictions(3, 2), [segments(4), segments(2, seed=1)]
    masks = [(x.map == torch.arange(len(x.classes))[:, None, None]).float() for x in targets]
    torch.manual_seed(5)
    wanted = theirs(
        predicted[-1].masks,
        predicted[-1].classes,
        masks,
        [x.classes for x in targets],
        [
            {"masks_queries_logits": x.masks, "class_queries_logits": x.classes}
            for x in predicted[:-1]
        ],
    )
    wanted = {name: weights[name.rstrip("_01")] * loss for name, loss in wanted.items()}
    torch.manual_seed(5)
    found = SetLoss(num_points=POINTS)(predicted, targets)
    torch.testing.assert_close(found["loss_class"], wanted["loss_cross_entropy"])
    torch.testing.assert_close(found["loss_mask"], wanted["loss_mask"])
    torch.testing.assert_close(found["loss_dice"], wanted["loss_dice"])
    torch.testing.assert_close(sum(found.values()), sum(wanted.values()))


def test_a_perfect_prediction_costs_next_to_nothing():
    target = segments(4)
    masks = torch.where(target.map == torch.arange(4)[:, None, None], 40.0, -40.0)
    classes = torch.full((1, 4, 20), -40.0)
    classes[0, torch.arange(4), target.classes] = 40.0
    order = torch.tensor([2, 0, 3, 1])  # which the matching undoes
    predicted = Prediction(classes[:, order], masks[None, order])
    torch.manual_seed(0)
    good = SetLoss(num_points=2000)([predicted], [target])
    assert good["loss_class"] < 1e-5
    swapped = Prediction(predicted.classes, -predicted.masks)
    bad = SetLoss(num_points=2000)([swapped], [target])
    assert good["loss_dice"] < 0.3 * bad["loss_dice"]
    assert good["loss_mask"] < 0.3 * bad["loss_mask"]


def test_pictures_of_void_train_no_object_alone():
    nothing = Segments(torch.full((32, 64), NO_SEGMENT), torch.zeros(0, dtype=torch.int64))
    (predicted,) = predictions(1, 2)
    predicted = Prediction(*(x.requires_grad_() for x in predicted))
    losses = SetLoss(num_points=POINTS)([predicted], [nothing, nothing])
    assert losses["loss_mask"] == losses["loss_dice"] == 0
    sum(losses.values()).backward()
    assert predicted.masks.grad.eq(0).all()
    wanted = -predicted.classes.log_softmax(-1)[..., -1].mean()
    torch.testing.assert_close(losses["loss_class"], 2 * wanted)


def test_a_picture_of_void_beside_another_costs_no_masks():
    nothing = Segments(torch.full((32, 64), NO_SEGMENT), torch.zeros(0, dtype=torch.int64))
    (predicted,) = predictions(1, 2)
    losses = SetLoss(num_points=POINTS)([predicted], [segments(3), nothing])
    assert all(loss.isfinite() for loss in losses.values())
    assert losses["loss_mask"] > 0


def test_half_precision_is_compared_in_float32():
    (predicted,) = predictions(1, 1)
    half = Prediction(*(x.bfloat16() for x in predicted))
    torch.manual_seed(0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = SetLoss(num_points=POINTS)([half], [segments(3)])
    torch.manual_seed(0)
    wanted = SetLoss(num_points=POINTS)([Prediction(*(x.float() for x in half))], [segments(3)])
    assert {name: x.item() for name, x in found.items()} == {
        name: x.item() for name, x in wanted.items()
    }


def test_predictions_that_are_not_finite_give_losses_that_are_not():
    (predicted,) = predictions(1, 1)
    broken = Prediction(predicted.classes, predicted.masks * float("nan"))
    assert not SetLoss(num_points=POINTS)([broken], [segments(3)])["loss_mask"].isfinite()
