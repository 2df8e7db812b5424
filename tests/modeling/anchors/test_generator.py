"""Anchor clustering, its file, and KMeansAnchorGenerator."""

import json
import logging

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.layers import ShapeSpec
from detectron2.modeling.anchor_generator import build_anchor_generator
from detectron2.structures import BoxMode

import d2_cityscapes as d2c
from d2_cityscapes.modeling.anchors.clustering import (
    AnchorError,
    anchor_shapes,
    read_anchors,
    write_anchors,
)
from d2_cityscapes.modeling.anchors.generator import (
    KMeansAnchorGenerator,
    fit_anchors,
    network_shapes,
    resolve_anchors,
    short_edges,
)
from d2_cityscapes.modeling.build import build_model


def shapes_around(sizes, ratios, number, seed=0) -> np.ndarray:
    """(number, 2) shapes scattered around the anchors."""
    rng = np.random.default_rng(seed)
    placed = anchor_shapes(sizes, ratios)
    return placed[rng.integers(len(placed), size=number)] * rng.normal(1, 0.03, (number, 2))


# --- boxes as the network sees them ---


def record(*boxes, size=(100, 200), **extra):
    annotations = [{"bbox": list(b), "bbox_mode": BoxMode.XYXY_ABS, **extra} for b in boxes]
    return {"height": size[0], "width": size[1], "annotations": annotations}


def set_resize(cfg, min_size, max_size, sampling="choice"):
    cfg.INPUT.MIN_SIZE_TRAIN = min_size
    cfg.INPUT.MAX_SIZE_TRAIN = max_size
    cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING = sampling


@pytest.mark.parametrize(
    ("min_size", "max_size", "expected"),
    [
        ((50,), 1000, [[5, 10]]),  # half the size
        ((50,), 60, [[3, 6]]),  # the long edge caps: 60 / 200
        ((50, 100), 1000, [[5, 10], [10, 20]]),  # both scales count
        ((0,), 1000, [[10, 20]]),  # no resize
        ((33,), 1000, [[3.3, 6.6]]),
    ],
)
def test_network_shapes(tiny_cfg, min_size, max_size, expected):
    set_resize(tiny_cfg, min_size, max_size)
    np.testing.assert_allclose(network_shapes(tiny_cfg, [record((5, 5, 15, 25))]), expected)


def test_a_fixed_size_scales_both_sides(tiny_cfg):
    set_resize(tiny_cfg, (50,), 1000)
    tiny_cfg.INPUT.FIXED_SIZE = [300, 100]  # (h, w) of images of 100 x 200
    np.testing.assert_allclose(network_shapes(tiny_cfg, [record((5, 5, 15, 25))]), [[5, 60]])


def test_scale_jitter_multiplies_the_sizes_up_to_the_crop(tiny_cfg):
    """A box of 10 x 20 in 100 x 200: half the size, times five factors, cut at 12 x 16."""
    set_resize(tiny_cfg, (50,), 1000)
    plain = network_shapes(tiny_cfg, [record((5, 5, 15, 25))])
    tiny_cfg.INPUT.SCALE_JITTER.RANGE = [0.4, 2.0]
    tiny_cfg.INPUT.SCALE_JITTER.CROP_SIZE = [16, 12]
    np.testing.assert_array_equal(network_shapes(tiny_cfg, [record((5, 5, 15, 25))]), plain)
    tiny_cfg.INPUT.SCALE_JITTER.ENABLED = True
    np.testing.assert_allclose(
        network_shapes(tiny_cfg, [record((5, 5, 15, 25))]),
        [[2, 4], [4, 8], [6, 12], [8, 16], [10, 16]],
    )


def test_network_shapes_follow_the_size_of_each_image(tiny_cfg):
    set_resize(tiny_cfg, (100,), 1000)
    records = [record((0, 0, 10, 10)), record((0, 0, 10, 10), size=(200, 200))]
    np.testing.assert_allclose(network_shapes(tiny_cfg, records), [[10, 10], [5, 5]])


def test_what_training_leaves_out_is_left_out(tiny_cfg):
    set_resize(tiny_cfg, (50,), 1000)
    crowd, empty = record((0, 0, 10, 10), iscrowd=1), record((4, 4, 4, 9))
    assert network_shapes(tiny_cfg, [crowd, empty, record()]).shape == (0, 2)
    tiny_cfg.INPUT.MIN_INSTANCE_AREA = 20  # 80 px of the original at half the size
    records = [record((0, 0, 10, 10), area=area) for area in (79, 80)]
    assert len(network_shapes(tiny_cfg, records)) == 1


def test_short_edges():
    assert short_edges((800, 1024), "choice") == [800, 1024]
    assert short_edges(800, "choice") == [800]
    assert short_edges((800, 1024), "range") == [800, 856, 912, 968, 1024]
    assert short_edges((800, 800), "range") == [800]


