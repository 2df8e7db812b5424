"""torchvision's DeepLabv3 as a `DeepLabV3Segmentor`: its scores, and VOC's classes."""

import pytest
import torch
from converted_detectors import picture_of, randomise, spread_classes
from torchvision.models.segmentation import deeplabv3_resnet50, deeplabv3_resnet101

from d2_cityscapes.convert import ConversionError, convert_file, torchvision_to_segmentor
from d2_cityscapes.engine.checkpoints.checkpointer import Checkpointer
from d2_cityscapes.engine.setup import load_config
from d2_cityscapes.labels import CITYSCAPES
from d2_cityscapes.modeling.build import build_model

CONFIG = "deeplabv3_R_50_768x1024_semantic19.yaml"
NAMES = [c.name for c in CITYSCAPES.classes]


def network(rows: int, *, aux: bool, build=deeplabv3_resnet50) -> torch.nn.Module:
    torch.manual_seed(rows)
    return build(weights=None, weights_backbone=None, num_classes=rows, aux_loss=aux)


@pytest.fixture(scope="module")
def voc() -> dict:
    """Only the heads have values: nothing is computed with them."""
    with torch.device("meta"):
        shapes = network(21, aux=True).state_dict()
    heads = ("classifier", "aux_classifier")
    return {
        name: torch.randn(t.shape) if name.startswith(heads) else torch.zeros(()).expand(t.shape)
        for name, t in shapes.items()
    }


def test_same_scores(repository, tmp_path):
    """Without an auxiliary head, which the model has in any case."""
    source = randomise(network(19, aux=False))
    last = source.classifier[4]
    torch.nn.init.normal_(last.weight)
    spread_classes(last, lambda: source(torch.randn(1, 3, 48, 72)))
    torch.save(source.state_dict(), tmp_path / "in.pth")
    report = convert_file("torchvision-segmentor", tmp_path / "in.pth", tmp_path / "out.pth")
    assert "no auxiliary head in it: random" in report
    opts = ["MODEL.WEIGHTS", ""]
    cfg = load_config(repository / "configs" / "semantic" / CONFIG, opts, train=False)
    model = build_model(cfg).eval()
    Checkpointer(model).load(str(tmp_path / "out.pth"))  # refuses what is not complete
    picture = picture_of(48, 72)
    mean, std = (
        torch.tensor(x)[:, None, None] for x in (cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD)
    )
    with torch.no_grad():
        expected = source(((picture - mean) / std)[None])["out"][0]
        found = model([{"image": picture}])[0]["sem_seg"]
    assert expected.argmax(dim=0).unique().numel() > 2, "scores that say nothing"
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_of_voc_the_classes_that_cityscapes_has(voc):
    found = torchvision_to_segmentor(voc)
    voc_rows = {"bicycle": 2, "bus": 6, "car": 7, "motorcycle": 14, "person": 15, "train": 19}
    for head in ("classifier", "aux_classifier"):
        ours, theirs = found.tensors[f"{head}.4.weight"], voc[f"{head}.4.weight"]
        assert len(ours) == 19
        for name, row in voc_rows.items():
            assert torch.equal(ours[NAMES.index(name)], theirs[row])
        assert not any(torch.equal(ours[NAMES.index("rider")], row) for row in theirs)
    assert found.classes["classes"] == NAMES
    assert "rows of person, car, bus, train, motorcycle, bicycle taken from VOC" in found.report[2]
    assert "2 reshaped" not in found.summary(voc)
    assert "4 reshaped" in found.summary(voc)


def test_same_seed_same_rows(voc):
    name = "classifier.4.weight"
    rows = [torchvision_to_segmentor(voc, seed=seed).tensors[name] for seed in (1, 1, 2)]
    assert torch.equal(rows[0], rows[1])
    assert not torch.equal(rows[0], rows[2])


def test_101_layers():
    with torch.device("meta"):
        weights = network(19, aux=True, build=deeplabv3_resnet101).state_dict()
    found = torchvision_to_segmentor(weights)
    assert found.report[-1].endswith("with MODEL.RESNETS.DEPTH 101")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("classifier.1.weight"), "missing: classifier.1.weight"),
        (lambda w: w.pop("aux_classifier.4.bias"), "missing: aux_classifier.4.bias"),
        (lambda w: w.update({"head.bias": torch.zeros(1)}), "unknown: head.bias"),
        (lambda w: w.pop("classifier.4.weight"), "no classifier.4.weight: not a DeepLabv3"),
    ],
)
def test_another_network_is_refused(voc, change, message):
    weights = dict(voc)
    change(weights)
    with pytest.raises(ConversionError, match=message):
        torchvision_to_segmentor(weights)
