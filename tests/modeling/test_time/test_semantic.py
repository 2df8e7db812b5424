"""TEST.AUG for semantics: means of probabilities by hand, and against a slow version."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from detectron2.modeling import DatasetMapperTTA
from PIL import Image
from torch import nn
from torch.nn import functional as F

import d2_cityscapes as d2c
from d2_cityscapes.errors import D2CityscapesError
from d2_cityscapes.modeling.test_time.build import as_tested, augmented, check_test_time
from d2_cityscapes.modeling.test_time.semantic import SemanticViews


class Pixels(nn.Module):
    """Scores of C classes from the pixels and their places: neither mirror nor size is alike."""

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Conv2d(3, classes, 3, padding=1)

    def forward(self, batched_inputs):
        results = []
        for inputs in batched_inputs:
            x = inputs["image"].float() / 64
            x[0] += torch.linspace(0, 3, x.shape[2])
            size = inputs["height"], inputs["width"]
            scores = F.interpolate(self.layer(x[None]), size, mode="bilinear", align_corners=False)
            results.append({"sem_seg": scores[0]})
        return results


def _inputs(h: int = 12, w: int = 20, height: int = 17, width: int = 31) -> dict:
    generator = torch.Generator().manual_seed(1)
    image = torch.randint(0, 256, (3, h, w), dtype=torch.uint8, generator=generator)
    return {"image": image, "height": height, "width": width, "file_name": "a.png"}


def _slow(model: nn.Module, inputs: dict, sizes, flip: bool) -> np.ndarray:
    """The same from the definition: PIL, numpy, one view after the other."""
    _, h, w = inputs["image"].shape
    picture = Image.fromarray(inputs["image"].permute(1, 2, 0).numpy())
    found = []
    for size in sizes:
        new_h, new_w = (size, int(w * size / h + 0.5)) if h < w else (int(h * size / w + 0.5), size)
        resized = np.array(picture.resize((new_w, new_h), Image.Resampling.BILINEAR))
        for mirrored in (False, True) if flip else (False,):
            seen = resized[:, ::-1] if mirrored else resized
            image = torch.from_numpy(np.ascontiguousarray(seen.transpose(2, 0, 1)))
            with torch.no_grad():
                scores = model([{**inputs, "image": image}])[0]["sem_seg"].double().numpy()
            e = np.exp(scores - scores.max(axis=0))
            own = e / e.sum(axis=0)
            found.append(own[:, :, ::-1] if mirrored else own)
    return np.mean(found, axis=0)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("sizes", [(12,), (8, 12, 24)])
def test_it_is_the_mean_of_the_probabilities_of_all_views(sizes, flip):
    model, inputs = Pixels().eval(), _inputs()
    views = DatasetMapperTTA(sizes, 4000, flip)
    found = SemanticViews(model, views)([inputs, inputs])
    expected = _slow(model, inputs, sizes, flip)
    assert found[0]["sem_seg"].shape == (5, 17, 31) and found[1]["sem_seg"].equal(
        found[0]["sem_seg"]
    )
    np.testing.assert_allclose(found[0]["sem_seg"].numpy(), expected, atol=2e-6)
    labels = SemanticViews(model, views, labels=True)([inputs])[0]["sem_seg"]
    assert labels.dtype == torch.uint8 and (labels.numpy() == expected.argmax(axis=0)).all()


def test_one_view_in_its_own_size_is_the_prediction_itself():
    model, inputs = Pixels().eval(), _inputs()
    found = SemanticViews(model, DatasetMapperTTA((12,), 4000, False))([inputs])[0]["sem_seg"]
    with torch.no_grad():
        torch.testing.assert_close(found, model([inputs])[0]["sem_seg"].softmax(0))


def test_a_mirror_image_is_turned_back():
    """A model that sees the left half only is, of both views, unsure by half everywhere."""

    class Left(nn.Module):
        def forward(self, batched_inputs):
            shape = (batched_inputs[0]["height"], batched_inputs[0]["width"])
            scores = torch.zeros(2, *shape)
            scores[1, :, : shape[1] // 2] = 100.0
            scores[0, :, shape[1] // 2 :] = 100.0
            return [{"sem_seg": scores}]

    inputs = _inputs(height=4, width=6)
    found = SemanticViews(Left(), DatasetMapperTTA((12,), 4000, True))([inputs])[0]["sem_seg"]
    torch.testing.assert_close(found, torch.full((2, 4, 6), 0.5))


@pytest.mark.parametrize("training", [False, True])
def test_the_mode_of_the_model_stays(training):
    cfg = d2c.get_cfg()
    cfg.MODEL.META_ARCHITECTURE = "SemanticSegmentor"
    cfg.TEST.SLIDING_WINDOW.ENABLED = True
    model = Pixels().train(training)
    for wrapped in (augmented(cfg, model), as_tested(cfg, model)):
        assert wrapped.training is model.training is training
        assert wrapped.eval() is wrapped and not model.training
        wrapped.train(training)
    cfg.TEST.SLIDING_WINDOW.ENABLED = False
    assert as_tested(cfg, model) is model


def test_scores_of_a_universal_model_are_averaged_as_they_are():
    """They are sums of probabilities, as Mask2Former averages them."""
    cfg = d2c.get_cfg()
    cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.UNIVERSAL.INSTANCES = "UniversalSegmentor", False
    cfg.TEST.AUG.ENABLED, cfg.TEST.AUG.MIN_SIZES, cfg.TEST.AUG.FLIP = True, (12,), False
    check_test_time(cfg)
    model, inputs = Pixels().eval(), _inputs()
    with torch.no_grad():
        expected = model([inputs])[0]["sem_seg"]
    torch.testing.assert_close(augmented(cfg, model)([inputs])[0]["sem_seg"], expected)
    cfg.TEST.SEM_SEG_SCORES = False
    with pytest.raises(D2CityscapesError, match=r"SEM_SEG_SCORES False: not with TEST\.AUG"):
        check_test_time(cfg)
    cfg.MODEL.UNIVERSAL.INSTANCES = True
    with pytest.raises(
        D2CityscapesError, match=r"not for UniversalSegmentor with .*INSTANCES True"
    ):
        check_test_time(cfg)


def test_views_may_be_seen_in_windows():
    cfg = d2c.get_cfg()
    cfg.MODEL.META_ARCHITECTURE = "SemanticSegmentor"
    cfg.TEST.AUG.MIN_SIZES, cfg.TEST.AUG.FLIP = (12, 16), True
    model, inputs = Pixels().eval(), _inputs()
    cfg.TEST.SLIDING_WINDOW.SIZE = cfg.TEST.SLIDING_WINDOW.STRIDE = [64, 64]
    plain = augmented(cfg, model)([inputs])[0]["sem_seg"]
    cfg.TEST.SLIDING_WINDOW.ENABLED = True
    in_one = augmented(cfg, model)([inputs])[0]["sem_seg"]
    torch.testing.assert_close(in_one, plain, atol=0.02, rtol=0)  # resized behind, not before
    cfg.TEST.SLIDING_WINDOW.SIZE, cfg.TEST.SLIDING_WINDOW.STRIDE = [8, 8], [4, 4]
    in_many = augmented(cfg, model)([inputs])[0]["sem_seg"]
    assert (in_many - in_one).abs().max() > 0.05
    torch.testing.assert_close(in_many.sum(0), torch.ones(17, 31))