# --- file and generator ---


@pytest.fixture
def dataset():
    """Name of a registered dataset whose boxes have known sizes at scale 1."""
    rng = np.random.default_rng(0)
    shapes = shapes_around((5, 10, 20, 40, 60), (0.5, 1.0, 2.0), number=400)
    corners = rng.uniform(0, 5, (400, 2))
    boxes = np.concatenate([corners, corners + shapes], axis=1).tolist()
    name = "anchors_test"
    DatasetCatalog.register(name, lambda: [record(*boxes[i : i + 20]) for i in range(0, 400, 20)])
    yield name
    DatasetCatalog.remove(name)


@pytest.fixture
def cfg(tiny_cfg, dataset):
    set_resize(tiny_cfg, (50,), 1000)
    tiny_cfg.DATASETS.TRAIN = (dataset,)
    tiny_cfg.MODEL.ANCHOR_GENERATOR.NAME = "KMeansAnchorGenerator"
    return tiny_cfg


def levels(number):
    return [ShapeSpec(channels=8, stride=4 * 2**i) for i in range(number)]


def test_fit_writes_json_and_plot(cfg, dataset, tmp_path):
    path = tmp_path / "made" / "anchors.json"
    found = fit_anchors(cfg, path)
    assert read_anchors(path) == found
    assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert sorted(p.name for p in path.parent.iterdir()) == ["anchors.json", "anchors.png"]
    np.testing.assert_allclose(found.anchors.sizes, (2.5, 5, 10, 20, 30), rtol=0.05)
    np.testing.assert_allclose(found.anchors.aspect_ratios, [(0.5, 1, 2)], rtol=0.05)
    content = json.loads(path.read_text())
    assert content["datasets"] == [dataset]
    assert content["resize"] == {"min_size": [50], "max_size": 1000, "sampling": "choice"}
    assert content["num_boxes"] == 400
    assert "height / width" in content["convention"]
    assert content["quality"]["kmeans"]["recall_70"] > content["quality"]["default"]["recall_70"]
    assert content["aspect_ratios"] == list(found.anchors.aspect_ratios[0])
    assert content["method"] == "separate"
    first = path.read_bytes()
    assert fit_anchors(cfg, path) == found and path.read_bytes() == first


def test_a_joint_fit_has_ratios_for_each_level(cfg, tmp_path):
    path = tmp_path / "anchors.json"
    separate = fit_anchors(cfg, path)
    cfg.MODEL.ANCHOR_GENERATOR.KMEANS.METHOD = "joint"
    joint = fit_anchors(cfg, path)
    assert read_anchors(path) == joint
    content, first = json.loads(path.read_text()), path.read_bytes()
    assert [len(ratios) for ratios in content["aspect_ratios"]] == [3] * 5
    assert content["method"] == "joint"
    assert list(content["quality"]) == ["kmeans", "separate", "default"]
    assert joint.quality["separate"] == separate.quality["kmeans"]
    assert joint.quality["kmeans"].mean_best_iou > separate.quality["kmeans"].mean_best_iou
    fit_anchors(cfg, path)
    assert path.read_bytes() == first


def test_methods_and_numbers_that_cannot_be(cfg, tmp_path):
    kmeans = cfg.MODEL.ANCHOR_GENERATOR.KMEANS
    kmeans.METHOD = "both"
    with pytest.raises(AnchorError, match=r"METHOD 'both': it is one of separate, joint, paper"):
        fit_anchors(cfg, tmp_path / "anchors.json")
    kmeans.METHOD, kmeans.NUM_SIZES = "joint", 4
    with pytest.raises(AnchorError, match=r"NUM_SIZES 4: .* each of the 5 feature levels"):
        fit_anchors(cfg, tmp_path / "anchors.json")
    assert list(tmp_path.iterdir()) == []


def test_files_of_earlier_versions_are_read(cfg, tmp_path):
    path = tmp_path / "anchors.json"
    found = fit_anchors(cfg, path)
    content = json.loads(path.read_text())
    del content["method"]
    path.write_text(json.dumps(content))
    assert read_anchors(path) == found


@pytest.mark.parametrize("method", ["separate", "joint", "paper"])
def test_generator_uses_the_file(cfg, tmp_path, method):
    path = tmp_path / "anchors.json"
    cfg.MODEL.ANCHOR_GENERATOR.KMEANS.METHOD = method
    anchors = fit_anchors(cfg, path).anchors
    ratios = np.broadcast_to(anchors.aspect_ratios, (5, 3))
    cfg.MODEL.ANCHOR_GENERATOR.KMEANS.SOURCE = str(path)
    cfg.MODEL.ANCHOR_GENERATOR.OFFSET = 0.5
    generator = build_anchor_generator(cfg, levels(5))
    assert isinstance(generator, KMeansAnchorGenerator)
    assert generator.num_anchors == [3] * 5
    features = [torch.zeros(1, 8, 16 >> i, 32 >> i) for i in range(5)]
    for level, boxes in enumerate(generator(features)):
        sides = boxes.tensor[:3, 2:] - boxes.tensor[:3, :2]
        torch.testing.assert_close(
            sides.prod(dim=1).sqrt(), torch.full((3,), anchors.sizes[level]), rtol=1e-4, atol=1e-4
        )
        torch.testing.assert_close(
            sides[:, 1] / sides[:, 0], torch.tensor(ratios[level]).float(), rtol=1e-4, atol=1e-4
        )
        centre = boxes.get_centers()[0]
        torch.testing.assert_close(centre, torch.full((2,), 0.5 * 4 * 2**level))


def test_without_a_source_it_is_stock(cfg):
    cfg.MODEL.ANCHOR_GENERATOR.OFFSET = 0.25
    ours = build_anchor_generator(cfg, levels(5))
    cfg.MODEL.ANCHOR_GENERATOR.NAME = "DefaultAnchorGenerator"
    stock = build_anchor_generator(cfg, levels(5))
    features = [torch.zeros(1, 8, 16 >> i, 32 >> i) for i in range(5)]
    for a, b in zip(ours(features), stock(features), strict=True):
        assert torch.equal(a.tensor, b.tensor)


@pytest.mark.parametrize("method", ["separate", "joint", "paper"])
def test_weights_of_a_stock_rpn_load(cfg, tmp_path, method):
    """They fit whatever the anchors, and say nothing about theirs."""
    cfg.MODEL.ANCHOR_GENERATOR.NAME = "DefaultAnchorGenerator"
    stock = build_model(cfg)
    cfg.MODEL.ANCHOR_GENERATOR.NAME = "KMeansAnchorGenerator"
    cfg.MODEL.ANCHOR_GENERATOR.KMEANS.METHOD = method
    fit_anchors(cfg, tmp_path / "anchors.json")
    cfg.MODEL.ANCHOR_GENERATOR.KMEANS.SOURCE = str(tmp_path / "anchors.json")
    build_model(cfg).load_state_dict(stock.state_dict(), strict=True)


# --- anchors that travel ---


def test_a_resolved_config_needs_no_file(cfg, tmp_path):
    path = tmp_path / "anchors.json"
    cfg.MODEL.ANCHOR_GENERATOR.KMEANS.METHOD = "joint"
    anchors = fit_anchors(cfg, path).anchors
    cfg.MODEL.ANCHOR_GENERATOR.KMEANS.SOURCE = str(path)
    from_file = build_model(cfg).proposal_generator.anchor_generator
    cfg.freeze()
    before = cfg.clone()
    resolved = resolve_anchors(cfg)
    assert cfg == before
    assert resolved.is_frozen()
    path.unlink()
    again = d2c.get_cfg()
    again.merge_from_other_cfg(CfgNode.load_cfg(resolved.dump()))
    generator = again.MODEL.ANCHOR_GENERATOR
    assert generator.KMEANS.SOURCE == ""
    sizes, ratios = generator.SIZES, generator.ASPECT_RATIOS
    assert sizes == [[size] for size in anchors.sizes]
    assert ratios == [list(level) for level in anchors.aspect_ratios]
    for name in ("KMeansAnchorGenerator", "DefaultAnchorGenerator"):
        generator.NAME = name
        from_config = build_anchor_generator(again, levels(5))
        for a, b in zip(from_file.cell_anchors, from_config.cell_anchors, strict=True):
            assert torch.equal(a, b)


def test_what_has_nothing_to_resolve_stays(cfg, caplog):
    assert resolve_anchors(cfg) is cfg
    cfg.MODEL.ANCHOR_GENERATOR.KMEANS.SOURCE = "none.json"
    cfg.MODEL.ANCHOR_GENERATOR.NAME = "DefaultAnchorGenerator"
    assert resolve_anchors(cfg) is cfg
    assert "SOURCE none.json: DefaultAnchorGenerator does not read it" in caplog.text


def test_anchors_travel_with_the_weights(cfg):
    model = build_model(cfg)
    weights = model.state_dict()
    build_model(cfg).load_state_dict(weights)
    cfg.MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS = [[0.5, 1.0, 2.0001]]
    with pytest.raises(AnchorError) as caught:
        build_model(cfg).load_state_dict(weights)
    message = str(caught.value)
    assert "\n" not in message and "config.yaml" in message
    assert "SIZES [[8], [16], [32], [64], [128]] ASPECT_RATIOS [[0.5, 1, 2]], but" in message
    assert (
        "the model has SIZES [[8], [16], [32], [64], [128]] ASPECT_RATIOS [[0.5, 1, 2.0001]]"
        in (message)
    )


def test_a_generator_of_other_levels_is_another(cfg):
    ours = build_anchor_generator(cfg, levels(5))
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[8, 16]]
    for number in (2, 5):
        with pytest.raises(AnchorError, match=r"SIZES \[\[8, 16\]\]"):
            build_anchor_generator(cfg, levels(number)).load_state_dict(ours.state_dict())


def test_wrong_number_of_levels(cfg, tmp_path):
    fit_anchors(cfg, tmp_path / "anchors.json")
    cfg.MODEL.ANCHOR_GENERATOR.KMEANS.SOURCE = str(tmp_path / "anchors.json")
    with pytest.raises(AnchorError, match=r"5 sizes for the 4 feature levels.*NUM_SIZES 4"):
        build_anchor_generator(cfg, levels(4))


def test_warns_about_another_resize(cfg, tmp_path, caplog):
    fit_anchors(cfg, tmp_path / "anchors.json")
    cfg.MODEL.ANCHOR_GENERATOR.KMEANS.SOURCE = str(tmp_path / "anchors.json")
    with caplog.at_level(logging.WARNING, logger="d2_cityscapes"):
        build_anchor_generator(cfg, levels(5))
        assert caplog.text == ""
        cfg.INPUT.MIN_SIZE_TRAIN = (100,)
        build_model(cfg)
    assert caplog.text.count("anchors were fitted to images resized by") == 1


def test_anchors_of_another_scale_jitter_are_of_another_resize(cfg, tmp_path, caplog):
    cfg.INPUT.SCALE_JITTER.ENABLED = True
    fit_anchors(cfg, tmp_path / "anchors.json")
    cfg.MODEL.ANCHOR_GENERATOR.KMEANS.SOURCE = str(tmp_path / "anchors.json")
    with caplog.at_level(logging.WARNING, logger="d2_cityscapes"):
        build_anchor_generator(cfg, levels(5))
        assert caplog.text == ""
        cfg.INPUT.SCALE_JITTER.RANGE = [0.1, 2.0]
        build_anchor_generator(cfg, levels(5))
    assert "'scale_jitter': [0.5, 2.0]" in caplog.text and "[0.1, 2.0]" in caplog.text


def test_missing_file(cfg, tmp_path):
    cfg.MODEL.ANCHOR_GENERATOR.KMEANS.SOURCE = str(tmp_path / "none.json")
    with pytest.raises(AnchorError, match=r"none.json: no anchor file.*d2c anchors"):
        build_anchor_generator(cfg, levels(5))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not a JSON file"),
        ("[" * 100_000, "not a JSON file"),
        ("[]", "not an anchor file"),
        ("{}", "no 'convention'"),
        ({"convention": "w/h"}, "unknown convention"),
        ({"sizes": []}, "expected positive numbers"),
        ({"sizes": [1, -2]}, "expected positive numbers"),
        ({"aspect_ratios": "wide"}, "not an anchor file"),
        ({"num_boxes": None}, "not an anchor file"),
        ({"quality": {"kmeans": {"recall": 1}}}, "not an anchor file"),
        ({"aspect_ratios": []}, "expected positive numbers"),
        ({"aspect_ratios": [[1.0]] * 4}, "aspect_ratios of 4 levels for 5 sizes"),
        ({"aspect_ratios": [[1.0]] * 4 + [[1.0, 2.0]]}, "aspect_ratios of 5 levels"),
        ({"aspect_ratios": [[1.0], 2.0]}, "not an anchor file"),
    ],
)
def test_malformed_file(cfg, tmp_path, content, message):
    path = tmp_path / "anchors.json"
    if isinstance(content, dict):
        write_anchors(path, fit_anchors(cfg, path))
        content = json.dumps(json.loads(path.read_text()) | content)
    path.write_text(content)
    with pytest.raises(AnchorError, match=message) as error:
        read_anchors(path)
    assert "\n" not in str(error.value)
    assert "run d2c anchors" in str(error.value)


def test_unknown_and_empty_datasets(cfg, dataset, tmp_path):
    cfg.DATASETS.TRAIN = ("nowhere",)
    with pytest.raises(AnchorError, match="no dataset 'nowhere'"):
        fit_anchors(cfg, tmp_path / "anchors.json")
    cfg.DATASETS.TRAIN = ()
    with pytest.raises(AnchorError, match=r"no boxes in DATASETS\.TRAIN"):
        fit_anchors(cfg, tmp_path / "anchors.json")
    cfg.DATASETS.TRAIN = (dataset,)
    cfg.MODEL.ANCHOR_GENERATOR.KMEANS.NUM_SIZES = 500
    with pytest.raises(AnchorError, match=r"400 boxes .* 500 clusters"):
        fit_anchors(cfg, tmp_path / "anchors.json")
    assert list(tmp_path.iterdir()) == []
